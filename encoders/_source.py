"""Bytes of a text, picture or sound, with limits, and what those bytes are.

A file's kind is told from its content, never from its name. Nothing here decodes.
"""

import resource
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from encoders.errors import MediaError

MEBIBYTE: Final = 1 << 20


@dataclass(frozen=True)
class MediaLimits:
    """How much of an input is accepted before it is refused.

    Attributes:
        max_bytes: of a picture's or sound's file.
        max_image_pixels: width times height; a compressed file can claim far more than its size. Past 178 million Pillow refuses.
        max_image_frames: of an animation or of a file of several pages, though only the first counts.
        max_audio_seconds: of a clip.
        max_text_chars: of a text, after cleaning.
        max_decode_seconds: wall-clock time of one file's decoding.
        max_decode_memory_bytes: address space of a decoding process (`encoders.decode_pool`), its own libraries included.
    """

    max_bytes: int = 64 * MEBIBYTE
    max_image_pixels: int = 50_000_000
    max_image_frames: int = 10_000
    max_audio_seconds: float = 600.0
    max_text_chars: int = 50_000
    max_decode_seconds: float = 30.0
    max_decode_memory_bytes: int = 4096 * MEBIBYTE


# (offset, signature, what it is). The first match counts.
_SIGNATURES: Final = (
    (0, b"\x89PNG\r\n\x1a\n", "PNG picture"),
    (0, b"\xff\xd8\xff", "JPEG picture"),
    (0, b"GIF8", "GIF picture"),
    (8, b"WEBP", "WebP picture"),
    (0, b"BM", "BMP picture"),
    (0, b"II*\x00", "TIFF picture"),
    (0, b"MM\x00*", "TIFF picture"),
    (0, b"II+\x00", "TIFF picture"),
    (0, b"MM\x00+", "TIFF picture"),
    (8, b"WAVE", "WAV sound"),
    (0, b"RF64", "WAV sound"),
    (0, b"fLaC", "FLAC sound"),
    (0, b"OggS", "Ogg sound"),
    (0, b"FORM", "AIFF sound"),
    (0, b".snd", "AU sound"),
    (0, b"\x00\x00\x01\x00", "ICO picture"),
    (0, b"\x00\x00\x00\x0cjP  ", "JPEG 2000 picture"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000 picture"),
    (0, b"riff\x2e\x91\xcf\x11", "Wave64 sound"),
    (0, b"ID3", "MP3 sound"),
    (0, b"\xff\xfb", "MP3 sound"),  # MPEG 1, layer III; without, and below with, checksums
    (0, b"\xff\xfa", "MP3 sound"),
    (0, b"\xff\xf3", "MP3 sound"),  # MPEG 2
    (0, b"\xff\xf2", "MP3 sound"),
    (0, b"\xff\xe3", "MP3 sound"),  # MPEG 2.5
    (0, b"\xff\xe2", "MP3 sound"),
    (0, b"\xff\xfd", "MP3 sound"),  # layer II
    (0, b"\xff\xfc", "MP3 sound"),
    (0, b"\xff\xf1", "AAC sound"),
    (0, b"\xff\xf9", "AAC sound"),
    (0, b"\x1aE\xdf\xa3", "WebM or Matroska sound or film"),
    (0, b"0&\xb2u\x8ef\xcf\x11", "WMA sound or film"),
    (0, b"caff", "CAF sound"),
    (0, b"MThd", "MIDI score"),
    (0, b"%PDF", "PDF document"),
    (0, b"PK\x03\x04", "ZIP archive"),
    (0, b"\x1f\x8b", "gzip archive"),
)
# Brands of ISO media files (ISO 14496-12, 4.3) that are pictures; all others are sound or film.
_BRANDS: Final = {
    **dict.fromkeys((b"avif", b"avis"), "AVIF picture"),
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), "HEIC picture"),
}
_SNIFFED_BYTES: Final = 4096


def read_source(source: bytes | Path, limits: MediaLimits) -> bytes:
    """The bytes of `source`.

    Raises:
        MediaError: `not_found`, `empty`, `too_large`, or `unsupported_format` for what is not a regular file.
    """
    if isinstance(source, bytes):
        size = len(source)
        _check_size(size, limits)
        return source
    try:
        status = source.stat()
        if not stat.S_ISREG(status.st_mode):
            raise MediaError("unsupported_format", f"{source} is not a regular file")
        _check_size(status.st_size, limits)
        return source.read_bytes()
    except FileNotFoundError:
        raise MediaError("not_found", f"file {source} does not exist") from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise MediaError("not_found", f"file {source} cannot be read: {error}") from error


def _check_size(size: int, limits: MediaLimits) -> None:
    if size == 0:
        raise MediaError("empty", "the file is empty (0 bytes)")
    if size > limits.max_bytes:
        raise MediaError("too_large", f"the file has {size:,} bytes; the limit is {limits.max_bytes:,}")


def id3_length(data: bytes, position: int = 0) -> int:
    """Bytes of the ID3v2 tag at `position`, 0 if there is none (ID3 2.4.0, 3.1: seven bits a byte; a footer has ten bytes)."""
    if data[position : position + 3] != b"ID3" or len(data) < position + 10:
        return 0
    size = sum((data[position + 6 + index] & 0x7F) << 7 * (3 - index) for index in range(4))
    return 10 + size + (10 if data[position + 5] & 0x10 else 0)


def describe(data: bytes) -> str:
    """What `data` is, in words, told from its first bytes; `unknown data` if nothing is recognised."""
    if data.startswith(b"ID3"):  # a tag in front of the sound, nearly always of an MP3
        behind = data[id3_length(data) :][:16]
        return describe(behind) if behind.startswith((b"fLaC", b"\xff\xf1", b"\xff\xf9")) else "MP3 sound"
    if data.startswith(b"ftyp", 4):
        return _describe_brands(data)
    for offset, signature, name in _SIGNATURES:
        if data.startswith(signature, offset):
            return name
    return _describe_text(data[:_SNIFFED_BYTES])


def _describe_brands(data: bytes) -> str:
    """By the major brand, or for the general brands of pictures by the compatible ones."""
    brands = [
        data[at : at + 4] for at in (8, *range(16, min(len(data), int.from_bytes(data[:4], "big"), _SNIFFED_BYTES), 4))
    ]
    if brands[0] in {b"mif1", b"msf1"} and {b"avif", b"avis"} & set(brands):
        return "AVIF picture"
    return _BRANDS.get(brands[0], "MP4 sound or film")


def _describe_text(head: bytes) -> str:
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<svg", b"<?xml", b"<!--", b"<!doctype svg")) and b"<svg" in start:
        return "SVG drawing"
    if start.startswith((b"<!doctype html", b"<html")):
        return "HTML page"
    if start.startswith(b"<?xml"):
        return "XML document"
    if b"\x00" not in head and all(byte >= 32 or byte in b"\t\r\n\f" for byte in head):
        return "text"
    return "unknown data"


def out_of_memory() -> MediaError:
    """What a `MemoryError` means to the caller; in a decoding process there is a limit to name."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    most = "there is" if limit == resource.RLIM_INFINITY else f"the limit of {limit // MEBIBYTE:,} MiB"
    return MediaError("too_large", f"decoding needs more memory than {most}")


def article(name: str) -> str:
    """`name` with its article: `an AAC sound`, `a PNG picture`, `unknown data`."""
    if name in {"text", "unknown data"}:
        return name
    return f"{'an' if name[0] in 'AEHIMOSX' and not name.startswith(('HEIC', 'MIDI')) else 'a'} {name}"
