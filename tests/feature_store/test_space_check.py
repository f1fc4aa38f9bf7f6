"""The check of a space against another: every figure, and the verdict that follows."""

import itertools
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from encoders.space import EmbeddingSpace
from feature_store.milvus_schema import ViewSchema
from feature_store.schemas import timestamps
from feature_store.space_check import NEIGHBOURS, check_space, covered, exact_nearest, overlap_of
from feature_store.spaces import register_spaces, view_name
from feature_store.tables import Tables

OLD = EmbeddingSpace.from_recipe("text", "old", 16, {"version": 1})
NEW = EmbeddingSpace.from_recipe("text", "new", 24, {"version": 2})
COUNT = 60
IDS = [f"i{n:03}" for n in range(COUNT)]


def write(home, space, ids, vectors, at=0, shas=None, deleted=None):
    shas = shas or [f"content of {i}" for i in ids]
    times = np.full(len(ids), at, np.int64)
    Tables(home).write_embeddings(
        "item", space, ids, vectors, content_sha256=shas, event_timestamp=times, deleted=deleted
    )


def rotated(vectors, rng, dim):
    """The same vectors in `dim` dimensions, turned: all cosines stay."""
    turn, _ = np.linalg.qr(rng.standard_normal((dim, dim)))
    wide = np.zeros((len(vectors), dim))
    wide[:, : vectors.shape[1]] = vectors
    return (wide @ turn).astype(np.float32)


@pytest.fixture
def pair(home, unit_vectors, rng):
    """A home with a catalogue in two spaces that say the same, and the vectors of both."""
    register_spaces(home, [OLD, NEW])
    old = unit_vectors(COUNT, 16)
    new = rotated(old, rng, 24)
    write(home, OLD, IDS, old)
    write(home, NEW, IDS, new)
    return home, old, new


def load(core, vectors, ids=IDS):
    view = view_name("item", NEW.space_id)
    core.create_view(ViewSchema(view, vector_field="vector", dim=24, key="item_id"))
    rows = {"item_id": ids, "vector": pa.array(list(vectors), pa.list_(pa.float32()))}
    core.upsert(view, pa.table({**rows, "event_timestamp": timestamps(np.zeros(len(ids), np.int64))}))


def test_a_space_that_says_the_same_is_ready(pair, core):
    """A rotation keeps all neighbours, although no coordinate of the two spaces can be compared."""
    home, _, new = pair
    found = check_space(home, NEW.space_id, OLD.space_id, core)
    assert (found.coverage, found.overlap, found.recall, found.ready) == (1.0, 1.0, None, True)
    assert "triptych materialize" in found.not_loaded
    load(core, new)
    found = check_space(home, NEW.space_id, OLD.space_id, core)
    assert (found.recall, found.not_loaded, found.ready) == (1.0, "", True)
    assert found.drift.mean_cosine == pytest.approx(found.drift_old.mean_cosine, abs=0.05)
    assert found.to_dict()["ready"] is True


def test_random_vectors_are_not_ready(pair, unit_vectors):
    """Neighbours that agree no more than by chance are a reason, with the threshold."""
    home, *_ = pair
    write(home, NEW, IDS, unit_vectors(COUNT, 24), at=1)
    found = check_space(home, NEW.space_id, OLD.space_id, None)
    assert found.overlap < 2 * found.chance
    assert found.chance == pytest.approx(NEIGHBOURS / (COUNT - 1))
    assert [p for p in found.problems if "neighbour overlap" in p and "2 times chance" in p]


def test_missing_items_and_labels_are_counted(pair):
    """An item that the new space lacks costs coverage; its labels cost label coverage, those before it was known do not."""
    home, *_ = pair
    nothing = np.zeros((2, 24), np.float32)
    write(home, NEW, IDS[:2], nothing, at=10, deleted=[True, True])
    events = [("e0", IDS[0], 5), ("e1", IDS[0], 20), ("e2", IDS[9], 20), ("e3", IDS[9], 0), ("e4", "unknown", 20)]
    ids, items, times = zip(*events, strict=True)
    columns = {"event_id": ids, "user_id": ["u"] * 5, "item_id": items, "event_type": ["click"] * 5}
    Tables(home).append_interactions(pa.table({**columns, "event_timestamp": timestamps(np.array(times))}))
    found = check_space(home, NEW.space_id, OLD.space_id, None)
    assert found.coverage == pytest.approx(1 - 2 / COUNT)
    assert found.missing == tuple(IDS[:2])
    assert (found.labels, found.labels_old, found.labels_both) == (5, 3, 2)
    assert [p.split(" ")[0] for p in found.problems] == ["coverage", "label"]


