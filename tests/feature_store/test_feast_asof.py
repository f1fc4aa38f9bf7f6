import json
from contextlib import closing, contextmanager
from datetime import timedelta

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from asof_world import GOOD, T0, TTL_US, foreign_store, labels_of, things_and_offers, write_offers, write_things
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from milvus_rows import times

from feature_store.errors import PointInTimeError

# Feast, its registry and ibis warn about themselves.
pytestmark = pytest.mark.filterwarnings("ignore::Warning")


@pytest.fixture(scope="module")
def history(feast_package):
    from feature_store import feast_history

    return feast_history


@pytest.fixture(scope="module")
def world(feast_package, tmp_path_factory):
    return things_and_offers(tmp_path_factory.mktemp("repository"))


@contextmanager
def feasts_connection_closed():
    """Close the DuckDB connection that Feast's own call leaves open, which complains when the process ends."""
    import ibis

    try:
        yield
    finally:
        ibis.options.default_backend.disconnect()
        ibis.options.default_backend = None


def as_of(rows, key, at, strict, ttl=TTL_US):
    """The oracle: of the key's live rows before `at`, the newest, the last made, the last; None where that is a tombstone."""
    seen = [
        (valid, made, file, number, deleted, value)
        for file, number, (name, valid, made, deleted, value) in rows
        if name == key and (valid < at or (not strict and valid == at)) and valid + ttl >= at
    ]
    *_, deleted, value = max(seen, default=(True, None))
    return None if deleted else value


def numbered(rows, files):
    """Rows with their file and place in it, as `write_things` lays them down."""
    return [(n % files, n // files, row) for n, row in enumerate(rows)]


ROWS = st.lists(
    st.tuples(
        st.sampled_from("abc"),
        st.integers(0, 60),
        st.integers(0, 3),
        st.sampled_from([False, False, False, True]),
        st.integers(-(2**62), 2**62),
    ),
    max_size=25,
)


LABELS = st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 120)), min_size=1, max_size=40)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS, labels=LABELS, files=st.integers(1, 3), rows_per_join=st.integers(1, 50), strict=st.booleans())
@example(
    rows=[("a", 5, 0, False, 1), ("a", 5, 0, False, 2)],
    labels=[("a", 5), ("a", 6)],
    files=2,
    rows_per_join=9,
    strict=True,
)
@example(
    rows=[("a", 1, 0, False, 1), ("a", 2, 9, True, 2)],
    labels=[("a", 2), ("a", 3)],
    files=1,
    rows_per_join=1,
    strict=True,
)
@example(rows=[("a", 0, 0, False, 1)], labels=[("a", 50), ("a", 51)], files=1, rows_per_join=9, strict=True)
@example(rows=[("a", 0, 0, False, 1)], labels=[("a", 50), ("a", 51)], files=1, rows_per_join=9, strict=False)
def test_every_label_sees_the_newest_row_before_it(
    world, history, tmp_path, rows, labels, files, rows_per_join, strict
):
    """Against a plain loop: several versions, ties in time and in making, late rows, tombstones, a ttl, duplicates, any order."""
    store, folder, _ = world
    write_things(folder, rows, files)
    table = labels_of(labels)
    out = tmp_path / "out.parquet"
    features = ["things:value", "things:rn", "things:geo_y", "things:vector"]
    info = history.point_in_time(store, table, features, out, strict=strict, rows_per_join=rows_per_join)
    got = pq.read_table(out)
    expected = [as_of(numbered(rows, files), key, at, strict) for key, at in labels]
    assert got["things__value"].to_pylist() == expected
    assert got.select(table.column_names) == table
    assert (info.rows, info.found) == (len(labels), {"things": sum(v is not None for v in expected)})
    live = got.filter(got["things__value"].is_valid())
    values = live["things__value"].to_pylist()
    assert live["things__geo_y"].to_pylist() == [float(v) for v in values]
    assert live["things__rn"].to_pylist() == [float(np.float32(v / 4)) for v in values]
    np.testing.assert_array_equal(
        np.asarray(live["things__vector"].to_pylist(), np.float32).reshape(-1, 2),
        np.asarray([[v, v / 10] for v in values], np.float32).reshape(-1, 2),
    )


