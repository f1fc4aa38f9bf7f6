"""A Feast repository that is not ours, and rows and labels for it: for tests of point-in-time joins."""

from datetime import timedelta

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from milvus_rows import times

T0 = 852_076_800_000_000
TTL_US = 50


def foreign_store(root, objects):
    """A repository with Feast's own offline store, online store and registry, these definitions applied."""
    from feast import FeatureStore, RepoConfig

    config = RepoConfig(
        project="elsewhere",
        registry=str(root / "registry.db"),
        provider="local",
        offline_store={"type": "duckdb"},
        online_store={"type": "sqlite", "path": str(root / "online.db")},
        entity_key_serialization_version=3,
        repo_path=str(root),
    )
    store = FeatureStore(config=config)
    store.apply(objects)
    return store


def things_and_offers(root):
    """(store, folder of `things`, folder of `offers`): one view with a ttl, creation times and tombstones, one of two keys.

    The sources' paths are relative to the repository.
    """
    from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
    from feast.data_format import ParquetFormat
    from feast.types import Array, Float32, Float64, Int64, String

    thing = Entity(name="thing", join_keys=["thing_id"], value_type=ValueType.STRING)
    shop = Entity(name="shop", join_keys=["shop_id"], value_type=ValueType.INT64)

    def source(name, **more):
        (root / name).mkdir()
        return FileSource(name=name, path=name, file_format=ParquetFormat(), timestamp_field="valid_from", **more)

    things = FeatureView(
        name="things",
        entities=[thing],
        schema=[
            Field(name="thing_id", dtype=String),
            Field(name="value", dtype=Int64),
            # Names that the columns of Feast's own join would collide with.
            Field(name="rn", dtype=Float32),
            Field(name="geo_y", dtype=Float64),
            Field(name="vector", dtype=Array(Float32)),
        ],
        ttl=timedelta(microseconds=TTL_US),
        source=source("things", created_timestamp_column="made"),
        tags={"deleted_column": "deleted"},
    )
    offers = FeatureView(
        name="offers",
        entities=[thing, shop],
        schema=[
            Field(name="thing_id", dtype=String),
            Field(name="shop_id", dtype=Int64),
            Field(name="value", dtype=Int64),
        ],
        ttl=timedelta(0),
        source=source("offers", field_mapping={"stock": "value"}),
    )
    service = FeatureService(name="both", features=[things[["value"]], offers])
    store = foreign_store(root, [thing, shop, things, offers, service])
    write_things(root / "things", [])
    write_offers(root / "offers", [])
    return store, root / "things", root / "offers"


def write_things(folder, rows, files=1):
    """Replace the files by `files` of them with these rows: (key, valid from, made, deleted, value)."""
    for file in folder.glob("*.parquet"):
        file.unlink()
    for number in range(files):
        part = rows[number::files]
        ids, valid, made, deleted, values = zip(*part, strict=True) if part else [()] * 5
        table = {
            "thing_id": pa.array(ids, pa.string()),
            "value": pa.array(values, pa.int64()),
            "rn": pa.array([v / 4 for v in values], pa.float64()),
            "geo_y": pa.array([float(v) for v in values], pa.float64()),
            "vector": pa.array([np.asarray([v, v / 10], np.float32) for v in values], pa.list_(pa.float32())),
            "valid_from": times([T0 + t for t in valid]),
            "made": times([T0 + t for t in made]),
            "deleted": pa.array(deleted, pa.bool_()),
        }
        pq.write_table(pa.table(table), folder / f"part-{number}.parquet", row_group_size=3)


def write_offers(folder, rows):
    """(thing, shop, valid from, stock), without a time of making."""
    ids, shops, valid, stock = zip(*rows, strict=True) if rows else [()] * 4
    table = {"thing_id": pa.array(ids, pa.string()), "shop_id": pa.array(shops, pa.int64())}
    table |= {"stock": pa.array(stock, pa.int64()), "valid_from": times([T0 + t for t in valid])}
    pq.write_table(pa.table(table), folder / "part.parquet")


def labels_of(pairs, **more):
    """Labels (thing, time), numbered."""
    ids, at = zip(*pairs, strict=True) if pairs else ((), ())
    columns = {"thing_id": pa.array(ids, pa.string()), "event_timestamp": times([T0 + t for t in at])}
    return pa.table({"number": pa.array(range(len(pairs)), pa.int64()), **columns, **more})


GOOD = labels_of([("a", 5), ("b", 6)])
