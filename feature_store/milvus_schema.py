"""What a view looks like in Milvus: the collection's fields, how Arrow types are stored, and whether a collection still fits.

Works on servers without nullable fields: each row names its null features in an array beside the values. The view's own
description lies in a collection property, so that any process reads columns back in the types that they were written in.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Self

import pyarrow as pa
from pymilvus.grpc_gen import common_pb2, milvus_pb2, schema_pb2

from feature_store.errors import SchemaDriftError
from feature_store.schemas import MAX_ID_BYTES, TIMESTAMP

PROPERTY: Final = "triptych.view"
FORMAT: Final = 2
REBUILD_VARIABLE: Final = "TRIPTYCH_REBUILD"
KEY: Final = "entity_id"
EVENT: Final = "row_event_us"
CREATED: Final = "row_created_us"
DELETED: Final = "row_deleted"
NULLS: Final = "row_nulls"  # names of the row's null features
PLACEHOLDER: Final = "row_vector"  # Milvus wants a vector in every collection
PLACEHOLDER_DIM: Final = 2
ROW_COLUMNS: Final = ("event_timestamp", "created", "deleted")  # of every batch
SYSTEM_FIELDS: Final = (KEY, EVENT, CREATED, DELETED, NULLS, PLACEHOLDER)
MAX_TEXT_BYTES: Final = 65_535
MAX_LIST_VALUES: Final = 4_096
MAX_FIELDS: Final = 56  # Milvus has at most 64 fields a collection
MAX_NAME_BYTES: Final = 255
METRICS: Final = ("COSINE", "IP", "L2")
# Index -> its build parameters and their defaults.
INDEXES: Final[Mapping[str, Mapping[str, int]]] = {
    "FLAT": {},
    "HNSW": {"M": 16, "efConstruction": 200},
    "AUTOINDEX": {},
}
# What a view may change without its rows being touched: how it is searched, and how old a row may be.
SOFT: Final = frozenset({"search_params", "ttl_us"})

Type = schema_pb2.DataType
_SCALARS: Final[Mapping[str, tuple[pa.DataType, int]]] = {
    "bool": (pa.bool_(), Type.Bool),
    "int32": (pa.int32(), Type.Int32),
    "int64": (pa.int64(), Type.Int64),
    "float": (pa.float32(), Type.Float),
    "double": (pa.float64(), Type.Double),
    "string": (pa.string(), Type.VarChar),
    "binary": (pa.binary(), Type.VarChar),  # base64: Milvus has no bytes
    "timestamp": (TIMESTAMP, Type.Int64),  # microseconds since 1970
}
_NAMES: Final = {arrow: name for name, (arrow, _) in _SCALARS.items()}


def type_name(arrow: pa.DataType) -> str:
    """Name under which a field's type is kept: `int64`, `list<string>` ... Raises `SchemaDriftError` for types that cannot be stored."""
    if is_list(arrow) and not is_list(arrow.value_type):
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
        index: `FLAT` is exact, `HNSW` is for large catalogues, `AUTOINDEX` leaves the choice to the server.
        unit_norm: whether vectors of another norm are refused.
        key: column of a batch that holds the entity's id.
        index_params: how the index is built, completed by its defaults: HNSW's `M` and `efConstruction`.
        search_params: how it is searched by default: HNSW's `ef`.
        ttl_us: rows whose `event_timestamp` is older than this, in microseconds, are missing to readers; None for never.
    """

    name: str
    fields: Mapping[str, pa.DataType] = field(default_factory=dict, hash=False)
    vector_field: str | None = None
    dim: int = 0
    metric: str = "COSINE"
    index: str = "FLAT"
    unit_norm: bool = True
    key: str = KEY
    index_params: Mapping[str, int] = field(default_factory=dict, hash=False)
    search_params: Mapping[str, Any] = field(default_factory=dict, hash=False)
    ttl_us: int | None = None

    def __post_init__(self) -> None:
        problem = self._problem()
        if problem:
            raise SchemaDriftError(f"view {self.name}: {problem}")
        object.__setattr__(self, "index_params", {**INDEXES[self.index], **self.index_params})

    def _problem(self) -> str | None:
        reserved = set(self.fields) & {*SYSTEM_FIELDS, *ROW_COLUMNS, self.key, self.vector_field}
        if reserved or self.vector_field in SYSTEM_FIELDS:
            return f"feature names {sorted(reserved) or self.vector_field} are reserved"
        if len(self.fields) > MAX_FIELDS:
            return f"it has {len(self.fields)} features; at most {MAX_FIELDS} can be stored"
        if self.vector_field is not None and self.dim < 2:
            return f"vector {self.vector_field!r} needs a dim of at least 2, not {self.dim}"
        if self.metric not in METRICS or self.index not in INDEXES:
            return f"metric {self.metric!r} must be one of {METRICS}, index {self.index!r} one of {tuple(INDEXES)}"
        if unknown := set(self.index_params) - set(INDEXES[self.index]):
            known = sorted(INDEXES[self.index]) or "none"
            return f"index {self.index} has no parameters {sorted(unknown)}; it has {known}"
        return None

    def search_options(self, k: int, params: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """How a search for `k` is made: by `params`, else by the view's own, else among twice as many candidates, and 64 or more.

        A number of candidates (`ef`) below `k` is raised to it, since servers refuse to search so.
        """
        usual = {} if self.index == "FLAT" else {"ef": max(64, 2 * k)}
        options = {**usual, **self.search_params, **(params or {})}
        if isinstance(options.get("ef"), int):
            options["ef"] = max(options["ef"], k)
        return options

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
        return json.dumps({**self.plain(), "format": FORMAT}, sort_keys=True)

    def plain(self) -> dict[str, Any]:
        """The description in JSON's types."""
        types = {name: type_name(arrow) for name, arrow in self.fields.items()}
        built = {"index_params": dict(self.index_params), "search_params": dict(self.search_params)}
        return {**vars(self), **built, "fields": types}

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse of `to_json`. Raises `SchemaDriftError` for a format of another version."""
        data: dict[str, Any] = json.loads(text)
        found = data.pop("format", None)
        if found != FORMAT:
            raise SchemaDriftError(
                f"a view was stored in format {found}, this is {FORMAT}: make it anew with `{REBUILD_VARIABLE}=VIEW feast apply`, and "
                "materialize it in full"
            )
        return cls(**{**data, "fields": {name: type_of(t) for name, t in data["fields"].items()}})


def milvus_type(arrow: pa.DataType) -> int:
    """Milvus's type for a feature's values, or for the values of a list."""
    value = arrow.value_type if is_list(arrow) else arrow
    return int(_SCALARS[type_name(value)][1])


def is_list(arrow: pa.DataType) -> bool:
    """Whether a feature holds several values."""
    return bool(pa.types.is_list(arrow) or pa.types.is_large_list(arrow))


def _params(**values: object) -> list[common_pb2.KeyValuePair]:
    return [common_pb2.KeyValuePair(key=key, value=str(value)) for key, value in values.items()]


def _feature(name: str, arrow: pa.DataType) -> schema_pb2.FieldSchema:
    kind = milvus_type(arrow)
    limits = {"max_length": MAX_TEXT_BYTES} if kind == Type.VarChar else {}
    if not is_list(arrow):
        return schema_pb2.FieldSchema(name=name, data_type=kind, type_params=_params(**limits))
    limits["max_capacity"] = MAX_LIST_VALUES
    return schema_pb2.FieldSchema(name=name, data_type=Type.Array, element_type=kind, type_params=_params(**limits))


def _nulls() -> schema_pb2.FieldSchema:
    limits = _params(max_length=MAX_NAME_BYTES, max_capacity=MAX_FIELDS)
    return schema_pb2.FieldSchema(name=NULLS, data_type=Type.Array, element_type=Type.VarChar, type_params=limits)


def create_request(schema: ViewSchema) -> milvus_pb2.CreateCollectionRequest:
    """The request that makes the view's collection."""
    key = schema_pb2.FieldSchema(
        name=KEY, is_primary_key=True, data_type=Type.VarChar, type_params=_params(max_length=MAX_ID_BYTES)
    )
    times = [schema_pb2.FieldSchema(name=name, data_type=Type.Int64) for name in (EVENT, CREATED)]
    deleted = schema_pb2.FieldSchema(name=DELETED, data_type=Type.Bool)
    vector = schema_pb2.FieldSchema(
        name=schema.stored_vector, data_type=Type.FloatVector, type_params=_params(dim=schema.stored_dim)
    )
    features = [_feature(name, arrow) for name, arrow in schema.fields.items()]
    nulls = [_nulls()] if features else []
    fields = [key, *times, deleted, *nulls, vector, *features]
    collection = schema_pb2.CollectionSchema(name=schema.name, fields=fields)
    return milvus_pb2.CreateCollectionRequest(
        collection_name=schema.name,
        schema=collection.SerializeToString(),
        shards_num=1,
        consistency_level=common_pb2.Bounded,
        properties=_params(**{PROPERTY: schema.to_json()}),
    )


