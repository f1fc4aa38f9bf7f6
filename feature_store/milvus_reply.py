"""Milvus's replies as columns in the caller's order: the reading half of the core, without a connection."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pymilvus.grpc_gen import common_pb2

from feature_store.errors import StoreRequestError
from feature_store.milvus_schema import CREATED, DELETED, EVENT, KEY, NULLS, ViewSchema
from feature_store.milvus_wire import decode, floats, list_values, null_mask, numbers, scalar_values
from feature_store.schemas import now_us, timestamps


@dataclass(frozen=True)
class SearchResult:
    """Hits per query, best first; `fields` holds the columns asked for, per query too."""

    ids: list[list[str]]
    scores: list[list[float]]
    fields: dict[str, list[list[Any]]] = field(default_factory=dict)


def pairs(values: Mapping[str, object]) -> list[common_pb2.KeyValuePair]:
    """Milvus's key-value parameters; dictionaries as JSON."""
    return [
        common_pb2.KeyValuePair(key=key, value=json.dumps(value) if isinstance(value, dict) else str(value))
        for key, value in values.items()
    ]


_TIMES: Final = {"event_timestamp": EVENT, "created": CREATED}


def stored_names(schema: ViewSchema, fields: Sequence[str]) -> list[str]:
    """The collection's fields to ask for. Raises `StoreRequestError` naming a feature that the view does not have."""
    unknown = [
        name for name in fields if name not in schema.fields and name not in _TIMES and name != schema.vector_field
    ]
    if unknown:
        raise StoreRequestError(f"view {schema.name} has no field {unknown[0]!r}; there are {sorted(schema.fields)}")
    nulls = [NULLS] if any(name in schema.fields for name in fields) else []
    return [*nulls, *(_TIMES.get(name, name) for name in fields)]


def feature_column(schema: ViewSchema, reply: Mapping[str, Any], name: str) -> Any:
    """One feature's values in the reply's order: a list, or float32 [n, dim] for the vector."""
    if name in _TIMES:
        return list(scalar_values(reply[_TIMES[name]]))
    if name == schema.vector_field:
        return block(schema, reply)
    return decode(reply[name], schema.fields[name], null_mask(list_values(reply[NULLS]), name))


def block(schema: ViewSchema, reply: Mapping[str, Any]) -> NDArray[np.float32]:
    """The reply's vectors, float32 [n, dim]."""
    return floats(reply[schema.stored_vector].vectors.float_vector).reshape(-1, schema.stored_dim)


def live_rows(schema: ViewSchema, reply: Mapping[str, Any]) -> NDArray[np.bool_]:
    """Which rows [n] of a reply readers may see: those that are neither deleted nor older than the view's TTL."""
    live = ~np.asarray(scalar_values(reply[DELETED]), np.bool_)
    return live if schema.ttl_us is None else live & (numbers(reply[EVENT]) >= now_us() - schema.ttl_us)


def vectors_in_order(
    schema: ViewSchema, ids: Sequence[str], replies: Sequence[Mapping[str, Any]]
) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.int64]]:
    """Vectors [n, dim], present [n] and event times us [n] of `ids`, whatever the order and number of replies."""
    at = {key: row for row, key in enumerate(key for reply in replies for key in scalar_values(reply[KEY]))}
    rows = np.asarray([at.get(i, -1) for i in ids], np.int64)
    present = np.concatenate([*(live_rows(schema, r) for r in replies), np.zeros(1, np.bool_)])[rows]
    if not present.any():
        return np.zeros((len(ids), schema.stored_dim), np.float32), present, np.zeros(len(ids), np.int64)
    vectors = _joined([block(schema, r) for r in replies if len(scalar_values(r[KEY]))])[rows]
    event_us = _joined([numbers(r[EVENT]) for r in replies])[rows]
    if not present.all():
        vectors[~present], event_us[~present] = 0.0, 0
    return vectors, present, event_us


def _joined(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """The parts one after another; not copied where there is one."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def columns_in_order(
    schema: ViewSchema, ids: Sequence[str], fields: Sequence[str], replies: Sequence[Mapping[str, Any]]
) -> dict[str, list[Any]]:
    """Values of each of `fields` in the order of `ids`, None where missing."""
    rows: dict[str, list[Any]] = {}
    for reply in replies:
        columns = [feature_column(schema, reply, name) for name in fields]
        keys, live = scalar_values(reply[KEY]), live_rows(schema, reply).tolist()
        rows.update((key, row) for key, is_live, *row in zip(keys, live, *columns, strict=True) if is_live)
    nothing = [None] * len(fields)
    found = [rows.get(i, nothing) for i in ids]
    return {name: [row[at] for row in found] for at, name in enumerate(fields)}


def record_batch(schema: ViewSchema, fields: Sequence[str], reply: Mapping[str, Any]) -> pa.RecordBatch:
    """The reply's live rows as Arrow columns: key, `event_timestamp`, then `fields`."""
    live = np.flatnonzero(live_rows(schema, reply))
    columns = {
        schema.key: pa.array(list(scalar_values(reply[KEY])), pa.string()),
        "event_timestamp": timestamps(numbers(reply[EVENT])),
    }
    for name in fields:
        if name == schema.vector_field:
            columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(block(schema, reply).reshape(-1)), schema.dim)
        elif name in _TIMES:
            columns[name] = timestamps(numbers(reply[_TIMES[name]]))
        else:
            columns[name] = pa.array(feature_column(schema, reply, name), schema.fields[name])
    return pa.RecordBatch.from_pydict(columns).take(pa.array(live))


def search_result(schema: ViewSchema, results: Any, queries: int, fields: Sequence[str]) -> SearchResult:
    """Hits of `queries` queries, cut apart."""
    ends = np.cumsum(list(results.topks)).tolist() if results.topks else [0] * queries
    cuts = list(zip([0, *ends[:-1]], ends, strict=True))
    ids, scores = list(results.ids.str_id.data), list(results.scores)
    reply = {data.field_name: data for data in results.fields_data}
    columns = {name: list(feature_column(schema, reply, name)) if ids else [] for name in fields}
    return SearchResult(
        [ids[a:b] for a, b in cuts],
        [scores[a:b] for a, b in cuts],
        {name: [column[a:b] for a, b in cuts] for name, column in columns.items()},
    )
