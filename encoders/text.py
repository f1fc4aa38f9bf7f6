"""Text to unit vectors, with any BERT-family model of `transformers`.

Pooling is the mean over the attention mask (or the first token); batches are sorted by length and bounded in padded tokens.
The model is loaded on the first use; the space is known at once, from the files.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from encoders.compiled import Packed, PackedText, check_family
from encoders.device import Compute, check_compute, choose_compute, once
from encoders.errors import EncoderError, MediaError, WeightsError
from encoders.prepacked import prepack
from encoders.space import EmbeddingSpace, slugify
from encoders.staged import Stages, Unit, encode_all
from encoders.tokens import FolderTokenizer, TokenCounts, check_texts
from encoders.traced import calling, traced
from encoders.vectors import Vectors
from encoders.weights import (
    BUNDLED,
    config_digest,
    quiet,
    read_config,
    resolve_source,
    tokenizer_digest,
    weights_digest,
)
from encoders.whitening import load_for, whitened

POOLINGS: Final = ("mean", "cls")
# One core multiplies as fast from 512 tokens on; more would only pad more (1.04 times the tokens against 1.065 at 1,024).
PADDED_TOKENS_PER_BATCH: Final = {"cpu": 512, "cuda": 32768}
LONGEST_DEFAULT_TOKENS: Final = 512
LEAST_TOKENS: Final = 3  # one between the two special ones
UNBOUNDED_TOKENS: Final = 1 << 20  # of models whose positions are relative
WARM_UP_TEXT: Final = "warm up"
_OFFSET_POSITIONS: Final = ("roberta", "xlm-roberta", "camembert", "mpnet")  # position ids start after the padding id


class TextEncoder(Stages):
    """A text encoder and its embedding space.

    Args:
        source: hub id, local folder, or `bundled`.
        slug: the space's readable part; by default made from `source`.
        device: `auto`, `cpu`, `cuda` ...; `dtype` overrides the precision.
        max_length: tokens kept of a text, at most the model's positions; by default what the model was made for.
        template: how a stored text is worded, with `{text}` in it (such as `passage: {text}`).
        query_prefix: put before a query's text.
        pooling: `mean` over the tokens, or `cls`.
        revision: of the hub id.
        whitening: a file of `encoders.whitening`, fitted on this encoder's vectors without it.
        compile: compile the model for long bulk jobs, a minute or more at its first batches; no part of the space. A CPU without AMX
            gains nothing by it (decision 013).
    """

    def __init__(
        self,
        source: str | Path,
        *,
        slug: str | None = None,
        device: str = "auto",
        dtype: str | None = None,
        max_length: int | None = None,
        template: str = "{text}",
        query_prefix: str = "",
        pooling: str = "mean",
        revision: str | None = None,
        whitening: str | Path | None = None,
        compile: bool = False,  # noqa: A002  (the option's name)
    ) -> None:
        self._device, self._dtype = check_compute(device, dtype)
        if "{text}" not in template:
            raise EncoderError(f"text template {template!r} must contain {{text}}")
        if pooling not in POOLINGS:
            raise EncoderError(f"pooling {pooling!r} must be one of {', '.join(POOLINGS)}")
        if source == BUNDLED:
            from encoders.bundled.packages import minilm_folder

            source, slug = minilm_folder(), slug or "minilm_l6"
        self._folder = resolve_source(source, revision=revision)
        self._compile = compile
        self._template, self._query_prefix, self._pooling = template, query_prefix, pooling
        config = read_config(self._folder)
        self.max_length = _max_length(max_length, self._folder, config)
        if compile:
            check_family(config.get("model_type", ""))
        self.whitening = load_for(whitening, config.get("hidden_size"))
        self.space = self._describe(config, slug or slugify(Path(source).name))

    def _describe(self, config: dict[str, Any], slug: str) -> EmbeddingSpace:
        if "hidden_size" not in config:
            raise WeightsError(f"{self._folder} is not a BERT-family model: its config.json has no hidden_size")
        recipe = {
            "library": "transformers",
            "architecture": config_digest(config),
            "weights": weights_digest(self._folder),
            "tokenizer": tokenizer_digest(self._folder),
            "template": self._template,
            "query_prefix": self._query_prefix,
            "max_length": self.max_length,
            "pooling": self._pooling,
            "normalisation": "l2",
        }
        description = (
            f"{config.get('model_type', 'text')} model, {self._pooling} pooling over at most {self.max_length} tokens"
        )
        recipe, dim = whitened(recipe, config["hidden_size"], self.whitening)
        return EmbeddingSpace.from_recipe("text", slug, dim, recipe, description=description)

    def encode_query(self, texts: Sequence[str]) -> Vectors:
        """Unit vectors [n, dim] of queries, comparable with those of `encode`."""
        return encode_all(self, texts, query=True)

    def prepare(self, items: Sequence[str], *, query: bool = False) -> list[tuple[Unit, ...]]:
        """One unit of token ids per text, worded by the template, or by the query prefix.

        Raises:
            MediaError: `empty`, a text has no tokens at all (an empty text has, where the tokenizer adds special ones).
        """
        rows = self._tokenizer(self._worded(items, query=query))
        if not all(rows):
            raise MediaError("empty", "the text has no tokens")
        return [(Unit("text", len(ids), ids),) for ids in rows]

    def _worded(self, texts: Sequence[str], *, query: bool) -> list[str]:
        check_texts(texts)
        if query:
            return [self._query_prefix + text for text in texts]
        return [self._template.replace("{text}", text) for text in texts]

    def budget(self, group: Hashable) -> int:  # noqa: ARG002  (there is one group)
        """Padded tokens that one forward should hold."""
        return PADDED_TOKENS_PER_BATCH[self.compute.kind]

    def plan(self, units: Sequence[Unit]) -> Iterator[list[int]]:
        """Indices of units in batches; of a compiled model's such that they fill its shapes."""
        return self._packed.plan([unit.length for unit in units]) if self._compile else super().plan(units)

    def collate(self, units: Sequence[Unit]) -> Packed | tuple[Any, Any]:
        """Token ids and mask [rows, longest]; packed for a compiled model, where they fill its shapes."""
        import torch

        if self._compile and (packed := self._packed.collate([unit.data for unit in units])):
            return packed
        ids = torch.full((len(units), max(unit.length for unit in units)), self._tokenizer.pad_id)
        mask = torch.zeros_like(ids)
        for row, unit in enumerate(units):
            ids[row, : unit.length] = torch.as_tensor(unit.data)
            mask[row, : unit.length] = 1
        return self.compute.send(ids), self.compute.send(mask)

    def launch(self, batch: Packed | tuple[Any, Any]) -> Any:
        """Pooled rows [rows, dim]."""
        import torch

        if isinstance(batch, Packed):
            return self._packed(batch)
        ids, mask = batch
        hidden_of = self._hidden  # made outside of inference mode
        with torch.inference_mode():
            return pool(hidden_of(ids, mask), mask, self._pooling)

    def compile_forwards(self) -> None:
        """Compile the model for packed rows, where it is to be compiled."""
        if self._compile:
            self._packed.compile()

    def warm_up(self) -> None:
        """Load the tokenizer and the model, and run one forward."""
        self.encode([WARM_UP_TEXT])

    def count_tokens(self, texts: Sequence[str]) -> TokenCounts:
        """How the tokenizer reads stored texts: unknown tokens, and texts cut at the model's length."""
        return self._tokenizer.count(self._worded(texts, query=False))

    @once
    def compute(self) -> Compute:
        """Where and in which precision the model runs."""
        return choose_compute(self._device, self._dtype)

    @once
    def _tokenizer(self) -> FolderTokenizer:
        return FolderTokenizer(self._folder, self.max_length)

    @once
    def _hidden(self) -> Callable[[Any, Any], Any]:
        """Hidden states [rows, tokens, dim] of token ids and mask, each [rows, tokens]."""
        forward: Callable[..., Any] = calling(
            self._model, lambda model, ids, mask: model(input_ids=ids, attention_mask=mask).last_hidden_state
        )
        if self._compile:
            return forward  # it sees few batches: those that do not fill the compiled shapes

        def inputs(*lengths: int) -> Any:
            ids = [[2 + (place + length) % 7 for place in range(length)] for length in lengths]
            return self.collate([Unit("text", len(row), row) for row in ids])

        some, long = (min(length, self.max_length) for length in (7, LONGEST_DEFAULT_TOKENS))
        others = (inputs(some), inputs(some, 2, 3), inputs(long))
        return traced(forward, self.compute, self.space.space_id, inputs(2, 3), *others)

    @once
    def _packed(self) -> PackedText:
        return PackedText(self._model, self.compute, self._pooling, self.budget("text"))

    @once
    def _model(self) -> Any:
        model = self.compute.prepare(load_transformer(self._folder))
        return model if self._compile else prepack(model, self.compute)  # the compiler prepacks by itself


