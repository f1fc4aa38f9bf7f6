import asyncio
import itertools
import socket
import threading

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from milvus_rows import DIM, FIELDS, HARD_IDS, VALUES, rows, schema

from feature_store.errors import (
    LeaseError,
    RefusedRowsError,
    SchemaDriftError,
    StoreRequestError,
    StoreUnavailable,
    ViewNotFoundError,
)
from feature_store.lease import Leases
from feature_store.milvus_core import MilvusCore, Written
from feature_store.milvus_schema import ViewSchema

VIEW = "item_things"


@pytest.fixture
def view(core):
    core.create_view(schema())
    return core


def test_vectors_come_back_in_the_order_asked_for(view, unit_vectors):
    """Whatever the id and however often it is asked for: its own vector, its own time, and False where there is none."""
    vectors = unit_vectors(len(HARD_IDS), DIM)
    assert view.upsert(VIEW, rows(HARD_IDS, vectors, np.arange(len(HARD_IDS)))) == Written(len(HARD_IDS), 0)
    asked = [*reversed(HARD_IDS), "missing", HARD_IDS[3], HARD_IDS[3]]
    got, present, event = view.read_vectors(VIEW, asked)
    order = [*reversed(range(len(HARD_IDS))), -1, 3, 3]
    assert present.tolist() == [i >= 0 for i in order]
    np.testing.assert_array_equal(got[present], vectors[[i for i in order if i >= 0]])
    assert event.tolist() == [max(i, 0) for i in order]
    assert not got[~present].any()
    assert view.read_vectors(VIEW, [])[0].shape == (0, DIM)


def test_the_event_loop_reads_the_same(view, unit_vectors):
    """The asynchronous read is the synchronous one."""
    view.upsert(VIEW, rows(HARD_IDS, unit_vectors(len(HARD_IDS), DIM), 1))

    async def read():
        try:
            return await view.read_vectors_async(VIEW, [*HARD_IDS, "missing"])
        finally:
            await view.channel.close_async()

    for one, other in zip(asyncio.run(read()), view.read_vectors(VIEW, [*HARD_IDS, "missing"]), strict=True):
        np.testing.assert_array_equal(one, other)


def test_every_type_survives_and_null_stays_null(view, unit_vectors):
    """A value comes back in its own type; a null is None rather than 0 or an empty text; NaN is null."""
    vectors = unit_vectors(3, DIM)
    view.upsert(VIEW, rows(["full"], vectors[:1], 5, **VALUES))
    view.upsert(VIEW, rows(["empty"], vectors[1:2], 6))
    view.upsert(VIEW, rows(["nan"], vectors[2:], 7, price=float("nan"), title="", tags=[]))
    got = view.read_columns(VIEW, ["empty", "full", "nobody", "nan"], [*FIELDS, "event_timestamp"])
    assert {name: values[1] for name, values in got.items()} == {**VALUES, "event_timestamp": 5}
    assert {values[0] for name, values in got.items() if name in FIELDS} == {None}
    assert {values[2] for values in got.values()} == {None}
    assert (got["price"][3], got["title"][3], got["tags"][3]) == (None, "", [])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=12, deadline=None)
@given(
    order=st.permutations([(1, 9, False), (3, 1, False), (3, 2, False), (2, 50, True), (0, 99, False)]),
    cuts=st.lists(st.integers(0, 5), max_size=3),
)
def test_the_newest_version_wins_in_any_order_and_any_batching(view, order, cuts):
    """Later valid time, then later making time; however the versions are split into writes."""
    view.drop_view(VIEW)
    view.create_view(schema())
    vectors = {version: np.eye(DIM, dtype=np.float32)[i] for i, version in enumerate(sorted(order))}
    bounds = sorted({0, *cuts, len(order)})
    for first, last in itertools.pairwise(bounds):
        part = order[first:last]
        event, created, deleted = (np.array(column) for column in zip(*part, strict=True))
        view.upsert(VIEW, rows(["a"] * len(part), [vectors[v] for v in part], event, created, deleted))
    got, present, event = view.read_vectors(VIEW, ["a"])
    assert (present[0], event[0]) == (True, 3)
    np.testing.assert_array_equal(got[0], vectors[3, 2, False])


