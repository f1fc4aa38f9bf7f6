"""Sounds: any file that libsndfile or FFmpeg reads, as 16 kHz mono.

Decoders take a file that was cut short and answer with less, or with nothing, and no error. So containers are checked for parts
that they declare and do not hold, and decoded lengths are compared with declared ones.
"""

import io
import struct
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from encoders._source import MediaLimits, article, describe, read_source
from encoders.errors import MediaError

SAMPLE_RATE_HZ: Final = 16_000
# One frame of wav2vec 2.0 sees 400 samples at 16 kHz.
MIN_SAMPLES: Final = 400
MIN_RATE_HZ, MAX_RATE_HZ = 1_000, 192_000
MAX_CHANNELS: Final = 32
_BLOCK_FRAMES: Final = 1 << 16
# Encoders pad and trim: a clip may be this much shorter than declared.
_LENGTH_TOLERANCE, _TOLERANCE_SECONDS = 0.02, 0.15
# A resampling kernel grows with the reduced ratio's parts: 44,101 Hz would need 700 million taps. 640 keeps every rate in use
# exact (11,025 Hz is 441/640) and the others within a millionth.
_MAX_RATIO_PART: Final = 640
_OGG_END_OF_STREAM: Final = 4
_DEMUXERS: Final = {
    "AAC sound": "aac",
    "MP3 sound": "mp3",
    "MP4 sound or film": "mov",
    "Ogg sound": "ogg",
    "WMA sound or film": "asf",
    "WebM or Matroska sound or film": "matroska",
}
_SUPPORTED: Final = "WAV, FLAC, Ogg, MP3, M4A, AAC, Opus, AIFF, WMA"
Samples = NDArray[np.float32]


def decode_audio(source: bytes | Path, limits: MediaLimits = MediaLimits()) -> Samples:  # noqa: B008  (frozen)
    """The sound in `source` (a file, or a file's bytes) as float32 mono [samples] at 16 kHz.

    Raises:
        MediaError: `not_found`, `empty`, `too_large`, `unsupported_format`, `truncated`, `undecodable`, `not_finite` or
            `too_short`.
    """
    return to_16_khz(*decode_at_own_rate(source, limits))


def decode_at_own_rate(source: bytes | Path, limits: MediaLimits) -> tuple[Samples, int, str]:
    """Mono samples, their rate in Hz and the file's kind in words. Errors as `decode_audio`; needs no torch."""
    data = read_source(source, limits)
    kind = describe(data)
    if _declares_more_than_it_holds(data, kind):
        raise MediaError("truncated", f"the {kind} breaks off before its end")
    samples, rate = _decode(data, kind, limits)
    if not samples.size:
        raise MediaError("empty", f"the {kind} holds no sound (0 samples); it may have been cut short")
    if not np.isfinite(samples).all():
        raise MediaError("not_finite", f"the {kind} holds samples that are not numbers (NaN or infinite)")
    return samples, rate, kind


def to_16_khz(samples: Samples, rate: int, kind: str = "sound") -> Samples:
    """Mono `samples` [n] of `rate` Hz at 16 kHz. Raises `MediaError` (`too_short`) under 25 ms."""
    samples = _resample(samples, rate)
    if len(samples) < MIN_SAMPLES:
        raise MediaError(
            "too_short", f"the {kind} lasts {1000 * len(samples) / SAMPLE_RATE_HZ:.0f} ms; at least 25 ms are needed"
        )
    return samples


class _Reader(io.BytesIO):
    """A file for libsndfile: a seek to before the start, which damaged files cause, goes nowhere, since C cannot catch errors."""

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        try:
            return super().seek(offset, whence)
        except (ValueError, OverflowError):
            return self.tell()


def _decode(data: bytes, kind: str, limits: MediaLimits) -> tuple[Samples, int]:
    """Mono samples at the file's own rate."""
    import soundfile

    if kind == "MP3 sound":  # libsndfile reads it too, but its decoder writes its complaints to stderr
        return _decode_with_ffmpeg(data, kind, limits)
    try:
        file = soundfile.SoundFile(_Reader(data))
    except (soundfile.SoundFileError, TypeError, ValueError) as error:
        if kind in _DEMUXERS:
            return _decode_with_ffmpeg(data, kind, limits)
        if kind.endswith(" sound"):
            raise MediaError("undecodable", f"the {kind} is damaged: its header cannot be read") from error
        raise MediaError("unsupported_format", f"the file holds {article(kind)}, not a sound ({_SUPPORTED})") from error
    with file:
        _check_shape(file.samplerate, file.channels, file.frames / max(1, file.samplerate), limits)
        try:
            samples = _collect(_blocks(file), file.samplerate, limits)
        except (soundfile.SoundFileError, RuntimeError) as error:
            raise MediaError("undecodable", f"the {kind} is damaged or breaks off: {error}") from error
        return samples, int(file.samplerate)


def _blocks(file: Any) -> Iterator[Any]:
    while (block := file.read(_BLOCK_FRAMES, dtype="float32", always_2d=True)).size:
        yield block.T


