import itertools
from datetime import UTC, date, datetime

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from asof_world import GOOD, T0, labels_of, things_and_offers, write_things
from hypothesis import given
from hypothesis import strategies as st

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


def test_duplicates_and_order_are_kept(world, history, tmp_path, rng):
    """10,000 shuffled labels, most of them several times at one instant: each comes out once, where it was, with its columns."""
    store, folder, _ = world
    keys = [f"k{n}" for n in range(20)]
    write_things(folder, [(key, t, t, False, n * 100 + t) for n, key in enumerate(keys) for t in range(0, 50, 5)])
    pairs = [(keys[k], int(t)) for k, t in zip(rng.integers(0, 20, 10_000), rng.integers(0, 50, 10_000), strict=True)]
    note = pa.array([{"n": n, "x": [n]} for n in range(10_000)])
    labels = labels_of(pairs, note=note, label=rng.random(10_000).astype(np.float32))
    info = history.point_in_time(store, labels, ["things:value"], tmp_path / "out.parquet")
    got = pq.read_table(tmp_path / "out.parquet")
    assert len(set(pairs)) < 1_001
    assert (info.rows, info.joins) == (10_000, 1)
    assert got.select(labels.column_names) == labels
    expected = [None if t == 0 else int(key[1:]) * 100 + (t - 1) // 5 * 5 for key, t in pairs]
    assert got["things__value"].to_pylist() == expected


def test_many_chunks_make_what_one_chunk_makes(world, history, tmp_path):
    """By table, by stream of odd batches, by file and by folder of files: the same rows; never more than asked for are held."""
    store, folder, _ = world
    write_things(folder, [(key, t, t, False, t) for key in "abc" for t in range(0, 50, 7)], files=2)
    labels = labels_of([("abcd"[n % 4], n % 60) for n in range(1_000)])
    whole = tmp_path / "one.parquet"
    history.point_in_time(store, labels, ["things:value"], whole)
    expected = pq.read_table(whole)
    sizes = []

    pulled = []

    def stream():
        for first in range(0, 1_000, 17):
            batch = labels.slice(first, 17).combine_chunks().to_batches()[0]
            pulled.append(batch.num_rows)
            assert sum(pulled) - sum(sizes) <= 64 + 17
            yield batch

    parts = tmp_path / "labels"
    parts.mkdir()
    for number, first in enumerate(range(0, 1_000, 300)):
        pq.write_table(labels.slice(first, 300), parts / f"{number}.parquet", row_group_size=41)
    pq.write_table(labels, tmp_path / "labels.parquet", row_group_size=90)
    given_as = [
        labels,
        pa.RecordBatchReader.from_batches(labels.schema, stream()),
        tmp_path / "labels.parquet",
        str(parts),
        labels.to_pandas(),
    ]
    for one in given_as:
        sizes.clear()
        out = tmp_path / "out.parquet"
        info = history.point_in_time(store, one, ["things:value"], out, rows_per_join=64, progress=sizes.append)
        assert sizes == [64] * 15 + [40]
        assert (info.joins, info.rows) == (16, 1_000)
        assert pq.read_table(out).cast(expected.schema) == expected
    assert sum(pulled) == 1_000


def test_files_of_labels_may_differ(world, history, tmp_path):
    """In a folder, a column that some lack is null there, integers are as wide as the widest, and categories are keys like any other."""
    store, folder, _ = world
    write_things(folder, [("a", 1, 1, False, 7)])
    (tmp_path / "labels").mkdir()
    first = labels_of([("a", 5)]).set_column(0, "number", pa.array([1], pa.int32()))
    second = labels_of([("b", 5), ("a", 6)], note=pa.array(["x", "y"])).set_column(0, "number", pa.array([2**40, 3]))
    for name, part in (("0", first), ("1", second)):
        table = part.set_column(1, "thing_id", part["thing_id"].dictionary_encode())
        pq.write_table(table, tmp_path / "labels" / f"{name}.parquet")
    history.point_in_time(store, tmp_path / "labels", ["things:value"], tmp_path / "out.parquet", rows_per_join=2)
    got = pq.read_table(tmp_path / "out.parquet")
    assert got["number"].to_pylist() == [1, 2**40, 3]
    assert got["note"].to_pylist() == [None, "x", "y"]
    assert got["things__value"].to_pylist() == [7, None, 7]


@given(batches=st.lists(st.integers(0, 9), max_size=12), rows=st.integers(1, 7))
def test_chunks_are_full_but_for_the_last(history, batches, rows):
    """Whatever the batches, nothing is lost or reordered; no rows are one empty chunk."""
    schema = pa.schema([("n", pa.int64())])
    total = sum(batches)
    ends = np.cumsum([0, *batches])
    parts = [pa.record_batch([pa.array(range(a, b), pa.int64())], schema) for a, b in itertools.pairwise(ends)]
    chunks = list(history._chunks(pa.RecordBatchReader.from_batches(schema, parts), rows))
    assert [n for chunk in chunks for n in chunk["n"].to_pylist()] == list(range(total))
    assert [len(chunk) for chunk in chunks[:-1]] == [rows] * (len(chunks) - 1)
    assert len(chunks[-1]) in range(min(total, 1), rows + 1)


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([1_500], pa.timestamp("us")), [1_500]),
        (pa.array([1_999, -1], pa.timestamp("ns")), [1, -1]),
        (pa.array([3], pa.timestamp("ms", tz="Asia/Tokyo")), [3_000]),
        (pa.array([3], pa.timestamp("s", tz="UTC")), [3_000_000]),
        (pa.array([date(1970, 1, 2)]), [86_400_000_000]),
        (pa.array([datetime(1970, 1, 1, 9, tzinfo=UTC)], pa.timestamp("us", tz="Asia/Tokyo")), [32_400_000_000]),
    ],
)
def test_times_of_any_unit_and_zone_are_microseconds(history, column, expected):
    """A naive time is UTC; what is below a microsecond is cut off downwards, so that a row in the label's microsecond stays unseen."""
    assert history.label_us(pa.chunked_array([column])).tolist() == expected


