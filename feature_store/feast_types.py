"""Feast's types and messages as Arrow types, view schemas and Python values, and back."""

import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feast import FeatureView
from feast.feature_view import DUMMY_ENTITY_ID, DUMMY_ENTITY_VAL
from feast.protos.feast.types import Value_pb2
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.types import Array, ComplexFeastType, PrimitiveFeastType, Set
from numpy.typing import NDArray

from feature_store.errors import RefusedRowsError, SchemaDriftError, StoreRequestError
from feature_store.milvus_schema import ViewSchema
from feature_store.milvus_wire import arrow_array, float_array
from feature_store.rebuilding import check_name
from feature_store.schemas import TIMESTAMP

Value = Value_pb2.Value
# Feast's type -> Arrow type, and the slot of Feast's message that holds it.
_TYPES: Final[Mapping[PrimitiveFeastType, tuple[pa.DataType, str]]] = {
    PrimitiveFeastType.STRING: (pa.string(), "string"),
    PrimitiveFeastType.JSON: (pa.string(), "json"),
    PrimitiveFeastType.UUID: (pa.string(), "uuid"),
    PrimitiveFeastType.TIME_UUID: (pa.string(), "time_uuid"),
    PrimitiveFeastType.DECIMAL: (pa.string(), "decimal"),
    PrimitiveFeastType.BYTES: (pa.binary(), "bytes"),
    PrimitiveFeastType.PDF_BYTES: (pa.binary(), "bytes"),
    PrimitiveFeastType.IMAGE_BYTES: (pa.binary(), "bytes"),
    PrimitiveFeastType.BOOL: (pa.bool_(), "bool"),
    PrimitiveFeastType.INT32: (pa.int32(), "int32"),
    PrimitiveFeastType.INT64: (pa.int64(), "int64"),
    PrimitiveFeastType.FLOAT32: (pa.float32(), "float"),
    PrimitiveFeastType.FLOAT64: (pa.float64(), "double"),
    PrimitiveFeastType.UNIX_TIMESTAMP: (TIMESTAMP, "unix_timestamp"),
}
# What an entity may be told by: its text is its id, the same from a message and from a table.
_KEY_TYPES: Final = frozenset(
    getattr(PrimitiveFeastType, name) for name in ("STRING", "INT32", "INT64", "UUID", "TIME_UUID")
)
_LISTS: Final = {
    "string": Value_pb2.StringList,
    "json": Value_pb2.StringList,
    "uuid": Value_pb2.StringList,
    "time_uuid": Value_pb2.StringList,
    "decimal": Value_pb2.StringList,
    "bytes": Value_pb2.BytesList,
    "bool": Value_pb2.BoolList,
    "int32": Value_pb2.Int32List,
    "int64": Value_pb2.Int64List,
    "float": Value_pb2.FloatList,
    "double": Value_pb2.DoubleList,
    "unix_timestamp": Value_pb2.Int64List,
}
_SETS: Final = {
    "string": Value_pb2.StringSet,
    "uuid": Value_pb2.StringSet,
    "time_uuid": Value_pb2.StringSet,
    "decimal": Value_pb2.StringSet,
    "bytes": Value_pb2.BytesSet,
    "bool": Value_pb2.BoolSet,
    "int32": Value_pb2.Int32Set,
    "int64": Value_pb2.Int64Set,
    "float": Value_pb2.FloatSet,
    "double": Value_pb2.DoubleSet,
    "unix_timestamp": Value_pb2.Int64Set,
}
_MESSAGES: Final = frozenset(
    (PrimitiveFeastType.MAP, PrimitiveFeastType.SCALAR_MAP, PrimitiveFeastType.ZONED_TIMESTAMP)
)
# Slots of Feast's message whose values are stored as that message.
_MESSAGE_SLOTS: Final = frozenset(
    f"{slot}_val"
    for slot in ("map", "map_list", "struct", "struct_list", "list", "set", "scalar_map", "zoned_timestamp")
)
KEY_SEPARATOR: Final = "\x1f"
# Id of the one row of a view without entities: Feast's own is the empty text, which is no id.
NO_ENTITY: Final[str] = DUMMY_ENTITY_ID
_KEY_ESCAPES: Final = (("\\", "\\\\"), (KEY_SEPARATOR, "\\x"))
MICROSECONDS: Final = 1_000_000


def _known(dtype: Any) -> tuple[pa.DataType, str]:
    """Arrow type and slot of a Feast type, of a list's or set's values for a list or set."""
    base = dtype.base_type if isinstance(dtype, Array | Set) else dtype
    if base not in _TYPES:
        raise SchemaDriftError(f"features of type {dtype} cannot be stored online")
    return _TYPES[base]


