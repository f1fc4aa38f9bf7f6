"""A view's collection is rebuilt beside the old one, which serves meanwhile, and takes its name: for added features, another index or metric.

Milvus 2.3 can neither add a field nor swap two collections at once. Between the two renames a reader finds nothing for some milliseconds
and asks again (`MilvusCore`); what a killed process left between them is finished by `recover`.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np
import pyarrow as pa

from feature_store.errors import LateWriteError, SchemaDriftError, StoreRequestError
from feature_store.lease import Lease
from feature_store.milvus_core import MilvusCore
from feature_store.milvus_reply import block, feature_column
from feature_store.milvus_schema import CREATED, DELETED, EVENT, KEY, NULLS, ViewSchema, check_drift, is_rebuildable
from feature_store.milvus_wire import arrow_array, numbers, scalar_values
from feature_store.schemas import timestamps
from feature_store.writing import ViewWriter

NEW: Final = "__rebuilt"
OLD: Final = "__replaced"


def rebuild(
    core: MilvusCore,
    schema: ViewSchema,
    lease: Lease,
    progress: Callable[[int, int], None] | None = None,
    *,
    keep_rows: bool = True,
) -> int:
    """Copy the view's rows, tombstones too, into a collection as `schema` says and swap it in; return how many were copied.

    Features that the stored view lacks are null. With `keep_rows` false only tombstones are copied, so that what was deleted does not come
    back with the next load. `progress` is called with (rows copied, rows in all). Raises `SchemaDriftError` where the rows do not
    fit, before anything is changed, and `LeaseError` where the lease was lost: the view stays as it was.
    """
    stored = core.describe_view(schema.name, refresh=True)
    if keep_rows and not is_rebuildable(stored, schema):
        check_drift(stored, schema)
    target = replace(schema, name=schema.name + NEW)
    core.drop_view(target.name)
    core.create_view(target)
    total, done = core.count_rows(schema.name), 0
    if not keep_rows:
        total -= core.count(schema.name)
    with ViewWriter(core, target.name, lease, distinct=True) as writer:
        for reply in core.pages(schema.name, _stored_fields(stored) if keep_rows else [EVENT, CREATED, DELETED]):
            table = _rows(stored, target, reply) if keep_rows else _tombstones(target, reply)
            writer.write(table)
            done += table.num_rows
            if progress is not None:
                progress(done, total)
    core.flush(target.name)
    if core.count_rows(target.name) != total:
        raise StoreRequestError(
            f"view {schema.name}: {core.count_rows(target.name)} of {total} rows were copied; it stays as it was"
        )
    lease.check()
    core.rename_view(schema.name, schema.name + OLD)
    if not lease.confirm():  # Since the check somebody else may have written rows that are not in the copy.
        core.rename_view(schema.name + OLD, schema.name)
        raise LateWriteError(f"the lease of view {schema.name} was taken over before the swap: it stays as it was")
    recover(core, schema.name)
    return total


def recover(core: MilvusCore, name: str) -> None:
    """Finish a swap, or clear up after a copy, that ended half-way."""
    there = set(core.list_views())
    if name not in there and name + OLD in there:
        source = name + NEW if name + NEW in there else name + OLD
        core.rename_view(source, name)
        core.load(name)
        there = set(core.list_views())
    for leftover in there & {name + NEW, name + OLD}:
        core.drop_view(leftover)


def check_name(name: str) -> None:
    """Raise `SchemaDriftError` for a view whose name would be taken for a rebuilt one's."""
    if name.endswith((NEW, OLD)):
        raise SchemaDriftError(f"view {name!r} may not end in {NEW!r} or {OLD!r}, which name rebuilt views: rename it")


def _stored_fields(stored: ViewSchema) -> list[str]:
    nulls = [NULLS] if stored.fields else []
    return [EVENT, CREATED, DELETED, *nulls, stored.stored_vector, *stored.fields]


def _tombstones(target: ViewSchema, reply: Mapping[str, Any]) -> pa.Table:
    """The deleted rows of a page of the old collection, for a new one of any features."""
    columns = _own_columns(target, reply)
    count = len(columns[target.key])
    columns |= {name: pa.nulls(count, arrow) for name, arrow in target.fields.items()}
    if target.vector_field is not None:
        columns[target.vector_field] = pa.nulls(count, pa.list_(pa.float32()))
    return pa.table(columns).filter(columns["deleted"])


def _own_columns(target: ViewSchema, reply: Mapping[str, Any]) -> dict[str, Any]:
    """What every row has beside its features: id, both times, and whether it is deleted."""
    return {
        target.key: pa.array(list(scalar_values(reply[KEY])), pa.string()),
        "event_timestamp": timestamps(numbers(reply[EVENT])),
        "created": timestamps(numbers(reply[CREATED])),
        "deleted": pa.array(np.asarray(scalar_values(reply[DELETED]), np.bool_)),
    }


def _rows(stored: ViewSchema, target: ViewSchema, reply: Mapping[str, Any]) -> pa.Table:
    """A page of the old collection as rows for the new one."""
    columns = _own_columns(target, reply)
    for name, arrow in target.fields.items():
        columns[name] = (
            arrow_array(feature_column(stored, reply, name), arrow)
            if name in stored.fields
            else pa.nulls(len(columns[target.key]), arrow)
        )
    if target.vector_field is not None:
        vectors = block(stored, reply)
        offsets = np.arange(0, vectors.size + 1, target.dim, dtype=np.int32)
        columns[target.vector_field] = pa.ListArray.from_arrays(offsets, vectors.reshape(-1))
    return pa.table(columns)
