import contextlib
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from encoders._sound_files import check_sound_file, mpeg_frame
from encoders._sounds import to_16_khz
from encoders._source import describe
from encoders.errors import MediaError
from encoders.media import MIN_SAMPLES, MediaLimits, decode_audio
from tests.encoders.media_files import ffmpeg_file, file_of, picture, sound_file, tone

FILES = {
    "wav": sound_file(tone()),
    "wav float": sound_file(tone(), subtype="FLOAT"),
    "flac": sound_file(tone(), kind="FLAC"),
    "ogg vorbis": sound_file(tone(), kind="OGG", subtype="VORBIS"),
    "ogg opus": sound_file(tone(), kind="OGG", subtype="OPUS"),
    "mp3": sound_file(tone(), kind="MP3"),
    "aiff": sound_file(tone(), kind="AIFF"),
    "m4a": ffmpeg_file(tone(rate=44_100), 44_100, "ipod", "aac"),
    "aac": ffmpeg_file(tone(rate=44_100), 44_100, "adts", "aac"),
    "webm": ffmpeg_file(tone(rate=48_000), 48_000, "webm", "libopus"),
}


# Every coding of WAV that libsndfile writes, and other containers of plain samples.
PLAIN = [
    *(("WAV", subtype) for subtype in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW",
                                       "IMA_ADPCM", "MS_ADPCM", "GSM610")),
    *(("WAVEX", subtype) for subtype in ("PCM_U8", "PCM_24", "FLOAT", "ULAW")),
    ("W64", "PCM_16"), ("RF64", "PCM_16"), ("AU", "PCM_16"), ("AU", "ULAW"), ("CAF", "PCM_16"), ("CAF", "ALAW"),
    ("AIFF", "PCM_16"), ("AIFF", "FLOAT"), ("AIFF", "ULAW"), ("FLAC", "PCM_S8"), ("FLAC", "PCM_24"),
]  # fmt: skip


def mp3_file(seconds=2.0, rate=44_100, *, xing=True):
    """An MP3 of noise; its first frame, which holds the Xing header, can be left out."""
    noise = np.random.default_rng(2).normal(0, 0.2, int(seconds * rate)).astype(np.float32)
    data = sound_file(noise, rate, "MP3")
    return data if xing else data[mpeg_frame(data, 0).length :]


def reason_of(source, **limits):
    with pytest.raises(MediaError) as caught:
        decode_audio(source, MediaLimits(**limits))
    return f"{caught.value.code}: {caught.value}"


def pitch_of(samples):
    return np.abs(np.fft.rfft(samples)).argmax() * 16_000 / len(samples)


def code_of(source, **limits):
    with pytest.raises(MediaError) as caught:
        decode_audio(source, MediaLimits(**limits))
    assert str(caught.value)
    return caught.value.code


@pytest.mark.parametrize("name", FILES)
def test_every_format_gives_the_tone_that_was_saved(name):
    """Whatever the file's format, out comes mono float32 at 16 kHz, of the same length and pitch."""
    samples = decode_audio(FILES[name])
    assert samples.dtype == np.float32
    assert samples.ndim == 1
    assert len(samples) == pytest.approx(16_000, rel=0.08)  # AAC pads to whole frames
    assert pitch_of(samples) == pytest.approx(440, abs=3)
    assert np.sqrt(np.mean(samples**2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.08)


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 44_101, 47_999, 48_000, 96_000, 192_000])
def test_every_rate_keeps_length_and_pitch(rate):
    """Sampling rates are brought to 16 kHz, odd ones (whose exact kernel would take gigabytes) included."""
    samples = decode_audio(sound_file(tone(rate=rate), rate))
    assert len(samples) == pytest.approx(16_000, abs=2)
    assert pitch_of(samples) == pytest.approx(440, abs=1)


def test_lossless_16_khz_mono_is_passed_unchanged():
    """What is in the wanted form already is not touched."""
    np.testing.assert_array_equal(decode_audio(sound_file(tone(), subtype="FLOAT")), tone())


def test_channels_are_averaged():
    """A stereo file is the mean of its channels."""
    stereo = np.stack([tone(), np.zeros_like(tone())], axis=1)
    np.testing.assert_allclose(decode_audio(sound_file(stereo, subtype="FLOAT")), tone() / 2, atol=1e-6)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("part", [0.05, 0.3, 0.6])
def test_a_file_cut_short_is_refused(name, part):
    """A sound that breaks off never decodes to a shorter sound, though decoders would let it pass."""
    data = FILES[name]
    assert code_of(data[: int(len(data) * part)]) in {"truncated", "undecodable"}


def test_an_ogg_cut_between_pages_is_refused():
    """Whole pages, but not all of them: only the missing mark of the last page tells."""
    data = sound_file(tone(5.0), kind="OGG", subtype="OPUS")
    assert len(decode_audio(data)) == 80_000
    assert code_of(data[: data.rfind(b"OggS")]) == "truncated"


def test_a_header_without_samples_is_refused():
    """A WAV of a header only: cut off, or honestly empty."""
    assert code_of(FILES["wav"][:44]) == "truncated"
    assert code_of(sound_file(np.zeros(0, np.float32))) == "empty"


def test_missing_and_empty_files(tmp_path):
    """Nothing there and nothing in it have their own codes."""
    (tmp_path / "empty.wav").touch()
    assert code_of(tmp_path / "none.wav") == "not_found"
    assert code_of(tmp_path / "empty.wav") == "empty"


def test_content_decides_not_the_name(tmp_path):
    """An Ogg that is called .png is a sound, and a picture that is called .wav is not."""
    path = tmp_path / "picture.png"
    path.write_bytes(FILES["ogg vorbis"])
    assert len(decode_audio(path)) == 16_000
    with pytest.raises(MediaError, match="a PNG picture, not a sound") as caught:
        decode_audio(file_of(picture()))
    assert caught.value.code == "unsupported_format"


def test_a_playlist_is_not_followed(tmp_path):
    """FFmpeg would open what a playlist names; here it is only a text."""
    (tmp_path / "secret.wav").write_bytes(FILES["wav"])
    playlist = tmp_path / "list.m3u8"
    playlist.write_text(f"#EXTM3U\n#EXTINF:1,\n{tmp_path}/secret.wav\n#EXT-X-ENDLIST\n")
    assert code_of(playlist) == "unsupported_format"


def test_a_film_without_sound_is_refused():
    """A container without a sound track says so."""
    import io

    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        stream = output.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 32
        output.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")))
        output.mux(stream.encode(None))
    with pytest.raises(MediaError, match="no sound track") as caught:
        decode_audio(buffer.getvalue())
    assert caught.value.code == "unsupported_format"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_samples_that_are_not_numbers_are_refused(value):
    """One NaN or infinity in a floating-point file refuses it."""
    samples = tone()
    samples[100] = value
    assert code_of(sound_file(samples, subtype="FLOAT")) == "not_finite"


def test_too_short_and_too_long():
    """Less than one frame of wav2vec 2.0 (25 ms), and more than the limit, are refused."""
    assert code_of(sound_file(tone()[: MIN_SAMPLES - 1])) == "too_short"
    assert len(decode_audio(sound_file(tone()[:MIN_SAMPLES]))) == MIN_SAMPLES
    assert code_of(FILES["flac"], max_audio_seconds=0.9) == "too_large"
    assert code_of(FILES["aac"], max_audio_seconds=0.9) == "too_large"
    assert code_of(FILES["wav"], max_bytes=1000) == "too_large"


def test_random_damage_is_a_media_error_or_a_sound():
    """Flipped bytes end in a finite sound or in a `MediaError`, never in another exception or a warning."""
    random = np.random.default_rng(7)
    for data in FILES.values():
        for _ in range(40):
            damaged = bytearray(data)
            for position in random.integers(0, random.choice([64, len(data)]), random.choice([1, 8])):
                damaged[position] = random.integers(256)
            with contextlib.suppress(MediaError):
                assert np.isfinite(decode_audio(bytes(damaged))).all()


