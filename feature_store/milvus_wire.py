"""Columns to Milvus's messages and back, without a Python object per value where numbers are concerned.

A float vector column of n rows is one block of n * dim little-endian floats on the wire; here it is copied as such.
"""

import base64
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pymilvus.grpc_gen import common_pb2, milvus_pb2, schema_pb2

from feature_store.milvus_schema import (
    CREATED,
    DELETED,
    EVENT,
    KEY,
    NULLS,
    Type,
    ViewSchema,
    is_list,
    milvus_type,
)
from feature_store.schemas import TIMESTAMP

_FIELD_1_PACKED: Final = b"\x0a"
_LENGTH_DELIMITED: Final = 2  # the wire type


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


def placeholder_group(vectors: NDArray[np.float32]) -> bytes:
    """Query vectors [q, dim], as a search request wants them."""
    rows = [row.tobytes() for row in np.ascontiguousarray(vectors, "<f4")]
    value = common_pb2.PlaceholderValue(tag="$0", type=common_pb2.PlaceholderType.FloatVector, values=rows)
    group: bytes = common_pb2.PlaceholderGroup(placeholders=[value]).SerializeToString()
    return group


_SPECIAL: Final = re.compile(r'[\\"\n\r\t]')
_ESCAPES: Final = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n", "\r": r"\r", "\t": r"\t"})


def quote(text: str) -> str:
    """A string literal of Milvus's expressions, which know these escapes on every server, and take other characters as they are."""
    return f'"{text.translate(_ESCAPES)}"'


def ids_expression(ids: Sequence[str]) -> str:
    """The expression that picks rows by key."""
    if _SPECIAL.search("".join(ids)):  # Looked for once, since hardly any id has to be escaped.
        return f"{KEY} in [{', '.join(quote(i) for i in ids)}]"
    listed = '", "'.join(ids)
    return f'{KEY} in ["{listed}"]' if ids else f"{KEY} in []"


_SLOTS: Final[Mapping[int, tuple[str, Callable[..., Any]]]] = {
    Type.Bool: ("bool_data", schema_pb2.BoolArray),
    Type.Int32: ("int_data", schema_pb2.IntArray),
    Type.Int64: ("long_data", schema_pb2.LongArray),
    Type.Float: ("float_data", schema_pb2.FloatArray),
    Type.Double: ("double_data", schema_pb2.DoubleArray),
    Type.VarChar: ("string_data", schema_pb2.StringArray),
}


def _values(kind: int, values: Any) -> schema_pb2.ScalarField:
    slot, array = _SLOTS[kind]
    return schema_pb2.ScalarField(**{slot: array(data=values)})


def _scalar(name: str, kind: int, values: Any) -> schema_pb2.FieldData:
    return schema_pb2.FieldData(type=kind, field_name=name, scalars=_values(kind, values))


def _array(name: str, kind: int, rows: Sequence[schema_pb2.ScalarField]) -> schema_pb2.FieldData:
    """A column of lists; rows may share a message."""
    values = schema_pb2.ScalarField(array_data=schema_pb2.ArrayArray(data=rows, element_type=kind))
    return schema_pb2.FieldData(type=Type.Array, field_name=name, scalars=values)


def _header(message: Any, field: str, size: int) -> bytes:
    """What comes before `size` bytes of a field that is a message, a text or packed numbers."""
    number = message.DESCRIPTOR.fields_by_name[field].number
    return _varint(number << 3 | _LENGTH_DELIMITED) + _varint(size)


def upsert_request(schema: ViewSchema, keys: list[str], batch: pa.Table, vectors: NDArray[np.float32]) -> bytes:
    """An UpsertRequest of all columns, on the wire: the vectors [n, dim] are copied once, from where they lie.

    A message's encoding is that of its fields one after another, so the vectors' column is appended to the encoding of the rest.
    """
    rest = milvus_pb2.UpsertRequest(
        collection_name=schema.name, fields_data=encode_columns(schema, keys, batch), num_rows=len(keys)
    )
    values = np.ascontiguousarray(vectors, "<f4")
    dim = schema_pb2.VectorField(dim=values.shape[1]).SerializeToString()
    data = _header(schema_pb2.FloatArray, "data", values.nbytes)
    floats = _header(schema_pb2.VectorField, "float_vector", len(data) + values.nbytes) + data
    named = schema_pb2.FieldData(type=Type.FloatVector, field_name=schema.stored_vector).SerializeToString()
    vector = _header(schema_pb2.FieldData, "vectors", len(dim) + len(floats) + values.nbytes) + dim + floats
    column = _header(milvus_pb2.UpsertRequest, "fields_data", len(named) + len(vector) + values.nbytes) + named + vector
    return b"".join([rest.SerializeToString(), column, values.data.cast("B")])


