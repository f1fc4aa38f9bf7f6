"""Checks of a picture's container, and how many frames or pages it holds; no pixel is decoded.

Pillow decodes the first frame and looks no further: it does not verify a PNG's checksums, nor that the file goes on to its end.
What is told here without decoders is cheap enough for every file.
"""

import struct
import zlib
from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from encoders._sound_files import check_boxes
from encoders._source import MediaLimits, describe
from encoders.errors import MediaError

# TIFF 6.0, 2, "Types": bytes of a value, and those of which offsets and lengths are made.
_TIFF_SIZES: Final = {
    1: 1,
    2: 1,
    3: 2,
    4: 4,
    5: 8,
    6: 1,
    7: 1,
    8: 2,
    9: 4,
    10: 8,
    11: 4,
    12: 8,
    13: 4,
    16: 8,
    17: 8,
    18: 8,
}
_TIFF_TYPES: Final = {3: "u2", 4: "u4", 16: "u8"}
_STRIP_TAGS, _TILE_TAGS = (273, 279), (324, 325)
_GIF_EXTENSION, _GIF_IMAGE, _GIF_END = 0x21, 0x2C, 0x3B


def check_picture_file(data: bytes, limits: MediaLimits) -> int:
    """The number of frames or pages in `data`, a file that a picture decoder has accepted.

    Raises:
        MediaError: `truncated` or `undecodable`, it does not hold what it declares; `too_many_frames`.
    """
    kind = describe(data)
    if kind not in _COUNTS:
        return 1
    try:
        frames = _COUNTS[kind](data, limits.max_image_frames)
    except (struct.error, IndexError):
        raise MediaError("truncated", f"the {kind} breaks off before its end") from None
    if frames > limits.max_image_frames:
        most = f"the limit is {limits.max_image_frames:,}"
        raise MediaError("too_many_frames", f"the {kind} has more frames or pages than are accepted; {most}")
    return frames


def describe_frames(data: bytes, limits: MediaLimits) -> str | None:
    """A note that only the first frame or page counts, if there are several."""
    try:
        frames = check_picture_file(data, limits)
    except MediaError:
        return None
    if frames < 2:
        return None
    return _first_counts(describe(data), f"{frames:,}")


def several_note(kind: str) -> str:
    """The same note without the number, so that it can be counted over many files. Raises `KeyError` where `kind` has no frames."""
    if kind not in _COUNTS:
        raise KeyError(kind)
    return _first_counts(kind, "several")


def _first_counts(kind: str, number: str) -> str:
    return f"the {kind} has {number} {'pages' if kind == 'TIFF picture' else 'frames'}: only the first counts"


def _cut(kind: str, declared: int, held: int) -> MediaError:
    return MediaError("truncated", f"the {kind} breaks off: it declares {declared:,} bytes and holds {held:,}")


def _png(data: bytes, most: int) -> int:
    """Every chunk whole and its checksum right, up to IEND (PNG, 5.3); an animation's acTL chunk holds the number of frames."""
    del most
    position, frames, name = 8, 1, b""
    while name != b"IEND":
        length, name = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if end > len(data):
            raise _cut("PNG picture", end, len(data))
        if zlib.crc32(memoryview(data)[position + 4 : end - 4]) != struct.unpack_from(">I", data, end - 4)[0]:
            chunk = name.decode("ascii", "backslashreplace")
            raise MediaError("undecodable", f"the PNG picture is damaged: the checksum of its {chunk} chunk is wrong")
        if name == b"acTL" and length >= 4:
            frames = max(1, struct.unpack_from(">I", data, position + 8)[0])
        position = end
    return frames


def _gif(data: bytes, most: int) -> int:
    """Blocks up to the trailer (GIF89a, appendix A); a trailer that is missing after a whole block is forgiven, as everywhere."""
    position, frames = 13 + _colour_table(data[10]), 0
    while position < len(data) and data[position] != _GIF_END and frames <= most:
        if data[position] == _GIF_EXTENSION:
            position += 2
        elif data[position] == _GIF_IMAGE:
            frames += 1
            position += 11 + _colour_table(data[position + 9])
        elif frames:
            break  # some writers leave a few bytes behind the last frame
        else:
            raise MediaError("undecodable", f"the GIF picture is damaged: no block begins at byte {position:,}")
        while data[position]:
            position += 1 + data[position]
        position += 1
    return max(1, frames)


