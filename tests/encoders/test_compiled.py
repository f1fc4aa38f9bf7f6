import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from encoders import AudioEncoder, ImageEncoder, TextEncoder, load_profile
from encoders.batching import pack
from encoders.bulk import encode_stream
from encoders.errors import EncoderError, ProfileError
from tests.encoders.media_files import noise_picture

WORDS = ["a", "red", "blue", "bird", "sings", "stone", "passage", ":"]


def texts(count, seed=0):
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, random.integers(1, 38))) for _ in range(count)]


@pytest.fixture
def uncompiled():
    """The compiled path's own arrangement of rows, run without the compiler, which takes minutes and is tested apart."""
    with torch.compiler.set_stance("force_eager"):
        yield


@given(st.lists(st.integers(1, 50), max_size=80), st.integers(50, 120))
def test_bins_hold_every_text_once_and_are_filled(lengths, capacity):
    """Each is in one bin, none is over its capacity, and at most one bin is half empty."""
    bins = pack(lengths, capacity)
    assert sorted(index for one in bins for index in one) == list(range(len(lengths)))
    loads = [sum(lengths[index] for index in one) for one in bins]
    assert all(load <= capacity for load in loads)
    assert sum(2 * load <= capacity for load in loads) <= 1


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_packed_texts_are_texts_encoded_alone(bert_folder, pooling, uncompiled):
    """Many texts in one row do not see each other, and each counts its positions from its own start."""
    items = texts(150)
    plain = TextEncoder(bert_folder, dtype="float32", pooling=pooling)
    packed = TextEncoder(bert_folder, dtype="float32", pooling=pooling, compile=True)
    assert packed.space == plain.space
    got = np.stack(list(encode_stream(packed, items, str)))
    assert (got * plain.encode(items)).sum(1).min() > 0.99999


def test_what_does_not_fill_a_shape_runs_as_it_is(bert_folder, uncompiled):
    """A few texts, or more than a shape holds, are encoded all the same, without a new shape."""
    plain, packed = TextEncoder(bert_folder, dtype="float32"), TextEncoder(bert_folder, dtype="float32", compile=True)
    for count in (1, 3, 40):
        items = texts(count, seed=count)
        assert (packed.encode(items) * plain.encode(items)).sum(1).min() > 0.99999
    assert len(packed._packed._hidden._ready) <= 1


def test_partial_batches_of_pictures_are_padded(clip_folder, uncompiled):
    """Pictures of a batch that is filled up get their own vectors, and the filling none."""
    plain, padded = ImageEncoder(clip_folder, dtype="float32"), ImageEncoder(clip_folder, dtype="float32", compile=True)
    pictures = [noise_picture(seed) for seed in range(29)]
    got = np.stack(list(encode_stream(padded, pictures, lambda picture: picture)))
    assert (got * plain.encode(pictures)).sum(1).min() > 0.99999
    assert len(padded._encode_image._compiled._ready) == 1


def test_what_cannot_be_compiled_is_refused(wav2vec2_folder, bert_folder, tmp_path):
    """A model whose positions cannot be given, and an audio model, say so."""
    import json
    import shutil

    folder = shutil.copytree(bert_folder, tmp_path / "other")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "mpnet"}))
    with pytest.raises(EncoderError, match=r"bert, camembert, roberta, xlm-roberta, not 'mpnet'"):
        TextEncoder(folder, compile=True)
    (tmp_path / "profile.yaml").write_text(f"audio: {{source: {wav2vec2_folder}, compile: true}}")
    with pytest.raises(ProfileError, match="unknown options"):
        load_profile(tmp_path / "profile.yaml")
    assert AudioEncoder(wav2vec2_folder).space.modality == "audio"


@pytest.mark.long
def test_compiled_models_give_the_same_vectors(bert_folder, clip_folder):
    """Really compiled, in bulk, with two lanes that meet the compiler at once: texts and pictures."""
    items, pictures = texts(150), [noise_picture(seed) for seed in range(40)]
    for kind, folder, sources in ((TextEncoder, bert_folder, items), (ImageEncoder, clip_folder, pictures)):
        got = np.stack(list(encode_stream(kind(folder, dtype="float32", compile=True), sources, lambda item: item)))
        assert (got * kind(folder, dtype="float32").encode(sources)).sum(1).min() > 0.99999
