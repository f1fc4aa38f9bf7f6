"""A folder of Parquet files that somebody made by hand: read as it is, or refused with the file, the column and the remedy."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from ranker import leakage
from ranker.data import TrainingSet
from ranker.errors import LeakageError, TrainingSetError
from ranker.train import train
from tests.ranker.factories import RankerConfig, planted

QUICK = RankerConfig(dim=16, space_dim=12, prototypes=8, max_epochs=1)


@pytest.fixture
def folder(tmp_path):
    return planted(tmp_path / "hand", n_items=40, n_users=30, seed=1).folder


def change(folder, name, edit):
    path = folder / f"{name}.parquet"
    pq.write_table(edit(pq.read_table(path)), path)


def with_value(column, row, value):
    """An edit that puts another value into one row of a column."""

    def edit(table):
        values = table[column].to_pylist()
        values[row] = value
        return table.set_column(
            table.column_names.index(column), column, pa.array(values, table.schema.field(column).type)
        )

    return edit


def test_optional_columns_may_be_left_out(folder):
    """Without title, category, price and value the set is read, and what is missing is unknown."""
    change(folder, "items", lambda table: table.drop_columns(["title", "category", "price"]))
    for name in ("labels", "events"):
        change(folder, name, lambda table: table.drop_columns(["value"]))
    ts = TrainingSet.load(folder)
    assert np.isnan(ts.items.price).all()
    assert set(ts.items.category) == {None}
    assert np.isnan(ts.labels.values).all()


@pytest.mark.parametrize("name", ["items.parquet", "labels.parquet", "events.parquet", "users.parquet", "meta.json"])
def test_a_missing_file_is_named(folder, name):
    """With the folder, and where the layout is written down."""
    (folder / name).unlink()
    with pytest.raises(TrainingSetError, match=rf"hand is gone or incomplete \({name} is missing\).*training-sets.md"):
        TrainingSet.load(folder)


@pytest.mark.parametrize(
    ("name", "column"),
    [
        *(("items", column) for column in ("item_row", "item_id", "valid_from_us", "valid_to_us")),
        *(("labels", column) for column in ("event_id", "user_id", "item_id", "item_row", "event_type", "timestamp_us")),
        *(("events", column) for column in ("event_id", "user_id", "item_id", "event_type", "timestamp_us")),
        ("users", "user_id"),
    ],
)  # fmt: skip
def test_a_missing_column_is_named(folder, name, column):
    """With its file and its type."""
    change(folder, name, lambda table: table.drop_columns([column]))
    with pytest.raises(TrainingSetError, match=rf"{name}.parquet of .* has no column {column} \((string|int64)\)"):
        TrainingSet.load(folder)


def test_a_missing_vector_column_is_named(folder):
    """meta.json names the space, items.parquet lacks it."""
    space = json.loads((folder / "meta.json").read_text())["spaces"][0]["space_id"]
    change(folder, "items", lambda table: table.drop_columns([f"vec_{space}"]))
    with pytest.raises(TrainingSetError, match=f"no column vec_{space}"):
        TrainingSet.load(folder)


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        ("events", lambda t: t.set_column(5, "timestamp_us", pc.cast(t["timestamp_us"], pa.timestamp("us"))), "is timestamp.* not int64: times are micro"),
        ("labels", with_value("user_id", 3, None), "column user_id of labels.parquet .* has 1 nulls"),
        ("labels", with_value("event_id", 3, "e0"), "1 event ids of labels.parquet .* not unique"),
        ("labels", with_value("item_row", 3, 40), "item rows that items.parquet does not have, such as 40: it has 0 to 39"),
        ("items", with_value("item_row", 3, 4), "must be 0 to 39, each once"),
        ("items", lambda t: t.set_column(0, "item_row", pa.array([f"{i}" for i in range(40)])), "item_row of items.parquet .* is string, not int64"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(folder, name, edit, message):
    """A time that is no integer, a null, an id that comes twice, an item row that is not there."""
    change(folder, name, edit)
    with pytest.raises(TrainingSetError, match=message):
        TrainingSet.load(folder)


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ("{", "cannot be read: meta.json"),
        ("{}", "has no list `spaces`"),
        ('{"spaces": [{"space_id": "x"}]}', "a space in meta.json .* cannot be used"),
        ('{"spaces": [{"space_id": "x", "modality": "text", "kind": "magic", "dim": 3}]}', "kind 'magic'"),
    ],
)
def test_a_meta_that_names_no_spaces_is_refused(folder, meta, message):
    """With what is wrong about it."""
    (folder / "meta.json").write_text(meta)
    with pytest.raises(TrainingSetError, match=message):
        TrainingSet.load(folder)


def test_a_vector_column_that_no_space_names_is_refused(folder):
    """It would be left out without a word."""
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps(meta | {"spaces": []}))
    with pytest.raises(TrainingSetError, match=r"items\.parquet has vec_.* of no space that is read there; .*: none\."):
        TrainingSet.load(folder)


@pytest.mark.parametrize("of", ["nothing", "image"])
def test_vectors_of_users_in_no_text_space_are_refused(folder, of):
    """They would be left out without a word too: of users only words are read."""
    spaces = {
        space["modality"]: space["space_id"] for space in json.loads((folder / "meta.json").read_text())["spaces"]
    }
    space = spaces.get(of, "txet")
    words = pa.nulls(30, pa.list_(pa.float32()))
    change(folder, "users", lambda t: t.append_column(f"vec_{space}", words))
    with pytest.raises(TrainingSetError, match=rf"users\.parquet has vec_{space}, which is of no space"):
        TrainingSet.load(folder)


def test_vectors_of_no_unit_norm_are_refused(folder):
    """The space and the norm are in the message: cosines of such vectors would say nothing."""
    space = json.loads((folder / "meta.json").read_text())["spaces"][0]
    rows = [None] * 39 + [[2.0] + [0.0] * (space["dim"] - 1)]
    vectors = pa.array(rows, pa.list_(pa.float32()))
    name = f"vec_{space['space_id']}"
    change(folder, "items", lambda t: t.set_column(t.column_names.index(name), name, vectors))
    with pytest.raises(TrainingSetError, match=f"{space['space_id']} has norm 2.0"):
        TrainingSet.load(folder)


# ---- what a row may say ------------------------------------------------------------------------------------------------


def refused(folder, kind, message):
    ts = TrainingSet.load(folder)
    with pytest.raises(kind, match=message):
        leakage.check_training_set(ts)
    with pytest.raises(kind, match=message):
        train(ts, QUICK, folder.parent / "models", "leaky", progress=lambda _: pytest.fail("it trained"))
    assert not (folder.parent / "models" / "leaky").exists()


def first(folder, name):
    """The first row of a table, as a dict."""
    return pq.read_table(folder / f"{name}.parquet").slice(0, 1).to_pylist()[0]


def test_a_whole_folder_has_no_leak(folder):
    """What the guard refuses below is not there by itself."""
    leakage.check_training_set(TrainingSet.load(folder))


@pytest.mark.parametrize("after_us", [0, 1])
def test_an_item_version_from_the_future_is_caught(folder, after_us):
    """A version that is true only from the label's own instant, or after it: the label, the version and both times are named."""
    label = first(folder, "labels")
    change(folder, "items", with_value("valid_from_us", label["item_row"], label["timestamp_us"] + after_us))
    refused(folder, LeakageError, f"version {label['item_row']} of its item, which is true only after")


