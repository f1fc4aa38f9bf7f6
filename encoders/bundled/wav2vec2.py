"""The bundled wav2vec 2.0, as an `AudioEncoder` wants it: a checkpoint that lies beside this file, trained by `train_audio`."""

from pathlib import Path
from typing import Any, Final

from encoders.text import load_transformer
from encoders.weights import config_digest, read_config, weights_digest

CHECKPOINT: Final = Path(__file__).parent / "checkpoints" / "wav2vec2_small"


class BundledWav2Vec2:
    """The small wav2vec 2.0 that was distilled from Whisper; its card, CARD.md, lies beside its weights."""

    name = "wav2vec2_small"
    kind = "encoder"
    description = "small wav2vec 2.0 distilled from Whisper on speech in 30 languages and on effects"

    def config(self) -> dict[str, Any]:
        """The architecture."""
        return read_config(CHECKPOINT)

    def recipe(self) -> dict[str, Any]:
        """The architecture and the weights' digest."""
        return {
            "library": "transformers",
            "architecture": config_digest(self.config()),
            "weights": weights_digest(CHECKPOINT),
        }

    def normalises(self) -> bool:
        """Whether a clip is brought to zero mean and unit variance first: the checkpoint says so."""
        return bool(read_config(CHECKPOINT, "preprocessor_config.json")["do_normalize"])

    def load(self) -> Any:
        """The model, in float32."""
        return load_transformer(CHECKPOINT)
