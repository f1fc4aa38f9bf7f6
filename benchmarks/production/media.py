"""Texts, photographs and sounds of a stated size and seed, as a catalogue of production would send them.

Texts have the lengths of catalogue texts (log-normal); photographs the spectrum of natural pictures (amplitude falls as 1/f),
so that JPEG spends on them what it spends on real ones; sounds are harmonic tones in noise.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

SEED: Final = 13
MEDIAN_TOKENS: Final = 30
P95_TOKENS: Final = 108
MOST_TOKENS: Final = 510
NORMAL_P95: Final = 1.645
SPECIAL_TOKENS: Final = 2  # [CLS] and [SEP]
WIDTH, HEIGHT = 500, 375
JPEG_QUALITY: Final = 90
SECONDS: Final = 5.0
RATE_HZ: Final = 44_100


def texts(count: int, words: Sequence[str]) -> list[str]:
    """`count` texts of whole words, each one token: median about 30 tokens, one in twenty above 108."""
    random = np.random.default_rng(SEED)
    spread = math.log(P95_TOKENS / MEDIAN_TOKENS) / NORMAL_P95
    lengths = np.exp(random.normal(math.log(MEDIAN_TOKENS), spread, count)).round().astype(int) - SPECIAL_TOKENS
    return [" ".join(random.choice(words, length)) for length in lengths.clip(1, MOST_TOKENS)]


def whole_words(tokenizer: Any) -> list[str]:
    """The vocabulary's English words: every one is a single token."""
    return sorted(word for word in tokenizer.get_vocab() if word.isascii() and word.isalpha() and len(word) > 1)


def photographs(folder: Path, count: int) -> list[Path]:
    """`count` JPEGs of 500 x 375 pixels, 60 to 100 kB each."""
    from PIL import Image

    random = np.random.default_rng(SEED + 1)
    folder.mkdir(parents=True)
    paths = [folder / f"{number:04d}.jpg" for number in range(count)]
    for path in paths:
        Image.fromarray(photograph(random), "YCbCr").save(path, quality=JPEG_QUALITY)
    return paths


def photograph(random: np.random.Generator) -> NDArray[np.uint8]:
    """Brightness and two weaker colour channels [375, 500, 3], each a random field of a natural picture's spectrum."""
    channels = [natural_field(random) * strength + 128 for strength in (48, 14, 14)]
    return np.stack(channels, axis=-1).round().clip(0, 255).astype(np.uint8)


def natural_field(random: np.random.Generator) -> NDArray[np.float64]:
    """A field [375, 500] of unit deviation whose amplitude falls as f to the power of -1.1 to -1.4 (Field 1987; Torralba and Oliva 2003)."""
    frequency = np.hypot(np.fft.fftfreq(HEIGHT)[:, None], np.fft.rfftfreq(WIDTH)[None, :])
    frequency[0, 0] = np.inf
    noise = np.fft.rfft2(random.standard_normal((HEIGHT, WIDTH)))
    field = np.fft.irfft2(noise / frequency ** random.uniform(1.1, 1.4), s=(HEIGHT, WIDTH))
    return np.asarray(field / field.std())


def clips(folder: Path, count: int) -> list[Path]:
    """`count` FLAC files of 5 s, mono, 44.1 kHz."""
    import soundfile

    random = np.random.default_rng(SEED + 2)
    folder.mkdir(parents=True)
    paths = [folder / f"{number:04d}.flac" for number in range(count)]
    for path in paths:
        soundfile.write(path, clip(random), RATE_HZ)
    return paths


def clip(random: np.random.Generator) -> NDArray[np.float64]:
    """A harmonic tone under a slow envelope, in noise 20 dB below it."""
    time = np.arange(int(SECONDS * RATE_HZ)) / RATE_HZ
    pitch, rate = 2 ** random.uniform(6.5, 10), random.uniform(0.3, 3)
    tone = sum(np.sin(2 * math.pi * pitch * n * time + random.uniform(0, 6)) / n for n in range(1, 7))
    return np.asarray(0.2 * tone * (1.2 + np.sin(2 * math.pi * rate * time)) + 0.03 * random.standard_normal(len(time)))
