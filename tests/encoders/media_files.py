"""Real files of every kind, made in memory: pictures by Pillow, sounds by libsndfile and FFmpeg."""

import io
import struct
import zlib

import av
import numpy as np
import soundfile
from PIL import Image

RED, GREEN = (255, 0, 0), (0, 128, 0)


def picture(size=(48, 32), colour=RED, mode="RGB"):
    return Image.new("RGB", size, colour).convert(mode)


def file_of(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def noise_picture(seed=0, size=(64, 64)):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def tone(seconds=1.0, rate=16_000, hertz=440.0):
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def sound_file(samples, rate=16_000, kind="WAV", subtype=None):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=kind, subtype=subtype)
    return buffer.getvalue()


def png_file(width, height, *, rows=None, before=b"", depth=8, colour=2):
    """A PNG made by hand: `rows` are its unpacked bytes, `before` are chunks in front of them."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    packed = zlib.compress(bytes(100) if rows is None else rows)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + before + png_chunk(b"IDAT", packed) + png_chunk(b"IEND")


def png_chunk(name, data=b""):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def slow_picture(side=7_000):
    """A PNG of one colour: a few kilobytes whose decoding takes long."""
    packer, row = zlib.compressobj(9), bytes(1 + 3 * side)
    rows = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    head = png_file(side, side)[:33]
    return head + png_chunk(b"IDAT", rows) + png_chunk(b"IEND")


def gif_frames(count, size=1):
    """An animated GIF of `count` frames of size x size pixels, one block written `count` times."""
    data = file_of(picture((size, size)), "GIF")
    start = data.index(b",", 13 + 3 * 2 ** ((data[10] & 7) + 1) if data[10] & 0x80 else 13)
    return data[:start] + data[start:-1] * count + b";"


def ffmpeg_file(samples, rate, container, codec, options=None):
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container, options=options or {}) as output:
        stream = output.add_stream(codec, rate=rate)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts = rate, 0
        queue = av.AudioFifo()
        queue.write(frame)
        while (part := queue.read(stream.frame_size)) or (part := queue.read(0)):
            output.mux(stream.encode(part))
        output.mux(stream.encode(None))
    return buffer.getvalue()
