"""What a view looks like in Milvus: the collection's fields, how Arrow types are stored, and whether a collection still fits.

Works on servers without nullable fields and without arrays: nulls are a bit mask beside the values, lists are JSON text. The view's
own description lies in a collection property, so that any process reads columns back in the types that they were written in.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self

import pyarrow as pa
from pymilvus.grpc_gen import common_pb2, milvus_pb2, schema_pb2

from feature_store.errors import SchemaDriftError
from feature_store.schemas import MAX_ID_BYTES, TIMESTAMP

PROPERTY: Final = "triptych.view"
FORMAT: Final = 1
KEY: Final = "entity_id"
EVENT: Final = "row_event_us"
CREATED: Final = "row_created_us"
DELETED: Final = "row_deleted"
NULLS: Final = "row_nulls"
PLACEHOLDER: Final = "row_vector"  # Milvus wants a vector in every collection
PLACEHOLDER_DIM: Final = 2
SYSTEM_FIELDS: Final = (KEY, EVENT, CREATED, DELETED, NULLS, PLACEHOLDER)
MAX_TEXT_BYTES: Final = 65_535
MAX_FIELDS: Final = 62  # bits of the null mask

Type = schema_pb2.DataType
_SCALARS: Final[Mapping[str, tuple[pa.DataType, int]]] = {
    "bool": (pa.bool_(), Type.Bool),
    "int32": (pa.int32(), Type.Int64),
    "int64": (pa.int64(), Type.Int64),
    "float": (pa.float32(), Type.Float),
    "double": (pa.float64(), Type.Double),
    "string": (pa.string(), Type.VarChar),
    "binary": (pa.binary(), Type.VarChar),
    "timestamp": (TIMESTAMP, Type.Int64),
}
_NAMES: Final = {arrow: name for name, (arrow, _) in _SCALARS.items()}


def type_name(arrow: pa.DataType) -> str:
    """Name under which a field's type is kept: `int64`, `list<string>` ... Raises `SchemaDriftError` for types that cannot be stored."""
    if pa.types.is_list(arrow) or pa.types.is_large_list(arrow):
        return f"list<{type_name(arrow.value_type)}>"
    if pa.types.is_timestamp(arrow):
        return "timestamp"
    if arrow not in _NAMES:
        raise SchemaDriftError(
            f"a field of type {arrow} cannot be stored; there are {', '.join(_SCALARS)} and lists of them"
        )
    return _NAMES[arrow]


def type_of(name: str) -> pa.DataType:
    """The inverse of `type_name`."""
    if name.startswith("list<"):
        return pa.list_(type_of(name[5:-1]))
    return _SCALARS[name][0]