def test_a_version_that_ended_before_its_label_is_refused(folder):
    """It was not what was true then."""
    label = first(folder, "labels")
    change(folder, "items", with_value("valid_to_us", label["item_row"], label["timestamp_us"] - 1))
    refused(folder, TrainingSetError, "which ended at")


def test_a_label_in_its_own_history_is_caught(folder):
    """Its event is dated a microsecond before it: the answer would be in the history."""
    label = first(folder, "labels")
    change(folder, "events", with_value("timestamp_us", 0, label["timestamp_us"] - 1))
    refused(folder, LeakageError, "the label could be in its own history")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (with_value("event_id", 0, "other"), "label 'e0' is no event"),
        (with_value("user_id", 0, "other"), "but its event of user 'other'"),
        (with_value("item_id", 0, "other"), "and item 'other'"),
    ],
)
def test_labels_and_events_must_agree(folder, edit, message):
    """A label without its event, or of another user or item, is named."""
    change(folder, "events", edit)
    refused(folder, TrainingSetError, message)


def test_two_versions_of_an_item_at_once_are_refused(folder):
    """Which one a label sees would be chance."""
    change(folder, "items", with_value("item_id", 1, "i0"))
    change(folder, "labels", lambda t: t.filter(pc.not_equal(t["item_row"], 1)))
    refused(folder, TrainingSetError, "item 'i0' .* must follow each other")