def is_message(dtype: Any) -> bool:
    """Whether values of a Feast type (maps, structs, lists of lists, times with a zone) are stored as Feast's own messages."""
    base = dtype.base_type if isinstance(dtype, Array | Set) else dtype
    return isinstance(base, ComplexFeastType) or base in _MESSAGES


def arrow_type(dtype: Any) -> pa.DataType:
    """Arrow type of a Feast type. Raises `SchemaDriftError` for the types that the store does not keep."""
    if is_message(dtype):
        return pa.binary()
    arrow, _ = _known(dtype)
    return pa.list_(arrow) if isinstance(dtype, Array | Set) else arrow


def view_schema(view: FeatureView) -> ViewSchema:
    """The Milvus view of a Feast view: dim and metric from its Field, TTL from the view, the rest from its tags.

    Tags: `index` (FLAT, HNSW, AUTOINDEX), `index_params` and `search_params` (JSON objects, such as `{"M": 16}` and `{"ef": 128}`), and
    `unit_norm` ("true" or "false"; true for COSINE where it is left out). Raises `SchemaDriftError` for a vector that is not
    `Array(Float32)`, for types that cannot be stored and for parameters that the index does not have.
    """
    check_name(view.name)
    if wrong := [c.name for c in view.entity_columns if c.dtype not in _KEY_TYPES]:
        raise SchemaDriftError(f"join keys {wrong} of view {view.name} must be strings, integers or UUIDs")
    ttl: timedelta | None = getattr(view, "ttl", None)  # on-demand views have none
    ttl_us = ttl // timedelta(microseconds=1) if ttl else None
    vectors = [f for f in view.features if f.vector_index]
    scalars = {f.name: arrow_type(f.dtype) for f in view.features if not f.vector_index}
    if not vectors:
        return ViewSchema(view.name, scalars, ttl_us=ttl_us)
    if len(vectors) > 1:
        named = ", ".join(field.name for field in vectors)
        raise SchemaDriftError(
            f"view {view.name} has several vectors ({named}); Milvus searches one: give each a view of its own"
        )
    vector = vectors[0]
    if arrow_type(vector.dtype) != pa.list_(pa.float32()):
        raise SchemaDriftError(f"vector {vector.name} of view {view.name} must be Array(Float32)")
    metric = (vector.vector_search_metric or "COSINE").upper()
    return ViewSchema(
        view.name,
        scalars,
        vector.name,
        vector.vector_length,
        metric,
        view.tags.get("index", "FLAT").upper(),
        view.tags.get("unit_norm", str(metric == "COSINE")).lower() == "true",
        index_params=_json_tag(view, "index_params"),
        search_params=_json_tag(view, "search_params"),
        ttl_us=ttl_us,
    )


def _json_tag(view: FeatureView, name: str) -> dict[str, Any]:
    text = view.tags.get(name, "{}")
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise SchemaDriftError(f"tag {name} of view {view.name} must be a JSON object, not {text!r}")
    return value


def entity_id(key: EntityKey) -> str:
    """The store's id of an entity key: its value as text; several values are joined by U+001F in the order of their names."""
    if not set(key.join_keys) - {DUMMY_ENTITY_ID}:  # Feast names it when it reads, and names nothing when it writes
        return NO_ENTITY
    values = dict(zip(key.join_keys, key.entity_values, strict=True))
    texts = [str(getattr(values[name], values[name].WhichOneof("val") or "string_val")) for name in sorted(values)]
    return texts[0] if len(texts) == 1 else KEY_SEPARATOR.join(map(_escaped, texts))


def _escaped(text: str) -> str:
    """A part of a joined id, in which the separator does not occur."""
    for old, new in _KEY_ESCAPES:
        text = text.replace(old, new)
    return text


def joined_ids(columns: Sequence[pa.ChunkedArray]) -> pa.ChunkedArray:
    """The store's ids of a table's rows; `columns` are the join keys in the order of their names. The same as `entity_id`."""
    texts = [column.cast(pa.string()) for column in columns]
    if len(texts) == 1:
        return texts[0]
    for old, new in _KEY_ESCAPES:
        texts = [pc.replace_substring(text, old, new) for text in texts]
    return pc.binary_join_element_wise(*texts, KEY_SEPARATOR)


