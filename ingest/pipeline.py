"""Ingestion: catalogue rows -> decoded media -> vectors -> offline tables, chunk by chunk.

A chunk's vectors are written before its item rows, and an item whose media are unchanged is not encoded again: a run that
was killed is continued by running it again. A part that cannot be read is quarantined; the item keeps its other parts, and
what is stored of it already stays.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Final, TypeVar

from encoders.media import MediaLimits
from encoders.profiles import Encoders
from encoders.recorded import in_use
from encoders.space import MODALITIES, EmbeddingSpace
from encoders.tokens import TokenCounts
from feature_store.home import Home
from feature_store.spaces import read_entries, register_spaces
from feature_store.tables import Tables
from ingest.catalogue import open_manifest, read_items
from ingest.chunks import ChunkWriter
from ingest.quarantine import Quarantine, Refusal
from ingest.records import MICROSECONDS

# Items whose vectors are written together: few parts on disk, little lost by a kill.
CHUNK_ITEMS: Final = 1024
# Share of [UNK] above which ingestion warns: English under an English tokenizer has less than 0.01, another script 0.3 and more.
MAX_UNKNOWN_SHARE: Final = 0.1

T = TypeVar("T")


@dataclass
class IngestReport:
    """Counts of one run.

    Attributes:
        counts: by space, counts of `encoded`, `unchanged`, `missing`, `quarantined`, `deleted`.
        tokens: by space, how its tokenizer read the texts of what was encoded.
        notes: what is worth knowing of media that were used, and how often.
    """

    manifest: Path
    rows: int = 0
    items_written: int = 0
    items_unchanged: int = 0
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)
    refusals: list[Refusal] = field(default_factory=list)
    quarantine_file: Path | None = None
    spaces: list[EmbeddingSpace] = field(default_factory=list)
    tokens: dict[str, TokenCounts] = field(default_factory=dict)
    notes: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    @property
    def modalities(self) -> dict[str, Counter[str]]:
        """The counts of each modality's own space; a space that was added beside it has others."""
        own = {space.modality: space.space_id for space in reversed(self.spaces)}
        return {m: self.counts.get(own.get(m, ""), Counter()) for m in MODALITIES}

    @property
    def warnings(self) -> list[str]:
        """What went in and yet may not be what is wanted, each with its remedy."""
        unread = (unread_warning(space_id, counts) for space_id, counts in self.tokens.items())
        return [*filter(None, unread), *(f"{count:,} x {note}" for note, count in self.notes.items())]

    @property
    def quarantined(self) -> int:
        """Refused rows and parts together."""
        return self.refused.total()

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values."""
        return {
            "manifest": str(self.manifest),
            "rows": self.rows,
            "items_written": self.items_written,
            "items_unchanged": self.items_unchanged,
            "modalities": {m: dict(counts) for m, counts in self.modalities.items()},
            "quarantined": self.quarantined,
            "quarantined_by_part": dict(self.refused),
            "quarantine_file": str(self.quarantine_file) if self.quarantine_file else None,
            "tokens": {
                space_id: {**asdict(counts), "unknown_share": round(counts.unknown_share, 4)}
                for space_id, counts in self.tokens.items()
            },
            "warnings": self.warnings,
            "spaces": {space.modality: space.space_id for space in reversed(self.spaces)},
            "counts_by_space": {space_id: dict(counts) for space_id, counts in self.counts.items()},
            "seconds": round(self.seconds, 3),
        }


def ingest_manifest(
    home: Home,
    manifest: Path,
    encoders: Encoders,
    *,
    mapping: dict[str, str] | None = None,
    default_available_us: int | None = None,
    limits: MediaLimits | None = None,
    progress: Callable[[int], None] | None = None,
) -> IngestReport:
    """Ingest a catalogue manifest into the offline tables of `home`.

    Args:
        home: the root that holds the tables.
        manifest: CSV, JSON Lines or Parquet; media paths are relative to it.
        encoders: one per modality; a modality without an encoder is skipped. Spaces that were added to the home are written too,
            and those that were retired are not.
        mapping: the file's column name -> ours.
        default_available_us: `available_at` of rows that give none, in microseconds since the epoch; an item that is stored
            already keeps its own while its content is the same. Default: just before the first interaction that is stored,
            else now.
        limits: what media may be at most.
        progress: called with the number of parts done; a row has one part per encoder, missing or not.

    Raises:
        EncoderError: the encoder of a space that was added cannot be loaded; nothing is stored.
        ManifestError: the file cannot be read; what came before an unreadable row is stored, and a later run goes on from there.
    """
    started = time.monotonic()
    records, encoders = open_manifest(manifest, mapping), in_use(encoders, read_entries(home, retired=True))
    home.create()
    register_spaces(home, encoders.spaces, encoders=encoders.options)
    tables = Tables(home)
    report = IngestReport(manifest, spaces=list(encoders.spaces))
    with Quarantine(home.quarantine, manifest) as quarantine:
        default_us = first_instant(tables) if default_available_us is None else default_available_us
        with ChunkWriter(tables, encoders, quarantine, limits or MediaLimits(), default_us, progress) as writer:
            for chunk in in_chunks(read_items(records, quarantine), CHUNK_ITEMS):
                writer.write([item for item in chunk if item is not None])
                report.rows += len(chunk)
                if progress:
                    progress(sum(item is None for item in chunk) * len(encoders.spaces))
        report.items_written, report.items_unchanged = writer.written, writer.unchanged
        report.counts, report.tokens, report.notes = writer.counts, writer.tokens, writer.notes
        report.refused, report.refusals = quarantine.by_part, quarantine.refusals
        report.quarantine_file = quarantine.path if len(quarantine) else None
    report.seconds = time.monotonic() - started
    return report


def unread_warning(space_id: str, counts: TokenCounts) -> str | None:
    """A warning where a tokenizer does not know the catalogue's words; None where it does."""
    if counts.unknown_share <= MAX_UNKNOWN_SHARE:
        return None
    return (
        f"{counts.unknown_share:.0%} of the catalogue's tokens are unknown ([UNK]) to the tokenizer of space {space_id}: it was "
        "made for another language, and its vectors say little. Choose encoders for the catalogue's language with "
        "TRIPTYCH_ENCODERS or --encoders: `zh` for Chinese, or a YAML file that names them"
    )


def first_instant(tables: Tables) -> int:
    """When items that do not say it became available: a second before the first stored interaction, else now, in us."""
    first = tables.first_interaction_us()
    return time.time_ns() // 1000 if first is None else first - MICROSECONDS


def in_chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` consecutive items, the last one shorter."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk
