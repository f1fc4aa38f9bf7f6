"""What was true of each id at an instant, from all stored versions: how a repeated or late row is told from a change."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable
from typing import Generic, TypeVar

import pyarrow as pa

from feature_store.home import Home
from feature_store.spaces import read_spaces
from feature_store.tables import Tables

T = TypeVar("T")


class Versions(Generic[T]):
    """Versions of many ids; of those of one instant the last one given counts.

    Args:
        rows: `(id, event_us, value)`, by `created`; a value of None says that the id was deleted then.
    """

    def __init__(self, rows: Iterable[tuple[str, int, T | None]]) -> None:
        of_id: dict[str, dict[int, T | None]] = defaultdict(dict)
        for key, event_us, value in rows:
            of_id[key][event_us] = value
        self._of_id = {key: sorted(values.items(), key=lambda pair: pair[0]) for key, values in of_id.items()}

    def __contains__(self, key: str) -> bool:
        return key in self._of_id

    def at(self, key: str, event_us: int | None) -> T | None:
        """The value in force at `event_us`, the newest where that is None; None where there was nothing."""
        versions = self._of_id.get(key, [])
        place = len(versions) if event_us is None else bisect_right(versions, event_us, key=lambda pair: pair[0])
        return versions[place - 1][1] if place else None

    def since(self, key: str, value: T) -> int | None:
        """The first instant at which `key` had this value; None where it never had."""
        return next((event_us for event_us, there in self._of_id.get(key, []) if there == value), None)


def embedding_versions(tables: Tables, entity: str, *space_ids: str) -> Versions[str]:
    """The content hashes that these spaces' vectors were made from; no vectors are read."""
    parts = [tables.embedding_rows(entity, space_id) for space_id in space_ids]
    rows = (row for part in parts for row in _columns(part, f"{entity}_id", "content_sha256"))
    return Versions(rows)


def sibling_versions(home: Home, modality: str, space_id: str) -> Versions[str]:
    """The content hashes known to the other item spaces of a modality: a new space takes its valid times from them."""
    others = [s.space_id for s in read_spaces(home, "item") if s.modality == modality and s.space_id != space_id]
    return embedding_versions(Tables(home), "item", *others)


def _columns(table: pa.Table, key: str, value: str) -> Iterable[tuple[str, int, str | None]]:
    table = table.sort_by("created")
    times = table["event_timestamp"].cast(pa.int64()).to_pylist()
    live = zip(table[value].to_pylist(), table["deleted"].to_pylist(), strict=True)
    values = (None if deleted else content for content, deleted in live)
    return zip(table[key].to_pylist(), times, values, strict=True)
