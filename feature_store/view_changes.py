"""What making a view as its definition says would change in Milvus, shown before it is done."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from feature_store.errors import SchemaDriftError
from feature_store.lease import Leases
from feature_store.milvus_core import MilvusCore
from feature_store.milvus_schema import REBUILD_VARIABLE, ViewSchema, check_drift, drift, is_addition, is_rebuildable
from feature_store.rebuilding import NEW, OLD, rebuild, recover

CREATE: Final = "create"
KEEP: Final = "unchanged"
ALTER: Final = "alter"
ADD: Final = "add features"
REBUILD: Final = "rebuild"
REMAKE: Final = "make anew, with its deletions alone"
REFUSE: Final = "refuse"


@dataclass(frozen=True)
class Change:
    """What one view needs.

    `create`, `unchanged`, `alter` (search parameters, TTL), `add features` (its rows are copied) or `refuse`; and where a person has named
    the view in TRIPTYCH_REBUILD, in place of `refuse`: `rebuild` (its rows are copied) or, where they do not fit, `make anew` (only what was
    deleted is kept in mind).
    """

    schema: ViewSchema
    kind: str
    detail: str = ""
    is_half_done: bool = False

    def __str__(self) -> str:
        return f"{self.schema.name}: {self.kind}{f' ({self.detail})' if self.detail else ''}"


def change_of(core: MilvusCore, schema: ViewSchema, existing: Sequence[str], *, strict: bool = True) -> Change:
    """The change that the view needs, given the names of the collections that exist.

    Raises `SchemaDriftError` where it cannot be made; with `strict` false that is told as a change of kind `refuse`.
    """
    half_done = bool({schema.name + NEW, schema.name + OLD} & set(existing))
    if schema.name not in existing:
        return Change(schema, CREATE, _summary(schema), half_done)
    try:
        return replace(_from_stored(core, schema), is_half_done=half_done)
    except SchemaDriftError as error:
        if schema.name in named_views():
            return Change(
                schema, REMAKE, "its rows do not fit the definition, the next load brings them again", half_done
            )
        if strict:
            raise
        return Change(schema, REFUSE, str(error), half_done)


def _from_stored(core: MilvusCore, schema: ViewSchema) -> Change:
    stored = core.describe_view(schema.name, refresh=True)
    found = drift(stored, schema)
    if is_addition(stored, schema):
        if "fields" not in found:
            details = [f"{name}: {old!r} -> {new!r}" for name, (old, new) in found.items()]
            return Change(schema, ALTER if details else KEEP, "; ".join(details))
        added = sorted(set(schema.fields) - set(stored.fields))
        return Change(
            schema,
            ADD,
            f"{', '.join(added)}; {core.count_rows(schema.name):,} rows are copied, the next load fills them",
        )
    if schema.name in named_views() and is_rebuildable(stored, schema):
        return Change(schema, REBUILD, f"{', '.join(found)}; {core.count_rows(schema.name):,} rows are copied")
    check_drift(stored, schema)
    raise AssertionError(f"view {schema.name}: {found} is neither an addition nor drift")


def named_views() -> set[str]:
    """The views that a person allows to be rebuilt or made anew."""
    return {name.strip() for name in os.environ.get(REBUILD_VARIABLE, "").split(",")} - {""}


def _summary(schema: ViewSchema) -> str:
    vector = [f"{schema.dim}-d, {schema.metric}, {schema.index}"] if schema.vector_field else []
    return ", ".join([*vector, f"{len(schema.fields)} scalar features"])


def make(core: MilvusCore, change: Change, leases: Leases, wait_seconds: float) -> None:
    """Make the change. Raises `LeaseError` where a writer of the view does not end within `wait_seconds`."""
    schema = change.schema
    if change.kind not in {ADD, REBUILD, REMAKE} and not change.is_half_done:
        core.create_view(schema)
        return
    with leases.hold(schema.name, wait_seconds) as lease:
        recover(core, schema.name)
        if change.kind in {ADD, REMAKE}:
            leases.remember_added(schema.name)
        if change.kind == REMAKE and not _is_readable(core, schema.name):
            core.drop_view(schema.name)
        elif change.kind in {ADD, REBUILD, REMAKE}:
            rebuild(core, schema, lease, keep_rows=change.kind != REMAKE)
        core.create_view(schema)


def _is_readable(core: MilvusCore, name: str) -> bool:
    """Whether the collection is a view of this format, whose rows can be told."""
    try:
        core.describe_view(name, refresh=True)
    except SchemaDriftError:
        return False
    return True
