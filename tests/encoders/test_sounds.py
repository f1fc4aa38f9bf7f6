import contextlib

import numpy as np
import pytest

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
