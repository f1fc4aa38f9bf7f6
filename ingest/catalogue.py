"""Catalogue manifests: which columns mean what, and one checked `CatalogueItem` per good row."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeVar

from ingest.errors import ManifestError, RowError
from ingest.quarantine import Quarantine, Refusal
from ingest.records import RecordFile, id_of, number_of, tags_of, text_of, timestamp_of

CONTENT_FIELDS: Final = ("title", "description", "category", "price", "tags", "image", "audio")
CONTENT_COLUMNS: Final = ("title", "description", "image", "audio")

T = TypeVar("T")


@dataclass(frozen=True)
class CatalogueItem:
    """One checked row of a manifest; media are absolute paths that were not opened yet.

    `tags` are "kind:value": what the item shares with others, such as `director:Agnès Varda`.
    `available_us` is when the content became true, in microseconds since the epoch; None where the manifest does not say.
    `given` names the columns that the row has and that could be read, empty or not: only these replace what is stored.
    """

    row: int
    item_id: str
    title: str
    description: str
    category: str
    price: float | None
    tags: tuple[str, ...]
    image: Path | None
    audio: Path | None
    available_us: int | None
    given: frozenset[str] = frozenset(CONTENT_FIELDS)

    @property
    def text(self) -> str:
        """What the text encoder reads."""
        return item_text(self.title, self.description)


def item_text(title: str, description: str) -> str:
    """The title and the description as one text, the title once where one begins with the other."""
    if description.startswith(title):
        return description
    return f"{title}. {description}" if description else title


def open_manifest(path: Path, mapping: dict[str, str] | None = None) -> RecordFile:
    """Open a manifest and check its columns, else `ManifestError`."""
    records = RecordFile(path, mapping or {})
    records.require("item_id")
    if not set(CONTENT_COLUMNS) & set(records.columns()):
        raise ManifestError(
            f"{path}: none of the columns {', '.join(CONTENT_COLUMNS)} is there, so there is nothing to encode"
        )
    return records


def read_items(records: RecordFile, quarantine: Quarantine) -> Iterator[CatalogueItem | None]:
    """Yield one item per row, None for a row that was quarantined, so that progress can be counted."""
    seen: dict[str, int] = {}
    for number, row in records:
        try:
            if isinstance(row, RowError):
                raise row
            item = _item(number, row, records.path.parent, quarantine)
            if item.item_id in seen:
                raise RowError(
                    "duplicate_item_id",
                    f"item_id {item.item_id!r} is in row {seen[item.item_id]} already; that row was kept",
                )
        except RowError as error:
            record_id = "" if isinstance(row, RowError) else text_of(row, "item_id")[:128]
            quarantine.add(Refusal(number, record_id, "row", record_id, error.code, str(error)))
            yield None
            continue
        seen[item.item_id] = number
        yield item


def _item(number: int, row: dict[str, Any], folder: Path, quarantine: Quarantine) -> CatalogueItem:
    item_id, given = id_of(row, "item_id"), {name for name in CONTENT_FIELDS if name in row}

    def read(column: str, how: Callable[[], T]) -> T | None:
        """One part; what cannot be read is quarantined alone, and counts as not given."""
        try:
            return how()
        except RowError as error:
            given.discard(column)
            message = f"{error}; the rest of the item was kept"
            quarantine.add(Refusal(number, item_id, column, text_of(row, column)[:200], error.code, message))
            return None

    updated_us, available_us = timestamp_of(row, "updated_at"), timestamp_of(row, "available_at")
    item = CatalogueItem(
        number,
        item_id,
        text_of(row, "title"),
        text_of(row, "description"),
        text_of(row, "category"),
        read("price", lambda: number_of(row, "price")),
        read("tags", lambda: tags_of(row, "tags")) or (),
        read("image", lambda: _path(row, "image", folder)),
        read("audio", lambda: _path(row, "audio", folder)),
        available_us if updated_us is None else updated_us,
    )
    if not (item.text or item.image or item.audio):
        raise RowError("nothing_to_encode", f"item {item_id!r} has no title, description, image or audio")
    return replace(item, given=frozenset(given))


def _path(row: dict[str, Any], column: str, folder: Path) -> Path | None:
    value = text_of(row, column)
    if "://" in value:
        raise RowError(
            f"bad_{column}",
            f"{column} {value[:80]!r} is an address; media are not fetched: download it and give its path",
        )
    return (folder / value).absolute() if value else None
