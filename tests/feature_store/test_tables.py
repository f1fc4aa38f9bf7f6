import re
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from encoders.space import EmbeddingSpace
from feature_store.errors import TableError
from feature_store.home import Home
from feature_store.parts import list_parts
from feature_store.schemas import TIMESTAMP
from feature_store.spaces import register_spaces
from feature_store.tables import BUCKETS, Tables, bucket_of

SPACE = EmbeddingSpace.from_recipe("text", "tiny", 4, {"weights": "none"})


def us(*times):
    return pa.array(times, pa.int64()).cast(TIMESTAMP)


def interactions(rows):
    """Rows of (event_id, user_id, event time, created)."""
    columns = list(zip(*rows, strict=True))
    return pa.table(
        {
            "event_id": columns[0],
            "user_id": columns[1],
            "item_id": ["i"] * len(rows),
            "event_type": ["click"] * len(rows),
            "event_timestamp": us(*columns[2]),
            "created": us(*columns[3]),
        }
    )


@pytest.fixture
def tables(home):
    register_spaces(home, [SPACE])
    return Tables(home)


def write(tables, ids, vectors, times, **more):
    return tables.write_embeddings(
        "item", SPACE, ids, vectors, content_sha256=["s"] * len(ids), event_timestamp=np.asarray(times), **more
    )


def test_embeddings_come_back_as_they_were_written(tables, unit_vectors):
    """Every vector, id, hash and time survives, over several days, in the order asked for; a call on one day is one part."""
    vectors = unit_vectors(5, 4)
    days = np.arange(5) * 86_400_000_000 + 852_076_800_000_000
    made = np.full(5, 1_767_225_600_000_000)
    parts = write(tables, list("abcde"), vectors, days, created=made)
    assert [part.parent.name for part in parts] == ["dt=2026-01-01"]
    got = tables.read_embeddings("item", SPACE.space_id, ["e", "nobody", "a"])
    assert got.ids == ["e", "a"]
    np.testing.assert_array_equal(got.vectors, vectors[[4, 0]])
    assert got.event_timestamp.tolist() == [days[4], days[0]]
    assert tables.embedding_index("item", SPACE.space_id)["c"] == ("s", days[2])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=15, deadline=None)
@given(versions=st.permutations([(1, 9, False), (2, 1, False), (2, 2, False), (0, 99, True)]))
def test_the_newest_version_wins_in_any_order_of_arrival(tmp_path_factory, versions):
    """Later valid time wins, then later making time; an older tombstone changes nothing."""
    tables = Tables(Home(tmp_path_factory.mktemp("home")))
    wanted = np.array([[1.0, 0, 0, 0]], np.float32)
    for event, created, deleted in versions:
        vector = wanted if (event, created) == (2, 2) else np.array([[0, 1.0, 0, 0]], np.float32)
        write(tables, ["a"], vector, [event], created=np.array([created]), deleted=[deleted])
    np.testing.assert_array_equal(tables.read_embeddings("item", SPACE.space_id).vectors, wanted)


def test_a_tombstone_hides_what_is_older_and_nothing_newer(tables, unit_vectors):
    """Deleted ids are gone from reads and from the index until a newer version comes."""
    vectors = unit_vectors(1, 4)
    write(tables, ["a"], vectors, [10])
    tables.delete_embeddings("item", SPACE, ["a"], np.array([20]))
    assert tables.read_embeddings("item", SPACE.space_id).ids == []
    assert tables.embedding_index("item", SPACE.space_id) == {}
    write(tables, ["a"], vectors, [30])
    assert tables.read_embeddings("item", SPACE.space_id).ids == ["a"]


@pytest.mark.parametrize(
    ("vector", "why"),
    [([2, 0, 0, 0], "norm"), ([np.nan, 0, 0, 0], "norm"), ([0, 0, 0, 0], "norm"), ([1, 0, 0], "must be")],
)
def test_a_wrong_vector_is_refused_by_the_name_of_its_row(tables, vector, why):
    """Wrong norm, NaN, zero or another dim: an error, and nothing is written."""
    good = [1.0, 0, 0, 0][: len(vector)]
    vectors = np.asarray([good, vector], np.float32)
    with pytest.raises(TableError, match=why) as error:
        write(tables, ["fine", "broken"], vectors, [1, 1])
    assert len(vector) != 4 or "'broken'" in str(error.value)
    assert tables.read_embeddings("item", SPACE.space_id).ids == []


