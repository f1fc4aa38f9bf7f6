"""Backfills: everything that is stored already, encoded into a new space with the valid times that the old spaces gave it.

A row of another space of the modality becomes a row of the same id, time and content; tombstones too. Old labels then join in the new
space as they did in the old one. What has a row with that content and time is done: a backfill that was killed is run again.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from encoders.errors import MediaError
from encoders.media import MediaLimits
from feature_store.errors import SpaceRegistryError
from feature_store.home import Home
from feature_store.spaces import SpaceEntry, find_entry, read_entries, register_entries
from feature_store.tables import Tables
from ingest.contents import Content, StoredContents, Version
from ingest.errors import RowError
from ingest.media import MediaReader, Part
from ingest.pipeline import in_chunks
from ingest.quarantine import Quarantine, Refusal
from ingest.space_writer import SpaceWriter
from ingest.versions import CONTENT_KINDS

if TYPE_CHECKING:
    from encoders.profiles import Encoder

# Records whose vectors are written together, as ingestion does it.
CHUNK_RECORDS: Final = 1024
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
Refused = MediaError | RowError
Outcomes = dict[
    tuple[str, Content], Part | MediaError
]  # by record and content: with its hash, or why it cannot be read


@dataclass(frozen=True)
class _Row:
    """What the space should have: since `at_us` the content with this hash; None: none. `part` is it, or why it cannot be had."""

    record_id: str
    at_us: int
    sha: str | None
    part: Part | Refused | None = None


@dataclass
class BackfillReport:
    """Counts of one run, in rows: a version of a record's content, or its deletion.

    Attributes:
        records: items and users that were looked at.
        done: rows that were there already.
        encoded, deleted: rows written.
        refused: rows that could not be made, by reason; `refused_current` of them are the newest of their record.
    """

    space_id: str
    records: int = 0
    done: int = 0
    encoded: int = 0
    deleted: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    refused_current: int = 0
    refusals: list[Refusal] = field(default_factory=list)
    quarantine_file: Path | None = None
    seconds: float = 0.0

    @property
    def quarantined(self) -> int:
        """Rows that could not be made."""
        return self.refused.total()

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values."""
        hidden = ("refusals",)
        plain = {name: value for name, value in vars(self).items() if name not in hidden}
        return {
            **plain,
            "quarantined": self.quarantined,
            "refused": dict(self.refused),
            "seconds": round(self.seconds, 3),
        }