def encode_columns(schema: ViewSchema, keys: list[str], batch: pa.Table) -> list[schema_pb2.FieldData]:
    """All columns of an upsert but the vectors; `batch` holds `event_timestamp`, `created`, `deleted` and the features, as checked."""
    columns = [
        _scalar(KEY, Type.VarChar, keys),
        _scalar(EVENT, Type.Int64, batch["event_timestamp"].cast(pa.int64()).to_pylist()),
        _scalar(CREATED, Type.Int64, batch["created"].cast(pa.int64()).to_pylist()),
        _scalar(DELETED, Type.Bool, batch["deleted"].to_pylist()),
    ]
    features = {name: _without_nan(batch[name].combine_chunks()) for name in schema.fields}
    if features:
        columns.append(_null_names(features))
    return columns + [_encoded(name, column, schema.fields[name]) for name, column in features.items()]


def _null_names(features: Mapping[str, pa.Array]) -> schema_pb2.FieldData:
    """Each row's null features by name. Few combinations occur, so a row's message is made once for each of them."""
    names = list(features)
    is_null = np.stack([column.is_null().to_numpy(zero_copy_only=False) for column in features.values()], axis=1)
    patterns, row = np.unique(is_null, axis=0, return_inverse=True)
    messages = [_values(Type.VarChar, [names[i] for i in np.flatnonzero(pattern)]) for pattern in patterns]
    return _array(NULLS, Type.VarChar, [messages[i] for i in row.ravel().tolist()])


def _encoded(name: str, column: pa.Array, arrow: pa.DataType) -> schema_pb2.FieldData:
    kind = milvus_type(arrow)
    if not is_list(arrow):
        return _scalar(name, kind, _stored(column, arrow))
    empty = _values(kind, [])
    return _array(name, kind, [_values(kind, row) if row else empty for row in _list_rows(column, arrow)])


def _without_nan(column: pa.Array) -> pa.Array:
    """A NaN scalar is a missing value, as pandas and Feast have it."""
    return pc.if_else(pc.is_nan(column), None, column) if pa.types.is_floating(column.type) else column


def _stored(column: pa.Array, arrow: pa.DataType) -> list[Any]:
    """A scalar column's values as Milvus holds them; something in place of nulls, which are told elsewhere."""
    if pa.types.is_binary(arrow):
        return ["" if row is None else base64.b64encode(row).decode() for row in column.to_pylist()]
    if pa.types.is_timestamp(arrow):
        column, arrow = column.cast(TIMESTAMP).cast(pa.int64()), pa.int64()
    nothing = "" if pa.types.is_string(arrow) else False if pa.types.is_boolean(arrow) else 0
    return list(pc.fill_null(column.cast(arrow), nothing).to_pylist())


def _list_rows(column: pa.Array, arrow: pa.DataType) -> list[list[Any]]:
    value = arrow.value_type
    if pa.types.is_timestamp(value):
        column = column.cast(pa.list_(TIMESTAMP)).cast(pa.list_(pa.int64()))
    rows = [row or [] for row in column.to_pylist()]
    if pa.types.is_floating(value):  # In a list of floats a missing one is NaN, as Feast has it.
        return [[math.nan if v is None else v for v in row] if None in row else row for row in rows]
    if pa.types.is_binary(value):
        return [[None if v is None else base64.b64encode(v).decode() for v in row] for row in rows]
    return rows


def scalar_values(field: schema_pb2.FieldData) -> Any:
    """The stored values of a scalar column, as the message holds them."""
    return getattr(field.scalars, _SLOTS[field.type][0]).data


def list_values(field: schema_pb2.FieldData) -> list[Any]:
    """The stored values of each row of a column of lists, as the messages hold them."""
    array = field.scalars.array_data
    slot = _SLOTS[array.element_type][0]
    return [getattr(row, slot).data for row in array.data]


def numbers(field: schema_pb2.FieldData) -> NDArray[np.int64]:
    """An int64 column [n]."""
    return np.asarray(scalar_values(field), np.int64)


def decode(field: schema_pb2.FieldData, arrow: pa.DataType, missing: NDArray[np.bool_]) -> list[Any]:
    """A feature's values as Python objects, None where `missing` [n]; timestamps are microseconds since 1970."""
    if is_list(arrow):
        is_binary = pa.types.is_binary(arrow.value_type)
        read: Callable[[Any], Any] = (lambda row: [base64.b64decode(v) for v in row]) if is_binary else list
        values = list_values(field)
    else:
        read = base64.b64decode if pa.types.is_binary(arrow) else _same
        values = scalar_values(field)
    return [None if gone else read(value) for value, gone in zip(values, missing.tolist(), strict=True)]


def _same(value: Any) -> Any:
    return value


def null_mask(names: Sequence[Any], name: str) -> NDArray[np.bool_]:
    """Which rows [n] have no value for a feature, of each row's names of null features."""
    return np.fromiter((name in row for row in names), np.bool_, len(names))


def arrow_array(values: Sequence[Any], arrow: pa.DataType) -> pa.Array:
    """A feature's values, as `decode` gives them, as an Arrow array of its type."""
    if pa.types.is_timestamp(arrow):
        return pa.array(values, pa.int64()).cast(arrow)
    if pa.types.is_list(arrow) and pa.types.is_timestamp(arrow.value_type):
        return pa.array(values, pa.list_(pa.int64())).cast(arrow)
    return pa.array(values, arrow)
