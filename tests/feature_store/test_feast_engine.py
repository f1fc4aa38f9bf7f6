import os
import threading
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from milvus_rows import times

from encoders.space import EmbeddingSpace
from feature_store import embedded
from feature_store.connection import store_name
from feature_store.errors import (
    FeatureStoreError,
    LeaseError,
    RefusedRowsError,
    SchemaDriftError,
    StoreRequestError,
    StoreUnavailable,
    TableError,
)
from feature_store.home import FEAST_YAML_VARIABLE, Home
from feature_store.lease import Leases
from feature_store.milvus_schema import REBUILD_VARIABLE, ViewSchema
from feature_store.parts import list_parts
from feature_store.schemas import now_us
from feature_store.spaces import register_spaces, view_name
from feature_store.tables import Tables

# Feast and its SQL registry warn about themselves.
pytestmark = pytest.mark.filterwarnings("ignore::Warning")

SPACE = EmbeddingSpace.from_recipe("text", "engine", 8, {"weights": "none"})
VIEW = view_name("item", SPACE.space_id)
YEAR_1997 = 852_076_800_000_000
DAY = 86_400_000_000


def write_items(tables, ids, event, **more):
    columns = {"item_id": ids, "title": [f"title of {i}" for i in ids], "event_timestamp": times(event), **more}
    tables.write_items(pa.table(columns))


def write_vectors(tables, ids, vectors, event, **more):
    shas = ["s"] * len(ids)
    tables.write_embeddings("item", SPACE, ids, vectors, content_sha256=shas, event_timestamp=np.asarray(event), **more)


def write_history(tables, user, items, event):
    n = len(items)
    row = {
        "user_id": [user],
        "item_ids": [items],
        "event_types": [["click"] * n],
        "event_ids": [[f"{user}-{i}" for i in range(n)]],
        "timestamps_us": [list(range(n))],
        "values": [[1.5] * n],
        "event_timestamp": times([event]),
    }
    tables.write_user_history(pa.table(row))


@pytest.fixture
def tables(feast_home):
    register_spaces(feast_home, [SPACE])
    return Tables(feast_home)


@pytest.fixture
def feast_cli(tables):
    """The commands, with the definitions applied."""
    from feature_store import feast_cli

    feast_cli.apply(tables.home)
    return feast_cli


def test_a_first_load_of_1997_loads_every_row_and_late_rows_follow(tables, feast_cli, feast_core, unit_vectors):
    """First load: everything, however old. Then: what was made since, whatever its valid time, and nothing twice."""
    ids = [f"i{n}" for n in range(300)]
    vectors = unit_vectors(301, 8)
    event = YEAR_1997 + np.arange(300)
    write_items(tables, ids, event)
    write_vectors(tables, ids, vectors[:300], event)
    write_history(tables, "u", ["i1", "i2"], YEAR_1997)
    done = feast_cli.materialize(tables.home)
    assert {name: rows.stored for name, rows in done.items()} == {
        VIEW: 300,
        "item_profile": 300,
        "user_history": 1,
        "user_profile": 0,
    }
    np.testing.assert_array_equal(feast_core.read_vectors(VIEW, ids, strong=True)[0], vectors[:300])
    assert feast_core.read_columns("user_history", ["u"], ["item_ids", "values"]) == {
        "item_ids": [["i1", "i2"]],
        "values": [[1.5, 1.5]],
    }

    write_items(tables, ["late"], [YEAR_1997 - DAY])
    write_items(tables, ["i0"], [YEAR_1997 - DAY], title=["older than what is stored"])
    write_vectors(tables, ["late"], vectors[300:], [YEAR_1997 - DAY])
    again = feast_cli.materialize(tables.home)
    assert (again["item_profile"].stored, again[VIEW].stored, again["user_history"].stored) == (1, 1, 0)
    got = feast_core.read_columns("item_profile", ["late", "i0"], ["title"], strong=True)
    assert got == {"title": ["title of late", "title of i0"]}

    full = feast_cli.materialize(tables.home, full=True)
    assert (full[VIEW].stored, full[VIEW].unchanged) == (0, 301)


def test_a_row_that_becomes_valid_later_is_loaded_when_it_is(tables, feast_cli, feast_core):
    """A future valid time waits for its day, and is not lost although it was made before the first load."""
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    write_items(tables, ["now", "then"], [YEAR_1997, int(tomorrow.timestamp() * 1e6)])
    assert feast_cli.materialize(tables.home, views=["item_profile"])["item_profile"].stored == 1
    later = tomorrow + timedelta(hours=1)
    assert feast_cli.materialize(tables.home, views=["item_profile"], end=later)["item_profile"].stored == 1
    assert feast_core.count("item_profile") == 2


