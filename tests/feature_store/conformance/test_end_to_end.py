"""The plug-in under Feast's own `FeatureStore`: apply, push, write, materialize, read by reference and by service, delete."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from stores import (
    DIM,
    SHOP,
    THING,
    FeatureService,
    FeatureStore,
    FeatureView,
    Field,
    FileSource,
    PushSource,
    StreamFeatureView,
    free_name,
    repo_config,
    types,
    vector_field,
)

from feature_store.errors import RefusedRowsError, SchemaDriftError, StoreRequestError, ViewNotFoundError

NOW = datetime.now(UTC).replace(microsecond=0)
ROW = {
    "title": "a title",
    "price": 1.25,
    "score": 0.5,
    "small": -7,
    "large": 2**53 + 1,
    "in_stock": True,
    "since": datetime(1997, 1, 1, tzinfo=UTC),
    "raw": b"\x00\xff",
    "tags": ["x", ""],
    "numbers": [1, -2],
    "weights": [0.5, -1.0],
}
TYPES = {
    "title": types.String,
    "price": types.Float64,
    "score": types.Float32,
    "small": types.Int32,
    "large": types.Int64,
    "in_stock": types.Bool,
    "since": types.UnixTimestamp,
    "raw": types.Bytes,
    "tags": types.Array(types.String),
    "numbers": types.Array(types.Int64),
    "weights": types.Array(types.Float32),
}
KEYS = [Field(name="thing_id", dtype=types.String), Field(name="shop_id", dtype=types.Int64)]


class Repository:
    """A Feast repository that is not ours: its views by role, and the store that they are applied to."""

    def __init__(self, folder: Path, online_store):
        self.feast = FeatureStore(config=repo_config(folder, online_store))
        self.offers_file = folder / "offers.parquet"
        file = FileSource(name="file", path=str(folder / "none.parquet"), timestamp_field="event_timestamp")
        offers = FileSource(
            name="offers",
            path=str(self.offers_file),
            timestamp_field="event_timestamp",
            created_timestamp_column="created",
        )
        self.pushed = PushSource(name="pushed", batch_source=file)
        fields = [Field(name=name, dtype=dtype) for name, dtype in TYPES.items()]
        no_ttl = {"ttl": timedelta(0)}
        self.things = FeatureView(
            name=free_name("things"),
            entities=[THING],
            schema=[*fields, vector_field(), KEYS[0]],
            source=self.pushed,
            **no_ttl,
        )
        self.offers = FeatureView(
            name=free_name("offers"),
            entities=[THING, SHOP],
            schema=[Field(name="stock", dtype=types.Int64), Field(name="note", dtype=types.Map), *KEYS],
            source=offers,
            **no_ttl,
        )
        self.everyone = FeatureView(
            name=free_name("everyone"),
            entities=[],
            schema=[Field(name="visits", dtype=types.Int64)],
            source=file,
            **no_ttl,
        )
        self.offline = FeatureView(
            name=free_name("offline"),
            entities=[THING],
            schema=[fields[0], KEYS[0]],
            source=file,
            online=False,
            **no_ttl,
        )
        stream = PushSource(
            name="stream", batch_source=FileSource(name="s", path="s.parquet", timestamp_field="event_timestamp")
        )
        self.stream = StreamFeatureView(
            name=free_name("stream"), entities=[THING], schema=[fields[0], KEYS[0]], source=stream, **no_ttl
        )
        self.service = FeatureService(name="service", features=[self.things[["title"]], self.offers])
        views = [self.things, self.offers, self.everyone, self.offline, self.stream]
        self.all = [file, self.pushed, THING, SHOP, *views, self.service]
        self.write_offers([("a", 1, 10)])

    def write_offers(self, offers):
        """The offline rows: (thing, shop, stock), later ones newer."""
        things, shops, stocks = zip(*offers, strict=True)
        times = [NOW - timedelta(minutes=len(offers) - n) for n in range(len(offers))]
        columns = {"thing_id": things, "shop_id": shops, "stock": stocks, "event_timestamp": times, "created": times}
        notes = [[("shop", str(shop))] for shop in shops]
        pd.DataFrame({**columns, "note": [dict(note) for note in notes]}).to_parquet(
            self.offers_file, coerce_timestamps="us"
        )

    def push(self, ids, times, vectors, **features):
        """Push things that differ in vector alone."""
        columns = {"thing_id": ids, "event_timestamp": times, "vector": [list(map(float, v)) for v in vectors]}
        values = {name: [content] * len(ids) for name, content in {**ROW, **features}.items()}
        self.feast.push("pushed", pd.DataFrame({**columns, **values}))

    def read(self, view, ids, names):
        """Features of things, as Feast's users read them."""
        references = [f"{view.name}:{name}" for name in names]
        return self.feast.get_online_features(references, [{"thing_id": i} for i in ids]).to_dict()


