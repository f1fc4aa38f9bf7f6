"""Schemas of the offline tables, and how a caller's table is made to fit one.

Ids are strings of at most 128 bytes; times are microseconds, UTC. The schema version lies in every file's metadata, so that a
later reader knows what it has before it.
"""

import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from feature_store.errors import TableError

SCHEMA_VERSION: Final = 1  # Added nullable columns leave it: a part that lacks one reads as null.
MAX_ID_BYTES: Final = 128
TIMESTAMP: Final = pa.timestamp("us", tz="UTC")
VECTOR: Final = pa.list_(pa.float32())
ENTITIES: Final = ("item", "user")
Times = Sequence[datetime] | NDArray[Any]
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

_VERSIONING: Final = [
    pa.field("event_timestamp", TIMESTAMP, nullable=False),
    pa.field("created", TIMESTAMP, nullable=False),
]
_DELETED: Final = pa.field("deleted", pa.bool_(), nullable=False)


def _schema(name: str, fields: Sequence[pa.Field]) -> pa.Schema:
    return pa.schema(fields, metadata={"triptych.table": name, "triptych.schema_version": str(SCHEMA_VERSION)})


def _id(name: str) -> pa.Field:
    return pa.field(name, pa.string(), nullable=False)


def _lists(**types: pa.DataType) -> list[pa.Field]:
    return [pa.field(name, pa.list_(value_type)) for name, value_type in types.items()]


ITEMS: Final = _schema(
    "items",
    [
        _id("item_id"),
        pa.field("title", pa.string()),
        pa.field("description", pa.string()),
        pa.field("category", pa.string()),
        pa.field("price", pa.float64()),
        *_lists(
            tags=pa.string()
        ),  # "kind:value", such as `director:Agnès Varda`; parts from before there were tags lack it
        pa.field("image", pa.string()),
        pa.field("audio", pa.string()),
        pa.field("updated_us", pa.int64(), nullable=False),
        *_VERSIONING,
        _DELETED,
    ],
)
USERS: Final = _schema("users", [_id("user_id"), pa.field("profile_text", pa.string()), *_VERSIONING, _DELETED])
INTERACTIONS: Final = _schema(
    "interactions",
    [
        _id("event_id"),
        pa.field("impression_id", pa.string()),
        _id("user_id"),
        _id("item_id"),
        _id("event_type"),
        pa.field("value", pa.float64()),
        pa.field("request_id", pa.string()),  # of the ranking reply that showed the item
        pa.field("propensity", pa.float64()),  # probability with which it was shown, of 1
        pa.field("position", pa.int32()),  # where it was shown, from 1
        pa.field("device", pa.string()),  # that the user had before them: `phone`, `desktop` ...
        pa.field("context", pa.string()),  # a JSON object
        *_VERSIONING,
    ],
)
USER_HISTORY: Final = _schema(
    "user_history",
    [
        _id("user_id"),
        *_lists(
            item_ids=pa.string(),
            event_types=pa.string(),
            event_ids=pa.string(),
            timestamps_us=pa.int64(),
            values=pa.float64(),
        ),
        *_VERSIONING,
        _DELETED,
    ],
)


def embeddings_schema(entity: str) -> pa.Schema:
    """Schema of the embedding tables of `entity` (`item` or `user`)."""
    return _schema(
        f"embeddings/{entity}",
        [
            _id(f"{entity}_id"),
            pa.field("vector", VECTOR),  # null in tombstones only
            pa.field("content_sha256", pa.string()),
            *_VERSIONING,
            _DELETED,
        ],
    )


def now_us() -> int:
    """The present, in microseconds since 1970."""
    return time.time_ns() // 1000


def as_us(times: Sequence[datetime] | NDArray[Any] | pa.Array, count: int) -> NDArray[np.int64]:
    """Microseconds since 1970, int64 [count], from integers, datetimes with a zone, datetime64 or an Arrow array.

    Raises `TableError` where the length differs or a datetime has no zone.
    """
    if isinstance(times, pa.Array | pa.ChunkedArray):
        out = times.cast(TIMESTAMP).cast(pa.int64()).to_numpy()
    elif isinstance(times, np.ndarray) and times.dtype.kind == "M":
        out = times.astype("datetime64[us]").astype(np.int64)
    else:
        out = np.asarray([_one_us(t) for t in times], np.int64)
    if len(out) != count:
        raise TableError(f"{len(out)} times for {count} rows")
    return np.ascontiguousarray(out, np.int64)


def _one_us(value: Any) -> int:
    if not isinstance(value, datetime):
        return int(value)
    if value.tzinfo is None:
        raise TableError(f"time {value.isoformat()} has no zone: say which, for example with tzinfo=UTC")
    return (value - _EPOCH) // timedelta(microseconds=1)


def timestamps(us: NDArray[np.int64]) -> pa.Array:
    """An Arrow timestamp column from int64 microseconds [n]."""
    return pa.array(us, pa.int64()).cast(TIMESTAMP)


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """`table` with exactly the columns of `schema`, in its order and types.

    Missing nullable columns become null, missing `created` is now, missing `deleted` is false. Raises `TableError` for missing or
    unknown columns, values of another type, nulls where none may be, empty ids and ids over 128 bytes.
    """
    unknown = set(table.column_names) - set(schema.names)
    if unknown:
        raise TableError(f"unknown columns {sorted(unknown)}; there are {schema.names}")
    columns = [_column(table, field) for field in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def _column(table: pa.Table, field: pa.Field) -> pa.ChunkedArray:
    column = table[field.name] if field.name in table.column_names else _default(table, field)
    try:
        column = column.cast(field.type)
    except pa.ArrowException as error:
        raise TableError(f"column {field.name!r} must be {field.type}: {error}") from error
    if not field.nullable and column.null_count:
        row = pc.index(pc.is_null(column), True).as_py()
        raise TableError(f"column {field.name!r} is null in row {row}; {column.null_count} such")
    if not field.nullable and field.type == pa.string():
        _check_ids(field.name, column)
    return column


def _default(table: pa.Table, field: pa.Field) -> pa.ChunkedArray:
    if field.name == "created":
        return pa.chunked_array([timestamps(np.full(table.num_rows, now_us(), np.int64))])
    if field.name == "deleted":
        return pa.chunked_array([pa.array(np.zeros(table.num_rows, np.bool_))])
    source = "event_timestamp" if field.name == "updated_us" else field.name
    if source in table.column_names:
        return table[source].cast(TIMESTAMP).cast(pa.int64())
    if not field.nullable:
        raise TableError(f"column {source!r} is missing; there are {table.column_names}")
    return pa.chunked_array([pa.nulls(table.num_rows, field.type)])


def _check_ids(name: str, ids: pa.ChunkedArray) -> None:
    lengths = pc.binary_length(ids)
    bad = pc.or_(pc.equal(lengths, 0), pc.greater(lengths, MAX_ID_BYTES))
    row = pc.index(bad, True).as_py()
    if row >= 0:
        raise TableError(f"{name} {ids[row].as_py()!r} in row {row} must have 1 to {MAX_ID_BYTES} bytes")
