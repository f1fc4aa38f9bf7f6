"""One chunk of a catalogue: what changed is decoded, encoded and written to every space in use; what cannot be is quarantined.

Vectors are written before the item rows that they belong to, so that a kill in between costs a repeated encoding at most.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import pyarrow as pa

from encoders.audio import AudioEncoder
from encoders.errors import MediaError
from encoders.media import MediaLimits
from encoders.profiles import Encoders
from encoders.space import MODALITIES
from encoders.tokens import TokenCounts
from feature_store.tables import Tables
from ingest.catalogue import CONTENT_FIELDS, CatalogueItem
from ingest.media import MediaReader, Part
from ingest.quarantine import Quarantine, Refusal
from ingest.space_writer import SpaceWriter
from ingest.versions import Versions

COLUMNS_OF: Final = {
    "text": frozenset({"title", "description"}),
    "image": frozenset({"image"}),
    "audio": frozenset({"audio"}),
}
# How much of a text is kept for people to read in the catalogue's own columns; vectors are of the whole text.
MAX_TITLE_CHARS: Final = 1_000
MAX_DESCRIPTION_CHARS: Final = 10_000
MAX_CATEGORY_CHARS: Final = 200


class ChunkWriter:
    """Writes chunks of items; a context manager, since it holds decoding processes.

    `written`, `unchanged`, `counts` (by space), `tokens` (by space) and `notes` tell what it did. Identical media of one run are
    encoded once per space.

    Args:
        tables: the offline tables.
        encoders: any number per modality, or none.
        quarantine: takes what is refused.
        limits: what media may be at most.
        default_us: `available_at` of new items that give none, microseconds since the epoch.
        progress: called with the number of parts done; every item has one part per encoder, missing or not.
    """

    def __init__(
        self,
        tables: Tables,
        encoders: Encoders,
        quarantine: Quarantine,
        limits: MediaLimits,
        default_us: int,
        progress: Callable[[int], None] | None,
    ) -> None:
        self.written = 0
        self.unchanged = 0
        self._tables, self._quarantine = tables, quarantine
        self._default_us, self._now_us = default_us, time.time_ns() // 1000
        self._progress = progress or (lambda _: None)
        self._media = MediaReader(limits)
        self._refused: set[tuple[str, str, str]] = set()
        self._writers = {
            modality: [
                SpaceWriter(tables, encoder, self._media, self._refuser(modality), self._progress) for encoder in there
            ]
            for modality in MODALITIES
            if (there := encoders.all_of(modality))
        }
        self._rows = row_versions(tables)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def counts(self) -> dict[str, Counter[str]]:
        """What was done in each space: `encoded`, `unchanged`, `missing`, `quarantined`, `deleted`."""
        return {writer.space.space_id: writer.counts for writers in self._writers.values() for writer in writers}

    @property
    def tokens(self) -> dict[str, TokenCounts]:
        """How each space's tokenizer read the texts of what was encoded."""
        writers = (writer for writers in self._writers.values() for writer in writers)
        return {writer.space.space_id: writer.tokens for writer in writers if writer.tokens != TokenCounts()}

    @property
    def notes(self) -> Counter[str]:
        """What is worth knowing of media that were used, and how often."""
        return self._media.notes

    def write(self, items: Sequence[CatalogueItem]) -> None:
        """Decode, encode and write one chunk; item ids are unique."""
        items = [self._completed(item) for item in items]
        self._refused.clear()
        for modality, writers in self._writers.items():
            parts = self._hashed(modality, items)
            for writer in writers:
                missing = sum(not _content(item, modality) for item in items)
                writer.counts["missing"] += missing
                # What was refused while it was hashed is done for every space.
                self._progress(len(items) - len(parts))
                writer.counts["quarantined"] += len(items) - len(parts) - missing
                self._write_vectors(writer, parts, items)
                self._write_tombstones(writer, modality, items)
        self._write_rows(items)

    def _hashed(self, modality: str, items: Sequence[CatalogueItem]) -> list[Part]:
        """The items' parts of a modality with their hashes; what cannot be read is refused."""
        parts = [
            Part(item.row, item.item_id, content, item.available_us)
            for item in items
            if (content := _content(item, modality))
        ]
        refuse, hashed = self._refuser(modality), []
        for part, outcome in zip(parts, self._media.hashed(parts), strict=True):
            if isinstance(outcome, MediaError):
                refuse(part, outcome)
            else:
                hashed.append(outcome)
        return hashed

    def _write_vectors(self, writer: SpaceWriter, parts: Sequence[Part], items: Sequence[CatalogueItem]) -> None:
        """Encode and store what is new or changed; quarantine what cannot be used."""
        item_of = {item.item_id: item for item in items}
        encoded = writer.write(
            writer.changed(parts), lambda part: writer.since(part, self._event_us(item_of[part.record_id]))
        )
        self._count_tokens(writer, encoded, item_of)

    def _refuser(self, modality: str) -> Callable[[Part, MediaError], None]:
        def refuse(part: Part, error: MediaError) -> None:
            """Quarantine a part: once, though several spaces may have wanted it."""
            told = (part.record_id, modality, error.code)
            if told not in self._refused:
                self._refused.add(told)
                value = str(part.content)[:200]
                self._quarantine.add(Refusal(part.row, part.record_id, modality, value, error.code, str(error)))

        return refuse

    @staticmethod
    def _count_tokens(writer: SpaceWriter, encoded: Sequence[Part], item_of: dict[str, CatalogueItem]) -> None:
        """How the space's tokenizer reads the catalogue's words: stored texts, or those that may be asked for in pictures."""
        encoder = writer.encoder
        if isinstance(encoder, AudioEncoder):
            return
        if writer.space.modality == "text":
            texts = [str(part.content) for part in encoded]
        else:
            texts = [text for part in encoded if (text := item_of[part.record_id].text)]
        if texts:
            writer.tokens += encoder.count_tokens(texts)

    def close(self) -> None:
        """End the decoding processes."""
        self._media.close()

    def _event_us(self, item: CatalogueItem) -> int:
        """When this content became true: as the manifest says; else now for an item that changed, the default for a new one."""
        if item.available_us is not None:
            return item.available_us
        return self._now_us if item.item_id in self._rows else self._default_us

    def _completed(self, item: CatalogueItem) -> CatalogueItem:
        """Of a manifest with titles alone, or descriptions alone, the text is made with the other one as it is stored."""
        stored = self._rows.at(item.item_id, item.available_us)
        if stored is None or len(COLUMNS_OF["text"] & item.given) != 1:
            return item
        known = dict(zip(CONTENT_FIELDS, stored, strict=True))
        title = item.title if "title" in item.given else known["title"] or ""
        description = item.description if "description" in item.given else known["description"] or ""
        return replace(item, title=title, description=description)

    def _write_tombstones(self, writer: SpaceWriter, modality: str, items: Sequence[CatalogueItem]) -> None:
        """Delete the vectors of items that the manifest describes without this part."""
        empty = [i for i in items if COLUMNS_OF[modality] <= i.given and not _content(i, modality)]
        gone = [i for i in empty if writer.stored.at(i.item_id, i.available_us) is not None]
        writer.delete([item.item_id for item in gone], [self._event_us(item) for item in gone])

    def _write_rows(self, items: Sequence[CatalogueItem]) -> None:
        rows = [row for item in items if (row := self._changed_row(item)) is not None]
        self.unchanged += len(items) - len(rows)
        self.written += len(rows)
        if rows:
            self._tables.write_items(pa.Table.from_pylist(rows))

    def _changed_row(self, item: CatalogueItem) -> dict[str, Any] | None:
        """The item's row where it differs from the stored one; a column that the manifest does not give stays as it is stored."""
        stored = self._rows.at(item.item_id, item.available_us)
        content = dict(zip(CONTENT_FIELDS, stored or (None,) * len(CONTENT_FIELDS), strict=True))
        content |= {name: value for name, value in _row(item).items() if name in item.given}
        if tuple(content.values()) == stored:
            return None
        moment = datetime.fromtimestamp(0, UTC) + timedelta(microseconds=self._event_us(item))
        return {"item_id": item.item_id, **content, "event_timestamp": moment}


def _row(item: CatalogueItem) -> dict[str, Any]:
    return {
        "title": item.title[:MAX_TITLE_CHARS] or None,
        "description": item.description[:MAX_DESCRIPTION_CHARS] or None,
        "category": item.category[:MAX_CATEGORY_CHARS] or None,
        "price": item.price,
        "tags": list(item.tags) or None,
        "image": str(item.image) if item.image else None,
        "audio": str(item.audio) if item.audio else None,
    }


def _content(item: CatalogueItem, modality: str) -> str | Path | None:
    return item.text if modality == "text" else item.image if modality == "image" else item.audio


def row_versions(tables: Tables) -> Versions[tuple[Any, ...]]:
    """The content of every stored item, in the order of `CONTENT_FIELDS`, since when it was true."""
    rows = tables.item_rows().sort_by("created").to_pylist()
    return Versions(
        (row["item_id"], row["updated_us"], None if row["deleted"] else tuple(row[name] for name in CONTENT_FIELDS))
        for row in rows
    )