def test_what_milvus_lacks_or_has_wrong_is_in_the_recall(pair, core, unit_vectors):
    """A view with half of the items finds half; one whose vectors are stale finds others."""
    home, _, new = pair
    load(core, new[: COUNT // 2], IDS[: COUNT // 2])
    found = check_space(home, NEW.space_id, OLD.space_id, core)
    assert 0.2 < found.recall < 0.8
    assert [p for p in found.problems if "recall@10" in p]


def test_an_encoder_that_says_nothing_is_found_out(pair):
    """Vectors that are all alike, or the same for different contents, are reasons of their own; the same content twice is none."""
    home, _old, _ = pair
    same = np.zeros((COUNT, 24), np.float32)
    same[:, 0] = 1.0
    write(home, NEW, IDS, same, at=1)
    found = check_space(home, NEW.space_id, OLD.space_id, None)
    assert (found.drift.duplicates, found.drift.collapsed) == (1.0, 1.0)
    assert found.drift.mean_cosine == pytest.approx(1.0)
    assert len([p for p in found.problems if "mean cosine" in p or "other content" in p]) == 2
    write(home, NEW, IDS, same, at=2, shas=["one content"] * COUNT)
    assert check_space(home, NEW.space_id, OLD.space_id, None).drift.collapsed == 0.0


def test_an_empty_space_says_what_fills_it(home):
    """No vectors: not ready, and the command; without an old space there is nothing to compare."""
    register_spaces(home, [NEW])
    found = check_space(home, NEW.space_id, None, None)
    assert (found.coverage, found.overlap, found.drift_old) == (None, None, None)
    assert "triptych spaces backfill" in found.problems[0]


def test_coverage_of_labels_is_strict(home, unit_vectors):
    """A vector counts for labels after its instant, not at it; a deletion ends it, and a later version begins anew."""
    register_spaces(home, [OLD])
    one = unit_vectors(1, 16)
    write(home, OLD, ["a"], one, at=100)
    write(home, OLD, ["a"], np.zeros((1, 16), np.float32), at=200, deleted=[True])
    write(home, OLD, ["a"], one, at=300)
    rows = Tables(home).embedding_rows("item", OLD.space_id)
    times = np.array([0, 100, 101, 200, 201, 300, 301])
    assert covered(rows, ["a"] * 7, times).tolist() == [False, False, True, True, False, False, True]
    assert not covered(rows, ["b"] * 7, times).any()


def test_exact_search_over_blocks_is_that_over_all(rng, unit_vectors):
    """However the catalogue is cut into parts, the nearest are those of one sorted list, ties by id."""
    vectors, ids = unit_vectors(200, 8), [f"i{n:03}" for n in range(200)]
    vectors[100:110] = vectors[0]
    queries = vectors[[0, 7, 150]]
    cuts = [0, *sorted(rng.integers(1, 199, 5).tolist()), 200]
    blocks = [(ids[a:b], vectors[a:b]) for a, b in itertools.pairwise(cuts)]
    scores, names = exact_nearest(iter(blocks), queries, 12)
    whole = exact_nearest(iter([(ids, vectors)]), queries, 12)[1]
    assert names == whole
    assert names[0][:11] == ["i000", *ids[100:110]]
    for row, got in zip(queries @ vectors.T, scores, strict=True):
        np.testing.assert_allclose(got, np.sort(row)[::-1][:12], atol=1e-4)


def test_overlap_compares_names_alone():
    """Two of four in common are a half; order does not matter; a query without neighbours does not count."""
    assert overlap_of([["a", "b", "c", "d"], []], [["d", "x", "a", "y"], []]) == 0.5
    assert overlap_of([], []) == 0.0


def test_a_space_is_never_searched_with_anothers_vectors(pair, core):
    """Vectors of another length are refused by the view and by the table, those of the other space's name by the registry."""
    home, old, new = pair
    load(core, new)
    with pytest.raises(Exception, match=r"must be \[q, 24\]"):
        core.search(view_name("item", NEW.space_id), old[:1], 3)
    with pytest.raises(Exception, match="must be \\[n, 24\\]"):
        write(home, NEW, IDS[:1], old[:1])
    with pytest.raises(Exception, match="registered as encoder with dim 24"):
        register_spaces(home, [replace(NEW, dim=16)])
