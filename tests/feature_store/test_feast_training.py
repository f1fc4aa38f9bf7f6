import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from milvus_rows import times

from encoders.space import EmbeddingSpace
from feature_store.errors import FeatureStoreError
from feature_store.item_versions import FOREVER, item_versions
from feature_store.parts import list_parts
from feature_store.spaces import register_spaces
from feature_store.tables import Tables

pytestmark = pytest.mark.filterwarnings("ignore::Warning")

TEXT = EmbeddingSpace.from_recipe("text", "training", 4, {"weights": "none"})
IMAGE = EmbeddingSpace.from_recipe("image", "training", 4, {"weights": "none"})
BASE = 852_076_800_000_000


@pytest.fixture
def world(home, unit_vectors):
    """Two items. `a`: new title at 100, new vector at 200. `b`: deleted at 100, back at 300. No pictures but one late one."""
    register_spaces(home, [TEXT, IMAGE])
    register_spaces(home, [TEXT], entity="user")
    tables = Tables(home)
    vectors = unit_vectors(6, 4)

    def items(ids, titles, at, deleted=False):
        at = times(BASE + np.asarray(at))
        tables.write_items(
            pa.table({"item_id": ids, "title": titles, "event_timestamp": at, "deleted": [deleted] * len(ids)})
        )

    def embed(entity, space, ids, rows, at):
        shas = ["s"] * len(ids)
        when = BASE + np.asarray(at)
        tables.write_embeddings(entity, space, ids, vectors[rows], content_sha256=shas, event_timestamp=when)

    items(["a", "b"], ["a0", "b0"], [0, 0])
    items(["a"], ["a100"], [100])
    items(["b"], [None], [100], deleted=True)
    items(["b"], ["b300"], [300])
    embed("item", TEXT, ["a", "b"], [0, 1], [0, 0])
    embed("item", TEXT, ["a"], [2], [200])
    embed("item", IMAGE, ["a"], [3], [200])
    embed("user", TEXT, ["u"], [4], [50])
    embed("user", TEXT, ["u"], [5], [10_000])
    return home, tables, vectors


def events(rows):
    """Rows of (event_id, item_id, time)."""
    ids, items, at = zip(*rows, strict=True)
    n = len(rows)
    return pa.table(
        {
            "event_id": ids,
            "user_id": ["u"] * n,
            "item_id": items,
            "event_type": ["click"] * n,
            "event_timestamp": times(BASE + np.asarray(at)),
        }
    )


def test_versions_begin_with_every_change_and_skip_the_time_of_deletion(world):
    """From row and vector changes alike; what is at or after the cutoff is not looked at."""
    home, _, _ = world
    versions = item_versions(home, [TEXT.space_id, IMAGE.space_id])
    spans = [
        (versions.ids[c], s - BASE, e if e == FOREVER else e - BASE)
        for c, s, e in zip(versions.code, versions.start_us, versions.end_us, strict=True)
    ]
    assert spans == [("a", 0, 100), ("a", 100, 200), ("a", 200, FOREVER), ("b", 0, 100), ("b", 300, FOREVER)]
    asked = [("a", 0), ("a", 1), ("a", 100), ("a", 101), ("b", 100), ("b", 101), ("b", 301), ("zz", 5)]
    got = versions.rows_at([i for i, _ in asked], BASE + np.asarray([t for _, t in asked]))
    assert got.tolist() == [-1, 0, 0, 1, 3, -1, 4, -1]
    assert len(item_versions(home, [TEXT.space_id], BASE + 100)) == 2


