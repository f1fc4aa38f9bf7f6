"""One chunk of a catalogue: what changed is decoded, encoded and written; what cannot be decoded is quarantined.

Vectors are written before the item rows that they belong to, so that a kill in between costs a repeated encoding at most.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from encoders.errors import MediaError
from encoders.media import MediaLimits, clean_text, decode_audio, decode_image, sha256_hex
from encoders.profiles import Encoders
from encoders.space import MODALITIES
from feature_store.tables import Tables
from ingest.catalogue import CONTENT_FIELDS, CatalogueItem
from ingest.quarantine import Quarantine, Refusal
from ingest.versions import Versions, embedding_versions, sibling_versions

# Decoded media in memory at once: 32 pictures of 12 megapixels are 1.2 GB.
MEDIA_IN_FLIGHT: Final = 32
DECODE_THREADS: Final = 2
DECODERS: Final[Mapping[str, Callable[[Path, MediaLimits], Any]]] = {"image": decode_image, "audio": decode_audio}
COLUMNS_OF: Final = {
    "text": frozenset({"title", "description"}),
    "image": frozenset({"image"}),
    "audio": frozenset({"audio"}),
}
# How much of a text is kept for people to read in the catalogue's own columns; vectors are of the whole text.
MAX_TITLE_CHARS: Final = 1_000
MAX_DESCRIPTION_CHARS: Final = 10_000
MAX_CATEGORY_CHARS: Final = 200


@dataclass(frozen=True)
class _Part:
    """One item's content of one modality: text or the path of a file, then what it was decoded to (None: unchanged)."""

    item: CatalogueItem
    content: str | Path
    sha: str = ""
    media: Any = None


class ChunkWriter:
    """Writes chunks of items; `written`, `unchanged` and `counts` (by modality) tell what it did.

    Args:
        tables: the offline tables.
        encoders: one per modality, or none.
        quarantine: takes what is refused.
        limits: what media may be at most.
        default_us: `available_at` of new items that give none, microseconds since the epoch.
        progress: called with the number of parts done; every item has one part per modality, missing or not.
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
        self.counts: dict[str, Counter[str]] = {m: Counter() for m in MODALITIES}
        self._tables, self._quarantine, self._limits = tables, quarantine, limits
        self._default_us, self._now_us = default_us, time.time_ns() // 1000
        self._progress = progress or (lambda _: None)
        self._encoders = {m: encoder for m in MODALITIES if (encoder := encoders.by_modality(m)) is not None}
        self._stored = {m: embedding_versions(tables, "item", e.space.space_id) for m, e in self._encoders.items()}
        self._siblings = {m: sibling_versions(tables.home, m, e.space.space_id) for m, e in self._encoders.items()}
        self._rows = row_versions(tables)

    def write(self, items: Sequence[CatalogueItem]) -> None:
        """Decode, encode and write one chunk; item ids are unique."""
        items = [self._completed(item) for item in items]
        for modality in self._encoders:
            parts = [_Part(item, content) for item in items if (content := _content(item, modality))]
            missing = len(items) - len(parts)
            self.counts[modality]["missing"] += missing
            self._progress(missing)
            self._write_vectors(modality, parts)
            self._write_tombstones(modality, items)
        self._write_rows(items)

    def _completed(self, item: CatalogueItem) -> CatalogueItem:
        """Of a manifest with titles alone, or descriptions alone, the text is made with the other one as it is stored."""
        stored = self._rows.at(item.item_id, item.available_us)
        if stored is None or len(COLUMNS_OF["text"] & item.given) != 1:
            return item
        known = dict(zip(CONTENT_FIELDS, stored, strict=True))
        title = item.title if "title" in item.given else known["title"] or ""
        description = item.description if "description" in item.given else known["description"] or ""
        return replace(item, title=title, description=description)

    def _write_vectors(self, modality: str, parts: Sequence[_Part]) -> None:
        encoded: list[_Part] = []
        vectors: list[NDArray[np.float32]] = []
        # Text is encoded in one go, since the encoder sorts by length; media are too large for that.
        step = len(parts) if modality == "text" else MEDIA_IN_FLIGHT
        with ThreadPoolExecutor(DECODE_THREADS) as pool:
            for start in range(0, len(parts), step or 1):
                changed = self._load_batch(modality, parts[start : start + step], pool)
                if changed:
                    vectors.append(self._encoders[modality].encode([part.media for part in changed]))
                encoded += [replace(part, media=None) for part in changed]
                self._progress(min(step, len(parts) - start))
        self.counts[modality]["encoded"] += len(encoded)
        if encoded:
            self._store(modality, encoded, np.concatenate(vectors))

    def _load_batch(self, modality: str, parts: Sequence[_Part], pool: ThreadPoolExecutor) -> list[_Part]:
        """Decode what is new or changed; quarantine what cannot be decoded."""
        loaded = list(pool.map(lambda part: self._load(modality, part), parts))
        refused = [result for result in loaded if isinstance(result, Refusal)]
        for refusal in refused:
            self._quarantine.add(refusal)
        changed = [result for result in loaded if isinstance(result, _Part) and result.media is not None]
        self.counts[modality]["quarantined"] += len(refused)
        self.counts[modality]["unchanged"] += len(parts) - len(refused) - len(changed)
        return changed

    def _load(self, modality: str, part: _Part) -> _Part | Refusal:
        """Decode one part; without media where it is stored already, a refusal where it cannot be decoded."""
        try:
            if isinstance(part.content, str):
                media = clean_text(part.content, self._limits)
                sha = sha256_hex(media.encode())
            else:
                media, sha = None, sha256_hex(part.content)
            if self._stored[modality].at(part.item.item_id, part.item.available_us) == sha:
                return replace(part, sha=sha)
            if isinstance(part.content, Path):
                media = DECODERS[modality](part.content, self._limits)
            return replace(part, sha=sha, media=media)
        except MediaError as error:
            return Refusal(part.item.row, part.item.item_id, modality, str(part.content)[:200], error.code, str(error))

    def _event_us(self, item: CatalogueItem) -> int:
        """When this content became true: as the manifest says; else now for an item that changed, the default for a new one."""
        if item.available_us is not None:
            return item.available_us
        return self._now_us if item.item_id in self._rows else self._default_us

    def _vector_us(self, modality: str, part: _Part) -> int:
        """The same for one part; content that another space of the modality knows is as old as it is there."""
        known = self._siblings[modality].since(part.item.item_id, part.sha)
        return known if part.item.available_us is None and known is not None else self._event_us(part.item)

    def _store(self, modality: str, parts: Sequence[_Part], vectors: NDArray[np.float32]) -> None:
        self._tables.write_embeddings(
            "item",
            self._encoders[modality].space,
            [part.item.item_id for part in parts],
            vectors,
            content_sha256=[part.sha for part in parts],
            event_timestamp=np.array([self._vector_us(modality, part) for part in parts], np.int64),
        )

    def _write_tombstones(self, modality: str, items: Sequence[CatalogueItem]) -> None:
        """Delete the vectors of items that the manifest describes without this part."""
        stored, columns = self._stored[modality], COLUMNS_OF[modality]
        empty = [i for i in items if columns <= i.given and not _content(i, modality)]
        gone = [i for i in empty if stored.at(i.item_id, i.available_us) is not None]
        if gone:
            times = np.array([self._event_us(item) for item in gone], np.int64)
            self._tables.delete_embeddings("item", self._encoders[modality].space, [i.item_id for i in gone], times)
            self.counts[modality]["deleted"] += len(gone)

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
