"""Columns to Milvus's messages and back, without a Python object per value where numbers are concerned.

A float vector column of n rows is one block of n * dim little-endian floats on the wire; here it is copied as such.
"""

import base64
import json
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pymilvus.grpc_gen import common_pb2, schema_pb2

from feature_store.errors import RefusedRowsError
from feature_store.milvus_schema import (
    CREATED,
    DELETED,
    EVENT,
    KEY,
    MAX_TEXT_BYTES,
    NULLS,
    Type,
    ViewSchema,
    milvus_type,
)
from feature_store.schemas import TIMESTAMP

_FIELD_1_PACKED: Final = b"\x0a"


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def float_array(values: NDArray[np.float32]) -> schema_pb2.FloatArray:
    """A message of the values, made from their bytes."""
    raw = np.ascontiguousarray(values, "<f4").tobytes()
    return (
        schema_pb2.FloatArray.FromString(_FIELD_1_PACKED + _varint(len(raw)) + raw) if raw else schema_pb2.FloatArray()
    )


def floats(message: schema_pb2.FloatArray) -> NDArray[np.float32]:
    """The inverse of `float_array`: float32 [n]."""
    raw = message.SerializeToString()
    size = len(message.data) * 4
    return np.frombuffer(raw, "<f4", offset=len(raw) - size) if size else np.empty(0, np.float32)


def vector_field(name: str, vectors: NDArray[np.float32]) -> schema_pb2.FieldData:
    """A vector column [n, dim]."""
    vector = schema_pb2.VectorField(dim=vectors.shape[1], float_vector=float_array(vectors))
    return schema_pb2.FieldData(type=Type.FloatVector, field_name=name, vectors=vector)


def placeholder_group(vectors: NDArray[np.float32]) -> bytes:
    """Query vectors [q, dim], as a search request wants them."""
    rows = [row.tobytes() for row in np.ascontiguousarray(vectors, "<f4")]
    value = common_pb2.PlaceholderValue(tag="$0", type=common_pb2.PlaceholderType.FloatVector, values=rows)
    group: bytes = common_pb2.PlaceholderGroup(placeholders=[value]).SerializeToString()
    return group


_ESCAPES: Final = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n", "\r": r"\r", "\t": r"\t"})


def quote(text: str) -> str:
    """A string literal of Milvus's expressions, which know these escapes on every server, and take other characters as they are."""
    return f'"{text.translate(_ESCAPES)}"'


def ids_expression(ids: Sequence[str]) -> str:
    """The expression that picks rows by key."""
    return f"{KEY} in [{', '.join(quote(i) for i in ids)}]"


def _scalar(name: str, kind: int, values: Any) -> schema_pb2.FieldData:
    field = schema_pb2.FieldData(type=kind, field_name=name)
    slot, array = _SLOTS[kind]
    getattr(field.scalars, slot).CopyFrom(array(values))
    return field


def _doubles(values: Any) -> schema_pb2.DoubleArray:
    return schema_pb2.DoubleArray(data=values)


_SLOTS: Final[dict[int, tuple[str, Callable[[Any], Any]]]] = {
    Type.Bool: ("bool_data", lambda v: schema_pb2.BoolArray(data=v)),
    Type.Int64: ("long_data", lambda v: schema_pb2.LongArray(data=v)),
    Type.Float: ("float_data", lambda v: schema_pb2.FloatArray(data=v)),
    Type.Double: ("double_data", _doubles),
    Type.VarChar: ("string_data", lambda v: schema_pb2.StringArray(data=v)),
}


def encode_columns(
    schema: ViewSchema, keys: list[str], batch: pa.Table, vectors: NDArray[np.float32]
) -> list[schema_pb2.FieldData]:
    """All columns of an upsert: `batch` holds `event_timestamp`, `created`, `deleted` and the features, `vectors` is [n, dim]."""
    mask = np.zeros(len(keys), np.int64)
    features = []
    for bit, (name, arrow) in enumerate(schema.fields.items()):
        column = _without_nan(batch[name].combine_chunks())
        mask |= pc.is_null(column).to_numpy(zero_copy_only=False).astype(np.int64) << bit
        features.append(_scalar(name, milvus_type(arrow), _plain(name, column, arrow, keys)))
    return [
        _scalar(KEY, Type.VarChar, keys),
        _scalar(EVENT, Type.Int64, batch["event_timestamp"].cast(pa.int64()).to_pylist()),
        _scalar(CREATED, Type.Int64, batch["created"].cast(pa.int64()).to_pylist()),
        _scalar(DELETED, Type.Bool, batch["deleted"].to_pylist()),
        _scalar(NULLS, Type.Int64, mask.tolist()),
        vector_field(schema.stored_vector, vectors),
        *features,
    ]


