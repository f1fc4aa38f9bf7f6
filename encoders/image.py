"""Pictures to unit vectors, with any `open_clip` model; its text tower encodes queries into the same space.

Preprocessing is open_clip's own transform. The model is loaded on the first use; the space is known at once, from the files.
"""

import threading
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import numpy as np

from encoders._pictures import upright_rgb
from encoders.compiled import PaddedRows
from encoders.device import Compute, check_compute, choose_compute, once
from encoders.errors import WeightsError
from encoders.prepacked import prepack
from encoders.space import EmbeddingSpace, slugify
from encoders.staged import Stages, Unit, encode_all
from encoders.tokens import TokenCounts, check_texts, count_padded
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

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGES_PER_BATCH: Final = {"cpu": 16, "cuda": 256}
TOKENS_PER_BATCH: Final = {"cpu": 1024, "cuda": 32768}
# Beyond this ratio of sides only the middle is resized: the transform would crop to it anyway, after making a picture of
# 1 x 50,000 pixels 224 wide and 11 million high.
MAX_ASPECT: Final = 16


class LoadedClip(NamedTuple):
    """An open_clip model, its transform (picture -> [3, h, w]) and its tokenizer (texts -> ids [n, length])."""

    model: Any
    transform: Callable[["Image"], Any]
    tokenize: Callable[[list[str]], Any]


class ClipModel(Protocol):
    """What an `ImageEncoder` needs to know of a model before, and to get when, it loads it."""

    name: str
    kind: str
    description: str
    dim: int

    def recipe(self) -> dict[str, Any]:
        """What names its weights and preprocessing."""

    def load(self) -> LoadedClip:
        """The model in float32 with its transform and tokenizer."""


class ImageEncoder(Stages):
    """An image encoder and its embedding space.

    Args:
        source: hub id, local folder (`open_clip_config.json` and weights), or `bundled`.
        slug: the space's readable part; by default made from `source`.
        device: `auto`, `cpu`, `cuda` ...; `dtype` overrides the precision.
        revision: of the hub id.
        whitening: a file of `encoders.whitening`, fitted on this encoder's vectors without it.
        compile: compile the model for long bulk jobs, a minute or more at its first batches; no part of the space.
    """

    def __init__(
        self,
        source: str | Path,
        *,
        slug: str | None = None,
        device: str = "auto",
        dtype: str | None = None,
        revision: str | None = None,
        whitening: str | Path | None = None,
        compile: bool = False,  # noqa: A002  (the option's name)
    ) -> None:
        self._device, self._dtype = check_compute(device, dtype)
        if source == BUNDLED:
            from encoders.bundled.clip import BundledClip

            self._source: ClipModel = BundledClip()
        else:
            self._source = _FolderClip(resolve_source(source, revision=revision), slugify(Path(source).name))
        self._compile = compile
        self._tokenizer_lock = threading.Lock()
        recipe = {**self._source.recipe(), "max_aspect": MAX_ASPECT, "normalisation": "l2"}
        self.whitening = load_for(whitening, self._source.dim)
        recipe, dim = whitened(recipe, self._source.dim, self.whitening)
        self.space = EmbeddingSpace.from_recipe(
            "image",
            slug or self._source.name,
            dim,
            recipe,
            kind=self._source.kind,
            description=self._source.description,
            query_modality="text",
        )

    def encode_query(self, texts: Sequence[str]) -> Vectors:
        """Unit vectors [n, dim] of texts, comparable with those of pictures."""
        return encode_all(self, texts, query=True)

    def prepare(self, items: Sequence[Any], *, query: bool = False) -> list[tuple[Unit, ...]]:
        """One unit per item: a picture's pixels [3, h, w], or a query's token ids [context length].

        A picture is a PIL image, of any mode: it is turned upright and laid on white, as `encoders.media.decode_image` does with a file's.

        Raises:
            MediaError: `empty`, a picture has no pixels, or `undecodable`.
            EncoderError: an item is no picture, or a query is no text.
        """
        if not query:
            return [(Unit("image", 1, self._loaded.transform(trim_aspect(upright_rgb(one)))),) for one in items]
        return [(Unit("text", len(row), row),) for row in self._tokenize(items)]

    def _tokenize(self, texts: Sequence[str]) -> Any:
        """Token ids [n, context length]; a tokenizer's settings may change in a call, so it is one at a time."""
        with self._tokenizer_lock:
            return self._loaded.tokenize(list(check_texts(texts)))

    def count_tokens(self, texts: Sequence[str]) -> TokenCounts:
        """How the text tower's tokenizer reads texts; of nothing where it knows no [UNK], since it then reads everything."""
        tokenizer = getattr(self._loaded.tokenize, "tokenizer", None)
        return count_padded(self._tokenize(texts), tokenizer) if tokenizer and texts else TokenCounts()

    def budget(self, group: Hashable) -> int:
        """Pictures, or tokens, that one forward should hold."""
        return (TOKENS_PER_BATCH if group == "text" else IMAGES_PER_BATCH)[self.compute.kind]

    def collate(self, units: Sequence[Unit]) -> tuple[str, Any]:
        """The group, and pixels [rows, 3, h, w] or token ids [rows, context length]."""
        import torch

        stacked = torch.stack([unit.data for unit in units])
        if units[0].group == "image":
            stacked = stacked.to(self.compute.torch_dtype, memory_format=torch.channels_last)
        return str(units[0].group), self.compute.send(stacked)

    def launch(self, batch: tuple[str, Any]) -> Any:
        """Projected rows [rows, dim]."""
        import torch

        group, inputs = batch
        encode = self._encode_text if group == "text" else self._encode_image  # made outside of inference mode
        with torch.inference_mode():
            return encode(inputs)

    def compile_forwards(self) -> None:
        """Compile the image tower for whole batches, where it is to be compiled."""
        if self._compile and isinstance(self._encode_image, PaddedRows):
            self._encode_image.compile(self._noise(1))

    def warm_up(self) -> None:
        """Load the model and run one forward of each tower."""
        from PIL import Image

        self.encode([Image.new("RGB", (64, 64), "grey")])
        self.encode_query(["warm up"])

    @once
    def compute(self) -> Compute:
        """Where the model runs: convolutional towers with batch norms lose a cosine of .995 to bfloat16 (Transformers .9999): they stay in float32."""
        import torch

        batch_norms = any(isinstance(module, torch.nn.BatchNorm2d) for module in self._loaded.model.modules())
        return choose_compute(self._device, self._dtype or ("float32" if batch_norms else None))

    @once
    def _encode_image(self) -> Callable[[Any], Any]:
        tower: Callable[[Any], Any] = self._model.visual
        if self._compile:
            return PaddedRows(tower, self.compute, self.budget("image"))
        inputs = ([self._noise(rows)] for rows in (2, 1, 3))
        return traced(tower, self.compute, self.space.space_id, *inputs)

    def _noise(self, rows: int) -> Any:
        """Pixels [rows, 3, h, w] of pictures of noise."""
        from PIL import Image

        noise = np.random.default_rng(rows).integers(0, 256, (rows, 64, 64, 3), np.uint8)
        return self.collate([unit for (unit,) in self.prepare([Image.fromarray(one) for one in noise])])[1]

    @once
    def _encode_text(self) -> Callable[[Any], Any]:
        """Projected rows [rows, dim] of token ids [rows, context length]."""
        forward = calling(self._model, lambda model, ids: model.encode_text(ids))

        def inputs(*texts: str) -> Any:
            return [self.collate([unit for (unit,) in self.prepare(texts, query=True)])[1]]

        others = (inputs("a"), inputs("two words", "a", "three more words"))
        return traced(forward, self.compute, self.space.space_id, inputs("a text", "another"), *others)

    @once
    def _loaded(self) -> LoadedClip:
        return self._source.load()

    @once
    def _model(self) -> Any:
        import torch

        # Twice as fast for convolutions on a CPU, and nothing to a Transformer.
        model = self.compute.prepare(self._loaded.model).to(memory_format=torch.channels_last)
        return model if self._compile else prepack(model, self.compute)  # the compiler prepacks by itself


