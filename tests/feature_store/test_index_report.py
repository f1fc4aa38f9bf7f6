import os
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest

from feature_store.errors import IndexReportError, ViewNotFoundError
from feature_store.exact_search import exact_neighbours
from feature_store.index_queries import Queries, load_queries, sample_queries
from feature_store.index_report import (
    NOT_IN_USE,
    OWN_ROWS,
    Settings,
    index_used,
    measure,
    measure_index,
    others,
    prepare,
    resident_bytes,
    wait_for_index,
)
from feature_store.milvus_schema import ViewSchema
from tests.feature_store.vector_views import DIM, ROWS, made, table

QUICK = Settings(ks=(10,), queries=60)
NOISE = 0.02  # two settings of a graph may miss different rows: one in fifty of them


@pytest.mark.parametrize("metric", ["COSINE", "IP", "L2"])
def test_a_scan_of_all_rows_has_recall_one(core, unit_vectors, metric):
    """FLAT is exact in every metric: one point per k, recall 1, memory of the vectors alone, and no remarks."""
    view, _, _ = made(core, unit_vectors, "FLAT", metric=metric, rows=2_000)
    report = measure_index(core, view, Settings(ks=(1, 10), queries=40))
    assert [(point.k, point.label, point.recall, point.recall_p5) for point in report.points] == [
        (1, "default", 1.0, 1.0),
        (10, "default", 1.0, 1.0),
    ]
    assert (report.index, report.metric, report.rows, report.dim) == ("FLAT", metric, 2_000, DIM)
    assert (report.vector_bytes, report.link_bytes, report.index_used) == (2_000 * DIM * 4, 0, None)
    assert report.notes == ()


@pytest.mark.parametrize(("kind", "metric"), [("HNSW", "COSINE"), ("HNSW", "L2"), ("AUTOINDEX", "COSINE")])
def test_a_graph_s_recall_rises_with_ef(core, unit_vectors, kind, metric):
    """The graph is in use, misses rows at the least `ef`, misses fewer with more of it, and finds nearly all at 512."""
    view, _, _ = made(core, unit_vectors, kind, metric=metric)
    report = measure_index(core, view, QUICK)
    assert report.index_used is True
    assert [point.label for point in report.points] == [
        "default", "ef=11", "ef=16", "ef=32", "ef=64", "ef=128", "ef=256", "ef=512",
    ]  # fmt: skip
    recall = [point.recall for point in report.points[1:]]
    assert recall[0] < 1.0
    assert all(after >= before - NOISE for before, after in pairwise(recall))
    assert recall[-1] >= 0.99
    assert report.link_bytes == ROWS * 2 * 16 * 4
    assert report.notes == (OWN_ROWS,)
    assert all(0 < point.p50_ms <= point.p95_ms <= point.p99_ms for point in report.points)
    assert all(point.queries_per_second > 0 for point in report.points)


def test_rows_that_were_never_flushed_are_told(core, unit_vectors):
    """Where the server scans because no index was built, the report says so and measures no `ef`."""
    view, _, _ = made(core, unit_vectors, "HNSW", rows=300, flush=False)
    report = measure_index(core, view, Settings(ks=(5,), queries=10, wait_seconds=0.0))
    assert report.index_used is False
    assert [point.label for point in report.points] == ["default"]
    assert report.notes == (NOT_IN_USE,)


def test_whether_the_graph_is_used_is_seen_and_waited_for(core, unit_vectors):
    """Before a flush the server scans; after it, the wait ends when searches go through the graph."""
    view, _, vectors = made(core, unit_vectors, "HNSW", rows=2_000, flush=False)
    schema, queries = core.describe_view(view), Queries(vectors[:1], "rows")
    assert not index_used(core, schema, queries)
    core.flush(view)
    assert wait_for_index(core, schema, queries, 60.0) is True


def test_asked_values_of_ef_are_tried_where_the_server_takes_them(core, unit_vectors):
    """Values below the number of hits asked for are left out, for each k by itself; k is tried where none is left."""
    view, _, _ = made(core, unit_vectors, "HNSW", rows=1_000)
    report = measure_index(core, view, Settings(ks=(5, 50), queries=10, efs=(8, 100)))
    assert [(point.k, point.label) for point in report.points] == [
        (5, "default"), (5, "ef=8"), (5, "ef=100"), (50, "default"), (50, "ef=100"),
    ]  # fmt: skip
    low = measure_index(core, view, Settings(ks=(50,), queries=10, efs=(8,)))
    assert [point.label for point in low.points] == ["default", "ef=51"]
    assert any("ef=8" in note and "below" in note for note in low.notes)


def test_wrong_answers_of_a_server_lower_the_recall(core, unit_vectors):
    """A server that gives far rows in place of near ones is caught, whatever scores it claims."""
    view, _, _ = made(core, unit_vectors, "FLAT", rows=500)
    prepared = prepare(core, view, QUICK)

    class Liar:
        """The real core, but every search's second half is of other rows."""

        def __getattr__(self, name):
            return getattr(core, name)

        def search(self, view, vectors, k, *rest, **params):
            right = core.search(view, vectors, k, *rest, **params)
            far = core.search(view, -np.atleast_2d(vectors), k, *rest, **params)
            for near, wrong in zip(right.ids, far.ids, strict=True):
                near[6:] = wrong[6:]
            return right

    report = measure(Liar(), prepared, QUICK)
    assert report.points[0].recall == pytest.approx(0.5)


def test_deleted_rows_are_neither_expected_nor_found(core, unit_vectors):
    """Tombstones are no rows: they are not counted, not drawn, and their absence among the hits is right."""
    view, ids, _ = made(core, unit_vectors, "FLAT", rows=400)
    core.delete(view, ids[:100], np.full(100, 2))
    report = measure_index(core, view, QUICK)
    assert (report.rows, report.points[0].recall, report.notes) == (300, 1.0, ())
    assert not set(sample_queries(core, view, 400).ids) & set(ids[:100])