def test_a_row_at_the_labels_instant_is_not_seen(world, history, tmp_path):
    """Not at the same microsecond; one microsecond later it is; with strict=False at once."""
    store, folder, _ = world
    write_things(folder, [("a", 10, 10, False, 1), ("a", 20, 20, False, 2)])
    labels = labels_of([("a", 10), ("a", 11), ("a", 20), ("a", 21)])
    for strict, expected in ((True, [None, 1, 1, 2]), (False, [1, 1, 2, 2])):
        history.point_in_time(store, labels, ["things:value"], tmp_path / "out.parquet", strict=strict)
        got = pq.read_table(tmp_path / "out.parquet")
        assert got["things__value"].to_pylist() == expected
        assert got["event_timestamp"] == labels["event_timestamp"]


def test_a_tombstone_is_missing_and_hides_what_was_before_it(world, history, tmp_path):
    """All features are null while the entity is deleted, whatever values the tombstone has; a later row brings it back."""
    store, folder, _ = world
    rows = [("a", 10, 10, False, 1), ("a", 20, 20, True, 2), ("a", 30, 30, False, 3), ("a", 30, 31, True, 4)]
    write_things(folder, [*rows, ("a", 30, 32, False, 5)])
    labels = labels_of([("a", 15), ("a", 25), ("a", 35)])
    history.point_in_time(store, labels, ["things:value", "things:vector"], tmp_path / "out.parquet")
    got = pq.read_table(tmp_path / "out.parquet")
    assert got["things__value"].to_pylist() == [1, None, 5]
    assert got["things__vector"].is_null().to_pylist() == [False, True, False]


def test_it_joins_as_feast_does_an_instant_earlier(world, history, tmp_path, rng, monkeypatch):
    """Where nothing is deleted or tied, the same as `get_historical_features` at t - 1 us, for two views of different keys."""
    store, things, offers = world
    write_things(things, [(key, int(t), 0, False, int(t)) for key in "abc" for t in rng.permutation(60)[:20]], files=2)
    write_offers(offers, [(k, s, int(t), int(t)) for k in "abc" for s in (1, 2) for t in rng.permutation(99)[:9]])
    pairs = [("abcd"[k], int(t)) for k, t in zip(rng.integers(0, 4, 500), rng.integers(0, 120, 500), strict=True)]
    labels = labels_of(pairs, shop_id=pa.array(rng.integers(1, 3, 500)))
    service = store.get_feature_service("both")
    info = history.point_in_time(store, labels, service, tmp_path / "out.parquet", rows_per_join=123)
    assert info.features == ["things__value", "offers__value"]
    got = pq.read_table(tmp_path / "out.parquet")
    frame = labels.to_pandas()
    # A row lives a ttl from its own time on; Feast, asked a microsecond earlier, would let it live a microsecond longer.
    frame["event_timestamp"] -= pd.Timedelta(1, "us")
    monkeypatch.chdir(store.config.repo_path)  # Feast's own call reads a source's path from the working folder
    with feasts_connection_closed():
        stock = store.get_historical_features(frame, service, full_feature_names=True).to_arrow().sort_by("number")
    expired = np.asarray([min((at - t for t in range(60) if t < at), default=0) > TTL_US for _, at in pairs])
    assert not expired.all()
    assert got["offers__value"].to_pylist() == stock["offers__value"].to_pylist()
    differ = [
        n
        for n, (ours, theirs) in enumerate(
            zip(got["things__value"].to_pylist(), stock["things__value"].to_pylist(), strict=True)
        )
        if ours != theirs
    ]
    assert all(got["things__value"][n].as_py() is None for n in differ)
    assert all(pairs[n][1] - stock["things__value"][n].as_py() == TTL_US + 1 for n in differ)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("ttl", [timedelta(days=1), timedelta(days=30), timedelta(days=3650, microseconds=1)], ids=str)
def test_a_ttl_of_any_length_is_kept_to_the_microsecond(world, history, tmp_path, ttl, strict):
    """A row is seen until its time plus the ttl, by labels of that very microsecond too."""
    store, folder, _ = world
    view = store.get_feature_view("things")
    view.ttl = ttl
    store.apply([view])
    try:
        write_things(folder, [("a", 0, 0, False, 1)])
        us = ttl // timedelta(microseconds=1)
        labels = labels_of([("a", 5), ("a", us), ("a", us + 1)])
        history.point_in_time(store, labels, ["things:value"], tmp_path / "out.parquet", strict=strict)
        assert pq.read_table(tmp_path / "out.parquet")["things__value"].to_pylist() == [1, 1, None]
    finally:
        view.ttl = timedelta(microseconds=TTL_US)
        store.apply([view])


