"""Sound to unit vectors, with any wav2vec 2.0 family model of `transformers` (HuBERT, WavLM ... too).

A clip is cut into fixed windows; a vector is the mean over a window's frames, then over windows. Only windows of one length are
batched: wav2vec2-base normalises over time, so that padding would change its output.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from encoders._sounds import SAMPLE_RATE_HZ
from encoders.device import Compute, check_compute, choose_compute, once
from encoders.errors import EncoderError, MediaError, WeightsError
from encoders.prepacked import prepack
from encoders.space import EmbeddingSpace, slugify
from encoders.staged import Stages, Unit
from encoders.text import load_transformer
from encoders.traced import calling, traced
from encoders.weights import BUNDLED, config_digest, read_config, resolve_source, weights_digest
from encoders.whitening import load_for, whitened

WINDOW_SECONDS: Final = 10.0
# A core is fastest with few seconds at once, whose convolutions stay in its caches.
SECONDS_PER_BATCH: Final = {"cpu": 5, "cuda": 640}
# The variance floor of transformers' Wav2Vec2FeatureExtractor: a silent clip stays zeros.
_VARIANCE_FLOOR: Final = 1e-7
_FAMILY: Final = (
    "data2vec-audio", "hubert", "sew", "unispeech", "unispeech-sat", "wav2vec2", "wav2vec2-bert", "wav2vec2-conformer", "wavlm",
)  # fmt: skip
Clip = NDArray[np.float32]


class AudioModel(Protocol):
    """What an `AudioEncoder` needs to know of a model before, and to get when, it loads it."""

    name: str
    kind: str
    description: str

    def config(self) -> dict[str, Any]:
        """The model's configuration, as its config.json holds it."""

    def recipe(self) -> dict[str, Any]:
        """What names its weights."""

    def normalises(self) -> bool:
        """Whether a clip is brought to zero mean and unit variance first."""

    def load(self) -> Any:
        """The model, in float32."""