def test_an_id_twice_in_one_call_is_refused(tables, unit_vectors):
    """Which of the two would count is nobody's guess."""
    with pytest.raises(TableError, match="'a' occurs twice"):
        write(tables, ["a", "a"], unit_vectors(2, 4), [1, 2])


@pytest.mark.parametrize("bad", ["", "x" * 129])
def test_ids_have_1_to_128_bytes(tables, bad):
    """An empty or overlong id is refused with the column's name."""
    with pytest.raises(TableError, match="item_id"):
        tables.write_items(pa.table({"item_id": ["ok", bad], "event_timestamp": us(1, 1)}))


def test_unknown_and_missing_columns_are_named(tables):
    """A misspelt column is not dropped silently, and a missing one is named."""
    with pytest.raises(TableError, match=re.escape("['titel']")):
        tables.write_items(pa.table({"item_id": ["a"], "titel": ["x"], "event_timestamp": us(1)}))
    with pytest.raises(TableError, match="'event_timestamp' is missing"):
        tables.write_items(pa.table({"item_id": ["a"]}))


def test_items_and_users_give_their_newest_live_version(tables):
    """Newest per id, deleted ones left out, `updated_us` filled from the valid time."""
    tables.write_items(pa.table({"item_id": ["a", "b"], "title": ["old", "b"], "event_timestamp": us(1, 1)}))
    tables.write_items(
        pa.table({"item_id": ["a", "b"], "title": ["new", "b"], "event_timestamp": us(5, 5), "deleted": [False, True]})
    )
    tables.write_users(pa.table({"user_id": ["u"], "profile_text": ["hi"], "event_timestamp": us(1)}))
    items = tables.read_items().to_pylist()
    assert [(row["item_id"], row["title"], row["updated_us"]) for row in items] == [("a", "new", 5)]
    assert tables.read_users()["profile_text"].to_pylist() == ["hi"]


def test_interactions_are_sorted_and_counted_once(tables):
    """A repeated event_id counts once, with its newest making time; order is by user, time, event."""
    added = tables.append_interactions(
        interactions([("e2", "v", 5, 1), ("e1", "u", 5, 1), ("e0", "u", 5, 1), ("e1", "u", 7, 2)])
    )
    assert added == 4
    got = tables.read_interactions()
    assert got["event_id"].to_pylist() == ["e0", "e1", "e2"]
    assert got["event_timestamp"].cast(pa.int64()).to_pylist() == [5, 7, 5]
    assert tables.read_interactions(users=["v"], before_us=6)["event_id"].to_pylist() == ["e2"]
    assert tables.read_interactions(before_us=5).num_rows == 0


def test_a_users_rows_lie_in_one_bucket(tables):
    """Interactions and histories of a user lie in the bucket of their id, so that one rewrite forgets a person."""
    users = [f"user-{n}" for n in range(40)]
    tables.append_interactions(interactions([(f"e{n}", user, n, 1) for n, user in enumerate(users)]))
    for part in list_parts(tables.folder("interactions")):
        found = pq.ParquetFile(part).read()["user_id"].to_pylist()
        assert {f"bucket={bucket_of(user):02d}" for user in found} <= {part.parent.name}
    assert max(bucket_of(user) for user in users) < BUCKETS


def test_history_lists_survive(tables):
    """A user's newest events come back as lists, with missing values as null."""
    row = {
        "user_id": ["u"],
        "item_ids": [["i1", "i2"]],
        "event_types": [["click", "view"]],
        "event_ids": [["e1", "e2"]],
        "timestamps_us": [[1, 2]],
        "values": [[None, 2.5]],
        "event_timestamp": us(3),
    }
    tables.write_user_history(pa.table(row))
    (got,) = tables.read_user_history(["u", "nobody"]).to_pylist()
    assert (got["item_ids"], got["values"]) == (["i1", "i2"], [None, 2.5])


