"""What was true of each id at an instant, from all stored versions: how a repeated or late row is told from a change."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable
from typing import Final, Generic, TypeVar

import pyarrow as pa

from feature_store.home import Home
from feature_store.spaces import read_spaces
from feature_store.tables import Tables

# Kinds of spaces whose vectors are of an item's content as it is hashed here; others have hashes of their own.
CONTENT_KINDS: Final = ("encoder", "untrained")

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

    def since(self, key: str, value: T, at_us: int | None = None) -> int | None:
        """Since when `key` has had this value without a break, as of `at_us` (None: the newest); None where it has another then."""
        versions = self._of_id.get(key, [])
        place = len(versions) if at_us is None else bisect_right(versions, at_us, key=lambda pair: pair[0])
        first = None
        for event_us, there in reversed(versions[:place]):
            if there != value:
                break
            first = event_us
        return first

    def of(self, key: str) -> list[tuple[int, T | None]]:
        """All versions of `key` as `(event_us, value)`, oldest first; a value of None is a deletion."""
        return self._of_id.get(key, [])

    @property
    def ids(self) -> list[str]:
        """All ids, sorted."""
        return sorted(self._of_id)


def embedding_versions(tables: Tables, entity: str, *space_ids: str) -> Versions[str]:
    """The content hashes that these spaces' vectors were made from; no vectors are read."""
    parts = [tables.embedding_rows(entity, space_id) for space_id in space_ids]
    return Versions(_columns(pa.concat_tables(parts), f"{entity}_id", "content_sha256") if parts else ())


def sibling_versions(home: Home, modality: str, space_id: str, entity: str = "item") -> Versions[str]:
    """The content hashes known to the other spaces of a modality, retired ones too: a new space takes its valid times from them."""
    others = [
        space.space_id
        for space in read_spaces(home, entity, retired=True)
        if space.modality == modality
        and space.space_id != space_id
        and space.kind in CONTENT_KINDS
        and space.base_space_id is None
    ]
    return embedding_versions(Tables(home), entity, *others)


def _columns(table: pa.Table, key: str, value: str) -> Iterable[tuple[str, int, str | None]]:
    table = table.sort_by("created")
    times = table["event_timestamp"].cast(pa.int64()).to_pylist()
    live = zip(table[value].to_pylist(), table["deleted"].to_pylist(), strict=True)
    values = (None if deleted else content for content, deleted in live)
    return zip(table[key].to_pylist(), times, values, strict=True)