@pytest.fixture(scope="module", params=["milvus_server", "standalone_uri"], ids=["lite", "standalone"])
def repository(request, tmp_path_factory):
    """The repository, applied."""
    folder = tmp_path_factory.mktemp("repository")
    (folder / "home").mkdir()
    kind = "feature_store.feast_online.TriptychOnlineStore"
    uri = request.getfixturevalue(request.param)
    made = Repository(folder, {"type": kind, "home": str(folder / "home"), "uri": uri})
    made.feast.apply(made.all)
    yield made
    made.feast.teardown()


def collections(repository):
    config = repository.feast.config
    return repository.feast._get_provider().online_store.core(config).list_views()


def test_what_is_pushed_is_read(repository):
    """Scalars, lists, a vector and missing rows, in the order asked for, every value at its own id; duplicates too."""
    vectors = np.eye(DIM, dtype=np.float32)
    repository.push(["a", "b"], [NOW, NOW], vectors[:2])
    got = repository.read(repository.things, ["b", "nobody", "a", "b"], [*ROW, "vector"])
    assert got["vector"] == [vectors[1].tolist(), None, vectors[0].tolist(), vectors[1].tolist()]
    for name, content in ROW.items():
        assert got[name] == [content, None, content, content], name
    older = NOW - timedelta(days=1)
    repository.push(["a", "c"], [older, older], vectors[2:], title="older")
    assert repository.read(repository.things, ["a", "c"], ["title"])["title"] == ["a title", "older"]


def test_the_event_loop_reads_features(repository):
    """`get_online_features_async` gives what `get_online_features` does."""
    repository.push(["async"], [NOW], np.eye(DIM)[:1])
    references = [f"{repository.things.name}:{name}" for name in ("vector", "title")]

    async def read():
        rows = [{"thing_id": name} for name in ("async", "nobody")]
        reply = await repository.feast.get_online_features_async(references, rows)
        return reply.to_dict()

    got = asyncio.run(read())
    assert (got["vector"], got["title"]) == ([np.eye(DIM)[0].tolist(), None], ["a title", None])


def test_wrong_rows_are_refused_by_their_key(repository):
    """Through Feast too: the error names the row, and nothing of the batch is stored."""
    with pytest.raises(RefusedRowsError, match="'broken': the vector's norm is not 1"):
        repository.push(["fine", "broken"], [NOW, NOW], [[1, 0, 0, 0], [2, 0, 0, 0]])
    assert repository.read(repository.things, ["fine"], ["title"])["title"] == [None]


def test_views_of_several_entities_are_written_directly(repository):
    """`write_to_online_store`, and a read by all of the join keys, with full feature names."""
    rows = pd.DataFrame({"thing_id": ["w", "w"], "shop_id": [1, 2], "stock": [10, 20], "event_timestamp": [NOW, NOW]})
    repository.feast.write_to_online_store(repository.offers.name, rows.assign(note=[{"a": "b"}, None], created=NOW))
    asked = [{"thing_id": "w", "shop_id": 2}, {"thing_id": "v", "shop_id": 1}, {"thing_id": "w", "shop_id": 1}]
    references = [f"{repository.offers.name}:{name}" for name in ("stock", "note")]
    got = repository.feast.get_online_features(references, asked, full_feature_names=True).to_dict()
    assert got[f"{repository.offers.name}__stock"] == [20, None, 10]
    assert got[f"{repository.offers.name}__note"] == [None, None, {"a": "b"}]
    config, online = repository.feast.config, repository.feast._get_provider().online_store
    if hasattr(online, "delete"):
        with pytest.raises(StoreRequestError, match="join keys shop_id, thing_id: name a row by"):
            online.delete(config, repository.offers, ["w"])
        online.delete(config, repository.offers, [{"shop_id": 2, "thing_id": "w"}])
        assert repository.feast.get_online_features(references[:1], asked).to_dict()["stock"] == [None, None, 10]


