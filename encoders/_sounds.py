"""Sounds: any file that libsndfile or FFmpeg reads, as 16 kHz mono.

Decoders take a file that was cut short and answer with less, or with nothing, and no error. So containers are checked first
(`encoders._sound_files`), and decoded lengths are compared with declared ones.
"""

import io
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from encoders._sound_files import check_sound_file, xing_frames
from encoders._source import MediaLimits, article, describe, id3_length, read_source
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
_DEMUXERS: Final = {
    "AAC sound": "aac",
    "MP3 sound": "mp3",
    "MP4 sound or film": "mov",
    "Ogg sound": "ogg",
    "WAV sound": "wav",
    "WMA sound or film": "asf",
    "WebM or Matroska sound or film": "matroska",
}
# libsndfile reads MP3 too, but its decoder writes its complaints to stderr.
_LIBSNDFILE: Final = frozenset(
    {"AIFF sound", "AU sound", "CAF sound", "FLAC sound", "Ogg sound", "WAV sound", "Wave64 sound"}
)
_SUPPORTED: Final = "WAV, FLAC, Ogg, MP3, M4A, AAC, Opus, AIFF, WMA"
_RESAMPLED_SECONDS: Final = 60
# torchaudio's kernel reaches 6 zero crossings of the lower rate, widened by its rolloff of 0.99, to either side; 8 are enough.
_KERNEL_REACH: Final = 8
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
    check_sound_file(data, kind)
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

    if kind not in _LIBSNDFILE and kind not in _DEMUXERS:
        raise MediaError("unsupported_format", f"the file holds {article(kind)}, not a sound ({_SUPPORTED})")
    if kind not in _LIBSNDFILE:
        return _decode_with_ffmpeg(data, kind, limits)
    try:
        file = soundfile.SoundFile(_Reader(data))
    except (soundfile.SoundFileError, TypeError, ValueError) as error:
        if kind in _DEMUXERS:  # a codec that libsndfile does not know
            return _decode_with_ffmpeg(data, kind, limits)
        raise MediaError("undecodable", f"the {kind} is damaged: its header cannot be read") from error
    with file:
        declared = file.frames / max(1, file.samplerate)
        _check_shape(file.samplerate, file.channels, declared, limits)
        try:
            samples = _collect(_blocks(file), file.samplerate, limits)
        except (soundfile.SoundFileError, RuntimeError) as error:
            raise MediaError("undecodable", f"the {kind} is damaged or breaks off: {error}") from error
        if samples.size:
            _check_length(kind, len(samples) / file.samplerate, declared)
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
            if stream.codec_context is None:
                raise MediaError("unsupported_format", f"the {kind}'s sound track is in a coding that is not supported")
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
    return kind != "AAC sound" and (kind != "MP3 sound" or xing_frames(data, id3_length(data)) > 0)


def _check_shape(rate: int, channels: int, seconds: float, limits: MediaLimits) -> None:
    if not MIN_RATE_HZ <= rate <= MAX_RATE_HZ:
        raise MediaError(
            "unsupported_format", f"a sampling rate of {rate} Hz is outside {MIN_RATE_HZ} .. {MAX_RATE_HZ} Hz"
        )
    if not 1 <= channels <= MAX_CHANNELS:
        count = f"{channels} channels are" if channels else "the number of channels that its header declares is"
        raise MediaError("unsupported_format", f"{count} not supported; 1 to {MAX_CHANNELS} are")
    if seconds > limits.max_audio_seconds:
        raise MediaError("too_large", f"the sound lasts {seconds:.0f} s; the limit is {limits.max_audio_seconds:.0f} s")


def _collect(blocks: Iterator[Any], rate: int, limits: MediaLimits) -> Samples:
    """Blocks [channels, samples] as one mono signal; stops where a limit is passed, whatever a header says."""
    mono: list[Samples] = []
    total, deadline = 0, time.monotonic() + limits.max_decode_seconds
    for block in blocks:
        if time.monotonic() > deadline:
            raise MediaError(
                "decode_timeout", f"decoding took longer than the limit of {limits.max_decode_seconds:g} s"
            )
        with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is refused by name later
            mono.append(block.mean(axis=0, dtype=np.float32))
        total += block.shape[1]
        _check_shape(rate, len(block), total / rate, limits)
    return np.concatenate(mono) if mono else np.zeros(0, dtype=np.float32)


def _check_length(kind: str, decoded: float, declared: float) -> None:
    """Compare seconds."""
    if declared - decoded > max(_TOLERANCE_SECONDS, _LENGTH_TOLERANCE * declared):
        raise MediaError("truncated", f"the {kind} breaks off: it declares {declared:.2f} s and holds {decoded:.2f} s")


def _resample(samples: Samples, rate: int) -> Samples:
    """At 16 kHz, in blocks of about a minute: resampled at once, an hour would need ten times its size of memory."""
    if rate == SAMPLE_RATE_HZ:
        return samples
    ratio = Fraction(rate, SAMPLE_RATE_HZ)
    if max(ratio.numerator, ratio.denominator) > MAX_RATE_HZ // 100:
        ratio = ratio.limit_denominator(_MAX_RATIO_PART)
    source, target = ratio.numerator, ratio.denominator
    block = max(1, _RESAMPLED_SECONDS * rate // source) * source
    margin = -(-_KERNEL_REACH * max(source, target) // source) * source
    parts = []
    for start in range(0, len(samples), block):
        first, last = max(0, start - margin), start + block >= len(samples)
        part = _resample_block(samples[first : None if last else start + block + margin], source, target)
        skipped = (start - first) // source * target
        parts.append(part[skipped : None if last else skipped + block // source * target])
    return np.concatenate(parts)


def _resample_block(samples: Samples, source: int, target: int) -> Samples:
    import torch
    from torchaudio.functional import resample

    resampled: Samples = resample(torch.from_numpy(samples), source, target).numpy()
    return resampled
