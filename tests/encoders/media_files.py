"""Real files of every kind, made in memory: pictures by Pillow, sounds by libsndfile and FFmpeg."""

import io

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


def ffmpeg_file(samples, rate, container, codec):
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
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
