"""What making a view as its definition says would change in Milvus, shown before it is done."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from feature_store.errors import SchemaDriftError
from feature_store.lease import Leases
from feature_store.milvus_core import MilvusCore
from feature_store.milvus_schema import SOFT, ViewSchema, check_drift, drift, is_addition
from feature_store.rebuilding import NEW, OLD, rebuild, recover

CREATE: Final = "create"
KEEP: Final = "unchanged"
ALTER: Final = "alter"
ADD: Final = "add features"
REFUSE: Final = "refuse"


@dataclass(frozen=True)
class Change:
    """What one view needs: `create`, `unchanged`, `alter` (search parameters, TTL), `add features` (its rows are copied), or `refuse`."""

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
        stored = core.describe_view(schema.name, refresh=True)
        found = drift(stored, schema)
        if not is_addition(stored, schema):
            check_drift(stored, schema)
    except SchemaDriftError as error:
        if strict:
            raise
        return Change(schema, REFUSE, str(error), half_done)
    if "fields" in found:
        added = sorted(set(schema.fields) - set(stored.fields))
        return Change(schema, ADD, f"{', '.join(added)}; {core.count_rows(schema.name):,} rows are copied", half_done)
    details = [f"{name}: {old!r} -> {new!r}" for name, (old, new) in found.items() if name in SOFT]
    return Change(schema, ALTER if details else KEEP, "; ".join(details), half_done)


def _summary(schema: ViewSchema) -> str:
    vector = [f"{schema.dim}-d, {schema.metric}, {schema.index}"] if schema.vector_field else []
    return ", ".join([*vector, f"{len(schema.fields)} scalar features"])


def make(core: MilvusCore, change: Change, leases: Leases, wait_seconds: float) -> None:
    """Make the change. Raises `LeaseError` where a writer of the view does not end within `wait_seconds`."""
    schema = change.schema
    if change.kind != ADD and not change.is_half_done:
        core.create_view(schema)
        return
    with leases.hold(schema.name, wait_seconds) as lease:
        recover(core, schema.name)
        if change.kind == ADD:
            rebuild(core, schema, lease)
        core.create_view(schema)
