"""Checks of a sound's container before it is decoded: decoders take a file that was cut short, or that has holes, without a word.

Each check follows what the format itself declares: lengths, page checksums, frame headers. What a format does not declare
cannot be checked; decision page 009 lists it.
"""

import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from encoders._source import id3_length
from encoders.errors import MediaError

# A WAV or AU that was written into a pipe declares one of these: its length was not known.
_UNKNOWN_LENGTHS: Final = frozenset({0, 0xFFFFFFFF})
_CHUNK_HEADER_BYTES: Final = 8  # a name and a size
_OGG_END_OF_STREAM: Final = 4
# Ogg's checksum takes each byte's highest bit first (RFC 3533, 6), zlib's the lowest: the bytes are mirrored, then the result.
_MIRRORED: Final = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
# ISO 11172-3, 2.4.2.3 and ISO 13818-3: kbit/s by (MPEG 1, layer) and index 1 .. 14, Hz of MPEG 1 by index.
_MPEG_KBITS: Final = {
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_MPEG_HZ: Final = (44_100, 48_000, 32_000)
# What may follow the last frame: tags of several players, and padding.
_MP3_TAILS: Final = (b"TAG", b"APETAGEX", b"LYRICSBEGIN", b"ID3", b"3DI", b"\0")
_ASF_FILE_PROPERTIES: Final = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")


def check_sound_file(data: bytes, kind: str) -> None:
    """Raise `MediaError` (`truncated` or `undecodable`) if `data`, a file of that kind, does not hold what it declares."""
    if kind in _CHECKS:
        try:
            _CHECKS[kind](data)
        except (struct.error, IndexError):
            raise MediaError("truncated", f"the {kind} breaks off in a header") from None


def _cut(kind: str, declared: int, held: int) -> MediaError:
    return MediaError("truncated", f"the {kind} breaks off: it declares {declared:,} bytes and holds {held:,}")


def _need(data: bytes, end: int, kind: str) -> None:
    if end > len(data):
        raise _cut(kind, end, len(data))


def _check_wav(data: bytes) -> None:
    """The data chunk must fit, and be followed, within the RIFF, by nothing or a chunk. RF64 keeps 64-bit sizes in its ds64 chunk (EBU Tech 3306)."""
    position, long_size = 12, 0
    while position + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, position)
        if name == b"ds64":
            long_size = struct.unpack_from("<Q", data, position + 16)[0]
        if name == b"data":
            size = long_size if size == 0xFFFFFFFF else size
            if size not in _UNKNOWN_LENGTHS:
                _need(data, position + 8 + size, "WAV sound")
                _check_after_wav(data, position + 8 + size, size)
            return
        position += 8 + size + size % 2
    raise MediaError("truncated", "the WAV sound breaks off before its samples")


def _check_after_wav(data: bytes, end: int, size: int) -> None:
    """Refuse samples behind the data chunk, as far as the RIFF itself reaches: the chunk's size was declared too small.

    Chunks, also where the pad byte after an odd size is missing or one too many, tags and zeros may stand there.
    """
    declared = min(len(data), 8 + struct.unpack_from("<I", data, 4)[0])
    if declared - end <= _CHUNK_HEADER_BYTES or any(_is_chunk_name(data[at : at + 4]) for at in (end, end + 1)):
        return
    if data[end:declared].strip(b"\0"):
        raise MediaError(
            "undecodable",
            f"the WAV sound is damaged: it declares {size:,} bytes of samples, and what follows them at byte {end:,} is no chunk",
        )


def _is_chunk_name(name: bytes) -> bool:
    return name.startswith(b"ID3") or (name[:1] != b"\0" and all(0x20 <= byte <= 0x7E or byte == 0 for byte in name))


