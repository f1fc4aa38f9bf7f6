import asyncio
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest
from milvus_rows import FIELDS

from feature_store.errors import RefusedRowsError, SchemaDriftError
from feature_store.setup import feast_config

pytestmark = pytest.mark.filterwarnings("ignore::Warning")

NOW = datetime(2024, 5, 1, 12, tzinfo=UTC)
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


@pytest.fixture
def definitions(feast_package, tmp_path):
    """A repository that is not ours: one view with every type, one for two keys; sources are never read."""
    from feast import Entity, FeatureView, Field, FileSource, PushSource, ValueType
    from feast.types import Array, Bool, Bytes, Float32, Float64, Int32, Int64, String, UnixTimestamp

    types = [
        String,
        Float64,
        Float32,
        Int32,
        Int64,
        Bool,
        UnixTimestamp,
        Bytes,
        Array(String),
        Array(Int64),
        Array(Float32),
    ]
    file = FileSource(name="file", path=str(tmp_path / "none.parquet"), timestamp_field="event_timestamp")
    thing = Entity(name="thing", join_keys=["thing_id"], value_type=ValueType.STRING)
    shop = Entity(name="shop", join_keys=["shop_id"], value_type=ValueType.INT64)
    vector = Field(
        name="vector", dtype=Array(Float32), vector_index=True, vector_length=4, vector_search_metric="COSINE"
    )
    fields = [Field(name=name, dtype=dtype) for name, dtype in zip(FIELDS, types, strict=True)]
    keys = [Field(name="thing_id", dtype=String), Field(name="shop_id", dtype=Int64)]
    source = PushSource(name="pushed", batch_source=file)
    things = FeatureView(
        name="things", entities=[thing], schema=[*fields, vector, keys[0]], source=source, ttl=timedelta(0)
    )
    offers = FeatureView(
        name="offers",
        entities=[thing, shop],
        schema=[Field(name="stock", dtype=Int64), *keys],
        source=file,
        ttl=timedelta(0),
    )
    return [file, source, thing, shop, things, offers]


@pytest.fixture
def store(feast_home, definitions):
    from feast import FeatureStore, RepoConfig

    config = RepoConfig(**{**feast_config(feast_home), "project": "elsewhere"})
    store = FeatureStore(config=config)
    store.apply(definitions)
    return store


def frame(ids, times, vectors, **features):
    columns = {"thing_id": ids, "event_timestamp": times, "vector": [list(map(float, v)) for v in vectors]}
    return pd.DataFrame({**columns, **{name: [value] * len(ids) for name, value in {**ROW, **features}.items()}})


def read(store, ids, names=(*ROW, "vector")):
    reply = store.get_online_features([f"things:{name}" for name in names], [{"thing_id": i} for i in ids])
    return reply.to_dict()


def test_what_feast_writes_feast_reads(store):
    """Scalars, lists, a vector and missing rows through Feast's own calls, in the order asked for, every value at its own id."""
    vectors = np.eye(4, dtype=np.float32)
    store.push("pushed", frame(["a", "b"], [NOW, NOW], vectors[:2]))
    got = read(store, ["b", "nobody", "a"])
    assert got["vector"] == [vectors[1].tolist(), None, vectors[0].tolist()]
    for name, value in ROW.items():
        assert got[name] == [value, None, value], name

    async def read_async():
        references = [f"things:{name}" for name in ("vector", "title")]
        reply = await store.get_online_features_async(references, [{"thing_id": i} for i in ("b", "nobody")])
        return reply.to_dict()

    again = asyncio.run(read_async())
    assert (again["vector"], again["title"]) == ([vectors[1].tolist(), None], ["a title", None])

    older = NOW - timedelta(days=1)
    store.push("pushed", frame(["a", "c"], [older, older], vectors[2:], title="older"))
    assert read(store, ["a", "c"], ["title"])["title"] == ["a title", "older"]

    with pytest.raises(RefusedRowsError, match="'broken': the vector's norm is not 1"):
        store.push("pushed", frame(["fine", "broken"], [NOW, NOW], [vectors[0], vectors[0] * 2]))
    assert read(store, ["fine"], ["title"])["title"] == [None]


def test_several_keys_make_one_id(store):
    """A view of two entities is read by both."""
    rows = pd.DataFrame({"thing_id": ["a", "a"], "shop_id": [1, 2], "stock": [10, 20], "event_timestamp": [NOW, NOW]})
    store.write_to_online_store("offers", rows)
    asked = [{"thing_id": "a", "shop_id": 2}, {"thing_id": "b", "shop_id": 1}, {"thing_id": "a", "shop_id": 1}]
    assert store.get_online_features(["offers:stock"], asked).to_dict()["stock"] == [20, None, 10]


def test_views_follow_apply_and_nothing_else(store, definitions, feast_core):
    """Drift fails; deleting one view drops that view alone; teardown drops the rest."""
    from feast import FeatureView, Field
    from feast.types import Array, Float32, Float64

    thing, things, offers = definitions[2], definitions[4], definitions[5]
    assert {"things", "offers"} <= set(feast_core.list_views())
    vector = Field(name="vector", dtype=Array(Float32), vector_index=True, vector_length=8)
    changed = FeatureView(name="things", entities=[thing], schema=[vector], source=definitions[1], ttl=timedelta(0))
    with pytest.raises(SchemaDriftError, match="view 'things' in Milvus"):
        store.apply([changed])
    doubles = Field(name="vector", dtype=Array(Float64), vector_index=True, vector_length=4)
    wrong = FeatureView(name="wrong", entities=[thing], schema=[doubles], source=definitions[0], ttl=timedelta(0))
    with pytest.raises(SchemaDriftError, match=r"must be Array\(Float32\)"):
        store.apply([wrong])
    store.apply([things], objects_to_delete=[offers], partial=False)
    assert "offers" not in feast_core.list_views()
    assert "things" in feast_core.list_views()
    store.teardown()
    assert "things" not in feast_core.list_views()