def _without_nan(column: pa.Array) -> pa.Array:
    """A NaN scalar is a missing value, as pandas and Feast have it."""
    return pc.if_else(pc.is_nan(column), None, column) if pa.types.is_floating(column.type) else column


def _plain(name: str, column: pa.Array, arrow: pa.DataType, keys: list[str]) -> list[Any]:
    if pa.types.is_list(arrow):
        texts = ["" if row is None else _list_text(row) for row in _list_rows(column, arrow)]
    elif pa.types.is_binary(arrow):
        texts = ["" if row is None else base64.b64encode(row).decode() for row in column.to_pylist()]
    elif pa.types.is_string(arrow):
        texts = pc.fill_null(column.cast(pa.string()), "").to_pylist()
    elif pa.types.is_timestamp(arrow):
        return list(pc.fill_null(column.cast(TIMESTAMP).cast(pa.int64()), 0).to_pylist())
    else:
        return list(pc.fill_null(column.cast(arrow), False if pa.types.is_boolean(arrow) else 0).to_pylist())
    _check_lengths(name, texts, keys)
    return texts


def _check_lengths(name: str, texts: list[str], keys: list[str]) -> None:
    wrong = [key for key, text in zip(keys, texts, strict=True) if len(text.encode()) > MAX_TEXT_BYTES]
    if wrong:
        raise RefusedRowsError(
            f"{name} of {wrong[0]!r} has more than {MAX_TEXT_BYTES} bytes as stored; {len(wrong)} such", wrong
        )


def _list_rows(column: pa.Array, arrow: pa.DataType) -> list[list[Any] | None]:
    if pa.types.is_timestamp(arrow.value_type):
        column = column.cast(pa.list_(TIMESTAMP)).cast(pa.list_(pa.int64()))
    return list(column.to_pylist())


def _list_text(row: list[Any]) -> str:
    return json.dumps([_json_value(v) for v in row], ensure_ascii=False, separators=(",", ":"))


def _json_value(value: Any) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return None if isinstance(value, float) and value != value else value  # noqa: PLR0124 - NaN has no JSON


def scalar_values(field: schema_pb2.FieldData) -> Any:
    """The stored values of a scalar column, as the message holds them."""
    return getattr(field.scalars, _SLOTS[field.type][0]).data


def numbers(field: schema_pb2.FieldData) -> NDArray[np.int64]:
    """An int64 column [n]."""
    return np.asarray(scalar_values(field), np.int64)


def decode(field: schema_pb2.FieldData, arrow: pa.DataType, missing: NDArray[np.bool_]) -> list[Any]:
    """A feature's values as Python objects, None where `missing` [n]; timestamps are microseconds since 1970."""
    values = scalar_values(field)
    if pa.types.is_list(arrow):
        read: Callable[[Any], Any] = _list_reader(arrow.value_type)
    elif pa.types.is_binary(arrow):
        read = base64.b64decode
    elif pa.types.is_float32(arrow):
        read = float
    else:
        return [None if gone else value for value, gone in zip(values, missing, strict=True)]
    return [None if gone else read(value) for value, gone in zip(values, missing, strict=True)]


def _list_reader(value_type: pa.DataType) -> Callable[[str], list[Any]]:
    if pa.types.is_binary(value_type):
        return lambda text: [None if v is None else base64.b64decode(v) for v in json.loads(text)]
    if pa.types.is_floating(value_type):
        return lambda text: [float("nan") if v is None else float(v) for v in json.loads(text)]
    return lambda text: list(json.loads(text))


def null_mask(nulls: NDArray[np.int64], schema: ViewSchema, name: str) -> NDArray[np.bool_]:
    """Which rows [n] have no value for a feature."""
    bit = list(schema.fields).index(name)
    return (nulls >> bit & 1).astype(np.bool_)
