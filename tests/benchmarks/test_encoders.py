"""The encoders' benchmark: its data, its bare forwards, and its claims, on small models."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from benchmarks import encoders as benchmark
from benchmarks.common import Options, Record
from benchmarks.peers import process
from benchmarks.production import media, models, plain
from encoders import TextEncoder
from tests.encoders.conftest import bert_folder, clip_folder, wav2vec2_folder  # noqa: F401  (fixtures)

FEW = {"texts": 6, "pictures": 4, "clips": 2, "naive_texts": 3, "naive_pictures": 2, "naive_clips": 1, "compared": 6}


@pytest.fixture
def site(tmp_path, bert_folder, clip_folder, wav2vec2_folder, monkeypatch):  # noqa: F811
    """A run on small models and little data."""
    monkeypatch.setattr(benchmark, "QUICK_COUNTS", FEW)
    monkeypatch.setattr(media, "MOST_TOKENS", 30)
    for name, folder in (("bert", bert_folder), ("clip", clip_folder), ("wav2vec2", wav2vec2_folder)):
        monkeypatch.setattr(benchmark.Site, name, folder)
    return benchmark.Site(tmp_path, Options(quick=True))


def test_texts_have_the_lengths_of_a_catalogue():
    """Half of the texts have at most 30 tokens, one in twenty more than about 108, none more than BERT reads."""
    tokens = np.array([len(text.split()) + 2 for text in media.texts(2000, ["one", "two"])])
    assert 28 <= np.median(tokens) <= 32
    assert 95 <= np.percentile(tokens, 95) <= 120
    assert tokens.max() <= 512


def test_the_same_seed_makes_the_same_data(tmp_path):
    """Two runs measure the same texts and the same photographs."""
    first, second = (media.photographs(tmp_path / name, 1)[0].read_bytes() for name in ("a", "b"))
    assert first == second
    assert media.texts(5, ["one", "two"]) == media.texts(5, ["one", "two"])


def test_photographs_weigh_what_real_ones_do(tmp_path):
    """500 x 375 pixels, 55 to 110 kB each at quality 90."""
    for path in media.photographs(tmp_path / "pictures", 6):
        assert 55_000 < path.stat().st_size < 110_000
        with Image.open(path) as picture:
            assert picture.size == (500, 375)


def test_bare_forwards_see_every_text_within_the_budget():
    """Every token id is in some batch once, and no batch of more than one text is above its budget."""
    rows = [list(range(1, length)) for length in (5, 40, 3, 12, 12, 70, 2)]
    batches = plain.text_batches(rows, 48)
    kept = [
        ids[mask.bool()].tolist()
        for batch in batches
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    assert sorted(kept) == sorted(rows)
    assert all(batch["input_ids"].numel() <= 48 or len(batch["input_ids"]) == 1 for batch in batches)


def test_the_best_of_each_job_counts():
    """Jobs alternate, each has the seconds of its fastest run, and their results are kept."""
    seen = []
    seconds, results = benchmark.in_turn(2, {"a": lambda: seen.append("a") or 1, "b": lambda: seen.append("b") or 2})
    assert seen == ["a", "b", "a", "b"]
    assert results == {"a": 1, "b": 2}
    assert set(seconds) == {"a", "b"}


@pytest.mark.parametrize(
    ("measure", "claims"),
    [
        (benchmark.measure_text, ["text_bulk_over_forward", "text_over_naive"]),
        (benchmark.measure_image, ["image_bulk_over_limit", "image_over_naive"]),
        (benchmark.measure_audio, ["audio_bulk_over_forward", "audio_over_naive"]),
    ],
)
def test_each_part_makes_its_claims(site, measure, claims):
    """Bulk, bare and naive run on the same data, agree in their vectors, and give the stated claims."""
    record = Record()
    measure(site, record)
    assert [claim.name for claim in record.claims] == claims
    assert min(claim.value for claim in record.claims) > 0
    cosines = [value for name, value in record.details.items() if name.endswith("least_cosine_to_float32")]
    assert cosines
    assert min(cosines) > 0.999


def test_one_image_tower_under_two_names():
    """The CLIP for transformers takes every tensor of open_clip's image tower, shapes and values kept."""
    import open_clip
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    tower = open_clip.create_model(models.CLIP_NAME).state_dict()
    theirs = CLIPVisionModelWithProjection(CLIPVisionConfig()).state_dict()
    ours = models.renamed_image_tower(tower)
    assert {name: tensor.shape for name, tensor in ours.items()} == {
        name: tensor.shape for name, tensor in theirs.items() if not name.endswith("position_ids")
    }


@pytest.mark.long
def test_a_peer_answers_in_a_process_of_its_own(tmp_path, bert_folder, monkeypatch):  # noqa: F811
    """The worker loads a folder, encodes a JSON list, and its vectors are those of our encoder."""
    monkeypatch.setattr(process, "python_of", lambda _: sys.executable)
    texts = ["a red bird", "stone"]
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    with process.Peer("sentence-transformers", bert_folder, "text", tmp_path / "log") as peer:
        assert peer.encode(tmp_path / "texts.json", 2, tmp_path / "vectors.npy") > 0
        assert peer.versions["torch"]
    theirs = np.load(tmp_path / "vectors.npy")
    assert plain.least_cosine(theirs, TextEncoder(bert_folder, dtype="float32").encode(texts)) > 0.999


def test_a_peer_that_fails_says_why(tmp_path, monkeypatch):
    """An unknown model folder ends the peer; the error carries the last line that it wrote."""
    monkeypatch.setattr(process, "python_of", lambda _: sys.executable)
    with pytest.raises(process.PeerError, match="KeyError"):
        process.Peer("no-such-peer", tmp_path, "text", tmp_path / "log")