@dataclass(frozen=True)
class ViewSchema:
    """One view: features by name, at most one of them a vector.

    Attributes:
        name: of the view and its collection.
        fields: scalar and list features, name -> Arrow type, the vector not among them.
        vector_field: name of the vector feature, None where there is none.
        dim: length of the vector, 0 where there is none.
        metric: `COSINE`, `IP` or `L2`.
        index: Milvus's index type: `FLAT` is exact, `HNSW` is for large catalogues.
        unit_norm: whether vectors of another norm are refused.
        key: column of a batch that holds the entity's id.
    """

    name: str
    fields: Mapping[str, pa.DataType] = field(default_factory=dict, hash=False)
    vector_field: str | None = None
    dim: int = 0
    metric: str = "COSINE"
    index: str = "FLAT"
    unit_norm: bool = True
    key: str = KEY

    def __post_init__(self) -> None:
        reserved = set(self.fields) & {*SYSTEM_FIELDS, self.key}
        if reserved or self.vector_field in SYSTEM_FIELDS:
            raise SchemaDriftError(
                f"view {self.name}: feature names {sorted(reserved) or self.vector_field} are reserved"
            )
        if len(self.fields) > MAX_FIELDS:
            raise SchemaDriftError(
                f"view {self.name} has {len(self.fields)} features; at most {MAX_FIELDS} can be stored"
            )
        if self.vector_field is not None and self.dim < 2:
            raise SchemaDriftError(
                f"view {self.name}: vector {self.vector_field!r} needs a dim of at least 2, not {self.dim}"
            )

    @property
    def stored_vector(self) -> str:
        """Name of the collection's vector field."""
        return self.vector_field or PLACEHOLDER

    @property
    def stored_dim(self) -> int:
        """Dim of the collection's vector field."""
        return self.dim if self.vector_field else PLACEHOLDER_DIM

    def to_json(self) -> str:
        """The description that the collection carries."""
        plain = {**vars(self), "fields": {name: type_name(t) for name, t in self.fields.items()}, "format": FORMAT}
        return json.dumps(plain, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse of `to_json`. Raises `SchemaDriftError` for a format of another version."""
        data: dict[str, Any] = json.loads(text)
        found = data.pop("format", None)
        if found != FORMAT:
            raise SchemaDriftError(
                f"a view was stored in format {found}, this is {FORMAT}: drop it and materialize it again"
            )
        return cls(**{**data, "fields": {name: type_of(t) for name, t in data["fields"].items()}})


def milvus_type(arrow: pa.DataType) -> int:
    """Milvus's type for a feature's values."""
    name = type_name(arrow)
    return int(Type.VarChar) if name.startswith("list<") else int(_SCALARS[name][1])


def _params(**values: object) -> list[common_pb2.KeyValuePair]:
    return [common_pb2.KeyValuePair(key=key, value=str(value)) for key, value in values.items()]


def _feature(name: str, arrow: pa.DataType) -> schema_pb2.FieldSchema:
    kind = milvus_type(arrow)
    limits = _params(max_length=MAX_TEXT_BYTES) if kind == Type.VarChar else []
    return schema_pb2.FieldSchema(name=name, data_type=kind, type_params=limits)


def create_request(schema: ViewSchema) -> milvus_pb2.CreateCollectionRequest:
    """The request that makes the view's collection."""
    key = schema_pb2.FieldSchema(
        name=KEY, is_primary_key=True, data_type=Type.VarChar, type_params=_params(max_length=MAX_ID_BYTES)
    )
    times = [schema_pb2.FieldSchema(name=name, data_type=Type.Int64) for name in (EVENT, CREATED, NULLS)]
    deleted = schema_pb2.FieldSchema(name=DELETED, data_type=Type.Bool)
    vector = schema_pb2.FieldSchema(
        name=schema.stored_vector, data_type=Type.FloatVector, type_params=_params(dim=schema.stored_dim)
    )
    features = [_feature(name, arrow) for name, arrow in schema.fields.items()]
    collection = schema_pb2.CollectionSchema(name=schema.name, fields=[key, *times, deleted, vector, *features])
    return milvus_pb2.CreateCollectionRequest(
        collection_name=schema.name,
        schema=collection.SerializeToString(),
        shards_num=1,
        consistency_level=common_pb2.Bounded,
        properties=_params(**{PROPERTY: schema.to_json()}),
    )


def index_request(schema: ViewSchema) -> milvus_pb2.CreateIndexRequest:
    """The request that indexes the view's vector."""
    options = {"M": 16, "efConstruction": 200} if schema.index == "HNSW" else {}
    return milvus_pb2.CreateIndexRequest(
        collection_name=schema.name,
        field_name=schema.stored_vector,
        index_name=schema.stored_vector,
        extra_params=_params(index_type=schema.index, metric_type=schema.metric, params=json.dumps(options)),
    )


def described(reply: milvus_pb2.DescribeCollectionResponse, name: str) -> ViewSchema:
    """The view that a collection was made for. Raises `SchemaDriftError` for collections that are not ours."""
    for pair in reply.properties:
        if pair.key == PROPERTY:
            return ViewSchema.from_json(pair.value)
    raise SchemaDriftError(f"collection {name!r} was not made by Triptych: rename the view, or drop the collection")


def check_drift(stored: ViewSchema, wanted: ViewSchema) -> None:
    """Raise `SchemaDriftError` naming every difference between a stored view and its definition."""
    mine, theirs = json.loads(wanted.to_json()), json.loads(stored.to_json())
    differences = [f"{k}: stored {theirs[k]!r}, defined {mine[k]!r}" for k in mine if mine[k] != theirs[k]]
    if differences:
        raise SchemaDriftError(
            f"view {wanted.name!r} in Milvus is not what its definition says ({'; '.join(differences)}); "
            "a changed view needs another name, or drop this one and materialize it again in full"
        )