def test_a_tombstone_hides_the_row_from_every_read(view, unit_vectors):
    """Deleted rows are missing in reads, searches, scans and counts, and an older row that comes later stays hidden."""
    vectors = unit_vectors(3, DIM)
    view.upsert(VIEW, rows(["a", "b", "c"], vectors, 10))
    assert view.delete(VIEW, ["b"], np.array([20])) == Written(1, 0)
    assert view.upsert(VIEW, rows(["b"], vectors[1:2], 15, created=10**15)) == Written(0, 1)
    assert view.read_vectors(VIEW, ["a", "b", "c"])[1].tolist() == [True, False, True]
    assert view.read_columns(VIEW, ["b"], ["event_timestamp"]) == {"event_timestamp": [None]}
    assert set(view.search(VIEW, vectors[1:2], 3).ids[0]) == {"a", "c"}
    assert [i for batch in view.scan(VIEW) for i in batch["entity_id"].to_pylist()] == ["a", "c"]
    assert view.count(VIEW) == 2
    assert view.upsert(VIEW, rows(["b"], vectors[1:2], 30)) == Written(1, 0)
    assert view.count(VIEW) == 3


@pytest.mark.parametrize(
    ("vector", "why"),
    [
        ([2.0] + [0.0] * 7, "norm is not 1"),
        ([float("nan")] + [0.0] * 7, "not finite"),
        ([float("inf")] + [0.0] * 7, "not finite"),
        ([1.0] * 4, "must have 8 values"),
        ([0.0] * 8, "norm is not 1"),
        (None, "vector is null"),
    ],
)
def test_a_wrong_vector_is_refused_by_its_key_and_nothing_is_written(view, unit_vectors, vector, why):
    """One bad row refuses the batch, and the error names the row."""
    batch = rows(["fine", "broken"], [unit_vectors(1, DIM)[0], vector], 1)
    with pytest.raises(RefusedRowsError, match=why) as error:
        view.upsert(VIEW, batch)
    assert error.value.keys == ["broken"]
    assert "'broken'" in str(error.value)
    assert view.count(VIEW) == 0


@pytest.mark.parametrize("bad", [None, "", "x" * 129])
def test_a_wrong_key_is_refused(view, unit_vectors, bad):
    """Null, empty and overlong ids cannot be stored."""
    with pytest.raises(RefusedRowsError, match="1 to 128 bytes"):
        view.upsert(VIEW, rows(["fine", bad], unit_vectors(2, DIM), 1))
    assert view.count(VIEW) == 0


def test_a_text_that_is_too_long_is_refused_by_its_key(view, unit_vectors):
    """What Milvus could only cut or reject is named before anything is sent."""
    with pytest.raises(RefusedRowsError, match=r"row 'a': title has more than 65,535 bytes"):
        view.upsert(VIEW, rows(["a"], unit_vectors(1, DIM), 1, title="ä" * 40_000))


def test_rows_without_a_column_are_refused(view, unit_vectors):
    """A column that was forgotten is not stored as nulls."""
    with pytest.raises(RefusedRowsError, match=r"lack columns \['price'\]"):
        view.upsert(VIEW, rows(["a"], unit_vectors(1, DIM), 1).drop_columns(["price"]))


def test_search_gives_the_nearest_with_their_own_features(view, unit_vectors):
    """Each query's first hit is its own row, scores fall, features belong to their hits, filters are obeyed."""
    vectors = unit_vectors(20, DIM)
    for n, vector in enumerate(vectors):
        view.upsert(VIEW, rows([f"i{n}"], [vector], 1, price=float(n), title=f"t{n}"))
    found = view.search(VIEW, vectors[[3, 7]], 5, fields=["title", "price"])
    assert [hits[0] for hits in found.ids] == ["i3", "i7"]
    assert all(scores == sorted(scores, reverse=True) for scores in found.scores)
    assert found.fields["title"] == [[f"t{i[1:]}" for i in hits] for hits in found.ids]
    expected = np.argsort(-(vectors @ vectors[3]))[:5]
    assert found.ids[0] == [f"i{n}" for n in expected]
    assert view.search(VIEW, vectors[3], 20, where="price < 2.5").ids[0] != []
    assert set(view.search(VIEW, vectors[3], 20, where="price < 2.5").ids[0]) == {"i0", "i1", "i2"}
    with pytest.raises(StoreRequestError, match=r"\[q, 8\]"):
        view.search(VIEW, vectors[:, :4], 5)


