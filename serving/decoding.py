"""Request content to what the encoders take: cleaned text, decoded pictures, decoded sounds."""

from typing import Any

import numpy as np

from encoders.errors import MediaError
from encoders.media import clean_text, decode_audio, decode_image

SAMPLE_RATE_HZ = 16_000


def decode(modality: str, content: Any) -> Any:
    """A cleaned string, a PIL image or float32 mono [n]; a `MediaError` is returned, since its neighbours go on."""
    try:
        match modality:
            case "text":
                return clean_text(content)
            case "image":
                return decode_image(content)
            case _:
                return decode_audio(content)
    except MediaError as error:
        return error


def samples() -> dict[str, Any]:
    """One valid item of each modality, to warm the encoders up with."""
    from PIL import Image

    tone = np.sin(np.arange(SAMPLE_RATE_HZ, dtype=np.float32) / 5)
    return {"text": "warm up", "image": Image.new("RGB", (64, 64), "grey"), "audio": tone}