def test_more_neighbours_than_rows_are_all_the_rows(core, unit_vectors):
    """Where k is above the number of rows, recall is of the rows there are, and the report says so."""
    view, _, _ = made(core, unit_vectors, "FLAT", rows=7)
    report = measure_index(core, view, Settings(ks=(3, 100), queries=50))
    assert [(point.k, point.recall) for point in report.points] == [(3, 1.0), (100, 1.0)]
    assert report.queries == 7
    assert "only 6 neighbours" in report.notes[0]


def test_rows_that_come_meanwhile_are_told(core, unit_vectors):
    """A view that grows while it is measured is measured, with a remark."""
    view, _, _ = made(core, unit_vectors, "FLAT", rows=50)
    prepared = prepare(core, view, QUICK)
    core.upsert(view, table(["late"], unit_vectors(1, DIM)))
    assert any("from 50 to 51 rows" in note for note in measure(core, prepared, QUICK).notes)


@pytest.mark.parametrize("rows", [0, 1])
def test_a_view_with_too_few_rows_is_an_error(core, unit_vectors, rows):
    """Without rows, or with one alone, there is nothing to find: the error names the view and the remedy."""
    view, _, _ = made(core, unit_vectors, "FLAT", name="item_few", rows=rows)
    with pytest.raises(IndexReportError, match=r"item_few .*triptych materialize"):
        measure_index(core, view, QUICK)


def test_a_view_without_a_vector_is_an_error(core):
    """There is no index to measure, and the error says why; a view that is not there is one too."""
    core.create_view(ViewSchema("item_words", {"title": pa.string()}))
    with pytest.raises(IndexReportError, match="item_words has no vector"):
        measure_index(core, "item_words", QUICK)
    with pytest.raises(ViewNotFoundError, match="item_nowhere"):
        measure_index(core, "item_nowhere", QUICK)


def test_queries_from_a_file_are_measured_and_checked(core, unit_vectors, tmp_path):
    """Floats [q, dim] are queries, and rows may then be their own neighbours; another dim, and what is no such file, are errors."""
    view, ids, vectors = made(core, unit_vectors, "FLAT", rows=200)
    np.save(tmp_path / "q.npy", vectors[:5].astype(np.float64))
    queries = load_queries(tmp_path / "q.npy")
    report = measure_index(core, view, QUICK, queries)
    assert (report.queries, report.points[0].recall) == (5, 1.0)
    assert prepare(core, view, QUICK, queries).nearest.ids[:, 0].tolist() == ids[:5]
    with pytest.raises(IndexReportError, match=r"must be \[q, 64\], not \[2, 3\]"):
        measure_index(core, view, QUICK, Queries(np.ones((2, 3), np.float32), "a test"))
    for name, content in (("text.npy", b"words"), ("gone.npy", None)):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(IndexReportError, match=name):
            load_queries(tmp_path / name)
    np.save(tmp_path / "nan.npy", np.full((2, DIM), np.nan))
    with pytest.raises(IndexReportError, match=r"nan\.npy must hold finite floats"):
        load_queries(tmp_path / "nan.npy")


def test_the_draw_is_fair_repeatable_and_of_different_rows(core, unit_vectors):
    """The same seed draws the same rows, another seed others; none twice; over many draws each row comes about as often."""
    view, ids, vectors = made(core, unit_vectors, "FLAT", rows=40, dim=8)
    first = sample_queries(core, view, 10, seed=1)
    assert first.ids == sample_queries(core, view, 10, seed=1).ids
    assert first.ids != sample_queries(core, view, 10, seed=2).ids
    at = [ids.index(name) for name in first.ids]
    assert len(set(at)) == 10
    assert np.array_equal(first.vectors, vectors[at])
    drawn = [name for seed in range(60) for name in sample_queries(core, view, 10, seed=seed).ids]
    counts = [drawn.count(name) for name in ids]  # 15 expected, standard deviation 3.4
    assert min(counts) >= 1
    assert max(counts) <= 36


def test_a_query_is_not_its_own_hit():
    """The query's own row is dropped wherever it stands, and k others are kept."""
    assert others([["a", "b", "c"], ["c", "a", "b"]], ["a", "b"], 2) == [["b", "c"], ["c", "a"]]
    assert others([["a", "b", "c"]], None, 2) == [["a", "b"]]


@pytest.mark.parametrize("wrong", [{"ks": ()}, {"ks": (0,)}, {"ks": (16_384,)}, {"queries": 0}, {"efs": (0,)}])
def test_settings_that_mean_nothing_are_refused(wrong):
    """k, queries and ef out of their ranges are errors at once."""
    with pytest.raises(IndexReportError):
        Settings(**wrong)


def test_memory_of_a_process_is_read():
    """Our own resident memory is some megabytes; that of a process that is not there is unknown."""
    assert resident_bytes(os.getpid()) > 1 << 20
    assert resident_bytes(2**30) is None


def test_an_exact_pass_over_a_view_equals_one_over_its_vectors(core, unit_vectors):
    """What is read from the server in pages gives the neighbours that the written vectors have."""
    view, ids, vectors = made(core, unit_vectors, "FLAT", rows=5_000, dim=8)
    queries = Queries(unit_vectors(5, 8), "a test")
    nearest = prepare(core, view, QUICK, queries).nearest
    assert nearest.rows == 5_000
    assert nearest.ids.tolist() == exact_neighbours(queries.vectors, [(ids, vectors)], 10, "COSINE").ids.tolist()
