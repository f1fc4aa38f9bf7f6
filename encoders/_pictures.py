"""Pictures: any file that Pillow reads safely, as upright RGB on white.

EXIF rotation is applied, transparency is laid on white, 16-bit and floating-point samples are scaled to 8 bits, and of an
animation the first frame counts. The size is checked before any pixel is decoded. Colour profiles are ignored (decision 019).
"""

import contextlib
import io
import re
import warnings
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from encoders._jpegs import Pixels, decode_jpeg
from encoders._picture_files import check_picture_file
from encoders._source import MediaLimits, article, describe, out_of_memory, read_source
from encoders.errors import EncoderError, MediaError

# Listed, since Pillow also reads formats that run other programs (EPS) or are seldom tested.
FORMATS: Final = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_SUPPORTED: Final = "PNG, JPEG, WebP, GIF, AVIF, BMP, TIFF"
_KINDS: Final = {f"{name} picture" for name in ("AVIF", "BMP", "GIF", "HEIC", "JPEG", "PNG", "TIFF", "WebP")}
# How Pillow says it: Image size (400000000 pixels) exceeds limit of 178956970 pixels.
_CLAIMED: Final = re.compile(r"\((\d+) pixels\)")
_ROWS: Final = 256
_TURNS: Final = {"exif", "xmp", "XML:com.adobe.xmp"}  # what may say that a picture lies on its side
_ADVICE: Final = {"SVG drawing": "SVG is a vector drawing; export it as PNG"}
# How Pillow names text chunks and colour profiles that unpack to more than it allows (1 MiB each, 64 MiB in all).
_TEXT_BOMBS: Final = ("Decompressed data too large", "Too much memory used in text chunks")


def decode_image(source: bytes | Path, limits: MediaLimits = MediaLimits()) -> Image.Image:  # noqa: B008  (frozen)
    """The picture in `source` (a file, or a file's bytes) as RGB.

    Raises:
        MediaError: `not_found`, `empty`, `too_large`, `unsupported_format`, `too_many_pixels`, `too_many_frames`,
            `truncated` or `undecodable`.
    """
    picture = _decode(source, limits)
    return picture if isinstance(picture, Image.Image) else Image.fromarray(picture)


def upright_rgb(picture: Any) -> Image.Image:
    """A PIL image as `decode_image` would give it: upright, on white, RGB.

    Raises:
        MediaError: `empty`, it has no pixels, or `undecodable`: it was opened and not yet read, or is of a mode that has no RGB.
        EncoderError: it is no PIL image.
    """
    if not isinstance(picture, Image.Image):
        advice = "encoders.media.decode_image makes one of a file (a Path) or its bytes"
        raise EncoderError(f"a picture must be a PIL image, not the {type(picture).__name__} {picture!r:.40}; {advice}")
    if not all(picture.size):
        raise MediaError("empty", f"the picture has no pixels: it is {picture.width} x {picture.height}")
    try:
        picture.load()
        turned = _upright(picture.copy()) if _TURNS & picture.info.keys() else picture  # the caller's stays as it is
        return _to_rgb(turned)
    except Exception as error:  # see decode_image
        raise MediaError("undecodable", f"the picture cannot be read as RGB: {error}") from error


def decode_pixels(source: bytes | Path, limits: MediaLimits) -> tuple[tuple[int, int], bytes | memoryview]:
    """The same picture as its (width, height) and its bytes, row by row, three a pixel. Errors as `decode_image`."""
    picture = _decode(source, limits)
    if isinstance(picture, Image.Image):
        return picture.size, picture.tobytes()
    return (picture.shape[1], picture.shape[0]), picture.data.cast("B")


def _decode(source: bytes | Path, limits: MediaLimits) -> Image.Image | Pixels:
    data = read_source(source, limits)
    kind = describe(data)
    # Pillow warns of what it tolerates. `warnings.catch_warnings` would be tidier, but is not safe in threads.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    picture = _open(data, kind, limits)
    try:
        check_picture_file(data, limits)
        pixels = decode_jpeg(data, picture) if kind == "JPEG picture" else None
        if pixels is None:
            picture.load()
            picture = _to_rgb(_upright(picture))
            for name in _TURNS:  # what damaged EXIF leaves behind would turn it again
                picture.info.pop(name, None)
            return picture
        return _upright_pixels(pixels, picture)
    except MediaError:
        raise
    except (
        Exception
    ) as error:  # Pillow's plugins raise OSError, SyntaxError, ValueError, struct.error, zlib.error, EOFError ...
        raise _damaged(data, error) from error


