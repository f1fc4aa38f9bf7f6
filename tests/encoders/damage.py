"""A corpus of damaged files: small real files of every kind, changed as files are changed by accident and on purpose.

The same seed makes the same corpus.
"""

import functools
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageFilter

from encoders._sound_files import _ogg_checksum
from tests.encoders.media_files import ffmpeg_file, file_of, noise_picture, picture, sound_file, tone

# What length fields are changed to: none, one, signs, and the largest.
EXTREMES = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)


@functools.cache
def whole_files():
    """(modality, name, bytes) of about forty small whole files."""
    return [
        *(("image", name, data) for name, data in _pictures()),
        *(("audio", name, data) for name, data in _sounds()),
    ]


def _pictures():
    image = noise_picture(0, (40, 30)).filter(ImageFilter.GaussianBlur(1))
    others = [picture((40, 30), (0, 60 * i, 0)) for i in range(3)]
    for name, kind, mode, options in [
        ("jpeg", "JPEG", "RGB", {}),
        ("progressive", "JPEG", "RGB", {"progressive": True}),
        ("restarts", "JPEG", "L", {"restart_marker_blocks": 2}),
        ("cmyk jpeg", "JPEG", "CMYK", {}),
        ("png", "PNG", "RGB", {}),
        ("png palette", "PNG", "P", {"transparency": 3}),
        ("png grey alpha", "PNG", "LA", {}),
        ("png 1 bit", "PNG", "1", {}),
        ("apng", "PNG", "RGB", {"save_all": True, "append_images": others}),
        ("webp", "WEBP", "RGB", {}),
        ("webp lossless", "WEBP", "RGBA", {"lossless": True}),
        ("webp animated", "WEBP", "RGB", {"save_all": True, "append_images": others}),
        ("gif", "GIF", "P", {}),
        ("gif animated", "GIF", "RGB", {"save_all": True, "append_images": others}),
        ("tiff", "TIFF", "RGB", {}),
        ("tiff lzw", "TIFF", "RGB", {"compression": "tiff_lzw"}),
        ("tiff deflate", "TIFF", "CMYK", {"compression": "tiff_adobe_deflate"}),
        ("tiff pages", "TIFF", "L", {"save_all": True, "append_images": others}),
        ("tiff fax", "TIFF", "1", {"compression": "group4"}),
        ("bmp", "BMP", "RGB", {}),
        ("bmp palette", "BMP", "P", {}),
        ("avif", "AVIF", "RGB", {}),
        ("avif sequence", "AVIF", "RGB", {"save_all": True, "append_images": others}),
    ]:
        yield name, file_of(image.convert(mode), kind, **options)
    yield "png 16 bit", file_of(Image.fromarray((np.arange(1200).reshape(30, 40) * 50).astype(np.uint16)))
    yield "ppm", file_of(image, "PPM")


def _sounds():
    noise = (tone(0.3, 8_000) * 0.5 + np.random.default_rng(0).normal(0, 0.1, 2_400)).astype(np.float32)
    for kind, subtype in [
        ("WAV", "PCM_16"), ("WAV", "PCM_U8"), ("WAV", "FLOAT"), ("WAV", "ULAW"), ("WAV", "IMA_ADPCM"), ("WAV", "GSM610"),
        ("WAVEX", "PCM_24"), ("W64", "PCM_16"), ("RF64", "PCM_16"), ("AU", "PCM_16"), ("CAF", "PCM_16"), ("AIFF", "PCM_16"),
        ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", None),
    ]:  # fmt: skip
        yield f"{kind} {subtype}", sound_file(noise, 8_000, kind, subtype)
    for container, codec, rate in [("ipod", "aac", 44_100), ("adts", "aac", 44_100), ("webm", "libopus", 48_000)]:
        yield f"{container} {codec}", ffmpeg_file(tone(0.3, rate), rate, container, codec)


