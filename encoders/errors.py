"""What can go wrong in this room, as one small tree.

EncoderError
├── MediaError    a text, picture or sound cannot be used; `.code` says which kind of trouble, the message says what to do
├── WeightsError  a model cannot be found, read or trusted
└── ProfileError  the choice of encoders (a name or a YAML file) is not understood
"""

from typing import Final

MEDIA_CODES: Final = (
    "decode_timeout",
    "decoder_crashed",
    "empty",
    "not_finite",
    "not_found",
    "too_large",
    "too_many_frames",
    "too_many_pixels",
    "too_short",
    "truncated",
    "undecodable",
    "unsupported_format",
)


class EncoderError(Exception):
    """Base of all errors of this room."""


class MediaError(EncoderError):
    """A text, picture or sound that cannot be used.

    Attributes:
        code: one of `MEDIA_CODES`, for programs; the message is for people.
    """

    def __init__(self, code: str, message: str) -> None:
        if code not in MEDIA_CODES:
            raise ValueError(f"media error code {code!r} must be one of {', '.join(MEDIA_CODES)}")
        super().__init__(message)
        self.code = code


class WeightsError(EncoderError):
    """A model cannot be found, read or trusted; the message names it and the remedy."""


class ProfileError(EncoderError):
    """A profile of encoders is not understood."""
