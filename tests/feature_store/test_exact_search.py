import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_store.errors import IndexReportError
from feature_store.exact_search import exact_neighbours, recall_at_k, score_hits, similarity

METRICS = ("COSINE", "IP", "L2")


def catalogue(count, dim, seed=0):
    vectors = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    return [f"i{row}" for row in range(count)], vectors


def in_blocks(ids, vectors, size):
    return [(ids[at : at + size], vectors[at : at + size]) for at in range(0, len(ids), size)]


def judged(ids, vectors, queries, metric, k, hits):
    """Recall of `hits`, with the vectors of a catalogue."""
    nearest = exact_neighbours(queries, [(ids, vectors)], k, metric)
    stored = dict(zip(ids, vectors, strict=True))
    scores = score_hits(
        queries, hits, metric, nearest, lambda names: {name: stored[name] for name in names if name in stored}
    )
    return recall_at_k(nearest, hits, scores)


@pytest.mark.parametrize("metric", METRICS)
@given(count=st.integers(1, 60), k=st.integers(1, 70), size=st.integers(1, 61), seed=st.integers(0, 2**16))
@settings(max_examples=40, deadline=None)
def test_the_neighbours_do_not_depend_on_the_blocks(metric, count, k, size, seed):
    """However the rows are cut into blocks, the k best of a plain sort come out, best first."""
    ids, vectors = catalogue(count, 5, seed)
    queries = catalogue(3, 5, seed + 1)[1]
    found = exact_neighbours(queries, in_blocks(ids, vectors, size), k, metric)
    scores = similarity(queries, vectors, metric)
    order = np.argsort(-scores, axis=1)[:, :k]
    assert found.ids.tolist() == [[ids[column] for column in row] for row in order]
    assert np.allclose(found.scores, np.take_along_axis(scores, order, 1))
    assert (found.k, found.rows) == (min(k, count), count)


@pytest.mark.parametrize("metric", METRICS)
def test_a_score_is_the_metric_s_own(metric):
    """Cosine, inner product and negative squared distance of vectors that one can reckon by hand."""
    query, vector = np.float32([[3.0, 4.0]]), np.float32([[6.0, 8.0]])
    assert similarity(query, vector, metric)[0, 0] == pytest.approx({"COSINE": 1.0, "IP": 50.0, "L2": -25.0}[metric])
    assert similarity(query, np.zeros((1, 2), np.float32), "COSINE")[0, 0] == 0.0


def test_an_unknown_metric_is_named():
    """A metric that cannot be checked is an error with its name."""
    with pytest.raises(IndexReportError, match="HAMMING"):
        similarity(np.ones((1, 2), np.float32), np.ones((1, 2), np.float32), "HAMMING")


def test_a_row_is_not_its_own_neighbour():
    """Queries that are rows of the catalogue are left out of their own neighbours, and of the count of those there can be."""
    ids, vectors = catalogue(6, 4)
    found = exact_neighbours(vectors[:2], in_blocks(ids, vectors, 4), 10, "COSINE", leave_out=ids[:2])
    assert found.k == 5
    assert [set(row) for row in found.ids] == [set(ids) - {"i0"}, set(ids) - {"i1"}]


@pytest.mark.parametrize("metric", METRICS)
def test_recall_counts_each_planted_wrong_answer(metric):
    """Exact hits have recall 1; each one that is replaced by a far row, or by an id that is not stored, costs 1/k."""
    ids, vectors = catalogue(200, 8)
    queries = catalogue(4, 8, seed=1)[1]
    everything = exact_neighbours(queries, [(ids, vectors)], 200, metric).ids.tolist()
    exact = [row[:10] for row in everything]
    assert judged(ids, vectors, queries, metric, 10, exact).tolist() == [1.0] * 4
    wrong = [list(row) for row in exact]
    wrong[0][3] = everything[0][-1]
    wrong[1][:2] = ["nowhere", "nobody"]
    wrong[2] = wrong[2][:4]
    wrong[3][5] = wrong[3][4]  # the same id twice counts once
    assert judged(ids, vectors, queries, metric, 10, wrong).tolist() == [0.9, 0.8, 0.4, 0.9]


def test_hits_after_the_kth_do_not_count():
    """Right rows beyond the first k hits bring nothing."""
    ids, vectors = catalogue(50, 8)
    queries = vectors[:1]
    exact = exact_neighbours(queries, [(ids, vectors)], 3, "COSINE").ids[0].tolist()
    others = [name for name in ids if name not in exact][:3]
    assert judged(ids, vectors, queries, "COSINE", 3, [[*others, *exact]])[0] < 1.0


@pytest.mark.parametrize("metric", METRICS)
def test_rows_tied_for_the_last_place_are_all_right(metric):
    """Of ten rows with the k-th score any is right, and so is one whose score differs by a rounding; a worse row is not."""
    tied = np.tile(np.float32([0.6, 0.8, 0.0]), (10, 1))
    tied[4] = np.nextafter(tied[4], np.float32(0))
    vectors = np.concatenate([np.float32([[0.0, 1.0, 0.0]]), tied, np.float32([[0.61, 0.79, 0.0]])])
    ids = ["best", *(f"tied{row}" for row in range(10)), "worse"]
    query = vectors[:1]
    for name in ids[1:11]:
        assert judged(ids, vectors, query, metric, 2, [["best", name]]).tolist() == [1.0]
    assert judged(ids, vectors, query, metric, 2, [["best", "worse"]]).tolist() == [0.5]


def test_recall_of_nothing_is_refused():
    """Without any neighbour there is no recall, and the error says so."""
    nearest = exact_neighbours(np.ones((1, 2), np.float32), [], 5, "IP")
    with pytest.raises(IndexReportError, match="at least one row"):
        recall_at_k(nearest, [[]], [{}])
