"""Training sets in memory: items with their versions, labels, events and profiles; which version was valid at an instant; the split by time.

`folder` reads and checks the files, `splits` has the other protocols, and what lies before each label is `examples`' work. Numpy and pyarrow only.
"""

# Shapes are part of names: R item versions, I items.
# ruff: noqa: N802, N806, N815

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from encoders.space import MODALITIES, EmbeddingSpace, SpaceError
from feature_store.history import Events
from ranker.config import RankerConfig
from ranker.errors import TooFewError, TrainingSetError
from ranker.folder import read_folder
from ranker.inputs import ItemBatch

Ints = NDArray[np.int64]
NO_ROW: Final = -1


@dataclass(frozen=True)
class Items:
    """Item versions: R rows over I items; a version is valid at t where valid_from < t <= valid_to."""

    names: list[str]  # I item ids
    item_R: Ints
    valid_from_R: Ints
    valid_to_R: Ints
    category: list[str | None]
    price: NDArray[np.float64]
    vectors: Mapping[str, NDArray[np.float32]]
    present: Mapping[str, NDArray[np.bool_]]
    tags: Sequence[Sequence[str]] = ()  # `kind:value` names by row; empty where there are none at all

    def __len__(self) -> int:
        return len(self.item_R)

    @cached_property
    def index(self) -> dict[str, int]:
        """item_id -> number."""
        return {name: i for i, name in enumerate(self.names)}

    @cached_property
    def released_I(self) -> Ints:
        """When each item's first version became valid."""
        first = np.full(len(self.names), np.iinfo(np.int64).max)
        np.minimum.at(first, self.item_R, self.valid_from_R)
        return first

    @cached_property
    def _starts(self) -> tuple[Ints, Ints, Ints]:
        """Distinct starts of validity, rows ordered by (item, start), and the sorted keys of that order."""
        starts, rank_R = np.unique(self.valid_from_R, return_inverse=True)
        keys = self.item_R * (len(starts) + 1) + rank_R
        order = np.argsort(keys, kind="stable")
        return starts, order, keys[order]

    @cached_property
    def last_row_I(self) -> Ints:
        """Row of each item's last version."""
        last, order = np.zeros(len(self.names), np.int64), np.argsort(self.valid_from_R, kind="stable")
        last[self.item_R[order]] = order
        return last

    def numbers(self, item_ids: Sequence[str]) -> Ints:
        """Number of each item; `NO_ROW` for one that is not there."""
        return np.asarray([self.index.get(item_id, NO_ROW) for item_id in item_ids], np.int64)

    def rows_at(self, items: Ints, times_us: Ints) -> Ints:
        """Row of each item's version valid at its time; `NO_ROW` where there is none, and for the item `NO_ROW`. Arrays of one shape, or broadcastable."""
        starts, order, keys = self._starts
        wanted = items * (len(starts) + 1) + np.searchsorted(starts, times_us, side="left")
        at = np.searchsorted(keys, wanted, side="left") - 1
        row = order[np.maximum(at, 0)]
        good = (at >= 0) & (self.item_R[row] == items) & (times_us <= self.valid_to_R[row])
        return np.where(good, row, NO_ROW)

    def valid_rows(self, t_us: int) -> Ints:
        """All rows valid at an instant: at most one for each item."""
        return np.flatnonzero((self.valid_from_R < t_us) & (t_us <= self.valid_to_R))

    def batch(self, rows: Ints) -> ItemBatch:
        """The versions at `rows`, as the model's way in wants them."""
        return ItemBatch(
            [self.names[i] for i in self.item_R[rows]],
            {space: v[rows] for space, v in self.vectors.items()},
            {space: p[rows] for space, p in self.present.items()},
            [self.category[r] for r in rows],
            self.price[rows],
            [self.tags[r] for r in rows] if self.tags else None,
        )


