"""When each item changed: the versions of the catalogue that training may see, from the offline tables alone (numpy, pyarrow)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from feature_store.home import Home
from feature_store.parts import list_parts, read_parts
from feature_store.schemas import ITEMS, embeddings_schema
from feature_store.spaces import embeddings_folder

FOREVER: Final = np.iinfo(np.int64).max
_COLUMNS: Final = ["item_id", "event_timestamp", "created", "deleted"]


@dataclass(frozen=True)
class ItemVersions:
    """Versions sorted by (item, start): version i of `ids[code[i]]` is valid at t where `start_us[i] < t <= end_us[i]`.

    Attributes:
        ids: sorted item ids.
        code, start_us, end_us: int64 [n].
    """

    ids: NDArray[np.object_]
    code: NDArray[np.int64]
    start_us: NDArray[np.int64]
    end_us: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.code)

    def rows_at(self, item_ids: Sequence[str], times_us: NDArray[np.int64]) -> NDArray[np.int64]:
        """The version of each item valid at its instant, strictly before it: row numbers [n], -1 where there is none."""
        if not len(self):
            return np.full(len(item_ids), -1, np.int64)
        wanted = np.asarray(item_ids, object)
        code = np.minimum(np.searchsorted(self.ids, wanted), len(self.ids) - 1)
        starts, rank = np.unique(self.start_us, return_inverse=True)
        keys = self.code * (len(starts) + 1) + rank  # ascending, since versions are sorted by (code, start)
        before = code * (len(starts) + 1) + np.searchsorted(starts, times_us, side="left")
        row = np.searchsorted(keys, before, side="left") - 1
        at = np.maximum(row, 0)
        valid = (row >= 0) & (self.ids[code] == wanted) & (self.code[at] == code) & (times_us <= self.end_us[at])
        return np.where(valid, row, -1)


def item_versions(home: Home, space_ids: Sequence[str], before_us: int | None = None) -> ItemVersions:
    """A version begins wherever an item's row or one of its vectors changes; the time an item is deleted belongs to none.

    Changes at or after `before_us` are not looked at.
    """
    profile = _changes(list_parts(home.tables / "items"), ITEMS, before_us)
    folders = [embeddings_folder(home, "item", space_id) for space_id in space_ids]
    vectors = [_changes(list_parts(folder), embeddings_schema("item"), before_us) for folder in folders]
    table = pa.concat_tables(
        [profile, *(part.select(["item_id", "event_us"]) for part in vectors)], promote_options="default"
    )
    if not table.num_rows:
        nothing = np.empty(0, np.int64)
        return ItemVersions(np.empty(0, object), nothing, nothing, nothing)
    ids, code = np.unique(np.asarray(table["item_id"].to_pylist(), object), return_inverse=True)
    bounds = np.unique(np.stack([code, table["event_us"].to_numpy()], axis=1), axis=0)
    code, start = bounds[:, 0], bounds[:, 1]
    last = np.append(code[1:] != code[:-1], True)
    end = np.where(last, FOREVER, np.append(start[1:], FOREVER))
    live = ~_is_deleted(profile, ids, code, start)
    return ItemVersions(ids, code[live], start[live], end[live])


def _changes(parts: Sequence[Path], schema: pa.Schema, before_us: int | None) -> pa.Table:
    empty = pa.schema([schema.field(name) for name in _COLUMNS]).empty_table()
    table = pa.concat_tables([empty, *read_parts(parts, schema, _COLUMNS)])
    columns = {
        "item_id": table["item_id"],
        "event_us": table["event_timestamp"].cast(pa.int64()),
        "created_us": table["created"].cast(pa.int64()),
        "deleted": table["deleted"],
    }
    changes = pa.table(columns)
    return changes if before_us is None else changes.filter(changes["event_us"].to_numpy() < before_us)


def _is_deleted(
    profile: pa.Table, ids: NDArray[np.object_], code: NDArray[np.int64], start: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Whether the newest row of the item, as of the beginning of each version [n], is a tombstone."""
    if not profile.num_rows:
        return np.zeros(len(code), np.bool_)
    item = np.searchsorted(ids, np.asarray(profile["item_id"].to_pylist(), object))
    event, created = profile["event_us"].to_numpy(), profile["created_us"].to_numpy()
    order = np.lexsort((created, event, item))
    times, rank = np.unique(np.concatenate([event, start]), return_inverse=True)
    rows = item[order] * len(times) + rank[: len(event)][order]
    newest = np.searchsorted(rows, code * len(times) + rank[len(event) :], side="right") - 1
    row = order[np.maximum(newest, 0)]
    return np.asarray(
        (newest >= 0) & (item[row] == code) & profile["deleted"].to_numpy(zero_copy_only=False)[row], np.bool_
    )
