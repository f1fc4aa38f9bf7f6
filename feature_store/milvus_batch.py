"""What is checked about rows before Milvus may see them: keys, vectors, and which of a key's rows is the newest; and about queries."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from encoders.space import UNIT_NORM_TOLERANCE
from feature_store.errors import RefusedRowsError, StoreRequestError
from feature_store.milvus_schema import MAX_LIST_VALUES, MAX_TEXT_BYTES, ViewSchema, is_list
from feature_store.parts import newest_rows
from feature_store.schemas import MAX_ID_BYTES, now_us, timestamps


@dataclass(frozen=True)
class Batch:
    """Checked rows, one per key: `vectors` [n, dim], times int64 us [n], `table` with the features and system columns."""

    keys: list[str]
    table: pa.Table
    vectors: NDArray[np.float32]
    event_us: NDArray[np.int64]
    created_us: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.keys)

    def slice(self, first: int, count: int) -> "Batch":
        """`count` rows from `first` on, without copying."""
        at = slice(first, first + count)
        return Batch(
            self.keys[at], self.table.slice(first, count), self.vectors[at], self.event_us[at], self.created_us[at]
        )

    def take(self, rows: NDArray[np.int64]) -> "Batch":
        """The rows at these positions."""
        keys = [self.keys[i] for i in rows]
        return Batch(keys, self.table.take(rows), self.vectors[rows], self.event_us[rows], self.created_us[rows])


def prepare(schema: ViewSchema, rows: pa.Table) -> Batch:
    """The newest row of each key of `rows`, checked.

    `rows` has the key, `event_timestamp`, the features, and may have `created` (default: now) and `deleted` (default: false).
    Raises `RefusedRowsError` naming the key of the first row whose id, time, vector or feature is wrong.
    """
    table = _with_system_columns(schema, rows)
    _check_keys(schema, table)
    event_us, created_us = (table[c].cast(pa.int64()).to_numpy() for c in ("event_timestamp", "created"))
    keys = table[schema.key].to_pylist()
    if len(set(keys)) < len(keys):
        newest = newest_rows(table[schema.key].combine_chunks(), event_us, created_us)
        table, event_us, created_us = table.take(newest), event_us[newest], created_us[newest]
        keys = table[schema.key].to_pylist()
    for name, arrow in schema.fields.items():
        _check_feature(schema, table, name, arrow)
    return Batch(keys, table, _vectors(schema, table, keys), event_us, created_us)


def _with_system_columns(schema: ViewSchema, rows: pa.Table) -> pa.Table:
    wanted = [schema.key, "event_timestamp", *schema.fields, *([schema.vector_field] if schema.vector_field else [])]
    missing = sorted(set(wanted) - set(rows.column_names))
    if missing:
        raise RefusedRowsError(f"rows for view {schema.name} lack columns {missing}; they have {rows.column_names}", [])
    count = rows.num_rows
    present = timestamps(np.full(count, now_us(), np.int64))
    created = rows["created"] if "created" in rows.column_names else present
    deleted = rows["deleted"] if "deleted" in rows.column_names else pa.array(np.zeros(count, np.bool_))
    table = rows.select(wanted).append_column("created", pc.coalesce(created, present))
    return table.append_column("deleted", pc.fill_null(deleted, False))


def _check_keys(schema: ViewSchema, table: pa.Table) -> None:
    lengths = pc.fill_null(pc.binary_length(table[schema.key].cast(pa.string())), 0)
    wrong = pc.or_(pc.equal(lengths, 0), pc.greater(lengths, MAX_ID_BYTES))
    _refuse(schema, table, wrong, f"ids must have 1 to {MAX_ID_BYTES} bytes")
    _refuse(schema, table, pc.is_null(table["event_timestamp"]), "rows need an event_timestamp")


def _check_feature(schema: ViewSchema, table: pa.Table, name: str, arrow: pa.DataType) -> None:
    """Refuse what Milvus could only cut or reject: texts and lists that are too long, and nulls within a list."""
    value = arrow.value_type if is_list(arrow) else arrow
    is_text = pa.types.is_string(value) or pa.types.is_binary(value)
    if not is_text and not is_list(arrow):
        return
    column = table[name].combine_chunks().cast(arrow)
    if is_list(arrow):
        too_many = pc.fill_null(pc.greater(pc.list_value_length(column), MAX_LIST_VALUES), False)
        _refuse(schema, table, too_many, f"{name} has more than {MAX_LIST_VALUES:,} values")
        if not pa.types.is_floating(value):
            _refuse(
                schema,
                table,
                _any_value(column, pc.is_null),
                f"{name} has a null in its list, which Milvus cannot hold",
            )
    if is_text:
        most = MAX_TEXT_BYTES // 4 * 3 if pa.types.is_binary(value) else MAX_TEXT_BYTES  # base64 makes 4 of 3
        wrong = _any_value(column, partial(_is_longer, most=most)) if is_list(arrow) else _is_longer(column, most)
        _refuse(schema, table, wrong, f"{name} has more than {most:,} bytes")


def _is_longer(texts: pa.Array, most: int) -> pa.Array:
    return pc.fill_null(pc.greater(pc.binary_length(texts), most), False)


def _any_value(column: pa.Array, is_wrong: Callable[[pa.Array], pa.Array]) -> pa.Array:
    """In which rows of a column of lists any value is wrong."""
    rows = np.unique(pc.list_parent_indices(column).filter(is_wrong(column.flatten())).to_numpy())
    found = np.zeros(len(column), np.bool_)
    found[rows] = True
    return pa.array(found)


def _refuse(schema: ViewSchema, table: pa.Table, wrong: pa.Array | pa.ChunkedArray, why: str) -> None:
    keys = table.filter(wrong)[schema.key].to_pylist()
    if keys:
        raise RefusedRowsError(
            f"view {schema.name}, row {keys[0]!r}: {why}; {len(keys)} such rows, nothing was written", keys
        )


def unit_vectors(count: int, dim: int) -> NDArray[np.float32]:
    """What tombstones and views without a vector hold: [count, dim], the first axis, which every metric accepts."""
    vectors = np.zeros((count, dim), np.float32)
    vectors[:, 0] = 1.0
    return vectors


def _vectors(schema: ViewSchema, table: pa.Table, keys: Sequence[str]) -> NDArray[np.float32]:
    if schema.vector_field is None:
        return unit_vectors(len(keys), schema.stored_dim)
    column = table[schema.vector_field].combine_chunks()
    dead = table["deleted"].to_numpy()
    live = np.flatnonzero(~dead)
    block = _checked_block(schema, keys, live, column.take(pa.array(live)) if dead.any() else column)
    if not dead.any():
        return block
    out = unit_vectors(len(keys), schema.stored_dim)
    out[live] = block
    return out


def _checked_block(
    schema: ViewSchema, keys: Sequence[str], live: NDArray[np.int64], values: pa.Array
) -> NDArray[np.float32]:
    """The live rows' vectors, float32 [n, dim], without copying them where they lie in one piece."""
    lengths = pc.fill_null(pc.list_value_length(values), -1).to_numpy()
    _refuse_at(schema, keys, live[lengths == -1], "the vector is null")
    _refuse_at(schema, keys, live[lengths != schema.dim], f"the vector must have {schema.dim} values")
    flat = values.flatten().cast(pa.float32()).to_numpy(zero_copy_only=False)
    block: NDArray[np.float32] = flat.reshape(-1, schema.dim)
    squares = np.einsum("nd,nd->n", block, block)
    # A NaN, an infinity and what overflows end in a sum of squares that is not finite: only then are values looked at.
    if not np.isfinite(squares).all():
        _refuse_at(schema, keys, live[~np.isfinite(block).all(axis=1)], "the vector is not finite")
    norms = np.sqrt(squares)
    if schema.unit_norm:
        _refuse_at(
            schema,
            keys,
            live[np.abs(norms - 1.0) > UNIT_NORM_TOLERANCE],
            "the vector's norm is not 1 (scale it, or set the view's tag unit_norm to false)",
        )
    if schema.metric == "COSINE":
        _refuse_at(schema, keys, live[norms == 0.0], "a zero vector has no cosine")
    return block