@dataclass(frozen=True)
class Labels:
    """n labelled events, in order of time.

    How each came about is known of some: `devices` and `impressions` are empty where they are known of none, and hold "" where not;
    `positions` (1: shown first) and `propensities` hold NaN.
    """

    event_ids: list[str]
    users: list[str]
    item_row: Ints
    event_types: list[str]
    values: NDArray[np.float64]
    timestamps_us: Ints
    devices: Sequence[str] = ()
    impressions: Sequence[str] = ()
    positions: NDArray[np.float64] | None = None
    propensities: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.event_ids)

    def take(self, rows: Ints) -> "Labels":
        """The labels at `rows`, in that order."""
        at = rows.tolist()
        return Labels(
            [self.event_ids[i] for i in at],
            [self.users[i] for i in at],
            self.item_row[at],
            [self.event_types[i] for i in at],
            self.values[at],
            self.timestamps_us[at],
            [self.devices[i] for i in at] if self.devices else (),
            [self.impressions[i] for i in at] if self.impressions else (),
            None if self.positions is None else self.positions[at],
            None if self.propensities is None else self.propensities[at],
        )

    def positive(self, config: RankerConfig) -> NDArray[np.bool_]:
        """Which labels [n] say that the user liked the item."""
        return positive_events(self.event_types, self.values, config)


def positive_events(types: Sequence[str], values: NDArray[np.float64], config: RankerConfig) -> NDArray[np.bool_]:
    """Which events [n] count as liking: neither a negative type, nor a rating below the bar."""
    against = np.asarray([kind in config.negative_events for kind in types], bool)
    rated = np.asarray([kind == "rating" for kind in types], bool) & np.isfinite(values)
    return ~against & ~(rated & (np.where(rated, values, 0.0) < config.min_positive_rating))


@dataclass(frozen=True)
class Split:
    """Labels to learn from, to choose by, and to judge by.

    Where it is `by_time`, `train` ends before `train_end_us`, `validation` before `test_start_us`; else these instants say until when an
    item has to be there, and what is counted is counted from `train` alone.
    """

    train: Labels
    validation: Labels
    test: Labels
    train_end_us: int
    test_start_us: int
    by_time: bool = True
    candidates: Ints | None = None  # item rows that validation and test rank; all where left out


def too_few(ts: "TrainingSet", why: str) -> TooFewError:
    """The error of a training set with too little in it: `why`, how much there is, and what to do about it."""
    events, labels = sum(len(e) for e in ts.events.values()), len(ts.labels)
    counted = f"{why}. There are {labels:,} labels from {events:,} interactions of {len(ts.events):,} users"
    if not events:
        return TooFewError(f"{counted}; load some with `triptych users build --interactions FILE`")
    if events - labels < labels:
        return TooFewError(f"{counted}; load more with `triptych users build --interactions FILE`")
    return TooFewError(
        f"{counted}, since {events - labels:,} came before their item was known, or are about items that nobody ingested; ingest them "
        "all, and say since when they were there: a column `available_at`, or `triptych ingest --available-at DATE`"
    )


def time_split(labels: Labels, fractions: tuple[float, float, float] = (0.7, 0.1, 0.2)) -> Split:
    """Split labels by instants, so that all of one instant are on one side; raises `TooFewError` where a part is empty."""
    times = np.sort(labels.timestamps_us)
    if not len(times):
        raise TooFewError("there are no labels to train on")
    cuts = [int(times[min(len(times) - 1, round(len(times) * sum(fractions[:n])))]) for n in (1, 2)]
    side = np.searchsorted(cuts, labels.timestamps_us, side="right")
    parts = [labels.take(np.flatnonzero(side == part)) for part in range(3)]
    if not all(len(part) for part in parts):
        raise TooFewError(
            f"{len(labels)} labels are too few, or too close in time, to split into train, validation and test"
        )
    return Split(parts[0], parts[1], parts[2], cuts[0], cuts[1])


@dataclass(frozen=True)
class Profile:
    """A user's own words: `vector` float32 [d] in the text space, true from `from_us` on."""

    vector: NDArray[np.float32]
    from_us: int


