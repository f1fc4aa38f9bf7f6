"""The bundled wav2vec 2.0, as an `AudioEncoder` wants it."""

from typing import Any

from encoders.bundled import untrained_wav2vec2
from encoders.weights import config_digest


class UntrainedWav2Vec2:
    """The small wav2vec 2.0 of `encoders.untrained_wav2vec2`, as an `AudioEncoder` wants it."""

    name = "wav2vec2_small"
    kind = "untrained"
    description = "small wav2vec 2.0 initialised as a filter bank; it has learnt nothing"

    def config(self) -> dict[str, Any]:
        """The architecture."""
        return untrained_wav2vec2.CONFIG

    def recipe(self) -> dict[str, Any]:
        """The architecture and how it is initialised."""
        return {
            "library": "transformers",
            "architecture": config_digest(self.config()),
            "weights": untrained_wav2vec2.RECIPE,
        }

    def normalises(self) -> bool:
        """A clip is brought to zero mean and unit variance first."""
        return True

    def load(self) -> Any:
        """The model in float32."""
        return untrained_wav2vec2.build()