def _refuse_at(schema: ViewSchema, keys: Sequence[str], rows: NDArray[np.int64], why: str) -> None:
    wrong = [keys[i] for i in rows]
    if wrong:
        raise RefusedRowsError(
            f"view {schema.name}, row {wrong[0]!r}: {why}; {len(wrong)} such rows, nothing was written", wrong
        )


def checked_queries(schema: ViewSchema, vectors: NDArray[np.float32], k: int) -> NDArray[np.float32]:
    """Query vectors as float32 [q, dim]. Raises `StoreRequestError` naming what is wrong with them, or with the number of hits."""
    queries = np.atleast_2d(np.asarray(vectors, np.float32))
    if schema.vector_field is None:
        raise StoreRequestError(f"view {schema.name} has no vector to search by")
    if queries.ndim != 2 or queries.shape[1] != schema.dim or not len(queries):
        raise StoreRequestError(f"queries of view {schema.name} must be [q, {schema.dim}], not {list(queries.shape)}")
    if k < 1:
        raise StoreRequestError(f"a search of view {schema.name} is for {k} hits: ask for 1 or more")
    wrong = ~np.isfinite(queries).all(axis=1)
    why = "is not finite"
    if not wrong.any() and schema.metric == "COSINE":
        wrong, why = ~queries.any(axis=1), "is zero, which has no cosine"
    if wrong.any():
        raise StoreRequestError(f"query {int(np.flatnonzero(wrong)[0])} of view {schema.name} {why}")
    return queries