def test_a_half_written_part_is_never_seen(tables, unit_vectors):
    """What a killed writer leaves behind is not read."""
    (part,) = write(tables, ["a"], unit_vectors(1, 4), [1])
    (part.parent / f".{part.name}.123.tmp").write_bytes(b"PAR1 half a file")
    assert tables.read_embeddings("item", SPACE.space_id).ids == ["a"]


def test_a_damaged_part_is_named(tables, unit_vectors):
    """A part that cannot be read is an error that names the file, not an empty table."""
    (part,) = write(tables, ["a"], unit_vectors(1, 4), [1])
    part.write_bytes(part.read_bytes()[:40])
    with pytest.raises(TableError, match=part.name):
        tables.read_embeddings("item", SPACE.space_id)


def test_times_need_a_zone(tables, unit_vectors):
    """A naive datetime is refused; an aware one is kept to the microsecond."""
    vectors = unit_vectors(1, 4)
    naive = datetime(2020, 1, 1)  # noqa: DTZ001 - what is refused
    with pytest.raises(TableError, match="zone"):
        tables.write_embeddings("item", SPACE, ["a"], vectors, content_sha256=["s"], event_timestamp=[naive])
    time = datetime(2020, 1, 1, 0, 0, 0, 123457, tzinfo=UTC)
    tables.write_embeddings("item", SPACE, ["a"], vectors, content_sha256=["s"], event_timestamp=[time])
    assert tables.embedding_index("item", SPACE.space_id)["a"][1] == 1_577_836_800_123_457


def test_empty_tables_are_empty_and_no_error(tables):
    """A new home can be read everywhere."""
    assert tables.read_items().num_rows == tables.read_users().num_rows == tables.read_interactions().num_rows == 0
    assert tables.read_embeddings("item", SPACE.space_id).vectors.shape == (0, 4)
    assert tables.read_user_history().num_rows == 0


def test_a_part_of_before_a_column_is_still_read(tables):
    """Interactions written without `request_id`, `propensity`, `position`, `device` and `context` are read beside newer ones, with nulls there."""
    later = ("request_id", "propensity", "position", "device", "context")
    tables.append_interactions(interactions([("old", "u", 1, 1)]))
    (part,) = [p for p in list_parts(tables.folder("interactions")) if pq.read_metadata(p).num_rows]
    pq.write_table(pq.ParquetFile(part).read().drop_columns(list(later)), part)
    new = {"request_id": "r", "propensity": 0.25, "position": 2, "device": "phone", "context": '{"page": 1}'}
    more = {name: [value] for name, value in new.items()}
    row = interactions([("new", "u", 2, 1)])
    tables.append_interactions(pa.table({**{name: row[name] for name in row.column_names}, **more}))
    old_row, new_row = tables.read_interactions().to_pylist()
    assert {name: old_row[name] for name in later} == dict.fromkeys(later)
    assert {name: new_row[name] for name in later} == new


def test_a_part_without_a_needed_column_is_named(tables):
    """A part that lacks a column which may not be null is an error, not a table of nulls."""
    tables.append_interactions(interactions([("e", "u", 1, 1)]))
    (part,) = [p for p in list_parts(tables.folder("interactions")) if pq.read_metadata(p).num_rows]
    pq.write_table(pq.ParquetFile(part).read().drop_columns(["item_id"]), part)
    with pytest.raises(TableError, match=part.name):
        tables.read_interactions()


def test_the_first_interaction_is_known_without_reading_rows(tables):
    """The earliest time of all parts, to the microsecond, from their footers: the rows themselves may be unreadable."""
    assert tables.first_interaction_us() is None
    tables.append_interactions(interactions([("e0", "u", 500_001, 1), ("e1", "v", 852_076_800_000_123, 1)]))
    tables.append_interactions(interactions([("e2", "u", 400_007, 1)]))
    for part in list_parts(tables.folder("interactions")):
        if pq.read_metadata(part).num_rows:
            spoil_rows(part)
    with pytest.raises(TableError):
        tables.read_interactions()
    assert tables.first_interaction_us() == 400_007


def spoil_rows(part):
    """Overwrite a part's data and keep its footer."""
    content = part.read_bytes()
    footer = int.from_bytes(content[-8:-4], "little") + 8
    part.write_bytes(content[:4] + b"\xff" * (len(content) - 4 - footer) + content[-footer:])
