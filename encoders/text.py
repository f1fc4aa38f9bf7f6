"""Text to unit vectors, with any BERT-family model of `transformers`.

Pooling is the mean over the attention mask (or the first token); batches are sorted by length and bounded in padded tokens.
The model is loaded on the first use; the space is known at once, from the files.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from encoders.device import Compute, choose_compute
from encoders.errors import EncoderError, WeightsError
from encoders.space import EmbeddingSpace, slugify
from encoders.vectors import Progress, Vectors, to_numpy, token_batches, unit_vectors
from encoders.weights import (
    BUNDLED,
    config_digest,
    quiet,
    read_config,
    resolve_source,
    tokenizer_digest,
    weights_digest,
)

POOLINGS: Final = ("mean", "cls")
# Large enough to fill two cores, small enough that a batch of short texts does not wait for a long one (measured).
PADDED_TOKENS_PER_BATCH: Final = {"cpu": 1024, "cuda": 32768}
LONGEST_DEFAULT_TOKENS: Final = 512
_OFFSET_POSITIONS: Final = ("roberta", "xlm-roberta", "camembert", "mpnet")  # position ids start after the padding id


class TextEncoder:
    """A text encoder and its embedding space.

    Args:
        source: hub id, local folder, or `bundled`.
        slug: the space's readable part; by default made from `source`.
        device: `auto`, `cpu`, `cuda` ...; `dtype` overrides the precision.
        max_length: tokens kept of a text; by default what the model was made for.
        template: how a stored text is worded, with `{text}` in it (such as `passage: {text}`).
        query_prefix: put before a query's text.
        pooling: `mean` over the tokens, or `cls`.
        revision: of the hub id.
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
    ) -> None:
        if "{text}" not in template:
            raise EncoderError(f"text template {template!r} must contain {{text}}")
        if pooling not in POOLINGS:
            raise EncoderError(f"pooling {pooling!r} must be one of {', '.join(POOLINGS)}")
        if source == BUNDLED:
            from encoders.bundled.packages import minilm_folder

            source, slug = minilm_folder(), slug or "minilm_l6"
        self._folder = resolve_source(source, revision=revision)
        self._device, self._dtype = device, dtype
        self._template, self._query_prefix, self._pooling = template, query_prefix, pooling
        config = read_config(self._folder)
        self.max_length = max_length or _default_max_length(self._folder, config)
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
        return EmbeddingSpace.from_recipe("text", slug, config["hidden_size"], recipe, description=description)

    def encode(self, items: Sequence[str], *, progress: Progress = None) -> Vectors:
        """Unit vectors [n, dim] of stored texts, in their order; `progress` is told how many more are done."""
        return self._encode([self._template.replace("{text}", text) for text in items], progress)

    def encode_query(self, texts: Sequence[str]) -> Vectors:
        """Unit vectors [n, dim] of queries, comparable with those of `encode`."""
        return self._encode([self._query_prefix + text for text in texts], None)

    def _encode(self, texts: list[str], progress: Progress) -> Vectors:
        vectors = np.zeros((len(texts), self.space.dim), dtype=np.float32)
        if not texts:
            return vectors
        tokens = self._tokenizer(texts, truncation=True, max_length=self.max_length)["input_ids"]
        budget = PADDED_TOKENS_PER_BATCH[self._compute.kind]
        for rows in token_batches([len(ids) for ids in tokens], budget):
            vectors[rows] = self._forward([tokens[row] for row in rows])
            if progress:
                progress(len(rows))
        return unit_vectors(vectors, self.space)

    def _forward(self, tokens: list[list[int]]) -> Vectors:
        import torch

        batch = self._tokenizer.pad({"input_ids": tokens}, return_tensors="pt").to(self._compute.device)
        with torch.inference_mode():
            hidden = self._model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
        if self._pooling == "cls":
            return to_numpy(hidden[:, 0])
        mask = batch["attention_mask"].unsqueeze(-1).float()  # [rows, tokens, 1]
        return to_numpy((hidden.float() * mask).sum(1) / mask.sum(1))

    @functools.cached_property
    def _compute(self) -> Compute:
        return choose_compute(self._device, self._dtype)

    @functools.cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        with quiet():
            return AutoTokenizer.from_pretrained(self._folder)

    @functools.cached_property
    def _model(self) -> Any:
        return self._compute.prepare(load_transformer(self._folder))


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


def _default_max_length(folder: Path, config: dict[str, Any]) -> int:
    if (folder / "sentence_bert_config.json").is_file():
        stated = read_config(folder, "sentence_bert_config.json").get("max_seq_length")
        if stated:
            return int(stated)
    positions = config.get("max_position_embeddings") or LONGEST_DEFAULT_TOKENS
    if config.get("model_type") in _OFFSET_POSITIONS:
        positions -= 2
    return min(int(positions), LONGEST_DEFAULT_TOKENS)