def alter_request(schema: ViewSchema) -> milvus_pb2.AlterCollectionRequest:
    """The request that gives a collection the view's description anew."""
    return milvus_pb2.AlterCollectionRequest(
        collection_name=schema.name, properties=_params(**{PROPERTY: schema.to_json()})
    )


def index_request(schema: ViewSchema) -> milvus_pb2.CreateIndexRequest:
    """The request that indexes the view's vector."""
    return milvus_pb2.CreateIndexRequest(
        collection_name=schema.name,
        field_name=schema.stored_vector,
        index_name=schema.stored_vector,
        extra_params=_params(
            index_type=schema.index, metric_type=schema.metric, params=json.dumps(dict(schema.index_params))
        ),
    )


def described(reply: milvus_pb2.DescribeCollectionResponse, name: str) -> ViewSchema:
    """The view that a collection was made for, under its present name. Raises `SchemaDriftError` for collections that are not ours."""
    for pair in reply.properties:
        if pair.key == PROPERTY:
            return replace(ViewSchema.from_json(pair.value), name=name)
    raise SchemaDriftError(f"collection {name!r} was not made by Triptych: rename the view, or drop the collection")


def drift(stored: ViewSchema, wanted: ViewSchema) -> dict[str, tuple[Any, Any]]:
    """What differs between a stored view and its definition: attribute -> (stored, wanted). Empty where nothing does."""
    old, new = stored.plain(), wanted.plain()
    return {name: (old[name], new[name]) for name in new if old[name] != new[name]}


