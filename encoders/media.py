"""Texts, pictures and sounds as they come from outside, checked, bounded and brought to one form.

Whatever is wrong with an input, it is a `MediaError` with a code for programs and a message for people. What a file is called
does not matter: its content says what it is.
"""

import hashlib
import unicodedata
from pathlib import Path

from encoders._picture_files import describe_frames
from encoders._pictures import decode_image
from encoders._sounds import MIN_SAMPLES, SAMPLE_RATE_HZ, decode_audio
from encoders._source import MediaLimits, read_source
from encoders.errors import MediaError

__all__ = [
    "MIN_SAMPLES",
    "SAMPLE_RATE_HZ",
    "MediaError",
    "MediaLimits",
    "clean_text",
    "decode_audio",
    "decode_image",
    "describe_media",
    "sha256_hex",
]

# Control characters, surrogates without a partner, private and unassigned characters carry no meaning for a tokenizer.
_DROPPED_CATEGORIES = frozenset({"Cc", "Cs", "Co", "Cn"})


def clean_text(text: str, limits: MediaLimits = MediaLimits()) -> str:  # noqa: B008  (frozen)
    """`text` in Unicode's composed form, without control characters, every run of white space one blank.

    Raises:
        MediaError: `empty`, nothing is left; `too_large`, longer than `limits.max_text_chars`.
    """
    if len(text) > limits.max_text_chars * 4:  # so long that cleaning could not save it
        raise _too_long(len(text), limits)
    spaced = (" " if character.isspace() else character for character in unicodedata.normalize("NFC", text))
    kept = "".join(character for character in spaced if unicodedata.category(character) not in _DROPPED_CATEGORIES)
    cleaned = " ".join(kept.split())
    if not cleaned:
        raise MediaError("empty", "the text is empty")
    if len(cleaned) > limits.max_text_chars:
        raise _too_long(len(cleaned), limits)
    return cleaned


def _too_long(length: int, limits: MediaLimits) -> MediaError:
    return MediaError("too_large", f"the text has {length:,} characters; the limit is {limits.max_text_chars:,}")


def describe_media(source: bytes | Path, limits: MediaLimits = MediaLimits()) -> tuple[str, ...]:  # noqa: B008  (frozen)
    """What a caller should be told of a file that is used: of an animation or a file of several pages only the first counts.

    Nothing is decoded, and nothing is said of a file that would be refused.

    Raises:
        MediaError: as reading the file does: `not_found`, `empty`, `too_large` or `unsupported_format`.
    """
    note = describe_frames(read_source(source, limits), limits)
    return (note,) if note else ()


def sha256_hex(source: bytes | Path) -> str:
    """Hexadecimal sha256 of bytes or of a file's content.

    Raises:
        MediaError: `not_found`, the file cannot be read.
    """
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    try:
        with source.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError) as error:
        raise MediaError("not_found", f"file {source} cannot be read: {error}") from error