def damaged_files(seed, count) -> Iterator[tuple[str, str, bytes]]:
    """`count` times (modality, what was done to what, bytes), every whole file in turn."""
    rng = np.random.default_rng(seed)
    files = whole_files()
    for index in range(count):
        modality, name, data = files[index % len(files)]
        damage = DAMAGES[int(rng.integers(len(DAMAGES)))]
        damaged = damage(rng, data, files[int(rng.integers(len(files)))][2])
        if rng.random() < 0.5:
            damaged = repaired(damaged)
        yield modality, f"{name}: {damage.__name__} (seed {seed}, file {index})", bytes(damaged)


def flip_bits(rng, data, other):
    """One to thirty-two bits changed, half of the time near the start."""
    damaged = bytearray(data)
    end = len(data) if rng.random() < 0.5 else min(len(data), 128)
    for position in rng.integers(0, end, rng.integers(1, 33)):
        damaged[position] ^= 1 << int(rng.integers(8))
    return damaged


def cut(rng, data, other):
    """Only a beginning is left."""
    return data[: rng.integers(1, len(data))]


def splice(rng, data, other):
    """The beginning of one file and the end of another, of any kind."""
    return data[: rng.integers(len(data))] + other[rng.integers(len(other)) :]


def swap_header(rng, data, other):
    """Another file's first bytes."""
    length = int(rng.choice([4, 8, 12, 32, 64]))
    return other[:length] + data[length:]


def edit_length(rng, data, other):
    """An extreme number where a header may keep a length, in either byte order."""
    damaged = bytearray(data)
    position = int(rng.integers(max(1, min(len(data), 400) - 8)))
    width, order = int(rng.choice([1, 2, 4, 8])), "<" if rng.random() < 0.5 else ">"
    value = EXTREMES[int(rng.integers(len(EXTREMES)))] % 256**width
    struct.pack_into(order + {1: "B", 2: "H", 4: "I", 8: "Q"}[width], damaged, position, value)
    return damaged


def zero_run(rng, data, other):
    """A hole, as a disk or a download leaves it."""
    damaged = bytearray(data)
    start, length = int(rng.integers(len(data))), int(rng.integers(1, 300))
    damaged[start : start + length] = bytes(len(damaged[start : start + length]))
    return damaged


def random_run(rng, data, other):
    """Other bytes for a stretch."""
    start, length = int(rng.integers(len(data))), int(rng.integers(1, 300))
    return data[:start] + rng.bytes(length) + data[start + length :]


def repeat_part(rng, data, other):
    """A stretch that stands there twice, or many times."""
    start, length = int(rng.integers(len(data))), int(rng.integers(1, 200))
    return data[:start] + data[start : start + length] * int(rng.choice([2, 2, 50])) + data[start + length :]


DAMAGES = (flip_bits, cut, splice, swap_header, edit_length, zero_run, random_run, repeat_part)


def repaired(data):
    """With the checksums of PNG and Ogg made right again, so that what lies behind that check is reached."""
    if data[:4] == b"\x89PNG":
        return _repaired_png(bytearray(data))
    if data[:4] == b"OggS":
        return _repaired_ogg(bytearray(data))
    return data


def _repaired_png(data):
    position = 8
    while position + 12 <= len(data):
        end = position + 12 + struct.unpack_from(">I", data, position)[0]
        if end > len(data):
            break
        struct.pack_into(">I", data, end - 4, zlib.crc32(data[position + 4 : end - 4]))
        position = end
    return data


def _repaired_ogg(data):
    position = 0
    while data.startswith(b"OggS", position) and position + 27 <= len(data):
        body = position + 27 + data[position + 26]
        end = body + sum(data[position + 27 : body])
        if end > len(data):
            break
        struct.pack_into(
            "<I",
            data,
            position + 22,
            _ogg_checksum(bytes(data[position : position + 22]), bytes(data[position + 26 : end])),
        )
        position = end
    return data
