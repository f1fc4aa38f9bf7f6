"""The public sets are read as their protocols say, and the strongest simple method reaches its published figures on them."""

import numpy as np
import pytest

from benchmarks import ranking
from benchmarks.common import Options, Record
from benchmarks.rankers.jobs import JobsError
from benchmarks.rankers.measured import Session
from benchmarks.rankers.sequences import LeaveOneOut, Sequences
from benchmarks.rankers.sets import VARIABLE, cold_items, data_folder, lastfm_2k, matrix, movielens_1m, tag_matrix
from ranker.collaborative import EaseConfig


@pytest.fixture
def public():
    """The data sets, where the machine has them."""
    try:
        return lastfm_2k(), movielens_1m()
    except FileNotFoundError as error:
        pytest.skip(str(error))


def write_small(folder, rng):
    """A set in the form of lastfm-2k: two groups of users, each with its own items, and content that tells them apart."""
    (folder / "lastfm-2k").mkdir()
    met = np.argwhere((rng.random((40, 30)) < 0.7) & (np.arange(40)[:, None] % 2 == np.arange(30) % 2))
    labels = rng.choice(3, len(met), p=[0.6, 0.2, 0.2])
    lines = [f"{user}\t{item}\t1\t{label}" for (user, item), label in zip(met, labels, strict=True)]
    (folder / "lastfm-2k" / "lfm2k.inter").write_text("userID\titemID\trating\tx_label\n" + "\n".join(lines) + "\n")
    group = np.stack([np.arange(30) % 2, 1 - np.arange(30) % 2], 1).astype(np.float32)
    for name in ("all-MiniLM-L6-v2", "vggish", "whisper"):
        np.save(folder / "lastfm-2k" / f"{name}.npy", group + 0.1 * rng.standard_normal((30, 2)))


def test_methods_are_measured_in_one_run(tmp_path, monkeypatch, rng):
    """On a small set whose groups never mix, the priors are above popularity, and each detail has its settings."""
    write_small(tmp_path, rng)
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    record = Record()
    ranking.measure_set(lastfm_2k(), record)
    found = {name.split()[1]: detail for name, detail in record.details.items()}
    assert list(found) == ["popularity", "ease", "prior", "prior_text", "prior_sound", "prior_speech"]
    assert found["ease"]["ndcg_20"] > found["popularity"]["ndcg_20"]
    assert "l2" in found["prior_text"]["settings"]


def test_ordered_sets_are_measured_too(rng):
    """Users who go round a circle: SASRec finds the next item, and so do fading histories, better than sets; each seed's figure is told."""
    user, start = np.repeat(np.arange(60), 8), rng.integers(15, size=60)
    item = (np.repeat(start, 8) + np.tile(np.arange(8), 60)) % 15
    events = Sequences("movielens-100k", user, item, np.arange(480), np.full(480, np.nan), tuple("abcdefghijklmno"))
    record = Record()
    content = rng.standard_normal((15, 4)).astype(np.float32)
    gains = ranking.measure_ordered(
        "movielens-100k", LeaveOneOut.of(events), {"text": content}, 4.0, Session(range(2), record, print)
    )
    found = {name.split()[1]: detail for name, detail in record.details.items()}
    assert list(found) == ["popularity", "ease", "prior", "prior_text", "sasrec"]
    assert "'content': 0.0" not in found["prior_text"]["settings"]
    assert found["prior"]["ndcg_10"] > found["ease"]["ndcg_10"]
    assert found["sasrec"]["ndcg_10"] > found["popularity"]["ndcg_10"]
    assert len(found["sasrec"]["ndcg_by_seed"]) == 2
    assert gains["ndcg_10"].shape == (60,)
    assert gains["ndcg_10"].mean() == pytest.approx(found["sasrec"]["ndcg_10"], abs=1e-4)


def test_a_set_that_is_not_there_is_left_out_by_name(tmp_path, monkeypatch, capsys):
    """The error names the variable and the set, and the run says so and goes on."""
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    record = Record()
    with pytest.raises(JobsError, match="nothing was measured: lastfm-2k"):
        ranking.measure_all(Options(only=("lastfm-2k",)), record)
    assert "lastfm-2k is left out" in capsys.readouterr().out
    assert list(record.details) == ["options"]
    with pytest.raises(FileNotFoundError, match=r"TRIPTYCH_DATA .*lastfm-2k"):
        data_folder("lastfm-2k")
    with pytest.raises(JobsError, match=f"nothing was measured: {', '.join(ranking.PARTS)}"):
        ranking.measure_all(Options(), record)  # else what is stored would be replaced by nothing


def test_no_seeds_are_refused_before_anything_is_measured():
    """The message names the option, the value and the remedy."""
    with pytest.raises(JobsError, match="--seeds is 0: give 1 or more"):
        ranking.measure_all(Options(values={"seeds": 0}), Record())


def test_ease_reaches_its_published_figures(public):
    """Recall@20 and NDCG@20 of plain EASE on lastfm-2k, to the fourth digit: protocol, masks and metrics are those of its tables."""
    lastfm, _ = public
    found = ranking.on_test(lastfm, EaseConfig(l2=100.0))
    assert (found["recall_20"], found["ndcg_20"]) == (0.3955, 0.2711)


def test_the_sets_have_the_sizes_that_their_makers_state(public):
    """Users, items and interactions; no interaction is in two parts."""
    sizes = {"lastfm-2k": ((1_858, 1_425), 56_345), "movielens-1m": ((6_040, 3_260), 998_539)}
    for split in public:
        parts = [split.fitted, split.validation, split.test]
        assert (split.fitted.shape, sum(part.nnz for part in parts)) == sizes[split.name]
        assert all(parts[a].multiply(parts[b]).nnz == 0 for a, b in ((0, 1), (0, 2), (1, 2)))
        assert all(len(content) == split.fitted.shape[1] for content in split.content.values())


def test_cold_items_are_a_fifth_and_nobodys_training(public):
    """652 of 3,260 items, others for another seed; warm and held-out items are all items."""
    _, movies = public
    everything, held = cold_items(movies, 0)
    assert everything.nnz == 998_539
    assert len(np.unique(held)) == 652
    assert not np.array_equal(held, cold_items(movies, 1)[1])


def test_a_tag_of_one_item_says_nothing():
    """Rare tags weigh more than common ones; one that a single item has is left out."""
    found = tag_matrix([["a", "b"], ["a", "b"], ["a"], ["c"]])
    assert found.shape == (4, 2)
    assert found[0, 1] > found[0, 0] > 0
    assert not found[3].any()


def test_a_pair_that_comes_twice_counts_once():
    """Matrices hold ones."""
    assert matrix(np.array([[0, 1], [0, 1], [2, 0]]), (3, 2)).toarray().tolist() == [[0, 1], [0, 0], [1, 0]]
