"""Rows for tests of views in Milvus: one column of every type that can be stored, and ids that are hard to quote."""

import numpy as np
import pyarrow as pa

from feature_store.milvus_schema import ViewSchema
from feature_store.schemas import TIMESTAMP

DIM = 8
FIELDS = {
    "title": pa.string(),
    "price": pa.float64(),
    "score": pa.float32(),
    "small": pa.int32(),
    "large": pa.int64(),
    "in_stock": pa.bool_(),
    "since": TIMESTAMP,
    "raw": pa.binary(),
    "tags": pa.list_(pa.string()),
    "numbers": pa.list_(pa.int64()),
    "weights": pa.list_(pa.float32()),
}
VALUES = {
    "title": 'a "title"\nin 日本',
    "price": 1.25,
    "score": 0.5,
    "small": -7,
    "large": 2**53 + 1,
    "in_stock": True,
    "since": 852_076_800_000_001,
    "raw": b"\x00\xff",
    "tags": ["x", "", 'q"'],
    "numbers": [1, -(2**62)],
    "weights": [0.5, -1.0],
}
HARD_IDS = [
    "plain",
    'qu"ote',
    "back\\slash",
    "ap'os",
    "new\nline",
    "tab\t",
    "return\r",
    "two\x1fkeys",
    "bell\x07",
    "\x7f",
    "\u2028",
    "nul\x00",
    "ünï",
    "日本",
    "😀",
    "a b",
    "%",
    "{x}",
    "\\u0041",
    'in ["x"]',
]


def schema(name="item_things", **changes):
    return ViewSchema(**{"name": name, "fields": FIELDS, "vector_field": "vector", "dim": DIM, **changes})


def rows(ids, vectors, event, created=None, deleted=None, **features):
    """Rows with these vectors and times; features are null unless given, one value for all."""
    count = len(ids)
    columns = {
        "entity_id": pa.array(ids, pa.string()),
        "event_timestamp": times(np.broadcast_to(event, count)),
        "vector": pa.array([None if v is None else list(v) for v in vectors], pa.list_(pa.float32())),
    }
    for name, arrow in FIELDS.items():
        values = [features.get(name)] * count
        columns[name] = times_or_null(values) if arrow == TIMESTAMP else pa.array(values, arrow)
    if created is not None:
        columns["created"] = times(np.broadcast_to(created, count))
    if deleted is not None:
        columns["deleted"] = pa.array(deleted, pa.bool_())
    return pa.table(columns)


def times(us):
    return pa.array(np.asarray(us, np.int64)).cast(TIMESTAMP)


def times_or_null(values):
    return pa.array(values, pa.int64()).cast(TIMESTAMP)
