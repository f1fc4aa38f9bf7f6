"""Filters by features as Milvus's boolean expressions: names are checked against the view, values against their types, texts are quoted.

Takes the shape of Feast's own filter objects (`type`, `key`, `value`; `type`, `filters`) without importing Feast, or plain mappings of
that shape. Null is neither equal nor unequal to a value, as in SQL; a comparison with None asks for null itself.
"""

import base64
import itertools
import re
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Protocol

import numpy as np
import pyarrow as pa

from feature_store.errors import StoreRequestError
from feature_store.milvus_schema import EVENT, KEY, NULLS, ViewSchema, is_list
from feature_store.milvus_wire import quote
from feature_store.schemas import as_us

_OPERATORS: Final[Mapping[str, str]] = {"eq": "==", "ne": "!=", "gt": ">", "gte": ">=", "lt": "<", "lte": "<="}
_ORDERED: Final = ("gt", "gte", "lt", "lte")
COMPARISONS: Final = (*_OPERATORS, "in", "nin")
MAX_DEPTH: Final = 32
_ASKED: Final = {EVENT: "event_timestamp", KEY: "entity_id"}  # what callers name these fields by
_INT64_MIN: Final = f"{-(2**63) + 1} - 1"  # Milvus reads the sign and the number apart, and that number would not fit
_FLOAT32_MAX: Final = float(np.finfo(np.float32).max)
_QUOTED: Final = re.compile(r'"(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.)*\'', re.DOTALL)


class Comparison(Protocol):
    """A feature compared with a value; `type` is one of `COMPARISONS`, and `value` a sequence for `in` and `nin`."""

    type: Any
    key: str
    value: Any


class Compound(Protocol):
    """Filters joined by `and` or `or`."""

    type: Any
    filters: Any


Filter = Comparison | Compound | Mapping[str, Any] | str | None


def expression(schema: ViewSchema, where: Filter, depth: int = 0) -> str:
    """The filter in Milvus's language; a text is taken as written in it.

    Raises `StoreRequestError` naming a feature that the view does not have, a value that is not of its type, or an unknown comparison.
    """
    if isinstance(where, str):
        return _whole(where)
    if depth > MAX_DEPTH:
        raise StoreRequestError(f"a filter of view {schema.name} is nested more than {MAX_DEPTH} deep")
    kind, parts = _get(where, "type"), _get(where, "filters")
    if parts is not None:
        if kind not in {"and", "or"} or not parts:
            raise StoreRequestError(
                f"filters are joined by 'and' or 'or', not {kind!r}, and there must be one at least"
            )
        return f" {kind} ".join(f"({expression(schema, part, depth + 1)})" for part in parts)
    if kind not in COMPARISONS:
        raise StoreRequestError(f"a filter's comparison must be one of {', '.join(COMPARISONS)}, not {kind!r}")
    return _comparison(schema, str(_get(where, "key")), str(kind), _get(where, "value"))


def _whole(text: str) -> str:
    """An expression that the caller wrote. Raises `StoreRequestError` where it would end the one that it is put into."""
    bare = _QUOTED.sub("", text)
    depths = list(itertools.accumulate((c == "(") - (c == ")") for c in bare))
    if any(c in bare for c in "\"'") or min(depths, default=0) < 0 or depths[-1:] not in ([], [0]):
        raise StoreRequestError(f"a filter's parentheses and quotes must match: {text!r}")
    return text


def _get(where: Any, name: str) -> Any:
    return where.get(name) if isinstance(where, Mapping) else getattr(where, name, None)


def _comparison(schema: ViewSchema, key: str, kind: str, value: Any) -> str:
    field, arrow = _field(schema, key)
    is_null = f"array_contains({NULLS}, {quote(key)})"
    if value is None:
        if kind not in {"eq", "ne"}:
            raise StoreRequestError(f"a filter of {key!r} compares null with {kind!r}; only eq and ne are possible")
        return is_null if kind == "eq" else f"not {is_null}"
    clause = _list_clause(field, arrow, kind, value) if is_list(arrow) else _clause(field, arrow, kind, value)
    # A null is stored as something like 0, which must not be found.
    return f"({clause} and not {is_null})" if key in schema.fields else clause


