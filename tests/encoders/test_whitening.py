import numpy as np
import pytest

from encoders import AudioEncoder, ImageEncoder, TextEncoder, load_profile
from encoders.bulk import encode_stream
from encoders.errors import WeightsError
from encoders.whitening import Whitening
from tests.encoders.media_files import noise_picture, tone

TEXTS = ["a red bird", "stone", "a blue bird sings", "red : stone", "a", "bird bird stone", "blue", "sings a"]


def correlated(count=2_000, dim=6, seed=0):
    """Vectors with a large common part and directions of very different variance."""
    random = np.random.default_rng(seed)
    return random.normal(size=(count, dim)) @ random.normal(size=(dim, dim)) + 5


@pytest.mark.parametrize("method", ["zca", "pca"])
@pytest.mark.parametrize(("covariance", "tolerance"), [("full", 0.001), ("shrinkage", 0.25)])
def test_whitened_vectors_are_centred_and_uncorrelated(method, covariance, tolerance):
    """The corpus that it was fitted on comes out with mean zero and the identity as covariance; shrinkage damps small directions."""
    data = correlated()
    white = Whitening.fit(data, method=method, covariance=covariance)(data)
    assert white.dtype == np.float32
    np.testing.assert_allclose(white.mean(0), 0, atol=1e-3)
    np.testing.assert_allclose(np.cov(white.T), np.eye(6), atol=tolerance)


def test_the_full_fit_is_the_textbook_one():
    """ZCA is the inverse square root of the covariance."""
    data = correlated()
    values, vectors = np.linalg.eigh(np.cov(data.T, bias=True))
    fitted = Whitening.fit(data, covariance="full")
    np.testing.assert_allclose(fitted.matrix, vectors / np.sqrt(values) @ vectors.T, rtol=1e-4, atol=1e-5)


def test_shrinkage_equals_scikit_learns():
    """The share of the identity is Ledoit and Wolf's, as scikit-learn has it."""
    from sklearn.covariance import ledoit_wolf

    from encoders.whitening import _covariance

    data = correlated(12)
    data -= data.mean(0)
    np.testing.assert_allclose(_covariance(data, shrink=True), ledoit_wolf(data, assume_centered=True)[0], rtol=1e-9)


def test_fewer_vectors_than_dimensions_stay_finite():
    """A corpus too small for its dimensions gives a map that blows nothing up."""
    data = correlated(4, 32)
    for covariance in ("full", "shrinkage"):
        assert np.abs(Whitening.fit(data, covariance=covariance)(data)).max() < 10


def test_a_file_keeps_it_exactly(tmp_path):
    """Saved and loaded, it is the same map with the same digest; another corpus gives another."""
    fitted = Whitening.fit(correlated(), method="pca", dim=3)
    fitted.save(tmp_path / "white.safetensors")
    loaded = Whitening.load(tmp_path / "white.safetensors")
    np.testing.assert_array_equal(loaded.matrix, fitted.matrix)
    assert (loaded.digest, loaded.out_dim) == (fitted.digest, 3)
    assert Whitening.fit(correlated(seed=1)).digest != Whitening.fit(correlated()).digest


@pytest.mark.parametrize(
    "wrong", [{"method": "lda"}, {"covariance": "diagonal"}, {"method": "zca", "dim": 3}, {"vectors": np.ones((1, 3))}]
)
def test_a_fit_that_makes_no_sense_is_refused(wrong):
    """Unknown options and a corpus of one vector are errors."""
    with pytest.raises(ValueError, match="whitening"):
        Whitening.fit(**{"vectors": correlated(), **wrong})


def test_files_that_are_no_whitening_are_refused(bert_folder, tmp_path):
    """A missing file, other tensors, and a map for another length are named."""
    with pytest.raises(WeightsError, match="cannot be read as a whitening"):
        TextEncoder(bert_folder, whitening=tmp_path / "missing")
    with pytest.raises(WeightsError, match="cannot be read as a whitening"):
        TextEncoder(bert_folder, whitening=bert_folder / "model.safetensors")
    Whitening.fit(correlated()).save(tmp_path / "six")
    with pytest.raises(WeightsError, match="fitted on 6 dimensions; this encoder gives 32"):
        TextEncoder(bert_folder, whitening=tmp_path / "six")
    with pytest.raises(WeightsError, match="finite"):
        Whitening(np.zeros(2, np.float32), np.full((2, 2), np.nan, np.float32))


def test_an_encoder_whitens_before_it_normalises(bert_folder, tmp_path):
    """Vectors of the whitened space are the plain ones, mapped, at unit norm: one by one and in bulk; PCA may shorten them."""
    plain = TextEncoder(bert_folder, dtype="float32")
    vectors = plain.encode(TEXTS)
    fitted = Whitening.fit(vectors, method="pca", dim=5)
    fitted.save(tmp_path / "white")
    encoder = TextEncoder(bert_folder, dtype="float32", whitening=tmp_path / "white")
    expected = fitted(vectors)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert (encoder.space.dim, encoder.space.recipe["whitening"]) == (5, fitted.digest)
    np.testing.assert_allclose(encoder.encode(TEXTS), expected, atol=1e-4)
    bulk = np.stack(list(encode_stream(encoder, TEXTS, str)))
    np.testing.assert_allclose(bulk, expected, atol=1e-4)


def test_every_modality_takes_one_and_it_names_the_space(bert_folder, clip_folder, wav2vec2_folder, tmp_path):
    """A profile's `whitening: FILE`, relative to the profile, changes each space's id and its vectors."""
    kinds = {"text": (TextEncoder, bert_folder, TEXTS), "image": (ImageEncoder, clip_folder, [noise_picture(n) for n in range(6)]),
             "audio": (AudioEncoder, wav2vec2_folder, [tone(0.2, hertz=100 * n) for n in range(1, 7)])}  # fmt: skip
    lines = []
    for modality, (kind, folder, items) in kinds.items():
        Whitening.fit(kind(folder).encode(items)).save(tmp_path / f"{modality}.safetensors")
        lines.append(f"{modality}: {{source: {folder}, whitening: {modality}.safetensors}}\n")
    (tmp_path / "profile.yaml").write_text("".join(lines))
    encoders = load_profile(tmp_path / "profile.yaml")
    for modality, (kind, folder, items) in kinds.items():
        plain, white = kind(folder), encoders.by_modality(modality)
        assert white.space.space_id != plain.space.space_id
        cosines = [np.triu(vectors @ vectors.T, 1).sum() for vectors in (white.encode(items), plain.encode(items))]
        assert cosines[0] < cosines[1]