@pytest.mark.parametrize(
    ("queries", "k", "why"),
    [
        (np.full((1, DIM), np.nan), 3, "query 0 of view item_things is not finite"),
        (np.zeros((2, DIM)) + np.array([[1.0], [0.0]]), 3, "query 1 of view item_things is zero"),
        (np.ones((0, DIM)), 3, r"must be \[q, 8\], not \[0, 8\]"),
        (np.ones((1, DIM)), 0, "is for 0 hits: ask for 1 or more"),
    ],
)
def test_a_search_that_cannot_be_meant_is_refused(core, queries, k, why):
    """It would find nothing, or anything, without a word."""
    core.create_view(schema())
    with pytest.raises(StoreRequestError, match=why):
        core.search("item_things", queries, k)


def test_search_of_an_empty_view_finds_nothing(view, unit_vectors):
    """No rows are no error."""
    assert view.search(VIEW, unit_vectors(2, DIM), 5, fields=["title"]).ids == [[], []]
    assert list(view.scan(VIEW, ["vector"])) == []


def test_a_scan_sees_every_row_once_whatever_the_page(view, unit_vectors):
    """All rows, in the order of ids, with vectors and features in their Arrow types."""
    ids = [f"i{n:03d}" for n in range(50)]
    vectors = unit_vectors(50, DIM)
    view.upsert(VIEW, rows(ids, vectors, 9, numbers=[1, 2]))
    view.delete(VIEW, ["i007"], np.array([10]))
    for size in (7, 50, 100):
        table = pa.Table.from_batches(view.scan(VIEW, ["vector", "numbers", "price"], batch=size))
        assert table["entity_id"].to_pylist() == [i for i in ids if i != "i007"]
        np.testing.assert_array_equal(np.stack(table["vector"].to_numpy()), np.delete(vectors, 7, axis=0))
        assert table.schema.field("numbers").type == pa.list_(pa.int64())
        assert table["price"].null_count == 49


def test_many_rows_go_in_several_requests_and_all_arrive(core, rng):
    """A write larger than one request stores every row; writing it again stores none."""
    core.create_view(ViewSchema("item_many", {}, "vector", 16))
    count = 12_000
    vectors = rng.standard_normal((count, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    batch = rows([f"i{n}" for n in range(count)], vectors[:, :0], 1).select(["entity_id", "event_timestamp"])
    column = pa.ListArray.from_arrays(np.arange(0, count * 16 + 1, 16, dtype=np.int32), vectors.reshape(-1))
    batch = batch.append_column("vector", column).append_column("created", batch["event_timestamp"])
    assert core.upsert("item_many", batch) == Written(count, 0)
    assert core.count("item_many") == count
    assert core.upsert("item_many", batch.slice(0, 600)) == Written(0, 600)
    core.flush("item_many")
    asked = rng.choice(count, 5_000, replace=False)
    np.testing.assert_array_equal(core.read_vectors("item_many", [f"i{n}" for n in asked])[0], vectors[asked])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"dim": 16}, "dim: stored 8, defined 16"),
        ({"metric": "IP"}, "metric: stored 'COSINE', defined 'IP'"),
        ({"index": "HNSW"}, "index: stored 'FLAT'"),
        ({"fields": {**FIELDS, "new": pa.int64()}}, "fields: stored"),
        ({"fields": {**FIELDS, "price": pa.int64()}}, "fields: stored"),
        ({"vector_field": "other"}, "vector_field: stored 'vector'"),
    ],
)
def test_drift_is_loud(view, changes, named):
    """Another dim, metric, index, field or type than what is stored fails, and says which."""
    with pytest.raises(SchemaDriftError, match=named):
        view.create_view(schema(**changes))
    view.check_drift(schema())