def _field(schema: ViewSchema, key: str) -> tuple[str, pa.DataType]:
    """The collection's field of a feature, of the entity's id or of the valid time, and its type."""
    if key in schema.fields:
        return key, schema.fields[key]
    if key in {schema.key, KEY}:
        return KEY, pa.string()
    if key == "event_timestamp":
        return EVENT, pa.timestamp("us", tz="UTC")
    known = [*schema.fields, schema.key, "event_timestamp"]
    raise StoreRequestError(f"view {schema.name} cannot be filtered by {key!r}; it can by {known}")


def _clause(field: str, arrow: pa.DataType, kind: str, value: Any) -> str:
    if kind in {"in", "nin"}:
        values = [_literal(field, arrow, v) for v in _several(field, value)]
        clauses = [f"{field} in [{', '.join(v for v in values if v != _INT64_MIN)}]"]
        if _INT64_MIN in values:  # it is an expression, which a list cannot hold
            clauses.append(f"{field} == {_INT64_MIN}")
        return f"{'not ' if kind == 'nin' else ''}({' or '.join(clauses)})"
    if kind in _ORDERED and (pa.types.is_boolean(arrow) or pa.types.is_binary(arrow)):
        raise StoreRequestError(f"{field!r} is of type {arrow}, which has no order for {kind!r}")
    return f"{field} {_OPERATORS[kind]} {_literal(field, arrow, value)}"


def _list_clause(field: str, arrow: pa.DataType, kind: str, value: Any) -> str:
    """Of a list, `eq` and `ne` ask whether it holds the value, `in` and `nin` whether it holds any of the values."""
    if kind not in _ORDERED:
        held = _several(field, value) if kind in {"in", "nin"} else [value]
        literals = [_literal(field, arrow.value_type, v) for v in held]
        if _INT64_MIN in literals:
            raise StoreRequestError(f"Milvus cannot look for {-(2**63)} in the list {field!r}")
        # Not `array_contains`, in which not every server takes negative numbers; and a list of no values is an error there.
        clause = f"array_contains_any({field}, [{', '.join(literals)}])" if literals else f"({KEY} in [])"
        return f"not {clause}" if kind in {"ne", "nin"} else clause
    raise StoreRequestError(
        f"{field!r} is a list, which has no order for {kind!r}; eq, ne, in and nin ask what it holds"
    )


def _several(field: str, value: Any) -> Sequence[Any]:
    if isinstance(value, str | bytes) or not isinstance(value, Sequence | set | frozenset):
        raise StoreRequestError(f"in and nin want a list of values for {field!r}, not {value!r}")
    return list(value)


def _literal(field: str, arrow: pa.DataType, value: Any) -> str:
    """A value in Milvus's language. Raises `StoreRequestError` where it is not of the feature's type."""
    if pa.types.is_boolean(arrow) and isinstance(value, bool):
        return "true" if value else "false"
    if pa.types.is_string(arrow) and isinstance(value, str):
        return quote(value)
    if pa.types.is_binary(arrow) and isinstance(value, bytes):
        return quote(base64.b64encode(value).decode())
    if pa.types.is_timestamp(arrow) and isinstance(value, datetime):
        return str(int(as_us([value if value.tzinfo else value.replace(tzinfo=UTC)], 1)[0]))
    number = _number(arrow, value) if isinstance(value, int | float) and not isinstance(value, bool) else None
    if number is not None:
        return number
    raise StoreRequestError(f"a filter compares {_ASKED.get(field, field)!r}, which is {arrow}, with {value!r}")


def _number(arrow: pa.DataType, value: float) -> str | None:
    """A number as a literal, None where the feature's type does not have it."""
    if pa.types.is_integer(arrow) and -(2**63) <= value < 2**63 and value == int(value):
        return _INT64_MIN if value == -(2**63) else str(int(value))
    if pa.types.is_float32(arrow) and abs(value) <= _FLOAT32_MAX:
        return repr(float(np.float32(value)))  # servers compare as float32 or as float64: this is the same in both
    return repr(float(value)) if pa.types.is_float64(arrow) and abs(value) <= sys.float_info.max else None