def test_what_is_materialized_is_read(repository):
    """The newest row of each key, by reference and by service; a second run takes what is new."""
    repository.write_offers([("m", 1, 10), ("m", 2, 20), ("m", 1, 11)])
    repository.feast.materialize(NOW - timedelta(days=1), NOW + timedelta(minutes=1), [repository.offers.name])
    asked = [{"thing_id": "m", "shop_id": 1}, {"thing_id": "m", "shop_id": 2}]
    got = repository.feast.get_online_features(repository.feast.get_feature_service("service"), asked).to_dict()
    assert (got["stock"], got["note"]) == ([11, 20], [{"shop": "1"}, {"shop": "2"}])
    repository.write_offers([("m", 2, 21)])
    repository.feast.materialize_incremental(NOW + timedelta(minutes=2), [repository.offers.name])
    assert repository.feast.get_online_features([f"{repository.offers.name}:stock"], asked).to_dict()["stock"][0] == 11


def test_a_view_without_entities_is_read_beside_any_keys(repository):
    """Its one row is the newest. Feast 0.67 itself cannot materialize such a view from DuckDB; it can be written."""
    visits = pd.DataFrame({"visits": [3, 5], "event_timestamp": [NOW - timedelta(hours=2), NOW - timedelta(hours=1)]})
    for row in ([1], [0]):
        repository.feast.write_to_online_store(repository.everyone.name, visits.iloc[row].assign(__dummy_id=""))
    references = [f"{repository.everyone.name}:visits", f"{repository.things.name}:title"]
    got = repository.feast.get_online_features(references, [{"thing_id": "x"}, {"thing_id": "y"}]).to_dict()
    assert got["visits"] == [5, 5]


def test_stream_views_are_pushed_to(repository):
    """A stream view is written by its push source and read as any other."""
    repository.feast.push("stream", pd.DataFrame({"thing_id": ["s"], "title": ["streamed"], "event_timestamp": [NOW]}))
    assert repository.read(repository.stream, ["s"], ["title"])["title"] == ["streamed"]


def test_views_that_are_not_online_are_not_stored(repository):
    """`online=False` makes no collection, and reading says that there is none."""
    assert repository.offline.name not in collections(repository)
    with pytest.raises(ViewNotFoundError, match=repository.offline.name):
        repository.read(repository.offline, ["a"], ["title"])


def test_drift_fails_the_apply(repository):
    """Another dim under the same name is an error with the remedy, and the rows stay."""
    repository.push(["drift"], [NOW], np.eye(DIM)[:1])
    view = FeatureView(
        name=repository.things.name,
        entities=[THING],
        schema=[vector_field(dim=8)],
        source=repository.pushed,
        ttl=timedelta(0),
    )
    with pytest.raises(SchemaDriftError, match="dim: stored 4, defined 8"):
        repository.feast.apply([view])
    doubles = Field(name="vector", dtype=types.Array(types.Float64), vector_index=True, vector_length=4)
    wrong = FeatureView(name=free_name("wrong"), entities=[THING], schema=[doubles], source=repository.pushed)
    with pytest.raises(SchemaDriftError, match=r"must be Array\(Float32\)"):
        repository.feast.apply([wrong])
    # Feast notes a definition before it asks the store: the old one must be applied again.
    repository.feast.apply([repository.things])
    assert repository.read(repository.things, ["drift"], ["title"])["title"] == ["a title"]


def test_a_view_that_is_deleted_is_dropped_alone(repository):
    """The others keep their rows."""
    view = FeatureView(
        name=f"{repository.things.name}_more",
        entities=[THING],
        schema=[Field(name="x", dtype=types.Int64), KEYS[0]],
        source=repository.pushed,
    )
    repository.feast.apply([view])
    assert view.name in collections(repository)
    repository.feast.apply([], objects_to_delete=[view], partial=False)
    assert view.name not in collections(repository)
    assert repository.things.name in collections(repository)