@dataclass(frozen=True)
class TrainingSet:
    """A point-in-time training set in memory.

    `events` and `profiles` are by user, a profile with the instant from which it was true; `meta` is as its maker wrote it.
    """

    items: Items
    labels: Labels
    events: Mapping[str, Events]
    profiles: Mapping[str, Profile]
    spaces: Mapping[str, EmbeddingSpace]
    meta: Mapping[str, Any]

    @classmethod
    def load(cls, folder: Path) -> "TrainingSet":
        """Read the folder that `build_training_set` wrote, or one made by hand; raises `TrainingSetError` where it cannot be used."""
        meta, described, tables = read_folder(folder)
        spaces = spaces_by_modality(described)
        items = _read_items(tables["items"], spaces)
        return cls(
            items,
            _read_labels(tables["labels"]),
            _read_events(tables["events"]),
            _read_profiles(tables["users"], spaces),
            spaces,
            meta,
        )

    def profile(self, user: str, t_us: int) -> NDArray[np.float32] | None:
        """The user's own words as a vector [d] in the text space, if they were written strictly before `t_us`."""
        profile = self.profiles.get(user)
        return profile.vector if profile is not None and profile.from_us < t_us else None

    def shuffled_content(self, seed: int) -> "TrainingSet":
        """The same items, ids, times and events, but every item has the content (vectors, category, price) of another one.

        What a model gains over popularity on this, it did not gain by content.
        """
        rng = np.random.default_rng(seed)
        other_I = rng.permutation(len(self.items.names))
        rows = self.items.last_row_I[other_I[self.items.item_R]]
        content = self.items.batch(rows)
        shuffled = replace(
            self.items,
            category=list(content.category or []),
            price=self.items.price[rows],
            vectors=content.vectors,
            present=content.present,
            tags=content.tags or (),
        )
        return replace(self, items=shuffled)


def spaces_by_modality(spaces: Sequence[EmbeddingSpace]) -> dict[str, EmbeddingSpace]:
    """One space per modality, in the usual order; two of one modality are an error."""
    by_modality = {space.modality: space for space in spaces}
    if len(by_modality) != len(spaces):
        raise TrainingSetError(
            f"a ranker reads one space per modality, not {sorted(space.space_id for space in spaces)}"
        )
    return {m: by_modality[m] for m in MODALITIES if m in by_modality}


# ---- reading -----------------------------------------------------------------------------------------------------------


def _read_items(table: pa.Table, spaces: Mapping[str, EmbeddingSpace]) -> Items:
    table = table.sort_by("item_row")
    names, item_r = np.unique(np.asarray(table["item_id"].to_pylist(), object), return_inverse=True)
    vectors, present = {}, {}
    _refuse_unnamed(table, "items.parquet", spaces.values())
    for space in spaces.values():
        vectors[space.space_id], present[space.space_id] = vector_column(table, space, "items.parquet")
        _check_norms(space, vectors[space.space_id][present[space.space_id]])
    return Items(
        names.tolist(),
        item_r.astype(np.int64),
        _ints(table, "valid_from_us"),
        _ints(table, "valid_to_us"),
        table["category"].to_pylist(),
        _floats(table, "price"),
        vectors,
        present,
        [tags or [] for tags in table["tags"].to_pylist()] if "tags" in table.column_names else (),
    )


def _refuse_unnamed(table: pa.Table, file: str, spaces: Iterable[EmbeddingSpace]) -> None:
    """Raise `TrainingSetError` where a column of vectors belongs to none of the spaces."""
    named = {f"vec_{space.space_id}" for space in spaces}
    if unnamed := [column for column in table.column_names if column.startswith("vec_") and column not in named]:
        raise TrainingSetError(
            f"{file} has {', '.join(unnamed)}, which is of no space that is read there; the columns of those are: "
            f"{', '.join(sorted(named)) or 'none'}. Name its space in meta.json's `spaces` (users have words only: the text space), or drop the column"
        )


def _check_norms(space: EmbeddingSpace, vectors: NDArray[np.float32]) -> None:
    try:
        space.check(vectors)
    except SpaceError as error:
        raise TrainingSetError(f"items.parquet: {error}; divide each vector by its norm, or leave it null") from error