def _open(data: bytes, kind: str, limits: MediaLimits) -> Image.Image:
    """The picture before its pixels are decoded."""
    formats = (_heif(),) if kind == "HEIC picture" else FORMATS
    try:
        picture = Image.open(io.BytesIO(data), formats=formats)
    except UnidentifiedImageError as error:
        if kind in _KINDS:
            check_picture_file(data, limits)  # may know the reason
        raise _unidentified(kind) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        claimed = int((_CLAIMED.search(str(error)) or [0, 0])[1])
        message = f"the picture claims {claimed:,} pixels; the limit is {limits.max_image_pixels:,}"
        raise MediaError("too_many_pixels", message) from error
    except Exception as error:  # see decode_image
        raise _damaged(data, error) from error
    width, height = picture.size
    if width * height > limits.max_image_pixels:
        message = f"the picture has {width} x {height} pixels; the limit is {limits.max_image_pixels:,} in all"
        raise MediaError("too_many_pixels", message)
    return picture


def _heif() -> str:
    """Pillow's name of HEIC pictures, whose decoder is an extra: it is large, and HEVC is patented in some countries."""
    try:
        import pillow_heif
    except ImportError:
        advice = "pip install 'triptych[heic]', or export it as JPEG"
        raise MediaError("unsupported_format", f"HEIC pictures need an extra: {advice}") from None
    pillow_heif.register_heif_opener()
    return "HEIF"


def _unidentified(kind: str) -> MediaError:
    if kind in _ADVICE:
        return MediaError("unsupported_format", _ADVICE[kind])
    if kind in _KINDS:
        return MediaError("undecodable", f"the file begins like {article(kind)}, but its header is damaged")
    needed = "one of the supported formats" if kind.endswith("picture") else "a picture"
    return MediaError("unsupported_format", f"the file holds {article(kind)}, not {needed} ({_SUPPORTED})")


def _damaged(data: bytes, error: Exception) -> MediaError:
    if isinstance(error, MemoryError):
        return out_of_memory()
    text = str(error) or type(error).__name__
    if any(bomb in text for bomb in _TEXT_BOMBS):
        return MediaError(
            "too_large", f"the {describe(data)} holds compressed text or a profile that is too large: {text}"
        )
    if "truncated" in text.lower() or isinstance(error, EOFError):
        return MediaError("truncated", f"the {describe(data)} breaks off before its end")
    return MediaError("undecodable", f"the {describe(data)} is damaged: {text}")


def _upright(picture: Image.Image) -> Image.Image:
    with contextlib.suppress(Exception):  # damaged EXIF: as many errors as cameras; the pixels are fine
        ImageOps.exif_transpose(picture, in_place=True)
    return picture


def _upright_pixels(pixels: Pixels, header: Image.Image) -> Image.Image | Pixels:
    """Most pictures stand upright already and stay an array."""
    if not _TURNS & header.info.keys():
        return pixels
    picture = Image.fromarray(pixels)
    picture.info = header.info
    return _upright(picture)


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I") or picture.mode == "F":
        picture = _to_8_bits(picture)
    if not picture.has_transparency_data:
        return picture if type(picture) is Image.Image and picture.mode == "RGB" else picture.convert("RGB")
    layer = picture.convert("RGBA")
    paper = Image.new("RGBA", layer.size, "white")
    paper.alpha_composite(layer)
    return paper.convert("RGB")


def _to_8_bits(picture: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits or floating point, scaled to 0 .. 255 (Pillow's own conversion clips instead)."""
    samples: Any = np.asarray(picture)
    scaled = np.empty(samples.shape, np.uint8)
    top = _top(picture.mode, samples)
    for start in range(0, len(samples), _ROWS):  # floating-point copies of all rows at once would take gigabytes
        rows = np.nan_to_num(samples[start : start + _ROWS].astype(np.float64), posinf=0.0, neginf=0.0)
        scaled[start : start + _ROWS] = np.clip(rows * (255 / top), 0, 255).round()
    return Image.fromarray(scaled)


def _top(mode: str, samples: Any) -> float:
    """The value of white: of floating-point samples 1, or the largest if that is more; of whole ones 16 or 31 bits."""
    if mode != "F":
        return 65_535 if samples.max(initial=0) <= 65_535 else 2**31 - 1
    return max(1.0, float(np.max(samples, initial=0, where=np.isfinite(samples))))
