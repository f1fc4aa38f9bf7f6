"""Interactions into the offline tables: from files, and from the event log that serving writes.

An event without an id is given one made from its own content, so that loading the same file twice adds nothing.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from feature_store.event_log import EventLog, LoggedEvent
from feature_store.home import Home
from feature_store.tables import Tables
from ingest.errors import RowError
from ingest.quarantine import Quarantine, Refusal
from ingest.records import RecordFile, id_of, number_of, text_of, timestamp_of

DEFAULT_EVENT_TYPE: Final = "click"
# As the server has it, so that what one accepts the other does too.
MAX_EVENT_TYPE_BYTES: Final = 32
MAX_DEVICE_BYTES: Final = 32
MAX_POSITION: Final = 2**31 - 1
CHUNK_EVENTS: Final = 100_000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass
class EventsReport:
    """Counts of one load: rows in the file, rows appended, refusals."""

    path: Path
    rows: int = 0
    written: int = 0
    refusals: list[Refusal] = field(default_factory=list)
    quarantined: int = 0
    quarantine_file: Path | None = None


def load_interactions(
    home: Home, path: Path, *, mapping: dict[str, str] | None = None, progress: Callable[[int], None] | None = None
) -> EventsReport:
    """Append a file of interactions to the offline tables.

    Columns: `user_id`, `item_id`, `event_timestamp`; optional `event_type`, `value`, `event_id`, `impression_id`, `request_id`, `position` (1: shown first), `propensity`, `device`. Bad rows are quarantined. Raises `ManifestError` where the file cannot be read; loading it again once it is mended adds no event twice.
    """
    records = RecordFile(path, mapping or {})
    records.require("user_id")
    records.require("item_id")
    records.require("event_timestamp")
    tables, report = Tables(home.create()), EventsReport(path)
    with Quarantine(home.quarantine, path) as quarantine:
        pending: list[dict[str, Any]] = []
        for event in _events(records, quarantine):
            report.rows += 1
            pending += [event] if event else []
            if len(pending) >= CHUNK_EVENTS:
                report.written += _append(tables, pending)
            if progress:
                progress(1)
        report.written += _append(tables, pending)
        report.refusals, report.quarantined = quarantine.refusals, len(quarantine)
        report.quarantine_file = quarantine.path if len(quarantine) else None
    return report


def _append(tables: Tables, pending: list[dict[str, Any]]) -> int:
    written = tables.append_interactions(pa.Table.from_pylist(pending)) if pending else 0
    pending.clear()
    return written


def _events(records: RecordFile, quarantine: Quarantine) -> Iterator[dict[str, Any] | None]:
    for number, row in records:
        try:
            if isinstance(row, RowError):
                raise row
            yield _event(row)
        except RowError as error:
            record_id = "" if isinstance(row, RowError) else text_of(row, "event_id")[:128]
            quarantine.add(Refusal(number, record_id, "row", str(row)[:200], error.code, str(error)))
            yield None


def _event(row: dict[str, Any]) -> dict[str, Any]:
    user_id, item_id = id_of(row, "user_id"), id_of(row, "item_id")
    timestamp_us = timestamp_of(row, "event_timestamp")
    if timestamp_us is None:
        raise RowError("missing_event_timestamp", "event_timestamp is empty")
    event_type = text_of(row, "event_type") or DEFAULT_EVENT_TYPE
    if len(event_type.encode()) > MAX_EVENT_TYPE_BYTES:
        raise RowError(
            "bad_event_type", f"event_type {event_type[:40]!r}... is longer than {MAX_EVENT_TYPE_BYTES} bytes"
        )
    return {
        "event_id": id_of(row, "event_id")
        if text_of(row, "event_id")
        else event_id_of(user_id, item_id, event_type, timestamp_us),
        **{name: id_of(row, name) if text_of(row, name) else None for name in ("impression_id", "request_id")},
        "position": _position(row),
        "propensity": _propensity(row),
        "device": _device(row),
        "user_id": user_id,
        "item_id": item_id,
        "event_type": event_type,
        "value": number_of(row, "value"),
        "event_timestamp": _EPOCH + timedelta(microseconds=timestamp_us),
    }


def _position(row: dict[str, Any]) -> int | None:
    position = number_of(row, "position")
    if position is not None and not (position.is_integer() and 1 <= position <= MAX_POSITION):
        raise RowError("bad_position", f"position {position} must be a whole number from 1, for what was shown first")
    return None if position is None else int(position)


def _propensity(row: dict[str, Any]) -> float | None:
    propensity = number_of(row, "propensity")
    if propensity is not None and not 0.0 < propensity <= 1.0:
        raise RowError("bad_propensity", f"propensity {propensity} must be above 0 and at most 1")
    return propensity


def _device(row: dict[str, Any]) -> str | None:
    device = text_of(row, "device")
    if len(device.encode()) > MAX_DEVICE_BYTES:
        raise RowError("bad_device", f"device {device[:40]!r}... is longer than {MAX_DEVICE_BYTES} bytes")
    return device or None


def event_id_of(user_id: str, item_id: str, event_type: str, timestamp_us: int) -> str:
    """The id of an event that was given none: a digest of what happened when."""
    return sha256("\0".join((user_id, item_id, event_type, str(timestamp_us))).encode()).hexdigest()[:32]


def drain(home: Home) -> int:
    """Move what the server has recorded since the last drain into the offline interactions; return how many events.

    The log keeps them. A kill between the two writes repeats events, which readers of the table drop by event_id.
    """
    if not home.events.exists():
        return 0
    log, tables, moved = EventLog(home.events), Tables(home.create()), 0
    try:
        while events := log.read_after(log.drained_until, CHUNK_EVENTS):
            tables.append_interactions(pa.Table.from_pylist([_row(event) for event in events]))
            log.mark_drained(events[-1].seq)
            moved += len(events)
    finally:
        log.close()
    return moved


def _row(event: LoggedEvent) -> dict[str, Any]:
    return {
        "event_id": event.event_id,
        "impression_id": event.impression_id or None,
        "request_id": event.request_id or None,
        "propensity": event.propensity,
        "position": event.position,
        "device": event.device,
        "user_id": event.user_id,
        "item_id": event.item_id,
        "event_type": event.event_type,
        "value": event.value,
        "event_timestamp": _EPOCH + timedelta(microseconds=event.timestamp_us),
    }
