"""Encoders turn media into unit vectors, each in one named embedding space.

This room knows nothing of Feast, Milvus or gRPC. Importing it, or `encoders.space`, does not import torch: the encoders
themselves are resolved on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from encoders.audio import AudioEncoder
    from encoders.image import ImageEncoder
    from encoders.profiles import load_profile
    from encoders.text import TextEncoder

_LAZY = {
    "AudioEncoder": "encoders.audio",
    "ImageEncoder": "encoders.image",
    "TextEncoder": "encoders.text",
    "load_profile": "encoders.profiles",
}

__all__ = ["AudioEncoder", "ImageEncoder", "TextEncoder", "load_profile"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'encoders' has no attribute {name!r}")