class AudioEncoder(Stages):
    """An audio encoder and its embedding space.

    Args:
        source: hub id, local folder, or `bundled`.
        slug: the space's readable part; by default made from `source`.
        device: `auto`, `cpu`, `cuda` ...; `dtype` overrides the precision.
        window_seconds: longest stretch encoded at once; shorter clips are encoded whole.
        revision: of the hub id.
        whitening: a file of `encoders.whitening`, fitted on this encoder's vectors without it.
    """

    def __init__(
        self,
        source: str | Path,
        *,
        slug: str | None = None,
        device: str = "auto",
        dtype: str | None = None,
        window_seconds: float = WINDOW_SECONDS,
        revision: str | None = None,
        whitening: str | Path | None = None,
    ) -> None:
        self._device, self._dtype = check_compute(device, dtype)
        if source == BUNDLED:
            from encoders.bundled.wav2vec2 import BundledWav2Vec2

            self._source: AudioModel = BundledWav2Vec2()
        else:
            self._source = _FolderModel(resolve_source(source, revision=revision), slugify(Path(source).name))
        if not math.isfinite(window_seconds):
            raise EncoderError(f"window_seconds {window_seconds} must be a finite number")
        self._window = int(window_seconds * SAMPLE_RATE_HZ)
        self._shortest = _receptive_field(self._source.config())
        if self._window < self._shortest:
            raise EncoderError(f"window_seconds {window_seconds} is shorter than one frame of the model")
        self.whitening = load_for(whitening, self._source.config()["hidden_size"])
        self.space = self._describe(slug or self._source.name)

    def _describe(self, slug: str) -> EmbeddingSpace:
        recipe = {
            **self._source.recipe(),
            "sample_rate_hz": SAMPLE_RATE_HZ,
            "window_samples": self._window,
            "short_clips": "repeated",
            "clip_normalisation": self._source.normalises(),
            "pooling": "mean over frames, then windows",
            "normalisation": "l2",
        }
        recipe, dim = whitened(recipe, self._source.config()["hidden_size"], self.whitening)
        kind, description = self._source.kind, self._source.description
        return EmbeddingSpace.from_recipe("audio", slug, dim, recipe, kind=kind, description=description)

    def prepare(self, items: Sequence[Clip], *, query: bool = False) -> list[tuple[Unit, ...]]:
        """One unit per window of each clip; the group is the window's length.

        Less than a frame is repeated until it is one; files that short are refused where they are decoded.

        Raises:
            MediaError: `too_short`, without samples, or `not_finite`.
            EncoderError: an item is no clip; queries are texts, and this space takes none.
        """
        if query:
            raise EncoderError(f"space {self.space.space_id} takes no text queries; give a sound")
        return [tuple(Unit(len(window), len(window), window) for window in self._windows(clip)) for clip in items]

    def _windows(self, clip: Any) -> list[Clip]:
        """The clip's windows, the last one aligned to its end so that all are of one length."""
        if not isinstance(clip, np.ndarray):
            advice = "encoders.media.decode_audio makes one of a file (a Path) or its bytes"
            raise EncoderError(
                f"a clip must be an array of samples, not the {type(clip).__name__} {clip!r:.40}; {advice}"
            )
        if clip.ndim != 1 or not np.isfinite(clip).all():
            raise MediaError(
                "not_finite", f"the clip must be a finite mono signal, not one of shape {list(clip.shape)}"
            )
        if not len(clip):
            raise MediaError("too_short", "the clip has no samples")
        if self._source.normalises():
            clip = (clip - clip.mean()) / np.sqrt(clip.var() + _VARIANCE_FLOOR)
        clip = np.resize(clip, max(len(clip), self._shortest)).astype(np.float32)  # repeats what is too short
        if len(clip) <= self._window:
            return [clip]
        starts = [*range(0, len(clip) - self._window, self._window), len(clip) - self._window]
        return [clip[start : start + self._window] for start in starts]

    def budget(self, group: Hashable) -> int:  # noqa: ARG002  (it is the same for windows of any length)
        """Samples that one forward should hold."""
        return SECONDS_PER_BATCH[self.compute.kind] * SAMPLE_RATE_HZ

    def collate(self, units: Sequence[Unit]) -> Any:
        """Samples [windows, samples] of windows of one length."""
        import torch

        windows = torch.from_numpy(np.stack([unit.data for unit in units]))
        return self.compute.send(windows.to(self.compute.torch_dtype))

    def launch(self, batch: Any) -> Any:
        """Mean over frames [windows, dim]."""
        import torch

        hidden_of = self._hidden  # made outside of inference mode
        with torch.inference_mode():
            return hidden_of(batch).float().mean(1)

    def warm_up(self) -> None:
        """Load the model and run one forward."""
        self.encode([np.sin(np.arange(SAMPLE_RATE_HZ, dtype=np.float32) / 5)])

    @once
    def compute(self) -> Compute:
        """Where and in which precision the model runs."""
        return choose_compute(self._device, self._dtype)

    @once
    def _hidden(self) -> Callable[[Any], Any]:
        """Hidden states [windows, frames, dim] of samples [windows, samples]."""

        def inputs(rows: int, samples: int) -> Any:
            noise = np.random.default_rng(rows).standard_normal((rows, samples)).astype(np.float32)
            return [self.collate([Unit("audio", samples, row) for row in noise])]

        forward, shortest = calling(self._model, lambda model, batch: model(batch).last_hidden_state), self._shortest
        others = (inputs(1, shortest), inputs(3, shortest), inputs(1, self._window))
        return traced(forward, self.compute, self.space.space_id, inputs(2, 2 * shortest), *others)

    @once
    def _model(self) -> Any:
        return prepack(self.compute.prepare(self._source.load()), self.compute)


class _FolderModel:
    """A checkpoint folder of the wav2vec 2.0 family."""

    kind = "encoder"

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self.name = folder, name
        self._config = read_config(folder)
        family = self._config.get("model_type")
        if family not in _FAMILY:
            raise WeightsError(f"{folder} holds a {family!r} model; an audio encoder is one of {', '.join(_FAMILY)}")
        has_preprocessor = (folder / "preprocessor_config.json").is_file()
        self._preprocessor = read_config(folder, "preprocessor_config.json") if has_preprocessor else {}
        if (rate := self._preprocessor.get("sampling_rate", SAMPLE_RATE_HZ)) != SAMPLE_RATE_HZ:
            raise WeightsError(
                f"the model in {folder} hears at {rate} Hz; only {SAMPLE_RATE_HZ} Hz models are supported"
            )
        self.description = f"{family} model, mean over frames and windows"

    def config(self) -> dict[str, Any]:
        return self._config

    def recipe(self) -> dict[str, Any]:
        return {
            "library": "transformers",
            "architecture": config_digest(self._config),
            "weights": weights_digest(self._folder),
        }

    def normalises(self) -> bool:
        return bool(self._preprocessor.get("do_normalize", True))

    def load(self) -> Any:
        return load_transformer(self._folder)


def _receptive_field(config: dict[str, Any]) -> int:
    """Samples that one frame of the convolutional front end sees."""
    samples, hop = 1, 1
    for kernel, stride in zip(config.get("conv_kernel", ()), config.get("conv_stride", ()), strict=True):
        samples += (kernel - 1) * hop
        hop *= stride
    return samples