def is_addition(stored: ViewSchema, wanted: ViewSchema) -> bool:
    """Whether the definition only adds features to what is stored, or changes what rows do not depend on."""
    kept = all(wanted.fields.get(name) == arrow for name, arrow in stored.fields.items())
    return kept and set(drift(stored, wanted)) <= {*SOFT, "fields"}


def is_rebuildable(stored: ViewSchema, wanted: ViewSchema) -> bool:
    """Whether the stored rows can be copied into a collection of the new definition: no value changes its type or length."""
    same = all(wanted.fields.get(name, arrow) == arrow for name, arrow in stored.fields.items())
    return same and not set(drift(stored, wanted)) & {"dim", "vector_field", "key"}


def check_drift(stored: ViewSchema, wanted: ViewSchema) -> None:
    """Raise `SchemaDriftError` naming every difference between a stored view and its definition, and what mends it."""
    found = {name: pair for name, pair in drift(stored, wanted).items() if name not in SOFT}
    if not found:
        return
    differences = "; ".join(f"{name}: stored {old!r}, defined {new!r}" for name, (old, new) in found.items())
    command = f"`{REBUILD_VARIABLE}={wanted.name} feast apply`"
    if is_rebuildable(stored, wanted):
        remedy = f"{command} copies its rows into a new collection, which then takes its place"
    else:
        remedy = (
            f"its rows do not fit: give the view another name, or drop them with {command} and materialize it in full"
        )
    raise SchemaDriftError(f"view {wanted.name!r} in Milvus is not what its definition says ({differences}); {remedy}")
