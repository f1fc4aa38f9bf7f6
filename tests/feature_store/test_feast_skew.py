"""Offline and online agree: what a label at an instant gets from the tables is what Milvus serves at that instant."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from milvus_rows import times

from feature_store.schemas import TIMESTAMP, now_us
from feature_store.setup import feast_config

# Feast and its SQL registry warn about themselves.
pytestmark = pytest.mark.filterwarnings("ignore::Warning")

DIM = 8
SCALARS = {
    "text": pa.string(),
    "raw": pa.binary(),
    "flag": pa.bool_(),
    "small": pa.int32(),
    "large": pa.int64(),
    "single": pa.float32(),
    "double": pa.float64(),
    "since": TIMESTAMP,
}
TYPES = {**SCALARS, **{f"{name}_list": pa.list_(arrow) for name, arrow in SCALARS.items()}}
HARD = {
    "text": ["", 'a "b"\\\n\t', "日本 ünï 😀", "\x1f", "{}", "null"],
    "raw": [b"", b"\x00\xff", bytes(range(256))],
    "flag": [True, False],
    "small": [0, -1, 2**31 - 1, -(2**31)],
    "large": [0, 2**53 + 1, 2**63 - 1, -(2**63)],
    "single": [float("nan"), float("-inf"), 0.0, -0.0, 0.1, 1e-45, 3.4028235e38],
    "double": [float("nan"), float("inf"), 0.0, -0.0, 0.1, 5e-324, 1.7976931348623157e308],
    "since": [0, -1, 852_076_800_000_001, 253_402_300_799_999_999],
}
WHOLE_SECONDS_US = 1_000_000


def random_value(rng, name):
    values = HARD[name.removesuffix("_list")]

    def one():
        if name.startswith("double"):
            return float(rng.choice([*values, rng.standard_normal()]))
        return values[rng.integers(len(values))]

    if rng.random() < 0.15:
        return None
    return [one() for _ in range(rng.integers(0, 4))] if name.endswith("_list") else one()


def column(name, values):
    arrow = TYPES[name]
    if pa.types.is_timestamp(arrow):
        return pa.array(values, pa.int64()).cast(arrow)
    if pa.types.is_list(arrow) and pa.types.is_timestamp(arrow.value_type):
        return pa.array(values, pa.list_(pa.int64())).cast(arrow)
    return pa.array(values, arrow)


def write_part(folder, name, rng, keys, event, created, deleted):
    """One file of versions; tombstones keep random values, but for some that have no vector."""
    count = len(keys["thing_id"])
    vectors = rng.standard_normal((count, DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    bare = deleted & (rng.random(count) < 0.5)
    table = {
        **keys,
        **{feature: column(feature, [random_value(rng, feature) for _ in range(count)]) for feature in TYPES},
        "vector": pa.array([None if b else v for v, b in zip(vectors, bare, strict=True)], pa.list_(pa.float32())),
        "valid_from": times(event),
        "made": times(created),
        "deleted": pa.array(deleted),
    }
    pq.write_table(pa.table(table), folder / f"{name}.parquet")


def versions(rng, now, count):
    """Times of `count` rows: ties in validity and in making within a few instants, up to a minute ago; a fifth are tombstones."""
    instants = now - 60_000_000 - rng.integers(0, 40, count) * 1_000
    return instants, now - rng.integers(0, 5, count) * 1_000_000, rng.random(count) < 0.2


@pytest.fixture
def repository(feast_home, feast_package, tmp_path):
    """(store, folder): one view of every type that the store keeps, by two keys, with tombstones."""
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType, types
    from feast.data_format import ParquetFormat

    folder = tmp_path / "things"
    folder.mkdir()
    primitives = {
        "text": types.String,
        "raw": types.Bytes,
        "flag": types.Bool,
        "small": types.Int32,
        "large": types.Int64,
        "single": types.Float32,
        "double": types.Float64,
        "since": types.UnixTimestamp,
    }
    thing = Entity(name="thing", join_keys=["thing_id"], value_type=ValueType.STRING)
    shop = Entity(name="shop", join_keys=["shop_id"], value_type=ValueType.INT64)
    view = FeatureView(
        name="skewed",
        entities=[thing, shop],
        schema=[
            Field(name="thing_id", dtype=types.String),
            Field(name="shop_id", dtype=types.Int64),
            *(Field(name=name, dtype=dtype) for name, dtype in primitives.items()),
            *(Field(name=f"{name}_list", dtype=types.Array(dtype)) for name, dtype in primitives.items()),
            Field(
                name="vector",
                dtype=types.Array(types.Float32),
                vector_index=True,
                vector_length=DIM,
                vector_search_metric="COSINE",
            ),
        ],
        source=FileSource(
            name="skewed_table",
            path=str(folder),
            file_format=ParquetFormat(),
            timestamp_field="valid_from",
            created_timestamp_column="made",
        ),
        ttl=timedelta(0),
        tags={"deleted_column": "deleted"},
    )
    store = FeatureStore(config=RepoConfig(**{**feast_config(feast_home), "project": "skew"}))
    ids = {"thing_id": pa.array([], pa.string()), "shop_id": pa.array([], pa.int64())}
    nothing = np.empty(0, np.int64)
    write_part(folder, "part-0", np.random.default_rng(0), ids, nothing, nothing, np.empty(0, bool))
    store.apply([thing, shop, view])
    yield store, folder
    store.teardown()


def test_a_label_now_gets_what_is_served_now(repository, feast_core, rng, tmp_path):
    """After two loads, the second with late rows, ties and tombstones: vectors bit for bit, every other type exactly, missing alike."""
    from feature_store.feast_history import point_in_time

    store, folder = repository
    pairs = [(f"thing {n}", shop) for n in range(30) for shop in (1, 2**53 + 1)]
    for load in range(2):
        now = now_us()
        for part in range(2):
            picked = rng.integers(0, len(pairs) - 4, 120)
            keys = {
                "thing_id": pa.array([pairs[n][0] for n in picked]),
                "shop_id": pa.array([pairs[n][1] for n in picked], pa.int64()),
            }
            event, created, deleted = versions(rng, now, 120)
            # Rows that tie in both times have no newest one among them, and stores may differ.
            _, alone = np.unique(np.stack([picked, event, created]), axis=1, return_index=True)
            keys = {name: values.take(pa.array(alone)) for name, values in keys.items()}
            created = created[alone] + 60_000_000 * load + 100_000 * part
            write_part(folder, f"load-{load}-{part}", rng, keys, event[alone], created - 60_000_000, deleted[alone])
        store.materialize_incremental(datetime.now(UTC))

        at = now_us()
        labels = pa.table(
            {
                "thing_id": pa.array([thing for thing, _ in pairs]),
                "shop_id": pa.array([shop for _, shop in pairs], pa.int64()),
                "event_timestamp": times([at] * len(pairs)),
            }
        )
        features = [f"skewed:{name}" for name in [*TYPES, "vector"]]
        info = point_in_time(store, labels, features, tmp_path / "offline.parquet", full_feature_names=False)
        offline = pq.read_table(tmp_path / "offline.parquet")
        assert 0 < info.found["skewed"] < len(pairs) - 4
        check_core(feast_core, pairs, offline)
        check_feast(store, labels, features, offline)


def plain(values, arrow):
    """Timestamps as microseconds, and floats with their sign and bits."""
    if pa.types.is_list(arrow):
        return [None if value is None else plain(value, arrow.value_type) for value in values]
    if pa.types.is_floating(arrow):
        return [None if value is None else float(value).hex() for value in values]
    return list(values)


def offline_values(offline, name):
    arrow = TYPES[name]
    stored = arrow.value_type if pa.types.is_list(arrow) else arrow
    values = offline[name]
    assert values.type == arrow
    if pa.types.is_timestamp(stored):
        values = values.cast(pa.list_(pa.int64()) if pa.types.is_list(arrow) else pa.int64())
    return plain(values.to_pylist(), arrow)


def check_core(core, pairs, offline):
    """Against the columns and vectors that ranking reads."""
    ids = [f"{shop}\x1f{thing}" for thing, shop in pairs]
    online = core.read_columns("skewed", ids, list(TYPES), strong=True)
    for name, arrow in TYPES.items():
        assert plain(online[name], arrow) == offline_values(offline, name), name
    vectors, present, _ = core.read_vectors("skewed", ids, strong=True)
    column = offline["vector"].combine_chunks()
    np.testing.assert_array_equal(present, column.is_valid().to_numpy(zero_copy_only=False))
    stored = column.drop_null().flatten().to_numpy().reshape(-1, DIM)
    np.testing.assert_array_equal(vectors[present].view(np.uint32), stored.view(np.uint32))


def check_feast(store, labels, features, offline):
    """Against Feast's own reader, whose timestamps are whole seconds."""
    entities = labels.select(["thing_id", "shop_id"]).to_pylist()
    reply = store.get_online_features(features, entities).proto
    names = list(reply.metadata.feature_names.val)
    for name in [*TYPES, "vector"]:
        values = reply.results[names.index(name)].values
        got = [value_of(value) for value in values]
        if name == "vector":
            vectors = [None if v is None else np.asarray(v, np.float32).tobytes() for v in got]
            stored = [None if v is None else np.asarray(v, np.float32).tobytes() for v in offline[name].to_pylist()]
            assert vectors == stored
            continue
        expected = offline_values(offline, name)
        if name.startswith("since"):
            expected = [whole_seconds(value) for value in expected]
        assert plain(got, TYPES[name]) == expected, name


def value_of(message):
    which = message.WhichOneof("val")
    if which is None:
        return None
    value = getattr(message, which)
    return list(value.val) if which.endswith("list_val") else value


def whole_seconds(value):
    if isinstance(value, list):
        return [v // WHOLE_SECONDS_US for v in value]
    return None if value is None else value // WHOLE_SECONDS_US