def test_labels_keep_their_own_time(world, history, tmp_path):
    """Under any name, in the zone and unit that it has; nanoseconds within one microsecond are one instant."""
    store, folder, _ = world
    write_things(folder, [("a", 10, 10, False, 1)])
    at_ns = pa.array([(T0 + 10) * 1000 + 999, (T0 + 11) * 1000], pa.timestamp("ns", tz="Europe/Kyiv"))
    labels = pa.table({"thing_id": ["a", "a"], "when": at_ns})
    history.point_in_time(store, labels, ["things:value"], tmp_path / "out.parquet", timestamp_column="when")
    got = pq.read_table(tmp_path / "out.parquet")
    assert got["things__value"].to_pylist() == [None, 1]
    assert got["when"].combine_chunks() == at_ns


def test_no_labels_make_a_file_without_rows(world, history, tmp_path):
    """With all the columns."""
    store, *_ = world
    info = history.point_in_time(store, labels_of([]), ["things:vector"], tmp_path / "out.parquet")
    schema = pq.read_schema(tmp_path / "out.parquet")
    assert (info.rows, info.found) == (0, {"things": 0})
    assert schema.names == ["number", "thing_id", "event_timestamp", "things__vector"]
    assert schema.field("things__vector").type == pa.list_(pa.float32())


def changed(labels, **columns):
    for name, column in columns.items():
        labels = labels.append_column(name, column) if name not in labels.column_names else labels.drop_columns([name])
    return labels


@pytest.mark.parametrize(
    ("labels", "features", "options", "message"),
    [
        (GOOD, ["nothing:value"], {}, "nothing does not exist.*there are the views offers, things; `feast apply`"),
        (GOOD, ["things:valu"], {}, "view things has no feature 'valu'; it has value, rn, geo_y, vector"),
        (GOOD, ["things"], {}, "Invalid feature reference 'things'. Expected format"),
        (GOOD, "things:value", {}, "features are 'things:value': give a list"),
        (GOOD, [], {}, r"features are \[\]: give a list"),
        (GOOD, ["things:value", "things:value"], {}, "named things__value: ask for each once"),
        (
            changed(GOOD, thing_id=None),
            ["things:value"],
            {},
            "no column 'thing_id': view things joins by it; they have number",
        ),
        (GOOD, ["offers:value"], {}, "no column 'shop_id': view offers joins by it"),
        (
            GOOD,
            ["things:value"],
            {"timestamp_column": "when"},
            "no column 'when': name their time's by timestamp_column",
        ),
        (GOOD, ["things:value"], {"timestamp_column": "number"}, "'number' is int64: make it a timestamp"),
        (
            changed(GOOD, things__value=GOOD["number"]),
            ["things:value"],
            {},
            "things__value have names of features: rename",
        ),
        (
            changed(GOOD, value=GOOD["number"]),
            ["things:value"],
            {"full_feature_names": False},
            "columns value have names",
        ),
        (
            GOOD,
            ["things:value", "offers:value"],
            {"full_feature_names": False},
            "named value: use full_feature_names=True",
        ),
        (GOOD, ["things:value"], {"rows_per_join": 0}, "rows_per_join is 0"),
        (pd.DataFrame({"x": [1, "one"]}), ["things:value"], {}, "the labels cannot be read"),
        ("missing.parquet", ["things:value"], {}, "the labels cannot be read"),
    ],
)
def test_what_cannot_be_joined_is_refused_by_name(world, history, tmp_path, labels, features, options, message):
    """Every refusal names the value and the remedy, and no file appears."""
    store, *_ = world
    with pytest.raises(PointInTimeError, match=message):
        history.point_in_time(store, labels, features, tmp_path / "out.parquet", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_halfway_leaves_what_was_there(world, history, tmp_path):
    """A label without a time in the third chunk: its row is named, the older file is still there, and nothing else is."""
    store, *_ = world
    out = tmp_path / "out.parquet"
    history.point_in_time(store, GOOD, ["things:value"], out)
    before = out.read_bytes()
    at = pa.array([T0] * 5 + [None]).cast(pa.timestamp("us", tz="UTC"))
    labels = pa.table({"thing_id": ["a"] * 6, "event_timestamp": at})
    with pytest.raises(PointInTimeError, match="time 'event_timestamp' is null in row 5"):
        history.point_in_time(store, labels, ["things:value"], out, rows_per_join=2)
    assert out.read_bytes() == before
    assert list(tmp_path.iterdir()) == [out]


def test_the_output_is_not_read_as_labels(world, history, tmp_path):
    """A file among the labels would be joined again by the next run; a folder is no file."""
    store, *_ = world
    pq.write_table(GOOD, tmp_path / "labels.parquet")
    with pytest.raises(PointInTimeError, match="lies among the labels"):
        history.point_in_time(store, tmp_path, ["things:value"], tmp_path / "sub" / "out.parquet")
    with pytest.raises(PointInTimeError, match="is a folder"):
        history.point_in_time(store, GOOD, ["things:value"], tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(PointInTimeError, match="no Parquet files in"):
        history.point_in_time(store, tmp_path / "empty", ["things:value"], tmp_path / "out.parquet")