def vector_column(table: pa.Table, space: EmbeddingSpace, file: str) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """A space's column, a list<float>, -> vectors [n, dim] (0 where null) and presence [n]; errors name the `file`."""
    name, dim = f"vec_{space.space_id}", space.dim
    if name not in table.column_names:
        raise TrainingSetError(
            f"{file} has no column {name} (list of float), whose space meta.json names; it has {', '.join(table.column_names)}"
        )
    column = table[name].combine_chunks()
    present = np.asarray(column.is_valid())
    lengths = pc.list_value_length(column.drop_null()).to_numpy(zero_copy_only=False)
    if (wrong := lengths[lengths != dim]).size:
        first = int(np.flatnonzero(present)[np.flatnonzero(lengths != dim)[0]])
        raise TrainingSetError(
            f"{file}: {wrong.size} of {lengths.size} vectors of {name} are not of length {dim}, which meta.json says: that of row {first} has "
            f"{wrong[0]}; make all of that length, or null"
        )
    flat = np.asarray(column.drop_null().flatten(), np.float32)
    vectors = np.zeros((len(present), dim), np.float32)
    vectors[present] = flat.reshape(-1, dim)
    return vectors, present


def _read_labels(table: pa.Table) -> Labels:
    table = table.sort_by([("timestamp_us", "ascending"), ("event_id", "ascending")])
    return Labels(
        table["event_id"].to_pylist(),
        table["user_id"].to_pylist(),
        _ints(table, "item_row"),
        table["event_type"].to_pylist(),
        _floats(table, "value"),
        _ints(table, "timestamp_us"),
        _known_names(table, "device"),
        _known_names(table, "impression_id"),
        _known_floats(table, "position"),
        _known_floats(table, "propensity"),
    )


def _known_names(table: pa.Table, name: str) -> Sequence[str]:
    """A column of names, "" for null; nothing where there is none, as in folders of an earlier version."""
    there = name in table.column_names and table[name].null_count < len(table)
    return [value or "" for value in table[name].to_pylist()] if there else ()


def _known_floats(table: pa.Table, name: str) -> NDArray[np.float64] | None:
    there = name in table.column_names and table[name].null_count < len(table)
    return _floats(table, name) if there else None


def _read_events(table: pa.Table) -> dict[str, Events]:
    table = table.sort_by([("user_id", "ascending"), ("timestamp_us", "ascending"), ("event_id", "ascending")])
    return events_by_user(table, _ints(table, "timestamp_us"))


def events_by_user(table: pa.Table, times: Ints) -> dict[str, Events]:
    """Each user's events, of a table sorted by (user_id, time); `times` [n] in us."""
    users, ids, items, kinds = (table[c].to_pylist() for c in ("user_id", "event_id", "item_id", "event_type"))
    values = _floats(table, "value")
    edges = [*(i for i, user in enumerate(users) if i == 0 or user != users[i - 1]), len(users)]
    return {users[a]: Events(ids[a:b], items[a:b], kinds[a:b], values[a:b], times[a:b]) for a, b in pairwise(edges)}


def _read_profiles(table: pa.Table, spaces: Mapping[str, EmbeddingSpace]) -> dict[str, Profile]:
    space = spaces.get("text")
    _refuse_unnamed(table, "users.parquet", [space] if space else [])
    if space is None or f"vec_{space.space_id}" not in table.column_names:
        return {}
    vectors, present = vector_column(table, space, "users.parquet")
    if "profile_from_us" not in table.column_names:
        raise TrainingSetError(
            "users.parquet has profiles but no column profile_from_us: labels at or before that instant must not see them"
        )
    users, since = table["user_id"].to_pylist(), table["profile_from_us"].to_pylist()
    return {users[i]: Profile(vectors[i], since[i]) for i in np.flatnonzero(present) if since[i] is not None}


def _ints(table: pa.Table, name: str) -> Ints:
    return np.asarray(table[name].combine_chunks(), np.int64)


def _floats(table: pa.Table, name: str) -> NDArray[np.float64]:
    return np.asarray(table[name].cast(pa.float64()).combine_chunks().fill_null(np.nan), np.float64)
