"""What the tables still know of each record's content: the texts themselves, and where pictures and sounds lie.

Vectors of the past can be made again from these, as far as a file is still what it was. Nothing here opens one.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa

from feature_store.tables import Tables
from ingest.catalogue import item_text
from ingest.chunks import MAX_DESCRIPTION_CHARS, MAX_TITLE_CHARS
from ingest.users import MAX_PROFILE_CHARS

Content = str | Path
_COLUMNS: Final = {"text": ("title", "description"), "image": ("image",), "audio": ("audio",)}
# Texts of these lengths may have been longer when they came: the tables keep no more of them.
_LONGEST: Final = {
    "title": MAX_TITLE_CHARS,
    "description": MAX_DESCRIPTION_CHARS,
    "profile_text": MAX_PROFILE_CHARS,
}


class Version(NamedTuple):
    """A record's content since `event_us`; None where it had none. `cut`: the tables may hold only the beginning of the text."""

    event_us: int
    content: Content | None
    cut: bool = False


class StoredContents:
    """Versions of every record's content of one modality, from the tables of items or users."""

    def __init__(self, tables: Tables, entity: str, modality: str) -> None:
        key = f"{entity}_id"
        rows = tables.item_rows() if entity == "item" else tables.user_rows()
        self._columns = _COLUMNS[modality] if entity == "item" else ("profile_text",)
        self._table = rows.select([key, *self._columns, "event_timestamp", "created", "deleted"]).sort_by(
            [(key, "ascending"), ("created", "ascending")]
        )
        self._keys = np.asarray(self._table[key].to_pylist(), object)
        self._read: Callable[[dict[str, Any]], Content | None] = _reader(entity, modality)

    @property
    def ids(self) -> list[str]:
        """All ids, sorted."""
        return list(dict.fromkeys(self._keys.tolist()))

    def count(self, record_id: str) -> int:
        """Rows of a record; it has at most as many versions."""
        first, last = self._bounds(record_id)
        return last - first

    def of(self, record_id: str) -> list[Version]:
        """A record's versions, oldest first; of two of one instant the last one written counts."""
        versions = {version.event_us: version for version in self._versions(record_id)}
        return sorted(versions.values(), key=lambda version: version.event_us)

    def _bounds(self, record_id: str) -> tuple[int, int]:
        return int(np.searchsorted(self._keys, record_id, "left")), int(np.searchsorted(self._keys, record_id, "right"))

    def _versions(self, record_id: str) -> Iterator[Version]:
        first, last = self._bounds(record_id)
        rows = self._table.slice(first, last - first)
        times = rows["event_timestamp"].cast(pa.int64()).to_pylist()
        for event_us, row in zip(times, rows.to_pylist(), strict=True):
            cut = any(len(row[name] or "") >= _LONGEST[name] for name in self._columns if name in _LONGEST)
            yield Version(event_us, None if row["deleted"] else self._read(row), cut)


def _reader(entity: str, modality: str) -> Callable[[dict[str, Any]], Content | None]:
    if entity == "user":
        return lambda row: row["profile_text"] or None
    if modality == "text":
        return lambda row: item_text(row["title"] or "", row["description"] or "") or None
    return lambda row: Path(row[modality]) if row[modality] else None
