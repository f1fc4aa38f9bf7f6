import numpy as np
import pytest

from encoders import AudioEncoder
from encoders.errors import EncoderError, MediaError, WeightsError
from encoders.media import decode_audio
from encoders.staged import Unit
from encoders.weights import quiet
from tests.encoders.media_files import sound_file, tone


def reference(folder, clip):
    """The mean over frames of what transformers' own extractor and model give for one clip."""
    import torch
    from transformers import Wav2Vec2FeatureExtractor, Wav2Vec2Model

    with quiet():
        model, extractor = Wav2Vec2Model.from_pretrained(folder), Wav2Vec2FeatureExtractor.from_pretrained(folder)
        inputs = extractor(clip, sampling_rate=16_000, return_tensors="pt").input_values
    with torch.inference_mode():
        mean = model(inputs).last_hidden_state[0].mean(0).numpy()
    return mean / np.linalg.norm(mean)


def test_vectors_equal_transformers_own(wav2vec2_folder, clips):
    """Clips of one window, batched or not, give what transformers gives for each alone."""
    encoder = AudioEncoder(wav2vec2_folder, dtype="float32")
    expected = np.stack([reference(wav2vec2_folder, clip) for clip in clips])
    assert (encoder.encode(clips) * expected).sum(1).min() > 0.99999
    assert (encoder.space.kind, encoder.space.dim) == ("encoder", 32)


def test_vectors_equal_torchaudios_import(wav2vec2_folder, clips):
    """Torchaudio's own wav2vec 2.0, with the weights that it imports from transformers, gives the same."""
    import torch
    from torchaudio.models.wav2vec2.utils import import_huggingface_model
    from transformers import Wav2Vec2Model

    with quiet():
        model = import_huggingface_model(Wav2Vec2Model.from_pretrained(wav2vec2_folder)).eval()
    got = AudioEncoder(wav2vec2_folder, dtype="float32").encode(clips)
    for clip, vector in zip(clips, got, strict=True):
        normal = (clip - clip.mean()) / np.sqrt(clip.var() + 1e-7)
        with torch.inference_mode():
            mean = model.extract_features(torch.from_numpy(normal)[None])[0][-1][0].mean(0).numpy()
        assert vector @ mean / np.linalg.norm(mean) > 0.99999


def test_bfloat16_gives_nearly_the_same_vectors(wav2vec2_folder, clips):
    """Half the precision agrees to a cosine of 0.999."""
    exact, fast = (AudioEncoder(wav2vec2_folder, device="cpu", dtype=dtype) for dtype in ("float32", "bfloat16"))
    assert (exact.encode(clips) * fast.encode(clips)).sum(1).min() > 0.999


def test_ten_milliseconds_are_repeated_here_and_refused_in_files(wav2vec2_folder):
    """An encoder repeats a clip until a frame is full; a file of 10 ms is refused with its reason."""
    encoder = AudioEncoder(wav2vec2_folder)
    encoder.space.check(encoder.encode([tone(0.01)]))
    with pytest.raises(MediaError, match="10 ms") as caught:
        decode_audio(sound_file(tone(0.01)))
    assert caught.value.code == "too_short"


def test_a_long_clip_is_the_mean_of_its_windows(wav2vec2_folder, clips):
    """2.5 s in windows of 1 s: two whole ones and the last second, which overlaps."""
    raw = AudioEncoder(wav2vec2_folder, dtype="float32", window_seconds=1.0)
    clip = (clips[3] - clips[3].mean()) / np.sqrt(clips[3].var() + 1e-7)
    parts = [clip[:16_000], clip[16_000:32_000], clip[-16_000:]]
    expected = raw.forward([Unit(16_000, 16_000, part.astype(np.float32)) for part in parts]).mean(0)
    assert raw.encode([clips[3]])[0] @ expected / np.linalg.norm(expected) == pytest.approx(1, abs=1e-6)


def test_order_is_kept_and_a_vector_does_not_depend_on_its_batch(bundled, clips):
    """Clips of different lengths come back in their order, each as if it were alone; progress adds up."""
    done = []
    together = bundled.audio.encode(clips, progress=done.append)
    alone = np.concatenate([bundled.audio.encode([clip]) for clip in clips])
    assert (together * alone).sum(1).min() > 0.9999
    assert sum(done) == len(clips)


def test_form_of_the_result(bundled, clips):
    """float32, contiguous, unit norm; nothing in, nothing out."""
    vectors = bundled.audio.encode(clips)
    assert vectors.dtype == np.float32
    assert vectors.flags.c_contiguous
    bundled.audio.space.check(vectors)
    assert bundled.audio.encode([]).shape == (0, bundled.audio.space.dim)


def test_timbre_and_pitch_are_kept_apart(bundled):
    """A sound's nearest neighbour has its timbre and its pitch, in noise and at any loudness."""
    random = np.random.default_rng(5)

    def sound(timbre, hertz):
        time = np.arange(16_000) / 16_000
        phase = 2 * np.pi * (hertz * time + random.uniform())
        wave = {
            "sine": np.sin(phase),
            "square": np.sign(np.sin(phase)),
            "chirp": np.sin(phase + np.pi * hertz * time**2),
            "pluck": np.sin(phase) * np.exp(-8 * (time % 0.25)),
            "noise": np.convolve(random.normal(size=16_000), np.sin(phase[:400]), mode="same") / 15,
        }[timbre]
        return (random.uniform(0.1, 1) * (wave + random.normal(0, 0.05, 16_000))).astype(np.float32)

    labels = [
        (timbre, hertz) for timbre in ("sine", "square", "chirp", "pluck", "noise") for hertz in (130, 260, 520, 1040)
    ] * 3
    vectors = bundled.audio.encode([sound(*label) for label in labels])
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -1)
    right = [labels[nearest] == label for nearest, label in zip(similarity.argmax(1), labels, strict=True)]
    assert np.mean(right) >= 0.95


def test_what_is_shorter_than_a_frame_is_repeated(bundled):
    """Any clip that decoding lets through can be encoded."""
    bundled.audio.space.check(bundled.audio.encode([tone(0.03), np.zeros(16_000, np.float32)]))


@pytest.mark.parametrize(
    ("clip", "code"), [(np.zeros(0, np.float32), "too_short"), (np.full(900, np.nan, np.float32), "not_finite")]
)
def test_what_is_no_sound_is_refused(bundled, clip, code):
    """An empty clip and one that is not a number are refused with their codes."""
    with pytest.raises(MediaError, match="item 1") as caught:
        bundled.audio.encode([tone(), clip])
    assert caught.value.code == code


def test_folders_and_windows_that_do_not_fit_are_refused(bert_folder, wav2vec2_folder):
    """A text model is no audio encoder, and a window must hold a frame."""
    with pytest.raises(WeightsError, match="holds a 'bert' model"):
        AudioEncoder(bert_folder)
    with pytest.raises(EncoderError, match="shorter than one frame"):
        AudioEncoder(wav2vec2_folder, window_seconds=0.001)