def test_creating_again_keeps_the_rows(view, unit_vectors):
    """The same definition a second time is no change."""
    view.upsert(VIEW, rows(["a"], unit_vectors(1, DIM), 1))
    view.create_view(schema())
    assert view.count(VIEW) == 1


def test_another_process_reads_a_view_by_what_its_collection_carries(view, milvus_server, unit_vectors):
    """A connection that never saw the definition gives the same types."""
    view.upsert(VIEW, rows(["a"], unit_vectors(1, DIM), 1, **VALUES))
    with MilvusCore(milvus_server) as other:
        assert other.describe_view(VIEW) == schema()
        assert other.read_columns(VIEW, ["a"], list(FIELDS), strong=True) == {k: [v] for k, v in VALUES.items()}


def test_dropping_is_by_exact_name(view):
    """A view whose name begins like another's keeps its rows."""
    view.create_view(schema("item_things_more"))
    assert view.drop_view(VIEW)
    assert not view.drop_view(VIEW)
    assert "item_things_more" in view.list_views()


def test_nothing_is_created_on_read(core, unit_vectors):
    """Reading or writing a view that is not there is an error that says what to run, and leaves no collection behind."""
    for call in (
        lambda: core.read_vectors("item_nothing", ["a"]),
        lambda: core.count("item_nothing"),
        lambda: core.upsert("item_nothing", rows(["a"], unit_vectors(1, DIM), 1)),
        lambda: list(core.scan("item_nothing")),
    ):
        with pytest.raises(ViewNotFoundError, match="triptych materialize"):
            call()
    assert "item_nothing" not in core.list_views()


def test_a_view_without_a_vector_is_stored_all_the_same(core):
    """Profiles and histories have no vector; they can be read by id."""
    core.create_view(ViewSchema("user_lists", {"tags": pa.list_(pa.string())}))
    table = pa.table(
        {"entity_id": ["u"], "tags": [["a", "b"]], "event_timestamp": pa.array([1]).cast(pa.timestamp("us", "UTC"))}
    )
    core.upsert("user_lists", table)
    assert core.read_columns("user_lists", ["u", "v"], ["tags"]) == {"tags": [["a", "b"], None]}


def test_a_writer_that_lost_its_lease_writes_nothing(view, unit_vectors, tmp_path):
    """The lease is looked at before rows are sent."""
    old = Leases(tmp_path / "leases.db", lease_seconds=-1).take(VIEW)
    Leases(tmp_path / "leases.db").take(VIEW)
    with pytest.raises(LeaseError, match="taken over"):
        view.upsert(VIEW, rows(["a"], unit_vectors(1, DIM), 1), lease=old)
    assert view.count(VIEW) == 0


def test_threads_may_share_a_core(view, unit_vectors):
    """Many threads writing and reading different rows at once lose none."""
    vectors = unit_vectors(40, DIM)
    failures = []

    def work(n):
        try:
            view.upsert(VIEW, rows([f"i{n}"], vectors[n : n + 1], 1))
            np.testing.assert_array_equal(view.read_vectors(VIEW, [f"i{n}"])[0], vectors[n : n + 1])
        except Exception as error:  # noqa: BLE001 - reported below
            failures.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert view.count(VIEW) == 40


def test_a_milvus_that_is_not_there_says_what_to_run():
    """The error names the address and `triptych up`, and comes soon."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with (
            MilvusCore(address, timeout_seconds=1.0) as core,
            pytest.raises(StoreUnavailable, match="triptych up") as error,
        ):
            core.read_vectors("item_things", ["a"])
    assert address in str(error.value)


@pytest.mark.parametrize("name", ["entity_id", "row_deleted"])
def test_reserved_names_are_refused(name):
    """A feature that would shadow the store's own columns is named at definition."""
    with pytest.raises(SchemaDriftError, match=name):
        schema(fields={name: pa.string()})