def _colour_table(flags: int) -> int:
    """Bytes of the colour table that `flags` announce."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _webp(data: bytes, most: int) -> int:
    """Chunks of the RIFF container; each ANMF chunk is a frame."""
    declared = 8 + struct.unpack_from("<I", data, 4)[0]
    if declared > len(data):
        raise _cut("WebP picture", declared, len(data))
    position, frames = 12, 0
    while position + 8 <= declared and frames <= most:
        name, size = struct.unpack_from("<4sI", data, position)
        frames += name == b"ANMF"
        position += 8 + size + size % 2
    return max(1, frames)


def _tiff(data: bytes, most: int) -> int:
    """The chain of pages, each of whose strips must lie in the file (TIFF 6.0, 2; BigTIFF has 64-bit numbers)."""
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in {b"+\0", b"\0+"}
    offset_format, count_format, head, entry = ("Q", "Q", 8, 20) if big else ("I", "H", 4, 12)
    position = struct.unpack_from(order + offset_format, data, 8 if big else 4)[0]
    seen: set[int] = set()
    while position and len(seen) <= most:
        if position in seen:
            raise MediaError("undecodable", "the TIFF picture is damaged: its chain of pages is a ring")
        count = struct.unpack_from(order + count_format, data, position)[0]
        start = position + struct.calcsize(count_format)
        if not seen:
            _check_strips(data, _tags(data, order, start, count, entry, head), len(data))
        seen.add(position)
        position = struct.unpack_from(order + offset_format, data, start + count * entry)[0]
    return len(seen)


def _tags(data: bytes, order: str, start: int, count: int, entry: int, head: int) -> dict[int, NDArray[np.uint64]]:
    """Values of the tags that place strips and tiles; every tag's values must lie in the file. `head`: bytes of an offset."""
    values, offset_format = {}, order + ("Q" if head == 8 else "I")
    for at in range(start, start + count * entry, entry):
        tag, kind = struct.unpack_from(order + "HH", data, at)
        number = struct.unpack_from(offset_format, data, at + 4)[0]
        length, place = number * _TIFF_SIZES.get(kind, 1), at + 4 + head
        if length > head:
            place = struct.unpack_from(offset_format, data, place)[0]
        if place + length > len(data):
            raise _cut("TIFF picture", place + length, len(data))
        if tag in {*_STRIP_TAGS, *_TILE_TAGS} and kind in _TIFF_TYPES:
            values[tag] = np.frombuffer(data, order + _TIFF_TYPES[kind], number, place).astype(np.uint64)
    return values


def _check_strips(data: bytes, tags: dict[int, NDArray[np.uint64]], held: int) -> None:
    for offsets, lengths in (_STRIP_TAGS, _TILE_TAGS):
        if offsets in tags and lengths in tags and tags[offsets].size and tags[offsets].size == tags[lengths].size:
            end = max(int(a) + int(b) for a, b in zip(tags[offsets], tags[lengths], strict=True))
            if end > held:
                raise _cut("TIFF picture", end, len(data))


def _avif(data: bytes, most: int) -> int:
    """Boxes that fit; in a sequence (brand "avis") the first table of sample sizes counts the frames (ISO 14496-12, 8.7.3)."""
    del most
    check_boxes(data, "AVIF picture")
    table = data.find(b"stsz") if data[8:12] == b"avis" else -1
    return 1 if table < 0 else max(1, struct.unpack_from(">I", data, table + 12)[0])


def _heic(data: bytes, most: int) -> int:
    del most
    check_boxes(data, "HEIC picture")
    return 1


_COUNTS: Final[dict[str, Callable[[bytes, int], int]]] = {
    "AVIF picture": _avif,
    "GIF picture": _gif,
    "HEIC picture": _heic,
    "PNG picture": _png,
    "TIFF picture": _tiff,
    "WebP picture": _webp,
}