def trim_aspect(picture: "Image") -> "Image":
    """`picture`, or its middle part where one side is more than `MAX_ASPECT` times the other."""
    width, height = picture.size
    limit = min(width, height) * MAX_ASPECT
    if max(width, height) <= limit:
        return picture
    left, top = max(0, (width - limit) // 2), max(0, (height - limit) // 2)
    return picture.crop((left, top, left + min(width, limit), top + min(height, limit)))


class _FolderClip:
    """An open_clip folder: `open_clip_config.json`, weights, and the tokenizer's files where the text tower is a hub model."""

    kind = "encoder"

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self.name = folder, name
        self._config = read_config(folder, "open_clip_config.json")
        try:
            self.dim = int(self._config["model_cfg"]["embed_dim"])
        except (KeyError, TypeError, ValueError):
            raise WeightsError(f"{folder / 'open_clip_config.json'} must name model_cfg.embed_dim") from None
        self._text_tower = self._text_tower_here()
        self.description = f"open_clip model {name}; queries by its text tower"

    def _text_tower_here(self) -> dict[str, Any]:
        """The `config.json` of a text tower from `transformers` where the folder has one; open_clip would look on the hub."""
        text_cfg = self._config["model_cfg"].get("text_cfg", {})
        here = "hf_model_name" in text_cfg and (self._folder / "config.json").is_file()
        return read_config(self._folder) if here else {}

    def recipe(self) -> dict[str, Any]:
        tower = {"text_architecture": config_digest(self._text_tower)} if self._text_tower else {}
        return {
            **tower,
            "library": "open_clip",
            "architecture": config_digest(self._config["model_cfg"]),
            "weights": weights_digest(self._folder),
            "tokenizer": tokenizer_digest(self._folder),
            "preprocessing": self._config.get("preprocess_cfg", {}),
        }

    def load(self) -> LoadedClip:
        import open_clip

        name, overrides = f"local-dir:{self._folder}", {}
        if self._text_tower:
            text_cfg = self._config["model_cfg"]["text_cfg"]
            overrides["text_cfg"] = {**text_cfg, "hf_model_name": str(self._folder), "hf_model_pretrained": False}
        try:
            with quiet():
                model, _, transform = open_clip.create_model_and_transforms(name, require_pretrained=True, **overrides)
                return LoadedClip(model, transform, open_clip.get_tokenizer(name))
        except Exception as error:  # open_clip, timm and transformers each have their own
            raise WeightsError(f"the open_clip model in {self._folder} cannot be loaded: {error}") from error
