"""One chunk of a catalogue: what changed is decoded, encoded and written; what cannot be decoded is quarantined.

Vectors are written before the item rows that they belong to, so that a kill in between costs a repeated encoding at most.
"""

import os
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from encoders.audio import AudioEncoder
from encoders.bulk import MIN_WORKERS, Repeats, encode_stream
from encoders.decode_pool import DecodePool
from encoders.errors import MediaError
from encoders.media import MediaLimits, clean_text, sha256_hex
from encoders.profiles import Encoders
from encoders.space import MODALITIES
from encoders.tokens import TokenCounts
from feature_store.tables import Tables
from ingest.catalogue import CONTENT_FIELDS, CatalogueItem
from ingest.quarantine import Quarantine, Refusal
from ingest.versions import Versions, embedding_versions, sibling_versions

HASH_THREADS: Final = 2
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
    """One item's content of one modality: text or the path of a file, and its hash."""

    item: CatalogueItem
    content: str | Path
    sha: str = ""


class ChunkWriter:
    """Writes chunks of items; a context manager, since it holds decoding processes.

    `written`, `unchanged`, `counts` (by modality), `tokens` (by space) and `notes` tell what it did. Identical media of one run are
    decoded and encoded once.

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
        self.tokens: dict[str, TokenCounts] = defaultdict(TokenCounts)
        self.notes: Counter[str] = Counter()
        self._tables, self._quarantine, self._limits = tables, quarantine, limits
        self._default_us, self._now_us = default_us, time.time_ns() // 1000
        self._progress = progress or (lambda _: None)
        self._decoders = DecodePool(max(MIN_WORKERS, len(os.sched_getaffinity(0))), limits)
        self._repeats: dict[str, Repeats] = defaultdict(Repeats)
        self._lock = threading.Lock()
        self._encoders = {m: encoder for m in MODALITIES if (encoder := encoders.by_modality(m)) is not None}
        self._stored = {m: embedding_versions(tables, "item", e.space.space_id) for m, e in self._encoders.items()}
        self._siblings = {m: sibling_versions(tables.home, m, e.space.space_id) for m, e in self._encoders.items()}
        self._rows = row_versions(tables)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

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
        """Encode and store what is new or changed; quarantine what cannot be used."""
        changed = self._changed(modality, parts)
        self._progress(len(parts) - len(changed))
        encoded: list[_Part] = []
        vectors: list[NDArray[np.float32]] = []
        for part, outcome in zip(changed, self._encode(modality, changed), strict=True):
            if isinstance(outcome, MediaError):
                self._refuse(modality, part, outcome)
            else:
                encoded.append(part)
                vectors.append(outcome)
        self.counts[modality]["encoded"] += len(encoded)
        if encoded:
            self._store(modality, encoded, np.stack(vectors))
            self._count_tokens(modality, encoded)

    def _changed(self, modality: str, parts: Sequence[_Part]) -> list[_Part]:
        """The parts that are not stored as they are, each with its content's hash."""
        changed: list[_Part] = []
        with ThreadPoolExecutor(HASH_THREADS) as pool:
            hashed = list(pool.map(self._hashed, parts))
        for part, outcome in zip(parts, hashed, strict=True):
            if isinstance(outcome, MediaError):
                self._refuse(modality, part, outcome)
            elif self._stored[modality].at(part.item.item_id, part.item.available_us) == outcome.sha:
                self.counts[modality]["unchanged"] += 1
            else:
                changed.append(outcome)
        return changed

    def _hashed(self, part: _Part) -> _Part | MediaError:
        try:
            if isinstance(part.content, str):
                text = clean_text(part.content, self._limits)
                return replace(part, content=text, sha=sha256_hex(text.encode()))
            return replace(part, sha=sha256_hex(part.content))
        except MediaError as error:
            return error

    def _encode(self, modality: str, parts: Sequence[_Part]) -> Iterator[NDArray[np.float32] | MediaError]:
        return encode_stream(
            self._encoders[modality],
            parts,
            partial(self._decode, modality),
            key=lambda part: part.sha,
            repeats=self._repeats[modality],
            progress=self._progress,
        )

    def _decode(self, modality: str, part: _Part) -> Any:
        """What the encoder takes; several threads at once."""
        if isinstance(part.content, str):
            return part.content
        media, notes = self._decoders.decode_with_notes(modality, part.content)
        with self._lock:
            self.notes.update(notes)
        return media

    def _refuse(self, modality: str, part: _Part, error: MediaError) -> None:
        value = str(part.content)[:200]
        self._quarantine.add(Refusal(part.item.row, part.item.item_id, modality, value, error.code, str(error)))
        self.counts[modality]["quarantined"] += 1

    def _count_tokens(self, modality: str, encoded: Sequence[_Part]) -> None:
        """How the space's tokenizer reads the catalogue's words: stored texts, or those that may be asked for in pictures."""
        encoder = self._encoders[modality]
        if modality == "text":
            texts = [str(part.content) for part in encoded]
        else:
            texts = [part.item.text for part in encoded if part.item.text]
        if isinstance(encoder, AudioEncoder) or not texts:
            return
        self.tokens[encoder.space.space_id] += encoder.count_tokens(texts)

    def close(self) -> None:
        """End the decoding processes."""
        self._decoders.close()

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