def test_an_explicit_window_goes_by_valid_time(tables, feast_cli, feast_core):
    """`feast materialize START END` loads what was valid in between, and does not count as a load of the rest."""
    write_items(tables, ["before", "inside", "after"], [YEAR_1997, YEAR_1997 + 5 * DAY, YEAR_1997 + 9 * DAY])
    store = feast_cli.open_store(tables.home)
    start = datetime(1997, 1, 4, tzinfo=UTC)
    store.materialize(start, start + timedelta(days=4), feature_views=["item_profile"])
    assert feast_core.read_columns("item_profile", ["before", "inside", "after"], ["title"])["title"] == [
        None,
        "title of inside",
        None,
    ]
    assert feast_cli.materialize(tables.home, views=["item_profile"])["item_profile"].stored == 2


def test_deletions_are_loaded(tables, feast_cli, feast_core, unit_vectors):
    """A tombstone in a table hides the row online."""
    vectors = unit_vectors(2, 8)
    write_vectors(tables, ["a", "b"], vectors, [1, 1])
    feast_cli.materialize(tables.home, views=[VIEW])
    tables.delete_embeddings("item", SPACE, ["a"], np.array([2]))
    assert feast_cli.materialize(tables.home, views=[VIEW])[VIEW].stored == 1
    assert feast_core.read_vectors(VIEW, ["a", "b"], strong=True)[1].tolist() == [False, True]


def test_an_emptied_milvus_is_filled_again(tables, feast_cli, feast_core):
    """The watermark is of no use for a store that has lost its rows, so it is not believed."""
    write_items(tables, ["a", "b"], [1, 1])
    feast_cli.materialize(tables.home, views=["item_profile"])
    feast_core.drop_view("item_profile")
    feast_cli.apply(tables.home)
    assert feast_cli.materialize(tables.home, views=["item_profile"])["item_profile"].stored == 2


def test_a_store_that_was_away_is_given_what_was_made_meanwhile(tables, feast_cli, feast_core, tmp_path, monkeypatch):
    """One Milvus, then another, then the first again: rows made in between are loaded there too."""
    first = feast_core.channel.uri
    hour_us, now = 3_600_000_000, now_us()
    write_items(tables, ["a"], [1], created=times([now - 2 * hour_us]))
    assert feast_cli.materialize(tables.home, views=["item_profile"])["item_profile"].stored == 1
    write_items(tables, ["b", "c"], [1, 1], created=times([now - hour_us, now]))
    other = Home(tmp_path / "other")
    try:
        monkeypatch.setenv("TRIPTYCH_MILVUS_URI", embedded.start(other).uri)
        feast_cli.apply(tables.home)
        assert feast_cli.materialize(tables.home, views=["item_profile"])["item_profile"].stored == 3
    finally:
        embedded.stop(other)
    monkeypatch.setenv("TRIPTYCH_MILVUS_URI", first)
    assert feast_cli.materialize(tables.home, views=["item_profile"])["item_profile"].stored == 2
    assert feast_core.count("item_profile") == 3


def test_tags_come_to_a_store_from_before_there_were_any(tables, feast_package, feast_core):
    """`feast apply` adds the column and keeps the rows; the next load fills it from parts that have it, and from those that lack it as null."""
    from feature_store import feast_cli

    write_items(tables, ["old"], [1])
    for part in list_parts(tables.folder("items")):
        pq.write_table(pq.ParquetFile(part).read().drop_columns(["tags"]), part)
    texts = {name: pa.string() for name in ("title", "category", "image", "audio")}
    before = ViewSchema("item_profile", {**texts, "price": pa.float64(), "updated_us": pa.int64()})
    feast_core.create_view(before)
    nothing = {name: pa.nulls(1, arrow) for name, arrow in before.fields.items()}
    feast_core.upsert(
        "item_profile",
        pa.table({"entity_id": ["old"], "event_timestamp": times([1]), "created": times([1]), **nothing}),
    )
    write_items(tables, ["new"], [1], tags=[["director:Agnès Varda", "year:1962"]])
    feast_cli.apply(tables.home)
    assert feast_core.count("item_profile") == 1
    assert feast_cli.materialize(tables.home, views=["item_profile"])["item_profile"].stored == 2
    feast_core.describe_view("item_profile", refresh=True)
    got = feast_core.read_columns("item_profile", ["old", "new"], ["title", "tags"], strong=True)
    assert got["tags"] == [None, ["director:Agnès Varda", "year:1962"]]
    assert got["title"] == ["title of old", "title of new"]


