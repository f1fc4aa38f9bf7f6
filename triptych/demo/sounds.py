"""The postcards' loops: eight instruments that an ear, and an audio encoder, can tell apart.

Each player returns float64 samples at `SAMPLE_RATE`; pitch, tempo and melody vary inside an instrument.
"""

import math
from collections.abc import Callable, Iterable
from typing import Final

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE: Final = 16_000  # Hz, what audio encoders hear: nothing is lost to resampling
SECONDS: Final = (1.5, 1.6, 1.8, 2.0)  # few lengths: clips of equal length can be encoded together
PEAK: Final = 0.8

Rng = np.random.Generator
Samples = NDArray[np.float64]
_PENTATONIC: Final = (0, 2, 4, 7, 9, 12)


def _note(rng: Rng, base_hz: float) -> float:
    return float(base_hz * 2.0 ** (int(rng.choice(_PENTATONIC)) / 12))


def _clock(seconds: float) -> Samples:
    return np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE


def _place(loop: Samples, part: Samples, at_seconds: float) -> None:
    """Add `part` to `loop` from `at_seconds` on, cut where the loop ends."""
    start = int(at_seconds * SAMPLE_RATE)
    room = max(0, min(len(part), len(loop) - start))
    loop[start : start + room] += part[:room]


def _band(noise: Samples, low_hz: float, high_hz: float) -> Samples:
    spectrum = np.fft.rfft(noise)
    hz = np.fft.rfftfreq(len(noise), 1 / SAMPLE_RATE)
    spectrum[(hz < low_hz) | (hz > high_hz)] = 0
    return np.fft.irfft(spectrum, len(noise))


def _mix(parts: Iterable[Samples]) -> Samples:
    return np.asarray(np.sum(list(parts), axis=0))


def _sequence(t: Samples, rng: Rng, beat: float, strike: Callable[[], Samples]) -> Samples:
    loop = np.zeros_like(t)
    for at in np.arange(rng.uniform(0, 0.05), t[-1], beat):
        _place(loop, strike(), float(at))
    return loop


def _bells(t: Samples, rng: Rng) -> Samples:
    base = rng.uniform(1100, 1400)

    def strike() -> Samples:
        s, hz = _clock(1.0), _note(rng, base)
        partials = ((1.0, 1.0, 4), (2.76, 0.6, 6), (5.4, 0.35, 9), (8.93, 0.2, 14))
        return _mix(a * np.exp(-d * s) * np.sin(2 * math.pi * hz * r * s) for r, a, d in partials)

    return _sequence(t, rng, rng.uniform(0.36, 0.5), strike)


def _drums(t: Samples, rng: Rng) -> Samples:
    beat = rng.uniform(0.2, 0.26)
    s = _clock(0.2)

    def kick() -> Samples:
        return np.asarray(1.4 * np.exp(-18 * s) * np.sin(2 * math.pi * (60 * s + 6 * (1 - np.exp(-30 * s)))))

    def hat() -> Samples:
        return 0.8 * np.exp(-60 * s) * rng.standard_normal(len(s))

    return _sequence(t, rng, 2 * beat, kick) + _sequence(t, rng, beat, hat)


def _drone(t: Samples, rng: Rng) -> Samples:
    base = _note(rng, rng.uniform(52, 62))
    loop = np.zeros_like(t)
    for detune in (0.995, 1.0, 1.006):
        for k in range(1, 9):
            loop += np.sin(2 * math.pi * base * detune * k * t + rng.uniform(0, 6.3)) / k
    return loop * (1 + 0.25 * np.sin(2 * math.pi * rng.uniform(0.8, 1.6) * t))


def _flute(t: Samples, rng: Rng) -> Samples:
    base = rng.uniform(500, 580)

    def strike() -> Samples:
        s, hz = _clock(0.5), _note(rng, base)
        phase = 2 * math.pi * hz * s + 0.9 * np.sin(2 * math.pi * 5.5 * s)
        breath = 0.05 * rng.standard_normal(len(s))
        return (np.sin(phase) + 0.18 * np.sin(2 * phase) + breath) * np.sin(math.pi * s / 0.5) ** 0.5

    return _sequence(t, rng, 0.48, strike)


def _surf(t: Samples, rng: Rng) -> Samples:
    noise = _band(rng.standard_normal(len(t)), 80, rng.uniform(1800, 2600))
    return np.asarray(noise * (0.35 + np.sin(math.pi * (t / t[-1] + rng.uniform(0, 0.4))) ** 2))


def _arcade(t: Samples, rng: Rng) -> Samples:
    base, beat = rng.uniform(260, 330), rng.uniform(0.085, 0.11)

    def strike() -> Samples:
        s = _clock(beat)
        return np.asarray(np.sign(np.sin(2 * math.pi * _note(rng, base) * s)) * np.exp(-4 * s))

    return _sequence(t, rng, beat, strike)


def _strings(t: Samples, rng: Rng) -> Samples:
    base = rng.uniform(140, 180)

    def strike() -> Samples:
        s, hz = _clock(0.7), _note(rng, base)
        return _mix(np.exp(-(2.2 + 1.3 * k) * s) * np.sin(2 * math.pi * hz * k * s) / k**0.6 for k in range(1, 14))

    return _sequence(t, rng, rng.uniform(0.24, 0.32), strike)


def _crickets(t: Samples, rng: Rng) -> Samples:
    hz, pulse = rng.uniform(4200, 5200), rng.uniform(26, 34)
    chirp = np.sin(2 * math.pi * pulse * t) > 0.1
    song = np.sin(2 * math.pi * rng.uniform(2.2, 3.2) * t + rng.uniform(0, 6.3)) > -0.3
    return np.sin(2 * math.pi * hz * t) * chirp * song + 0.02 * rng.standard_normal(len(t))


PLAYERS: Final[dict[str, Callable[[Samples, Rng], Samples]]] = {
    "bells": _bells,
    "drums": _drums,
    "drone": _drone,
    "flute": _flute,
    "surf": _surf,
    "arcade": _arcade,
    "strings": _strings,
    "crickets": _crickets,
}


def play(sound: str, rng: Rng) -> NDArray[np.float32]:
    """One loop of `sound`: float32 mono [n] at `SAMPLE_RATE`, 1.5 to 2 s, peak 0.8."""
    loop = PLAYERS[sound](_clock(float(rng.choice(SECONDS))), rng)
    fade = np.minimum(1.0, np.arange(len(loop), 0, -1) / (0.03 * SAMPLE_RATE))
    return np.asarray(PEAK * fade * loop / np.abs(loop).max(), np.float32)