def test_labels_join_what_was_true_strictly_before_them(world, feast_home, feast_package, core):
    """A change in the very microsecond of a label is not seen by it; tied labels all join the version before; nothing leaks."""
    from feature_store import feast_cli
    from feature_store.feast_training import build_training_set

    home, tables, vectors = world
    rows = [
        ("e0", "a", 0),
        ("e1", "a", 100),
        ("e2", "a", 100),
        ("e3", "a", 101),
        ("e4", "a", 201),
        ("e5", "b", 100),
        ("e6", "b", 200),
        ("e7", "c", 5),
    ]
    tables.append_interactions(events(rows))
    out = home.training / "first"
    with pytest.raises(FeatureStoreError, match="triptych materialize"):
        build_training_set(home, out, spaces=[TEXT.space_id])
    assert not out.exists()
    feast_cli.apply(home)
    joined = []
    info = build_training_set(
        home,
        out,
        spaces=[TEXT.space_id, IMAGE.space_id],
        text_profile_space=TEXT.space_id,
        cutoff=BASE + 1_000,
        progress=joined.append,
    )
    assert (info.items, info.versions, info.labels, info.dropped_labels, info.events, info.users) == (2, 5, 5, 3, 8, 1)
    assert sum(joined) == 5

    items = pq.read_table(out / "items.parquet").to_pylist()
    labels = {row["event_id"]: items[row["item_row"]] for row in pq.read_table(out / "labels.parquet").to_pylist()}
    assert {name: row["title"] for name, row in labels.items()} == {
        "e1": "a0",
        "e2": "a0",
        "e3": "a100",
        "e4": "a100",
        "e5": "b0",
    }
    text = {name: row[f"vec_{TEXT.space_id}"] for name, row in labels.items()}
    for name, row in {"e1": 0, "e2": 0, "e3": 0, "e4": 2, "e5": 1}.items():
        np.testing.assert_array_equal(np.asarray(text[name], np.float32), vectors[row])
    assert [row["item_row"] for row in items] == list(range(5))
    assert labels["e3"][f"vec_{IMAGE.space_id}"] is None
    np.testing.assert_array_equal(np.asarray(labels["e4"][f"vec_{IMAGE.space_id}"], np.float32), vectors[3])

    stored = pq.read_table(out / "events.parquet").to_pylist()
    assert [row["event_id"] for row in stored] == [f"e{n}" for n in (0, 7, 1, 2, 5, 3, 6, 4)]
    (user,) = pq.read_table(out / "users.parquet").to_pylist()
    np.testing.assert_array_equal(np.asarray(user[f"vec_{TEXT.space_id}"], np.float32), vectors[4])
    assert user["profile_from_us"] == BASE + 50
    meta = json.loads((out / "meta.json").read_text())
    assert [space["space_id"] for space in meta["spaces"]] == [TEXT.space_id, IMAGE.space_id]
    assert (meta["counts"]["dropped_labels"], meta["cutoff_us"]) == (3, BASE + 1_000)


def test_a_cutoff_hides_later_events_and_changes(world, feast_home, feast_package, core):
    """Events, versions and profile vectors at or after the cutoff are not in the set."""
    from feature_store import feast_cli
    from feature_store.feast_training import build_training_set

    home, tables, _ = world
    tables.append_interactions(events([("e0", "a", 50), ("e1", "a", 150)]))
    feast_cli.apply(home)
    out = home.training / "early"
    info = build_training_set(home, out, spaces=[TEXT.space_id], text_profile_space=TEXT.space_id, cutoff=BASE + 50)
    assert (info.events, info.labels, info.versions) == (0, 0, 2)
    again = build_training_set(home, out, spaces=[TEXT.space_id], cutoff=BASE + 51)
    assert (again.events, again.labels) == (1, 1)
    assert pq.read_table(out / "items.parquet")["title"].to_pylist() == ["a0", "b0"]


def test_labels_say_how_they_came_about(world, feast_home, feast_package, core):
    """Device, impression, position and propensity of an event stand beside its label; null where nobody told."""
    from feature_store import feast_cli
    from feature_store.feast_training import CIRCUMSTANCES, build_training_set

    home, tables, _ = world
    told = {"device": "phone", "impression_id": "p1", "position": 2, "propensity": 0.25}
    shown = events([("e1", "a", 101)])
    for name, value in told.items():
        shown = shown.append_column(name, [[value]])
    tables.append_interactions(shown)
    tables.append_interactions(events([("e2", "a", 102)]))
    feast_cli.apply(home)
    out = home.training / "shown"
    build_training_set(home, out, spaces=[TEXT.space_id])
    labels = pq.read_table(out / "labels.parquet").select(CIRCUMSTANCES).to_pylist()
    assert labels == [told, dict.fromkeys(CIRCUMSTANCES)]


def test_tags_are_those_before_the_label(world, feast_home, feast_package, core):
    """Each version has the tags of its instant; those of a home from before there were tags are null, and the set is made all the same."""
    from feature_store import feast_cli
    from feature_store.feast_training import build_training_set

    home, tables, _ = world
    for part in list_parts(tables.folder("items")):
        pq.write_table(pq.ParquetFile(part).read().drop_columns(["tags"]), part)
    feast_cli.apply(home)
    tables.append_interactions(events([("e1", "a", 101), ("e2", "a", 501)]))
    out = home.training / "tagged"
    build_training_set(home, out, spaces=[TEXT.space_id])
    assert pq.read_schema(out / "items.parquet").field("tags").type == pa.list_(pa.string())
    assert set(pq.read_table(out / "items.parquet")["tags"].to_pylist()) == {None}

    tags = [["director:Agnès Varda", "year:1962"]]
    tables.write_items(
        pa.table({"item_id": ["a"], "title": ["a"], "tags": tags, "event_timestamp": times([BASE + 500])})
    )
    build_training_set(home, out, spaces=[TEXT.space_id])
    items = pq.read_table(out / "items.parquet").to_pylist()
    labels = {
        row["event_id"]: items[row["item_row"]]["tags"] for row in pq.read_table(out / "labels.parquet").to_pylist()
    }
    assert labels == {"e1": None, "e2": tags[0]}