def store_id(view: FeatureView, key: str | int | Mapping[str, Any] | EntityKey) -> str:
    """The store's id of what a person names an entity by: its id, or the values of several join keys by name.

    Raises `StoreRequestError` where the view has other join keys.
    """
    if isinstance(key, EntityKey):
        return entity_id(key)
    names = sorted(column.name for column in view.entity_columns)
    if isinstance(key, Mapping):
        if sorted(key) != names:
            raise StoreRequestError(
                f"view {view.name} has the join keys {', '.join(names)}, not {', '.join(sorted(key))}"
            )
        texts = [str(key[name]) for name in names]
        return texts[0] if len(texts) == 1 else KEY_SEPARATOR.join(map(_escaped, texts))
    if not isinstance(key, str | int) or len(names) != 1:
        example = "{" + ", ".join(f"{name!r}: ..." for name in names) + "}"
        raise StoreRequestError(
            f"view {view.name} has the join keys {', '.join(names)}: name a row by {example}, not {key!r}"
        )
    return str(key)


def store_ids(view: FeatureView, keys: Sequence[str | int | Mapping[str, Any] | EntityKey]) -> list[str]:
    """`store_id` of each; a single text is refused, since its letters would be taken for ids."""
    if isinstance(keys, str | Mapping | EntityKey):
        raise StoreRequestError(
            f"rows of view {view.name} are named by a list of ids, not by {keys!r} itself: write [{keys!r}]"
        )
    return [store_id(view, key) for key in keys]


def entity_key(view: FeatureView, key: str) -> EntityKey:
    """The inverse of `entity_id`."""
    columns = sorted(view.entity_columns, key=lambda column: column.name)
    if key == NO_ENTITY and [column.name for column in columns] == [DUMMY_ENTITY_ID]:
        key = DUMMY_ENTITY_VAL
    parts = [key] if len(columns) == 1 else key.split(KEY_SEPARATOR)
    texts = parts if len(columns) == 1 else [_unescaped(part) for part in parts]
    slots = [_TYPES[column.dtype][1] for column in columns]
    values = [_key_value(slot, text) for slot, text in zip(slots, texts, strict=True)]
    return EntityKey(join_keys=[column.name for column in columns], entity_values=values)


def _key_value(slot: str, text: str) -> Value:
    content: Any = int(text) if slot.startswith("int") else text
    return Value(**{f"{slot}_val": content})


def _unescaped(text: str) -> str:
    return re.sub(r"\\(.)", lambda match: KEY_SEPARATOR if match[1] == "x" else match[1], text)


def to_value(value: Any, dtype: Any) -> Value:
    """A feature's value as Feast's message; None is the message without a value. Timestamps lose what is below a second."""
    if value is None:
        return Value()
    if is_message(dtype):
        return Value.FromString(value)
    slot = _known(dtype)[1]
    in_seconds = slot == "unix_timestamp"
    if isinstance(dtype, Array | Set):
        items = [v // MICROSECONDS for v in value] if in_seconds else value
        kind, message = ("set", _SETS[slot]) if isinstance(dtype, Set) else ("list", _LISTS[slot])
        return Value(**{f"{slot}_{kind}_val": message(val=items)})
    return Value(**{f"{slot}_val": value // MICROSECONDS if in_seconds else value})


def from_value(value: Value, arrow: pa.DataType) -> Any:
    """The inverse of `to_value`, with timestamps as microseconds."""
    which = value.WhichOneof("val")
    if which in {None, "null_val"}:
        return None
    if which in _MESSAGE_SLOTS:
        return value.SerializeToString(deterministic=True)
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
            columns[name] = arrow_array(values, arrow)
        except pa.ArrowException as error:
            raise RefusedRowsError(f"view {schema.name}: feature {name} must be {arrow}: {error}", []) from error
    return pa.table(columns)


def _aware(time: datetime | None) -> datetime | None:
    """Feast's rule: a time without a zone is UTC."""
    return time.replace(tzinfo=UTC) if time is not None and time.tzinfo is None else time


def value_rows(view: FeatureView, names: Sequence[str], columns: Mapping[str, Sequence[Any]]) -> list[dict[str, Value]]:
    """Features as Feast's messages, a mapping per entity; `columns` as `MilvusCore.read_columns` gives them."""
    types = {feature.name: feature.dtype for feature in view.features}
    vectors = {feature.name for feature in view.features if feature.vector_index}
    made = [[vector_value(v) if name in vectors else to_value(v, types[name]) for v in columns[name]] for name in names]
    return [dict(zip(names, row, strict=True)) for row in zip(*made, strict=True)]


def vector_value(vector: NDArray[np.float32] | None) -> Value:
    """A vector [dim] as Feast's message, made from its bytes."""
    if vector is None:
        return Value()
    packed = float_array(vector).SerializeToString()  # Milvus's message and Feast's have the same form on the wire
    return Value(float_list_val=Value_pb2.FloatList.FromString(packed))