def test_only_files_with_a_newest_row_are_read_twice(tables, feast_package, unit_vectors):
    """Vectors of files in which every row is stale are not read: they may be unreadable; columns that only they have are null."""
    from feature_store.feast_source import NewestRows, Window

    write_items(tables, ["c"], [1], title=["c"])
    write_items(tables, ["a", "b"], [1, 1])
    write_items(tables, ["a", "b"], [2, 2], title=["new a", "new b"])
    _, stale, newest = [part for part in list_parts(tables.folder("items")) if pq.read_metadata(part).num_rows]
    pq.write_table(pq.ParquetFile(newest).read().drop_columns(["image"]), newest)
    view = feast_package.FeatureView(
        name="item_profile",
        entities=[feast_package.Entity(name="item", join_keys=["item_id"])],
        schema=[
            feast_package.Field(name=name, dtype=feast_package.types.String) for name in ("item_id", "title", "image")
        ],
        source=feast_package.FileSource(path=str(tables.folder("items")), timestamp_field="event_timestamp"),
    )
    schema = ViewSchema("item_profile", fields={"title": pa.string(), "image": pa.string()})
    rows = NewestRows(view, schema, Window(now_us()), 0)
    content = stale.read_bytes()
    footer = int.from_bytes(content[-8:-4], "little") + 8
    stale.write_bytes(content[:4] + b"\xff" * (len(content) - 4 - footer) + content[-footer:])
    table = pa.concat_tables(rows.batches(10))
    assert sorted(table["title"].to_pylist()) == ["c", "new a", "new b"]
    assert table["image"].to_pylist() == [None, None, None]


def test_a_mapped_timestamp_and_a_relative_path_are_found(feast_package, tmp_path):
    """Feast names the timestamp as the mapping leaves it, and paths as seen from the repository."""
    from feast.types import Int64, String

    from feature_store.feast_source import NewestRows, Window

    table = pa.table({"thing_id": ["a"], "x": [1], "ts": pa.array([1], pa.timestamp("us", "UTC"))})
    pq.write_table(table, tmp_path / "a.parquet")
    source = feast_package.FileSource(
        path="a.parquet", timestamp_field="event_timestamp", field_mapping={"ts": "event_timestamp"}
    )
    fields = [feast_package.Field(name="thing_id", dtype=String), feast_package.Field(name="x", dtype=Int64)]
    entity = feast_package.Entity(name="thing", join_keys=["thing_id"])
    view = feast_package.FeatureView(name="v", entities=[entity], schema=fields, source=source)
    schema = ViewSchema("v", fields={"x": pa.int64()}, key="thing_id")
    rows = NewestRows(view, schema, Window(10), 0, tmp_path)
    assert pa.concat_tables(rows.batches(5)).select(["thing_id", "x"]).to_pylist() == [{"thing_id": "a", "x": 1}]
    with pytest.raises(TableError, match="write it, or mend the source's path"):
        NewestRows(view, schema, Window(10), 0, tmp_path / "elsewhere")


def test_a_damaged_checkpoint_does_not_stop_apply(tables, feast_cli, capfd):
    """Manifests that cannot be read give no service and a warning; the others give theirs."""
    for name, manifest in {
        "bad_json": "{",
        "bad_form": "[]",
        "no_spaces": '{"model_id": "x"}',
        "fine": '{"model_id": "fine", "space_ids": {}}',
    }.items():
        (tables.home.models / name).mkdir()
        (tables.home.models / name / "manifest.json").write_text(manifest)
    feast_cli.apply(tables.home)
    services = {service.name for service in feast_cli.open_store(tables.home).list_feature_services()}
    assert services == {"catalogue", "ranker_fine"}
    warned = capfd.readouterr().err
    assert [name in warned for name in ("bad_json", "bad_form", "no_spaces", "fine")] == [True, True, True, False]


def test_applying_a_changed_space_fails_loudly(tables, feast_cli):
    """The same view with another dim is drift, and the stored view stays as it is."""
    text = tables.home.spaces.read_text()
    tables.home.spaces.write_text(text.replace("  dim: 8\n", "  dim: 16\n", 1))
    with pytest.raises(SchemaDriftError, match="dim: stored 8, defined 16"):
        feast_cli.apply(tables.home)
    tables.home.spaces.write_text(text)
    feast_cli.apply(tables.home)