@pytest.mark.parametrize(("kind", "subtype"), PLAIN)
def test_every_coding_of_samples(kind, subtype):
    """Eight bits to double precision, companded or packed: the tone that was saved comes out; cut short, it is refused."""
    data = sound_file(tone(rate=8_000), 8_000, kind, subtype)
    samples = decode_audio(data)
    assert len(samples) == pytest.approx(16_000, rel=0.05)  # packed codings fill their last block
    assert pitch_of(samples[:16_000]) == pytest.approx(440, abs=2)
    assert np.sqrt(np.mean(samples[:16_000] ** 2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.05)
    for part in (0.3, 0.6, 0.95):
        assert code_of(data[: int(len(data) * part)]) in {"truncated", "undecodable"}


def test_51_channels_are_averaged():
    """Six channels (an extensible header says which is which) are mixed evenly."""
    channels = np.zeros((48_000, 6), np.float32)
    channels[:, 0] = tone(rate=48_000)
    data = sound_file(channels, 48_000, "WAVEX")
    assert data[20:22] == b"\xfe\xff", "WAVE_FORMAT_EXTENSIBLE"
    samples = decode_audio(data)
    assert len(samples) == 16_000
    assert np.sqrt(np.mean(samples**2)) == pytest.approx(0.5 / np.sqrt(2) / 6, rel=0.02)


@pytest.mark.parametrize(("container", "codec", "rate"), [("mp2", "mp2", 44_100), ("mp4", "aac", 48_000), ("matroska", "aac", 44_100),
                                                          ("mp3", "libmp3lame", 22_050), ("mp3", "libmp3lame", 8_000)])  # fmt: skip
def test_other_containers(container, codec, rate):
    """Layer II, films' containers, the low rates of MPEG 2 and 2.5."""
    samples = decode_audio(ffmpeg_file(tone(rate=rate), rate, container, codec))
    assert len(samples) == pytest.approx(16_000, rel=0.15)
    assert pitch_of(samples) == pytest.approx(440, abs=3)


def test_a_tag_in_front_is_skipped():
    """An ID3 tag may stand before MP3, FLAC or AAC; what follows it counts."""
    tag = b"ID3\x04\0\0" + bytes([0, 0, 2, 0]) + bytes(256)
    for name, kind in (("mp3", "MP3 sound"), ("flac", "FLAC sound"), ("aac", "AAC sound")):
        assert describe(tag + FILES[name]) == kind
        assert len(decode_audio(tag + FILES[name])) == len(decode_audio(FILES[name]))


def test_mp3_with_and_without_its_length():
    """A Xing header's count of frames is kept; without it every frame must be whole; tags behind the last are no damage."""
    with_length, without = mp3_file(), mp3_file(xing=False)
    assert len(decode_audio(with_length)) == 32_000
    assert len(decode_audio(without)) == pytest.approx(32_000, rel=0.05)
    assert len(decode_audio(without + b"TAG" + bytes(125))) == len(decode_audio(without))
    assert reason_of(without[:-100]).startswith("truncated")
    assert reason_of(without[:-2000]).startswith("truncated")
    assert reason_of(without[:8_000] + b"junk" + without[8_000:]).startswith(
        "undecodable: the MP3 sound is damaged: no frame"
    )


def test_mp3_cut_between_frames():
    """With a Xing header a missing frame is noticed; without, the file is like a shorter one, and nobody could tell."""

    def without_last_frames(data):
        position, frames = 0, []
        while frame := mpeg_frame(data, position):
            frames.append(position)
            position += frame.length
        return data[: frames[-5]]

    assert "frames and holds" in reason_of(without_last_frames(mp3_file()))
    assert len(decode_audio(without_last_frames(mp3_file(xing=False)))) > 25_000


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_every_bit_of_an_ogg_is_guarded(subtype):
    """Each page has a checksum, and a page that is missing leaves a hole in their numbers."""
    noise = np.random.default_rng(2).normal(0, 0.2, 80_000).astype(np.float32)
    data = sound_file(noise, kind="OGG", subtype=subtype)
    for position in np.random.default_rng(1).integers(30, len(data), 40):
        assert code_of(data[:position] + bytes([data[position] ^ 4]) + data[position + 1 :]) in {
            "undecodable",
            "truncated",
        }
    pages = [at for at in range(len(data)) if data.startswith(b"OggS", at)]
    assert len(pages) >= 4
    assert "page 2 is missing" in reason_of(data[: pages[2]] + data[pages[3] :])


def test_every_bit_of_a_flac_is_guarded():
    """Each frame of a FLAC has a checksum."""
    noise = np.random.default_rng(2).normal(0, 0.1, 16_000).astype(np.float32)
    data = sound_file(noise, kind="FLAC")
    for position in np.random.default_rng(1).integers(200, len(data), 40):
        assert code_of(data[:position] + bytes([data[position] ^ 4]) + data[position + 1 :]) == "undecodable"


@pytest.mark.parametrize("declared", [0xFFFFFFFE, 0x7FFFFFFF])
def test_a_wav_that_declares_gigabytes(declared):
    """The refusal names what is declared and what is there; a WAV written into a pipe, whose length was unknown, is read."""
    data = bytearray(FILES["wav"])
    size = data.index(b"data") + 4
    struct.pack_into("<I", data, size, declared)
    assert f"declares {declared + size + 4:,} bytes and holds {len(data):,}" in reason_of(bytes(data))
    struct.pack_into("<I", data, size, 0xFFFFFFFF)
    assert len(decode_audio(bytes(data))) == 16_000


INFO = b"LIST" + struct.pack("<I", 4) + b"INFO"


def wav_with(declared, behind, *, riff=None, held=32_000):
    """A WAV of 1 s whose data chunk declares so many bytes; `behind` comes after those that it holds."""
    data = bytearray(FILES["wav"][: 44 + held])
    size = data.index(b"data") + 4
    struct.pack_into("<I", data, size, declared)
    data += behind
    struct.pack_into("<I", data, 4, len(data) - 8 if riff is None else riff)
    return bytes(data)


def test_a_wav_that_declares_less_than_it_holds():
    """Samples behind the data chunk are no chunk: the file would be heard in part."""
    assert "declares 1,000 bytes of samples, and what follows them at byte 1,044 is no chunk" in reason_of(
        wav_with(1000, b"")
    )


@pytest.mark.parametrize(
    "data",
    [
        wav_with(32_000, INFO),
        wav_with(32_000, b"\0" + INFO),
        wav_with(31_999, INFO),  # the last byte pads the odd size
        wav_with(31_999, INFO, held=31_999),
        wav_with(32_000, b"ID3\3" + bytes(30)),
        wav_with(32_000, b"ab\0\0" + struct.pack("<I", 2) + b"hi"),
        wav_with(32_000, bytes(64)),
        wav_with(32_000, b"\xff" * 64, riff=32_036),  # behind the RIFF's own end
        wav_with(32_000, b"\xff\xfe"),
    ],
)
def test_what_may_follow_a_wavs_samples(data):
    """A chunk, whose padding before it may be missing or one too many; a tag; zeros; anything behind the declared end; a stray byte or two."""
    assert len(decode_audio(data)) in {15_999, 16_000}


def test_a_flac_that_declares_a_year():
    """2^36 samples in a header cost nothing: the limit is named."""
    data = bytearray(FILES["flac"])
    data[21] |= 0x0F
    data[22:26] = b"\xff" * 4
    assert reason_of(bytes(data)) == "too_large: the sound lasts 4294967 s; the limit is 600 s"


HOUR = """
import resource, sys
from encoders.media import MediaLimits, decode_audio
from tests.encoders.media_files import sound_file
import numpy as np
hour = sound_file(np.zeros(3600 * 11_025, np.float32), 11_025, "FLAC")
decode_audio(sound_file(np.zeros(120 * 11_025, np.float32), 11_025))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
samples = decode_audio(hour, MediaLimits(max_audio_seconds=4_000))
print(len(samples), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_an_hour_is_refused_or_read_in_bounded_memory():
    """An hour is over the default limit, and said to be; where it is allowed, it costs little more than its samples twice.

    Once at the file's rate, twice at 16 kHz while blocks are joined.
    """
    for kind, seconds in (("FLAC", 3600), ("MP3", 640)):
        silence = np.zeros(seconds * 8_000, np.float32)
        assert "the limit is 600 s" in reason_of(sound_file(silence, 8_000, kind))
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", HOUR], cwd=root, capture_output=True, text=True, check=True)
    length, kilobytes = map(int, done.stdout.split())
    assert length == 3600 * 16_000
    assert kilobytes * 1024 < 4 * 3600 * (2 * 11_025 + 2 * 16_000) * 1.2


def test_blocks_of_a_long_sound_are_joined_without_a_seam():
    """Resampling in blocks of a minute gives what resampling at once gives."""
    import torch
    from torchaudio.functional import resample

    noise = np.random.default_rng(4).normal(0, 0.1, 130 * 11_025 + 7).astype(np.float32)
    np.testing.assert_allclose(to_16_khz(noise, 11_025), resample(torch.from_numpy(noise), 441, 640), atol=2e-6)


def test_decoding_time_is_limited():
    """In-process decoding stops at the time limit between two blocks."""
    assert reason_of(sound_file(tone(300.0), kind="FLAC"), max_decode_seconds=0.001).startswith("decode_timeout")


def test_infinities_that_meet_are_refused_quietly():
    """Plus and minus infinity in two channels have no mean: a refusal, not a warning of the numerical library."""
    samples = np.stack([np.full(16_000, np.inf), np.full(16_000, -np.inf)], axis=1).astype(np.float32)
    assert code_of(sound_file(samples, subtype="FLOAT")) == "not_finite"
    loudest = np.full((16_000, 2), np.finfo(np.float32).max, np.float32)
    assert code_of(sound_file(loudest, subtype="FLOAT")) == "not_finite"


@pytest.mark.parametrize("name", FILES)
def test_containers_of_whole_files_pass(name):
    """The checks before decoding have nothing against whole files."""
    check_sound_file(FILES[name], describe(FILES[name]))