def test_null_keys_are_nobody_and_integers_stay_exact(world, history, tmp_path):
    """A label without a key gets nulls from that view alone; an integer column with nulls is not made a float on the way."""
    store, things, offers = world
    write_things(things, [("a", 1, 1, False, 1)])
    write_offers(offers, [("a", 2**53 + 1, 1, 7)])
    shops = pa.array([2**53 + 1, None, 2**53], pa.int64())
    labels = labels_of([("a", 5), ("a", 5), (None, 5)], shop_id=shops)
    history.point_in_time(store, labels, ["offers:value", "things:value"], tmp_path / "out.parquet")
    got = pq.read_table(tmp_path / "out.parquet")
    assert got["offers__value"].to_pylist() == [7, None, None]
    assert got["things__value"].to_pylist() == [1, 1, None]
    as_floats = labels.set_column(3, "shop_id", pa.array([1.0, None, 1.5]))
    with pytest.raises(PointInTimeError, match="join key 'shop_id' is double and view offers has int64"):
        history.point_in_time(store, as_floats, ["offers:value"], tmp_path / "out.parquet")


def test_a_column_that_older_files_lack_is_null_there(world, history, tmp_path):
    """Files are united by column name, as for the online store."""
    store, folder, _ = world
    write_things(folder, [("a", 1, 1, False, 1), ("b", 1, 1, False, 2)], files=2)
    older = folder / "part-0.parquet"
    pq.write_table(pq.read_table(older).drop_columns(["rn"]), older)
    labels = labels_of([("a", 5), ("b", 5)])
    history.point_in_time(store, labels, ["things:rn", "things:value"], tmp_path / "out.parquet")
    got = pq.read_table(tmp_path / "out.parquet")
    assert got["things__rn"].to_pylist() == [None, 0.5]
    history.point_in_time(store, labels.slice(0, 1), ["things:rn"], tmp_path / "out.parquet")
    assert pq.read_table(tmp_path / "out.parquet")["things__rn"].to_pylist() == [None]


def test_sources_that_cannot_be_read_are_named(history, tmp_path):
    """A view without files yet, one whose files lack a column, one whose file has another type, and one that is not of Parquet."""
    from feast import Entity, FeatureView, Field, FileSource, ValueType
    from feast.data_format import DeltaFormat, ParquetFormat
    from feast.types import Int64, String

    thing = Entity(name="thing", join_keys=["thing_id"], value_type=ValueType.STRING)
    names = ("empty", "lacking", "mistyped", "delta")

    def view(name):
        (tmp_path / name).mkdir()
        file_format = DeltaFormat() if name == "delta" else ParquetFormat()
        path = str(tmp_path / name)
        return FeatureView(
            name=name,
            entities=[thing],
            schema=[Field(name="thing_id", dtype=String), Field(name="value", dtype=Int64)],
            source=FileSource(name=name, path=path, file_format=file_format, timestamp_field="valid_from"),
        )

    views = [view(name) for name in names]
    rows = pa.table({"thing_id": ["a"], "valid_from": times([T0])})
    pq.write_table(rows, tmp_path / "lacking" / "part.parquet")
    pq.write_table(rows.append_column("value", pa.array(["one"])), tmp_path / "mistyped" / "part.parquet")
    store = foreign_store(tmp_path, [thing, *views])
    messages = {
        "empty": "where there is no Parquet file yet",
        "lacking": "view lacking needs column 'value', which none of its files has",
        "mistyped": "feature mistyped:value is string in its files and declared int64",
        "delta": "view delta reads a FileSource .*: features are joined from FileSources of local Parquet files",
    }
    for name, message in messages.items():
        with pytest.raises(PointInTimeError, match=message):
            history.point_in_time(store, GOOD, [f"{name}:value"], tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()


def test_join_keys_follow_their_map(history, tmp_path):
    """One view used twice under other names, each by a label column of its own; a view without entities is everybody's."""
    from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
    from feast.types import Int64, String

    thing = Entity(name="thing", join_keys=["thing_id"], value_type=ValueType.STRING)
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"thing_id": ["a", "b"], "value": [1, 2], "valid_from": times([T0, T0 + 1])}), path)

    def view(name, entities, schema):
        return FeatureView(
            name=name,
            entities=entities,
            schema=schema,
            source=FileSource(name=name, path=str(path), timestamp_field="valid_from"),
        )

    fields = [Field(name="value", dtype=Int64)]
    things = view("things", [thing], [Field(name="thing_id", dtype=String), *fields])
    latest = view("latest", [], fields)
    service = FeatureService(
        name="pairs",
        features=[
            things.with_name("left").with_join_key_map({"thing_id": "left_id"}),
            things.with_name("right").with_join_key_map({"thing_id": "right_id"}),
            latest,
        ],
    )
    store = foreign_store(tmp_path, [thing, things, latest, service])
    labels = pa.table({"left_id": ["a", "b"], "right_id": ["b", "x"], "event_timestamp": times([T0 + 9, T0 + 1])})
    info = history.point_in_time(store, labels, store.get_feature_service("pairs"), tmp_path / "out.parquet")
    got = pq.read_table(tmp_path / "out.parquet")
    assert got["left__value"].to_pylist() == [1, None]
    assert got["right__value"].to_pylist() == [2, None]
    assert got["latest__value"].to_pylist() == [2, 1]
    assert info.found == {"left": 1, "right": 1, "latest": 2}


