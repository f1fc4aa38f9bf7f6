"""Feast's types and messages as Arrow types, view schemas and Python values, and back."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
import pyarrow as pa
from feast import FeatureView
from feast.protos.feast.types import Value_pb2
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.types import Array, PrimitiveFeastType

from feature_store.errors import RefusedRowsError, SchemaDriftError
from feature_store.milvus_schema import ViewSchema
from feature_store.schemas import TIMESTAMP

Value = Value_pb2.Value
_ARROW: Final = {
    PrimitiveFeastType.STRING: pa.string(),
    PrimitiveFeastType.BYTES: pa.binary(),
    PrimitiveFeastType.BOOL: pa.bool_(),
    PrimitiveFeastType.INT32: pa.int32(),
    PrimitiveFeastType.INT64: pa.int64(),
    PrimitiveFeastType.FLOAT32: pa.float32(),
    PrimitiveFeastType.FLOAT64: pa.float64(),
    PrimitiveFeastType.UNIX_TIMESTAMP: TIMESTAMP,
}
_SLOTS: Final = {
    pa.string(): "string",
    pa.binary(): "bytes",
    pa.bool_(): "bool",
    pa.int32(): "int32",
    pa.int64(): "int64",
    pa.float32(): "float",
    pa.float64(): "double",
    TIMESTAMP: "unix_timestamp",
}
_LISTS: Final = {
    "string": Value_pb2.StringList,
    "bytes": Value_pb2.BytesList,
    "bool": Value_pb2.BoolList,
    "int32": Value_pb2.Int32List,
    "int64": Value_pb2.Int64List,
    "float": Value_pb2.FloatList,
    "double": Value_pb2.DoubleList,
    "unix_timestamp": Value_pb2.Int64List,
}
MICROSECONDS: Final = 1_000_000


def arrow_type(dtype: Any) -> pa.DataType:
    """Arrow type of a Feast type. Raises `SchemaDriftError` for the types that the store does not keep."""
    if isinstance(dtype, Array):
        return pa.list_(arrow_type(dtype.base_type))
    if dtype not in _ARROW:
        raise SchemaDriftError(
            f"features of type {dtype} cannot be stored online; there are {', '.join(t.name for t in _ARROW)}"
        )
    return _ARROW[dtype]


def view_schema(view: FeatureView) -> ViewSchema:
    """The Milvus view of a Feast view: dim and metric from its Field, index and norm from its tags.

    Raises `SchemaDriftError` for a vector that is not `Array(Float32)`; Feast itself refuses two vectors in a view.
    """
    vectors = [f for f in view.features if f.vector_index]
    scalars = {f.name: arrow_type(f.dtype) for f in view.features if not f.vector_index}
    if not vectors:
        return ViewSchema(view.name, scalars)
    vector = vectors[0]
    if arrow_type(vector.dtype) != pa.list_(pa.float32()):
        raise SchemaDriftError(f"vector {vector.name} of view {view.name} must be Array(Float32)")
    return ViewSchema(
        view.name,
        scalars,
        vector.name,
        vector.vector_length,
        (vector.vector_search_metric or "COSINE").upper(),
        view.tags.get("index", "FLAT"),
        view.tags.get("unit_norm", "true") != "false",
    )


def entity_id(key: EntityKey) -> str:
    """The store's id of an entity key: its value as text; several values are joined by U+001F in the order of their names."""
    values = dict(zip(key.join_keys, key.entity_values, strict=True))
    return "\x1f".join(
        str(getattr(values[name], values[name].WhichOneof("val") or "string_val")) for name in sorted(values)
    )


def to_value(value: Any, arrow: pa.DataType) -> Value:
    """A feature's value as Feast's message; None is the message without a value. Timestamps lose what is below a second."""
    if value is None:
        return Value()
    if pa.types.is_list(arrow):
        slot = _SLOTS[arrow.value_type]
        items = [v // MICROSECONDS for v in value] if slot == "unix_timestamp" else value
        return Value(**{f"{slot}_list_val": _LISTS[slot](val=items)})
    slot = _SLOTS[arrow]
    return Value(**{f"{slot}_val": value // MICROSECONDS if slot == "unix_timestamp" else value})


def from_value(value: Value, arrow: pa.DataType) -> Any:
    """The inverse of `to_value`, with timestamps as microseconds."""
    which = value.WhichOneof("val")
    if which is None:
        return None
    content = getattr(value, which)
    seconds = which.startswith("unix_timestamp")
    if pa.types.is_list(arrow):
        return [v * MICROSECONDS for v in content.val] if seconds else list(content.val)
    return content * MICROSECONDS if seconds else content


def rows_table(
    schema: ViewSchema, rows: Sequence[tuple[EntityKey, Mapping[str, Value], datetime, datetime | None]]
) -> pa.Table:
    """Feast's row-wise batch as the columns that `MilvusCore.upsert` wants."""
    types = {**schema.fields, **({schema.vector_field: pa.list_(pa.float32())} if schema.vector_field else {})}
    columns: dict[str, Any] = {
        schema.key: pa.array([entity_id(key) for key, *_ in rows], pa.string()),
        "event_timestamp": pa.array([_aware(event) for _, _, event, _ in rows], TIMESTAMP),
        "created": pa.array([_aware(created) for *_, created in rows], TIMESTAMP),
    }
    for name, arrow in types.items():
        values = [from_value(features.get(name, Value()), arrow) for _, features, _, _ in rows]
        try:
            columns[name] = _array(values, arrow)
        except pa.ArrowException as error:
            raise RefusedRowsError(f"view {schema.name}: feature {name} must be {arrow}: {error}", []) from error
    return pa.table(columns)


def _array(values: list[Any], arrow: pa.DataType) -> pa.Array:
    if pa.types.is_timestamp(arrow):
        return pa.array(values, pa.int64()).cast(arrow)
    if pa.types.is_list(arrow) and pa.types.is_timestamp(arrow.value_type):
        return pa.array(values, pa.list_(pa.int64())).cast(arrow)
    return pa.array(values, arrow)


def _aware(time: datetime | None) -> datetime | None:
    """Feast's rule: a time without a zone is UTC."""
    return time.replace(tzinfo=UTC) if time is not None and time.tzinfo is None else time


def value_row(schema: ViewSchema, names: Sequence[str], values: Sequence[Any]) -> dict[str, Value]:
    """One entity's features as Feast's messages; `values` as `MilvusCore.read_columns` gives them."""
    return {
        name: _vector_value(value) if name == schema.vector_field else to_value(value, schema.fields[name])
        for name, value in zip(names, values, strict=True)
    }


def _vector_value(vector: np.ndarray[Any, Any]) -> Value:
    return Value(float_list_val=Value_pb2.FloatList(val=vector))