def test_a_bad_row_fails_the_command_by_its_key(tables, feast_cli, feast_core):
    """What the store refuses is an error of the command, and the watermark stays where it was."""
    write_items(tables, ["fine", "broken"], [1, 1], category=["c", "x" * 70_000])
    with pytest.raises(RefusedRowsError, match="'broken'"):
        feast_cli.materialize(tables.home, views=["item_profile"])
    write_items(tables, ["broken"], [2])
    assert feast_cli.materialize(tables.home, views=["item_profile"])["item_profile"].stored == 2


def test_a_view_that_somebody_writes_is_waited_for_and_then_refused(tables, feast_cli, monkeypatch):
    """Two loads of one view never run at once."""
    from feature_store import feast_online

    monkeypatch.setattr(feast_online, "WAIT_FOR_WRITER_SECONDS", 0.1)
    write_items(tables, ["a"], [1])
    with (
        Leases(tables.home.leases, store=store_name()).hold("item_profile"),
        pytest.raises(LeaseError, match="item_profile is being written"),
    ):
        feast_cli.materialize(tables.home, views=["item_profile"])
    assert feast_cli.materialize(tables.home, views=["item_profile"])["item_profile"].stored == 1


def test_readers_are_served_while_a_view_is_loaded(tables, feast_cli, unit_vectors):
    """During the second load of a view Feast's own reader goes on answering, with whole rows."""
    ids = [f"i{n}" for n in range(2_000)]
    vectors = unit_vectors(2_000, 8)
    write_vectors(tables, ids, vectors, np.full(2_000, 1))
    feast_cli.materialize(tables.home, views=[VIEW])
    write_vectors(tables, ids, vectors[::-1], np.full(2_000, 2))
    reader = feast_cli.open_store(tables.home)
    failures, reads, done = [], 0, threading.Event()

    def load():
        try:
            feast_cli.materialize(tables.home, views=[VIEW])
        except Exception as error:  # noqa: BLE001 - reported below
            failures.append(error)
        finally:
            done.set()

    thread = threading.Thread(target=load)
    thread.start()
    while not done.is_set() or not reads:
        reply = reader.get_online_features([f"{VIEW}:vector"], [{"item_id": "i0"}]).to_dict()
        assert np.asarray(reply["vector"][0], np.float32).tolist() in (vectors[0].tolist(), vectors[-1].tolist())
        reads += 1
    thread.join()
    assert failures == []
    assert (
        reader.get_online_features([f"{VIEW}:vector"], [{"item_id": "i0"}]).to_dict()["vector"][0]
        == vectors[-1].tolist()
    )


def test_readers_in_other_threads_never_lose_their_milvus(tables, feast_cli, monkeypatch):
    """The environment is put back name by name: the address of the server is never out of it."""
    removed, remove = [], type(os.environ).__delitem__

    def noted(environ, name):
        removed.append(name)
        remove(environ, name)

    monkeypatch.setattr(type(os.environ), "__delitem__", noted)
    feast_cli.materialize(tables.home, views=[VIEW])
    assert "TRIPTYCH_MILVUS_URI" not in removed
    assert FEAST_YAML_VARIABLE in removed


def test_without_milvus_the_error_says_what_to_run(tables, feast_cli, monkeypatch):
    """Apply and materialize name `triptych up` where Milvus is down."""
    monkeypatch.delenv("TRIPTYCH_MILVUS_URI")
    for command in (feast_cli.apply, feast_cli.materialize):
        with pytest.raises(StoreUnavailable, match="triptych up"):
            command(tables.home)
    assert issubclass(StoreUnavailable, FeatureStoreError)