def _check_wave64(data: bytes) -> None:
    """Sony Wave64: 16-byte names, 64-bit sizes that count their own header, chunks at multiples of 8."""
    position = 40
    while position + 24 <= len(data):
        size = struct.unpack_from("<Q", data, position + 16)[0]
        _need(data, position + size, "Wave64 sound")
        position += max(24, -(-size // 8) * 8)


def _check_aiff(data: bytes) -> None:
    _need(data, 8 + struct.unpack_from(">I", data, 4)[0], "AIFF sound")


def _check_au(data: bytes) -> None:
    offset, size = struct.unpack_from(">II", data, 4)
    if size not in _UNKNOWN_LENGTHS:
        _need(data, offset + size, "AU sound")


def _check_caf(data: bytes) -> None:
    """Chunks with 64-bit sizes; -1 is a data chunk that goes on to the end."""
    position = 8
    while position + 12 <= len(data):
        size = struct.unpack_from(">q", data, position + 4)[0]
        if size < 0:
            return
        _need(data, position + 12 + size, "CAF sound")
        position += 12 + size


def _check_ogg(data: bytes) -> None:
    """Every page whole, with its checksum right, none missing, and each stream's last marked as the last (RFC 3533, 6)."""
    position, open_streams, numbers = 0, set[int](), dict[int, int]()
    while data.startswith(b"OggS", position):
        marks, serial, number, checksum = struct.unpack_from("<5xB8xIII", data, position)
        body = position + 27 + data[position + 26]
        end = body + sum(data[position + 27 : body])
        _need(data, max(body, end), "Ogg sound")
        if _ogg_checksum(data[position : position + 22], data[position + 26 : end]) != checksum:
            raise MediaError(
                "undecodable", f"the Ogg sound is damaged: the checksum of the page at byte {position:,} is wrong"
            )
        if number != numbers.get(serial, number - 1) + 1:
            raise MediaError("undecodable", f"the Ogg sound has a hole: page {number - 1} is missing")
        numbers[serial] = number
        (open_streams.discard if marks & _OGG_END_OF_STREAM else open_streams.add)(serial)
        position = end
    if open_streams or not numbers:
        raise MediaError("truncated", "the Ogg sound breaks off: its last page is missing")


def _ogg_checksum(head: bytes, tail: bytes) -> int:
    """A page's CRC-32 with the checksum's own four bytes taken as zeros; it starts from 0 and is not inverted at the end."""
    mirrored = zlib.crc32((head + b"\0\0\0\0" + tail).translate(_MIRRORED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int.from_bytes(mirrored.to_bytes(4, "little").translate(_MIRRORED), "big")


def check_boxes(data: bytes, kind: str = "MP4 sound or film") -> None:
    """Top-level boxes must fit (ISO 14496-12, 4.2: size 1 is followed by a 64-bit size, 0 means to the end)."""
    position = 0
    while position < len(data):
        size = struct.unpack_from(">I", data, position)[0]
        if size == 0:
            return
        if size == 1:
            size = struct.unpack_from(">Q", data, position + 8)[0]
        if size < 8:
            raise MediaError("undecodable", f"the {kind} is damaged: a box of {size} bytes at byte {position:,}")
        _need(data, position + size, kind)
        position += size


class MpegFrame(NamedTuple):
    """One frame's header: its length in bytes, and where a Xing header would begin in it."""

    length: int
    xing: int


def mpeg_frame(data: bytes, position: int) -> MpegFrame | None:
    """The frame whose header lies at `position`; None if there is none, or one whose length is not told ("free format")."""
    if position + 4 > len(data) or data[position] != 0xFF or data[position + 1] & 0xE0 != 0xE0:
        return None
    version, layer = data[position + 1] >> 3 & 3, 4 - (data[position + 1] >> 1 & 3)
    rate_index, kbit_index, padding = data[position + 2] >> 2 & 3, data[position + 2] >> 4, data[position + 2] >> 1 & 1
    if version == 1 or layer == 4 or rate_index == 3 or kbit_index in {0, 15}:
        return None
    first = version == 3
    bits = 1000 * _MPEG_KBITS[first, layer][kbit_index - 1]
    hertz = _MPEG_HZ[rate_index] >> (0 if first else 1 if version == 2 else 2)
    mono = data[position + 3] >> 6 == 3
    side_information = (17 if mono else 32) if first else (9 if mono else 17)
    if layer == 1:
        return MpegFrame((12 * bits // hertz + padding) * 4, 4)
    samples = 576 if layer == 3 and not first else 1152
    return MpegFrame(samples // 8 * bits // hertz + padding, 4 + side_information)


def _check_mp3(data: bytes) -> None:
    """Frames must follow each other without gaps, the last must be whole, and there must be as many as a Xing header says."""
    start = position = id3_length(data)
    if mpeg_frame(data, start) is None:  # free format, or padding after the tag: FFmpeg finds its way
        return
    count = 0
    while (frame := mpeg_frame(data, position)) is not None:
        _need(data, position + frame.length, "MP3 sound")
        position += frame.length
        count += 1
    rest = data[position:]
    if rest and not rest.startswith(_MP3_TAILS):
        if not any(mpeg_frame(data, at) for at in _syncs(data, position)):
            raise MediaError("truncated", "the MP3 sound breaks off in a frame's header")
        raise MediaError("undecodable", f"the MP3 sound is damaged: no frame begins at byte {position:,}")
    declared = xing_frames(data, start)
    if declared - 1 > count:  # the header's own frame counts for some encoders
        raise MediaError(
            "truncated", f"the MP3 sound breaks off: it declares {declared:,} frames and holds {count - 1:,}"
        )


def _syncs(data: bytes, position: int) -> Iterator[int]:
    while (position := data.find(b"\xff", position)) >= 0:
        yield position
        position += 1


def xing_frames(data: bytes, start: int) -> int:
    """The number of frames that the Xing or Info header in the frame at `start` declares, 0 if it does not."""
    frame = mpeg_frame(data, start)
    head = data[start + frame.xing : start + frame.xing + 12] if frame else b""
    if not head.startswith((b"Xing", b"Info")) or len(head) < 12 or not head[7] & 1:
        return 0
    return int.from_bytes(head[8:12], "big")


def _check_aac(data: bytes) -> None:
    """ADTS frames (ISO 13818-7, 6.2: 13 bits of length from bit 30) must follow each other, and the last must be whole."""
    position = id3_length(data)
    while position < len(data) and not data.startswith((b"TAG", b"\0"), position):
        if len(data) - position < 7:
            raise MediaError("truncated", "the AAC sound breaks off in a frame's header")
        length = (int.from_bytes(data[position + 3 : position + 6], "big") >> 5) & 0x1FFF
        if data[position] != 0xFF or data[position + 1] & 0xF6 != 0xF0 or length < 7:
            raise MediaError("undecodable", f"the AAC sound is damaged: no frame begins at byte {position:,}")
        _need(data, position + length, "AAC sound")
        position += length


def _check_matroska(data: bytes) -> None:
    """The segment, which holds all else, must fit (RFC 8794, 4 and 6.2: all ones means that its length is not known)."""
    header, size = _ebml_size(data, 4)
    segment = header + size
    start, length = _ebml_size(data, segment + 4)
    if length >= 0:
        _need(data, start + length, "WebM or Matroska sound or film")


def _ebml_size(data: bytes, position: int) -> tuple[int, int]:
    """Where the content begins and how long it is, -1 for unknown: the leading zeros of the first byte count the others."""
    width = 9 - data[position].bit_length()
    value = int.from_bytes(data[position : position + width], "big") & ((1 << 7 * width) - 1)
    return position + width, -1 if value == (1 << 7 * width) - 1 else value


def _check_asf(data: bytes) -> None:
    """The file properties object holds the file's length after its own size and the file's id (ASF, 3.2)."""
    position = data.find(_ASF_FILE_PROPERTIES, 0, 1 << 16)
    if position >= 0:
        _need(data, struct.unpack_from("<Q", data, position + 40)[0], "WMA sound or film")


_CHECKS: Final[dict[str, Callable[[bytes], None]]] = {
    "AAC sound": _check_aac,
    "AIFF sound": _check_aiff,
    "AU sound": _check_au,
    "CAF sound": _check_caf,
    "MP3 sound": _check_mp3,
    "MP4 sound or film": check_boxes,
    "Ogg sound": _check_ogg,
    "WAV sound": _check_wav,
    "WMA sound or film": _check_asf,
    "Wave64 sound": _check_wave64,
    "WebM or Matroska sound or film": _check_matroska,
}