def backfill(
    home: Home,
    encoder: "Encoder",
    *,
    limits: MediaLimits | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> BackfillReport:
    """Encode what is stored into the encoder's space, which must be registered: items, and of a text space users' own words too.

    Args:
        home: the root that holds the tables.
        encoder: of the space to fill.
        limits: what media may be at most.
        progress: called with (rows done since, rows in all).

    Raises:
        SpaceRegistryError: the space is not registered, or retired.
    """
    started = time.monotonic()
    space = encoder.space
    entry = find_entry(home, space.space_id)
    if entry.retired:
        raise SpaceRegistryError(f"space {space.space_id} is retired: `triptych spaces add` brings it back")
    report = BackfillReport(space.space_id)
    limits = limits or MediaLimits()
    with Quarantine(home.quarantine, Path(f"backfill-{space.space_id}")) as quarantine, MediaReader(limits) as media:
        for entity in _entities(home, entry):
            _Backfill(home, encoder, entity, media, quarantine, report, progress).run()
        report.refusals = quarantine.refusals
        report.quarantine_file = quarantine.path if len(quarantine) else None
    report.seconds = time.monotonic() - started
    return report


def _entities(home: Home, entry: SpaceEntry) -> list[str]:
    """Whose vectors to make: items', and users' where another text space holds their words; that view is registered with it."""
    space = entry.space
    siblings = [
        e.space for e in read_entries(home, retired=True) if e.entity == "user" and e.space.kind in CONTENT_KINDS
    ]
    if not any(s.modality == space.modality and s.base_space_id is None for s in siblings):
        return ["item"]
    register_entries(home, [replace(entry, entity="user")])
    return ["item", "user"]


class _Backfill:
    """One entity's part of a backfill."""

    def __init__(
        self,
        home: Home,
        encoder: "Encoder",
        entity: str,
        media: MediaReader,
        quarantine: Quarantine,
        report: BackfillReport,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self._modality = encoder.space.modality
        self._media, self._quarantine, self._report, self._progress = media, quarantine, report, progress
        self._writer = SpaceWriter(Tables(home), encoder, media, self._refuse, self._advance, entity)
        self._contents = StoredContents(Tables(home), entity, self._modality)
        siblings = self._writer.siblings
        self._ids = sorted({*siblings.ids, *self._contents.ids})
        self._total = sum(len(siblings.of(i)) or self._contents.count(i) for i in self._ids)

    def run(self) -> None:
        """Write every row that is not there yet."""
        for ids in in_chunks(self._ids, CHUNK_RECORDS):
            self._write(ids)
        self._report.records += len(self._ids)
        self._report.encoded += self._writer.counts["encoded"]
        self._report.deleted += self._writer.counts["deleted"]

    def _write(self, ids: Sequence[str]) -> None:
        versions = {record_id: self._contents.of(record_id) for record_id in ids}
        outcomes = self._hashed(versions)
        rows = [row for record_id in ids for row in self._wanted(record_id, versions[record_id], outcomes)]
        todo = [row for row in rows if (row.at_us, row.sha) not in self._writer.stored.of(row.record_id)]
        self._report.done += len(rows) - len(todo)
        self._advance(self._planned(ids) - len(todo))
        for row in todo:
            if isinstance(row.part, Refused):
                self._refuse(Part(0, row.record_id, "", row.at_us, row.sha or ""), row.part)
        self._writer.write([replace(row.part, at_us=row.at_us) for row in todo if isinstance(row.part, Part)], _since)
        gone = [row for row in todo if row.sha is None]
        self._writer.delete([row.record_id for row in gone], [row.at_us for row in gone])
        self._advance(sum(not isinstance(row.part, Part) for row in todo))

    def _planned(self, ids: Sequence[str]) -> int:
        return sum(len(self._writer.siblings.of(i)) or self._contents.count(i) for i in ids)

    def _hashed(self, versions: dict[str, list[Version]]) -> Outcomes:
        """Every content that the tables name, read as it is now."""
        named = {(i, one.content): None for i, there in versions.items() for one in there if one.content is not None}
        parts = [Part(0, record_id, content) for record_id, content in named]
        return dict(zip(named, self._media.hashed(parts), strict=True))

    def _wanted(self, record_id: str, versions: Sequence[Version], outcomes: Outcomes) -> list[_Row]:
        """As the modality's other spaces have the record; where none has it, as its own table does."""
        siblings = self._writer.siblings.of(record_id)
        if not siblings:
            return _rows_of(record_id, versions, outcomes)
        there = [outcomes[record_id, one.content] for one in versions if one.content is not None]
        by_sha = {part.sha: part for part in there if isinstance(part, Part)}
        return [
            _Row(
                record_id,
                at_us,
                sha,
                (by_sha.get(sha) or _why_gone(record_id, at_us, versions, outcomes)) if sha else None,
            )
            for at_us, sha in siblings
        ]

    def _refuse(self, part: Part, error: Refused) -> None:
        record, moment = part.record_id, _EPOCH + timedelta(microseconds=part.at_us or 0)
        reason = f"{error}; this is its content since {moment.isoformat()}"
        newest = self._writer.siblings.of(record)[-1:]
        self._report.refused_current += not newest or newest[0][0] == part.at_us
        self._report.refused[error.code] += 1
        self._quarantine.add(Refusal(0, record, self._modality, str(part.content)[:200], error.code, reason))

    def _advance(self, rows: int) -> None:
        if self._progress:
            self._progress(rows, self._total)


def _since(part: Part) -> int:
    return part.at_us or 0


def _rows_of(record_id: str, versions: Sequence[Version], outcomes: Outcomes) -> list[_Row]:
    """What changed from one version to the next."""
    rows: list[_Row] = []
    for version in versions:
        part: Part | Refused | None = outcomes[record_id, version.content] if version.content is not None else None
        if version.cut:
            part = _cut()
        sha = part.sha if isinstance(part, Part) else "" if part else None
        if sha is not None if not rows else sha != rows[-1].sha:
            rows.append(_Row(record_id, version.event_us, sha, part))
    return rows


def _why_gone(record_id: str, at_us: int, versions: Sequence[Version], outcomes: Outcomes) -> Refused:
    """Why the content of an instant is not among what the tables name."""
    version = next((one for one in reversed(versions) if one.event_us <= at_us), None)
    if version is None or version.content is None:
        return RowError("content_gone", "the tables do not say any more what it was; ingest its manifest again")
    if version.cut:
        return _cut()
    outcome = outcomes[record_id, version.content]
    if isinstance(outcome, MediaError):
        return outcome
    where = version.content if isinstance(version.content, Path) else "its text in the tables"
    return RowError("content_changed", f"{where} is not what the old vector was made from")


def _cut() -> RowError:
    return RowError("content_cut", "the tables keep only the beginning of so long a text; ingest its manifest again")