def test_a_repository_made_by_feast_init(history, feast_package, tmp_path, monkeypatch):
    """Feast's template as it is, on its default offline store: a ttl, a service, an on-demand view with request data, odd types."""
    from feast import FeatureStore
    from feast.repo_config import load_repo_config
    from feast.repo_operations import apply_total, init_repo

    monkeypatch.chdir(tmp_path)
    init_repo("drivers", "local")
    repo = tmp_path / "drivers" / "feature_repo"
    monkeypatch.chdir(repo)
    monkeypatch.syspath_prepend(repo)
    apply_total(load_repo_config(repo, repo / "feature_store.yaml"), repo, skip_source_validation=False)
    store = FeatureStore(repo_path=str(repo))
    rows = pd.read_parquet(repo / "data" / "driver_stats.parquet")
    row = rows[rows.driver_id == 1001].iloc[-3]
    at = row.event_timestamp
    labels = pd.DataFrame(
        {
            "driver_id": [1001] * 3,
            "event_timestamp": [at, at + pd.Timedelta(1, "us"), at + pd.Timedelta(99, "D")],
            "val_to_add": [1, 2, 3],
            "val_to_add_2": [10, 20, 30],
        }
    )
    out = tmp_path / "training.parquet"
    info = history.point_in_time(store, labels, store.get_feature_service("driver_activity_v2"), out)
    got = pq.read_table(out).to_pylist()
    assert got[1]["driver_hourly_stats__conv_rate"] == np.float32(row.conv_rate)
    assert got[0]["driver_hourly_stats__conv_rate"] != got[1]["driver_hourly_stats__conv_rate"]
    assert got[2]["driver_hourly_stats__conv_rate"] is None
    assert got[1]["transformed_conv_rate__conv_rate_plus_val2"] == pytest.approx(float(row.conv_rate) + 20)
    assert json.loads(got[1]["driver_hourly_stats__driver_config"])
    assert info.found == {"driver_hourly_stats": 2}
    more = ["driver_hourly_stats_fresh:conv_rate", "driver_quality_labels:is_reliable"]  # by push, and a label view
    pushed = history.point_in_time(store, labels, more, tmp_path / "pushed.parquet")
    assert pushed.found["driver_hourly_stats_fresh"] == 2
    assert pq.read_table(tmp_path / "pushed.parquet").column_names[-2:] == pushed.features
    with pytest.raises(
        PointInTimeError, match="no column 'val_to_add': view transformed_conv_rate is computed from it"
    ):
        history.point_in_time(
            store, labels.drop(columns="val_to_add"), ["transformed_conv_rate:conv_rate_plus_val1"], out
        )


def test_nothing_of_duckdb_is_left_open(world, history):
    """Neither Feast's own connection, which would complain when the process ends, nor ours, nor what it spilled."""
    import ibis

    from feature_store.feast_asof import AsOf

    store, *_ = world
    before = ibis.options.default_backend
    with closing(AsOf(store, ["things:value"])) as joined:
        joined.features(GOOD, history.label_us(GOOD["event_timestamp"]))
        backend = joined._backend
    assert ibis.options.default_backend is before
    with pytest.raises(Exception, match=r"[Cc]losed"):
        backend.con.execute("SELECT 1")