def _decode_with_ffmpeg(data: bytes, kind: str, limits: MediaLimits) -> tuple[Samples, int]:
    """Through FFmpeg, which is told the container: guessing, it would also follow playlists to files and addresses."""
    import av

    try:
        with av.open(io.BytesIO(data), mode="r", format=_DEMUXERS[kind]) as container:
            if not container.streams.audio:
                raise MediaError("unsupported_format", f"the {kind} has no sound track")
            stream = container.streams.audio[0]
            declared = float(container.duration or 0) / av.time_base if _declares_length(data, kind) else 0.0
            _check_shape(stream.rate, stream.channels, declared, limits)
            to_planar_float = av.AudioResampler(format="fltp", layout=stream.layout, rate=stream.rate)
            blocks = (
                part.to_ndarray() for frame in container.decode(stream) for part in to_planar_float.resample(frame)
            )
            samples = _collect(blocks, stream.rate, limits)
            _check_length(kind, len(samples) / stream.rate, declared)
            return samples, int(stream.rate)
    except (av.FFmpegError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise MediaError("undecodable", f"the {kind} is damaged: {reason}") from error


def _declares_length(data: bytes, kind: str) -> bool:
    """Whether FFmpeg reads the duration rather than guess it from the bit rate: MP3 says it in a Xing or Info header, AAC never."""
    head = data[: 1 << 16]
    return kind != "AAC sound" and (kind != "MP3 sound" or b"Xing" in head or b"Info" in head)


def _check_shape(rate: int, channels: int, seconds: float, limits: MediaLimits) -> None:
    if not MIN_RATE_HZ <= rate <= MAX_RATE_HZ:
        raise MediaError(
            "unsupported_format", f"a sampling rate of {rate} Hz is outside {MIN_RATE_HZ} .. {MAX_RATE_HZ} Hz"
        )
    if not 1 <= channels <= MAX_CHANNELS:
        raise MediaError("unsupported_format", f"{channels} channels are not supported; at most {MAX_CHANNELS}")
    if seconds > limits.max_audio_seconds:
        raise MediaError("too_large", f"the sound lasts {seconds:.0f} s; the limit is {limits.max_audio_seconds:.0f} s")


def _collect(blocks: Iterator[Any], rate: int, limits: MediaLimits) -> Samples:
    """Blocks [channels, samples] as one mono signal; stops where the limit is passed, whatever a header says."""
    mono: list[Samples] = []
    total = 0
    for block in blocks:
        mono.append(block.mean(axis=0, dtype=np.float32))
        total += block.shape[1]
        _check_shape(rate, len(block), total / rate, limits)
    return np.concatenate(mono) if mono else np.zeros(0, dtype=np.float32)


def _check_length(kind: str, decoded: float, declared: float) -> None:
    """Compare seconds."""
    if declared - decoded > max(_TOLERANCE_SECONDS, _LENGTH_TOLERANCE * declared):
        raise MediaError("truncated", f"the {kind} breaks off: it declares {declared:.2f} s and holds {decoded:.2f} s")


def _resample(samples: Samples, rate: int) -> Samples:
    if rate == SAMPLE_RATE_HZ:
        return samples
    import torch
    from torchaudio.functional import resample

    ratio = Fraction(rate, SAMPLE_RATE_HZ)
    if max(ratio.numerator, ratio.denominator) > MAX_RATE_HZ // 100:
        ratio = ratio.limit_denominator(_MAX_RATIO_PART)
    resampled: Samples = resample(torch.from_numpy(samples), ratio.numerator, ratio.denominator).numpy()
    return resampled


def _declares_more_than_it_holds(data: bytes, kind: str) -> bool:
    checks: dict[str, Callable[[bytes], bool]] = {
        "WAV sound": _wav_is_cut,
        "AIFF sound": lambda data: struct.unpack(">I", data[4:8].ljust(4, b"\0"))[0] + 8 > len(data),
        "Ogg sound": _ogg_is_cut,
        "MP4 sound or film": _mp4_is_cut,
    }
    return kind in checks and checks[kind](data)


def _wav_is_cut(data: bytes) -> bool:
    """Whether the data chunk is longer than the file. Streamed files declare 0 or the largest number: those say nothing."""
    position = 12
    while position + 8 <= len(data):
        size = int(struct.unpack("<I", data[position + 4 : position + 8])[0])
        if data[position : position + 4] == b"data":
            return size not in {0, 0xFFFFFFFF} and position + 8 + size > len(data)
        position += 8 + size + size % 2
    return position > len(data)


def _ogg_is_cut(data: bytes) -> bool:
    """Whether the last page is incomplete or is not marked as a stream's last (RFC 3533, section 6).

    A page is 27 bytes (the sixth holds the marks, the last counts the segments), the table of segment sizes, the segments.
    """
    page = data[data.rfind(b"OggS") :]
    if len(page) < 27 or not page[5] & _OGG_END_OF_STREAM:
        return True
    table = page[27 : 27 + page[26]]
    return 27 + page[26] + sum(table) > len(page)


def _mp4_is_cut(data: bytes) -> bool:
    """Whether a top-level box reaches past the end (ISO 14496-12, 4.2: size 1 is a 64-bit size, 0 means to the end)."""
    position = 0
    while position + 8 <= len(data):
        size = int(struct.unpack(">I", data[position : position + 4])[0])
        if size == 1 and position + 16 <= len(data):
            size = int(struct.unpack(">Q", data[position + 8 : position + 16])[0])
        if size == 0:
            return False
        if size < 8:
            return True
        position += size
    return position > len(data)
