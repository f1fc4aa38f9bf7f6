"""The hot tier: this process's copy of the item vectors, a matrix per space, and of the little that a model reads beside them.

Loaded from Milvus by scanning whole views. A load makes a new `Catalogue` and the old one stays valid for the requests that
hold it; a store that is down leaves what is there.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from feature_store.errors import ViewNotFoundError
from feature_store.milvus_core import MilvusCore
from feature_store.milvus_schema import CREATED
from feature_store.spaces import view_name
from feature_store.watermarks import Watermarks
from ranker.scorer import ItemBatch
from serving import convert

PROFILE_VIEW: Final = "item_profile"
PROFILE_FIELDS: Final = ("category", "price", "tags")
SCAN_ROWS: Final = 4096
LOOK_ROWS: Final = 16_384
FEAST_PROJECT: Final = "triptych"


@dataclass(frozen=True)
class Sight:
    """A view as it looked at one moment: what polling compares to find a change.

    Attributes:
        rows: live rows; -1 where there is no view.
        loaded_until_us: how far incremental loads had come.
        newest_us: when the newest of its rows was made. A row that a push or an explicit load replaced moves only this.
    """

    rows: int
    loaded_until_us: int
    newest_us: int = 0


@dataclass(frozen=True)
class StoredIds:
    """Which items a view holds, without their vectors."""

    ids: frozenset[str] = frozenset()
    sight: Sight = Sight(-1, 0)

    @classmethod
    def scan(cls, core: MilvusCore, marks: Watermarks, space_id: str) -> Self:
        """Read the ids of the view `item_<space_id>`."""
        view = view_name("item", space_id)
        sight = look(core, marks, view)  # before the scan: a row that arrives during it is found by the next poll
        batches = _scan(core, view, ["created"])
        ids = frozenset(str(i) for batch in batches for i in batch.column(0).to_pylist())
        return cls(ids, replace(sight, newest_us=_newest_us(batches)))


@dataclass(frozen=True)
class SpaceMatrix:
    """Item vectors of one space: `vectors` float32 [n, dim] of `ids`."""

    ids: list[str]
    vectors: NDArray[np.float32]
    loaded_us: int
    newest_us: int = 0

    @classmethod
    def scan(cls, core: MilvusCore, space_id: str) -> Self:
        """Read the view `item_<space_id>`; a view that does not exist is an empty one."""
        batches = _scan_vectors(core, view_name("item", space_id))
        ids = [str(i) for batch in batches for i in batch.column(0).to_pylist()]
        parts = [_matrix(batch.column(batch.num_columns - 1)) for batch in batches if batch.num_rows]
        vectors = np.concatenate(parts) if parts else np.empty((0, 0), np.float32)
        return cls(ids, vectors, convert.now_us(), _newest_us(batches))


@dataclass(frozen=True)
class Profiles:
    """What a model reads of items beside vectors; only what is known of an item is kept, but every item has a `category`, if None."""

    category: Mapping[str, str | None] = field(default_factory=dict)
    price: Mapping[str, float] = field(default_factory=dict)
    newest_us: int = 0
    tags: Mapping[str, list[str]] = field(default_factory=dict)

    @classmethod
    def scan(cls, core: MilvusCore) -> Self:
        """Read the view `item_profile`."""
        batches = _scan(core, PROFILE_VIEW, [*_profile_fields(core, refresh=True), "created"])
        columns: dict[str, list[Any]] = {name: [] for name in PROFILE_FIELDS}
        ids: list[str] = []
        for batch in batches:
            ids += batch.column(0).to_pylist()
            for name in set(PROFILE_FIELDS) & set(batch.schema.names):
                columns[name] += batch.column(name).to_pylist()
        return replace(cls.of(ids, columns), newest_us=_newest_us(batches))

    @classmethod
    def of(cls, ids: Sequence[str], columns: Mapping[str, Sequence[Any]]) -> Self:
        """Profiles of `ids` from columns [n]; a column that is empty or missing is known of none."""
        category, price, tags = (dict(zip(ids, columns.get(name) or [], strict=False)) for name in PROFILE_FIELDS)
        return cls(dict.fromkeys(ids) | category, _known(price), tags=_known(tags))

    def columns(self, ids: Sequence[str]) -> tuple[list[str | None], NDArray[np.float64]]:
        """Categories (None: unknown) and prices (NaN: unknown) of `ids`."""
        prices = np.array([self.price.get(i, np.nan) for i in ids], np.float64)
        return [self.category.get(i) for i in ids], prices

    def tags_of(self, ids: Sequence[str]) -> list[list[str]]:
        """The tags of each of `ids`, "kind:value"; none where none are known."""
        return [self.tags.get(i, []) for i in ids]


@dataclass(frozen=True)
class Catalogue:
    """What was loaded, and how each view looked then; `generation` counts loads."""

    matrices: Mapping[str, SpaceMatrix] = field(default_factory=dict)
    profiles: Profiles = field(default_factory=Profiles)
    generation: int = 0
    sights: Mapping[str, Sight] = field(default_factory=dict)

    def items(self, space_ids: Iterable[str]) -> ItemBatch:
        """All items that have a profile or a vector in one of these spaces, sorted by id."""
        wanted = [space_id for space_id in space_ids if space_id in self.matrices]
        known = set(self.profiles.category).union(*(self.matrices[space_id].ids for space_id in wanted))
        ids = sorted(known)
        row_of = {item_id: row for row, item_id in enumerate(ids)}
        vectors, present = {}, {}
        for space_id in wanted:
            matrix = self.matrices[space_id]
            if matrix.ids:
                vectors[space_id], present[space_id] = _aligned(matrix, row_of)
        category, price = self.profiles.columns(ids)
        return ItemBatch(ids, vectors, present, category, price, self.profiles.tags_of(ids))

    def items_loaded(self, space_id: str) -> int:
        """How many item vectors of a space are here."""
        matrix = self.matrices.get(space_id)
        return len(matrix.ids) if matrix else 0

    def sights_of(self, space_ids: Iterable[str]) -> dict[str, Sight]:
        """How the views of these spaces, and that of the profiles, looked when they were read."""
        views = [PROFILE_VIEW, *(view_name("item", space_id) for space_id in space_ids)]
        return {view: self.sights[view] for view in views if view in self.sights}

    def loaded(self, core: MilvusCore, marks: Watermarks, space_ids: Sequence[str]) -> "Catalogue":
        """A catalogue with these spaces and the profiles read anew from the store."""
        views = [view_name("item", space_id) for space_id in space_ids]
        # Looked at before the scan: a row that arrives during it is found by the next poll.
        before = {view: look(core, marks, view) for view in (PROFILE_VIEW, *views)}
        fresh = {space_id: SpaceMatrix.scan(core, space_id) for space_id in space_ids}
        profiles = Profiles.scan(core)
        newest = [profiles.newest_us, *(matrix.newest_us for matrix in fresh.values())]
        seen = {view: replace(before[view], newest_us=us) for view, us in zip(before, newest, strict=True)}
        return Catalogue({**self.matrices, **fresh}, profiles, self.generation + 1, {**self.sights, **seen})


def read_items(core: MilvusCore, ids: Sequence[str], space_ids: Iterable[str]) -> ItemBatch:
    """Items by id, straight from the store: those that arrived after the last load."""
    vectors, present = {}, {}
    for space_id in space_ids:
        try:
            vectors[space_id], present[space_id], _ = core.read_vectors(view_name("item", space_id), list(ids))
        except ViewNotFoundError:
            continue
    profiles = _read_profiles(core, ids)
    category, price = profiles.columns(ids)
    return ItemBatch(list(ids), vectors, present, category, price, profiles.tags_of(ids))


def is_known(batch: ItemBatch) -> NDArray[np.bool_]:
    """Which items of a batch [n] have a vector, a category or a price."""
    known = np.array([category is not None for category in batch.category or []], bool)
    known |= np.isfinite(batch.price) if batch.price is not None else False
    for present in batch.present.values():
        known |= present
    return known


def look(core: MilvusCore, marks: Watermarks, view: str) -> Sight:
    """The view as it looks now, without `newest_us`."""
    return Sight(_count(core, view), _loaded_until_us(marks, view))


def has_changed(core: MilvusCore, marks: Watermarks, view: str, seen: Sight) -> bool:
    """Whether the view looks otherwise than it was seen."""
    now = replace(look(core, marks, view), newest_us=seen.newest_us)
    return now != seen or (now.rows > 0 and _has_newer(core, view, seen.newest_us))


def _has_newer(core: MilvusCore, view: str, than_us: int) -> bool:
    """Whether a row was made after `than_us`: a filtered search where there are vectors, else a scan of the times alone."""
    schema = core.describe_view(view)
    if not schema.vector_field:
        return _newest_us(list(core.scan(view, ["created"], LOOK_ROWS))) > than_us
    anywhere = np.eye(1, schema.dim, dtype=np.float32)
    return bool(core.search(view, anywhere, 1, f"{CREATED} > {than_us}").ids[0])


def _newest_us(batches: Sequence[pa.RecordBatch]) -> int:
    times = [batch.column("created").cast(pa.int64()).to_numpy() for batch in batches if batch.num_rows]
    return max((int(part.max()) for part in times), default=0)


def _count(core: MilvusCore, view: str) -> int:
    try:
        return core.count(view)
    except ViewNotFoundError:
        return -1


def _loaded_until_us(marks: Watermarks, view: str) -> int:
    mark = marks.read(FEAST_PROJECT, view)
    return mark.created_us if mark else 0


def _scan(core: MilvusCore, view: str, fields: list[str]) -> list[pa.RecordBatch]:
    try:
        return list(core.scan(view, fields, SCAN_ROWS))
    except ViewNotFoundError:
        return []


def _scan_vectors(core: MilvusCore, view: str) -> list[pa.RecordBatch]:
    """Batches whose first column is the id and whose last is the vector."""
    try:
        vector_field = core.describe_view(view).vector_field
    except ViewNotFoundError:
        return []
    return _scan(core, view, ["created", vector_field]) if vector_field else []


def _matrix(column: pa.Array) -> NDArray[np.float32]:
    flat: NDArray[np.float32] = column.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    return flat.reshape(len(column), -1)


def _aligned(matrix: SpaceMatrix, row_of: Mapping[str, int]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    rows = [row_of[item_id] for item_id in matrix.ids]
    vectors = np.zeros((len(row_of), matrix.vectors.shape[1]), np.float32)
    present = np.zeros(len(row_of), bool)
    vectors[rows], present[rows] = matrix.vectors, True
    return vectors, present


def _read_profiles(core: MilvusCore, ids: Sequence[str]) -> Profiles:
    try:
        return Profiles.of(ids, core.read_columns(PROFILE_VIEW, list(ids), _profile_fields(core)))
    except ViewNotFoundError:
        return Profiles()


def _profile_fields(core: MilvusCore, *, refresh: bool = False) -> list[str]:
    """Those of `PROFILE_FIELDS` that the view has: a server may be newer than the last `feast apply`."""
    try:
        there = core.describe_view(PROFILE_VIEW, refresh=refresh).fields
    except ViewNotFoundError:
        return []
    return [name for name in PROFILE_FIELDS if name in there]


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    return {i: value for i, value in values.items() if value is not None}