class Foreign:
    """A repository that is not ours, of one view over one Parquet file, loaded by this engine."""

    def __init__(self, folder):
        from feast import Entity, FeatureStore, RepoConfig, ValueType

        config = RepoConfig(
            project="foreign",
            provider="local",
            registry={"registry_type": "sql", "path": f"sqlite:///{folder / 'registry.db'}"},
            online_store={"type": "feature_store.feast_online.TriptychOnlineStore"},
            batch_engine={"type": "feature_store.feast_engine.TriptychComputeEngine"},
            offline_store={"type": "duckdb"},
            entity_key_serialization_version=3,
        )
        self.file = folder / "things.parquet"
        self.store = FeatureStore(config=config)
        self.thing = Entity(name="thing", join_keys=["thing_id"], value_type=ValueType.STRING)

    def apply(self, dim=4, **features):
        """Define the view with a vector of this dim, and further features."""
        from feast import FeatureView, Field, FileSource
        from feast.types import Array, Float32

        vector = Field(name="vector", dtype=Array(Float32), vector_index=True, vector_length=dim)
        fields = [Field(name=name, dtype=dtype) for name, dtype in features.items()]
        source = FileSource(name="f", path=str(self.file), timestamp_field="at", created_timestamp_column="made")
        self.view = FeatureView(
            name="foreign_things", entities=[self.thing], schema=[vector, *fields], source=source, ttl=timedelta(0)
        )
        self.store.apply([self.thing, self.view])

    def write(self, ids, vectors, at, **columns):
        """Replace the file's rows."""
        table = {"thing_id": ids, "vector": list(vectors), "at": times(at), "made": times(at), **columns}
        pq.write_table(pa.table(table), self.file)

    def load(self):
        """`feast materialize-incremental`."""
        self.store.materialize_incremental(datetime.now(UTC), feature_views=["foreign_things"])

    def read(self, ids, feature):
        """Features as Feast's users read them."""
        rows = [{"thing_id": i} for i in ids]
        return self.store.get_online_features([f"foreign_things:{feature}"], rows).to_dict()[feature]

    @property
    def online(self):
        """The plug-in."""
        return self.store._get_provider().online_store


@pytest.fixture
def foreign(tmp_path, feast_home, core):
    return Foreign(tmp_path)


def test_an_added_feature_is_filled_by_the_next_load(foreign, unit_vectors):
    """Rows that are there already bring it, though they are no newer; a deletion stays one, and the load after is a small one again."""
    from feast.types import String

    ids, vectors, at = ["a", "b", "c"], unit_vectors(3, 4), YEAR_1997 + np.arange(3)
    foreign.apply()
    foreign.write(ids, vectors, at)
    foreign.load()
    foreign.online.delete(foreign.store.config, foreign.view, ["b"])
    foreign.apply(brand=String)
    foreign.write(ids, vectors, at, brand=["one", "two", "three"])
    foreign.load()
    assert foreign.read(ids, "brand") == ["one", None, "three"]
    engine = foreign.store._get_provider().batch_engine
    engine.loaded.clear()
    foreign.load()
    assert (engine.loaded["foreign_things"].stored, engine.loaded["foreign_things"].total) == (0, 3)


def test_a_view_made_anew_is_loaded_again_without_what_was_deleted(foreign, unit_vectors, monkeypatch):
    """Another dim: the named view is emptied of rows but not of deletions, and an incremental load brings every row that is not deleted."""
    ids, at = ["a", "b", "c"], YEAR_1997 + np.arange(3)
    foreign.apply()
    foreign.write(ids, unit_vectors(3, 4), at)
    foreign.load()
    foreign.online.delete(foreign.store.config, foreign.view, ["b"])
    monkeypatch.setenv(REBUILD_VARIABLE, "foreign_things")
    foreign.apply(dim=6)
    wider = unit_vectors(3, 6)
    foreign.write(ids, wider, at)
    foreign.load()
    found = foreign.read(ids, "vector")
    assert found[1] is None
    np.testing.assert_array_equal(np.asarray([found[0], found[2]], np.float32), wider[[0, 2]])


def test_a_row_without_a_time_is_refused_by_its_key(foreign, unit_vectors):
    """It would be in no window, and so never be loaded nor missed."""
    foreign.apply()
    foreign.write(["a", "timeless"], unit_vectors(2, 4), [YEAR_1997, YEAR_1997])
    table = pq.read_table(foreign.file)
    no_time = pa.array([YEAR_1997, None], pa.timestamp("us", tz="UTC"))
    pq.write_table(table.set_column(table.schema.get_field_index("at"), "at", no_time), foreign.file)
    with pytest.raises(RefusedRowsError, match="'timeless': at is null; 1 such rows"):
        foreign.load()


def test_rows_are_named_by_their_ids_or_all_their_join_keys(foreign, unit_vectors):
    """A text alone is no list of ids, and one id is not enough for several join keys."""
    foreign.apply()
    config, view = foreign.store.config, foreign.view
    with pytest.raises(StoreRequestError, match=r"write \['del2'\]"):
        foreign.online.delete(config, view, "del2")
    with pytest.raises(StoreRequestError, match="join keys thing_id, not shop"):
        foreign.online.delete(config, view, [{"shop": 1}])
    foreign.write(["a"], unit_vectors(1, 4), [YEAR_1997])
    foreign.load()
    assert foreign.online.read_vectors(config, view, [{"thing_id": "a"}, "b"])[1].tolist() == [True, False]
    assert foreign.online.delete(config, view, [{"thing_id": "a"}]).stored == 1
    assert foreign.read(["a"], "vector") == [None]