def pool(hidden: Any, mask: Any, pooling: str) -> Any:
    """Rows [rows, dim] in float32 of hidden states [rows, tokens, dim]: the mean where `mask` [rows, tokens] is 1, or the first."""
    if pooling == "cls":
        return hidden[:, 0].float()
    weights = mask.unsqueeze(-1).float()
    return (hidden.float() * weights).sum(1) / weights.sum(1)


def load_transformer(folder: Path) -> Any:
    """The folder's model, in float32, with every weight but the unused pooler's found in its checkpoint.

    Raises:
        WeightsError: weights are missing or the model cannot be built.
    """
    import torch
    from transformers import AutoModel

    try:
        with quiet():
            model, report = AutoModel.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise WeightsError(f"the model in {folder} cannot be loaded: {error}") from error
    missing = sorted(name for name in report["missing_keys"] if not name.startswith(("pooler.", "masked_spec_embed")))
    if missing:
        raise WeightsError(
            f"the checkpoint in {folder} lacks {len(missing)} of the model's weights, such as {missing[0]!r}"
        )
    return model


def _max_length(asked: int | None, folder: Path, config: dict[str, Any]) -> int:
    positions = int(config.get("max_position_embeddings") or UNBOUNDED_TOKENS)
    if config.get("model_type") in _OFFSET_POSITIONS:
        positions -= 2
    if asked is None:
        return min(positions, _recommended_max_length(folder))
    if not LEAST_TOKENS <= asked <= positions:
        raise EncoderError(
            f"max_length {asked} must be {LEAST_TOKENS} to {positions}, the number of the model's positions"
        )
    return asked


def _recommended_max_length(folder: Path) -> int:
    if (folder / "sentence_bert_config.json").is_file():
        stated = read_config(folder, "sentence_bert_config.json").get("max_seq_length")
        if stated:
            return int(stated)
    return LONGEST_DEFAULT_TOKENS
