"""Users' features: their newest events, one time-decayed interest vector per item space, and their own words encoded.

A user's row is dated by their last event, which is when it became true; a user whose events and items have not changed is not
written again. Interests do not depend on the instant of the build: exponential decay scales all weights alike.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from encoders.errors import MediaError
from encoders.media import MediaLimits, clean_text, sha256_hex
from encoders.space import EmbeddingSpace
from encoders.text import TextEncoder
from feature_store.history import Decay, Events, history_as_of, interest, interest_space
from feature_store.home import Home
from feature_store.spaces import read_spaces, register_spaces
from feature_store.tables import Tables
from ingest.errors import RowError
from ingest.events import drain
from ingest.pipeline import first_instant
from ingest.quarantine import Quarantine, Refusal
from ingest.records import RecordFile, id_of, text_of, timestamp_of
from ingest.versions import CONTENT_KINDS, Versions, embedding_versions

HISTORY_EVENTS: Final = 100
# How much of a user's words is kept for people to read, well under the store's 65,535 bytes; the vector is of all of them.
MAX_PROFILE_CHARS: Final = 10_000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_ENCODED_KINDS: Final = ("encoder", "untrained", "imported")


@dataclass
class UsersReport:
    """Counts of one build. `interests` and `texts` count vectors written, by space id."""

    users: int = 0
    drained: int = 0
    histories: int = 0
    unchanged: int = 0
    interests: dict[str, int] = field(default_factory=dict)
    texts: dict[str, int] = field(default_factory=dict)
    unknown_items: int = 0
    quarantined: int = 0
    quarantine_file: Path | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class _User:
    user_id: str
    events: Events

    @property
    def last_us(self) -> int:
        return int(self.events.timestamps_us[-1])


def build_users(
    home: Home,
    *,
    at_us: int | None = None,
    decay: Decay | None = None,
    history_events: int = HISTORY_EVENTS,
    progress: Callable[[int], None] | None = None,
) -> UsersReport:
    """Build histories and interests from all interactions strictly before `at_us`, after draining the event log.

    Args:
        home: the root that holds the tables.
        at_us: the instant to build for, microseconds since the epoch; default now.
        decay: how events lose weight; its parameters are part of the interest spaces' ids.
        history_events: a user's newest events that are kept and averaged.
        progress: called with the number of users done.
    """
    started = time.monotonic()
    tables, report = Tables(home.create()), UsersReport()
    tables.ensure()
    report.drained = drain(home)
    at_us = time.time_ns() // 1000 if at_us is None else at_us
    users = list(_users(tables, at_us, history_events))
    report.users = len(users)
    _write_histories(tables, users, report)
    _write_new_users(tables, users)
    known: set[str] = set()
    for space in read_spaces(home, "item"):
        if space.kind in _ENCODED_KINDS:
            known |= _write_interests(home, tables, space, users, decay or Decay(), report)
    report.unknown_items = len({i for user in users for i in user.events.item_ids} - known)
    if progress:
        progress(len(users))
    report.seconds = time.monotonic() - started
    return report


def _users(tables: Tables, at_us: int, limit: int) -> Iterator[_User]:
    """Each user's newest events before `at_us`, oldest first."""
    table = tables.read_interactions(before_us=at_us)
    ids = table["user_id"].to_pylist()
    starts = [row for row in range(len(ids)) if row == 0 or ids[row] != ids[row - 1]]
    for start, stop in pairwise([*starts, len(ids)]):
        yield _User(ids[start], history_as_of(events_of(table.slice(start, stop - start)), at_us, limit=limit))


def events_of(table: pa.Table) -> Events:
    """Rows of the interactions table, all of one user, as `Events`."""
    return Events(
        table["event_id"].to_pylist(),
        table["item_id"].to_pylist(),
        table["event_type"].to_pylist(),
        table["value"].cast(pa.float64()).fill_null(float("nan")).to_numpy(),
        table["event_timestamp"].cast(pa.int64()).to_numpy(),
    )


def _write_histories(tables: Tables, users: list[_User], report: UsersReport) -> None:
    stored = tables.read_user_history()
    known = dict(zip(stored["user_id"].to_pylist(), stored["event_ids"].to_pylist(), strict=True))
    rows = [_history_row(user) for user in users if known.get(user.user_id) != user.events.event_ids]
    report.histories, report.unchanged = len(rows), len(users) - len(rows)
    if rows:
        tables.write_user_history(pa.Table.from_pylist(rows))


def _history_row(user: _User) -> dict[str, Any]:
    events = user.events
    return {
        "user_id": user.user_id,
        "item_ids": events.item_ids,
        "event_types": events.event_types,
        "event_ids": events.event_ids,
        "timestamps_us": events.timestamps_us.tolist(),
        "values": events.values.tolist(),
        "event_timestamp": _EPOCH + timedelta(microseconds=user.last_us),
    }


def _write_new_users(tables: Tables, users: list[_User]) -> None:
    known = set(tables.read_users()["user_id"].to_pylist())
    new = [user for user in users if user.user_id not in known]
    times = [_EPOCH + timedelta(microseconds=int(user.events.timestamps_us[0])) for user in new]
    if new:
        tables.write_users(pa.table({"user_id": [user.user_id for user in new], "event_timestamp": times}))


def _write_interests(
    home: Home, tables: Tables, space: EmbeddingSpace, users: list[_User], decay: Decay, report: UsersReport
) -> set[str]:
    """Write the interest vectors that changed; return the items that the space knows."""
    items = tables.read_embeddings("item", space.space_id)
    row_of = {item_id: row for row, item_id in enumerate(items.ids)}
    target = interest_space(space, decay)
    register_spaces(home, [target], "user")
    stored = tables.embedding_index("user", target.space_id)
    written: list[tuple[_User, str, NDArray[np.float32]]] = []
    gone: list[_User] = []
    for user in users:
        rows = [(place, row_of[item_id]) for place, item_id in enumerate(user.events.item_ids) if item_id in row_of]
        digest = _digest(user, [(place, items.content_sha256[row]) for place, row in rows])
        if stored.get(user.user_id, ("", 0))[0] == digest:
            continue
        vector = _interest(user, rows, items.vectors, decay)
        if vector is not None:
            written.append((user, digest, vector))
        elif user.user_id in stored:
            gone.append(user)
    report.interests[target.space_id] = len(written)
    if written:
        tables.write_embeddings(
            "user",
            target,
            [user.user_id for user, _, _ in written],
            np.stack([vector for _, _, vector in written]),
            content_sha256=[digest for _, digest, _ in written],
            event_timestamp=np.array([user.last_us for user, _, _ in written], np.int64),
        )
    if gone:
        times = np.array([user.last_us for user in gone], np.int64)
        tables.delete_embeddings("user", target, [user.user_id for user in gone], times)
    return set(row_of)


def _digest(user: _User, seen: list[tuple[int, str | None]]) -> str:
    """Digest of what an interest vector is made from: the events, and the content of the items they were about."""
    return sha256("\n".join(f"{user.events.event_ids[place]} {sha}" for place, sha in seen).encode()).hexdigest()


def _interest(
    user: _User, rows: list[tuple[int, int]], vectors: NDArray[np.float32], decay: Decay
) -> NDArray[np.float32] | None:
    if not rows:
        return None
    places, items = (np.array(column, np.int64) for column in zip(*rows, strict=True))
    events = user.events.take(places)
    weights = decay.weights(events.event_types, events.values)
    return interest(vectors[items], user.last_us - events.timestamps_us, weights, decay)


def encode_profiles(
    home: Home,
    path: Path,
    encoders: Sequence[TextEncoder],
    *,
    mapping: dict[str, str] | None = None,
    limits: MediaLimits | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> UsersReport:
    """Encode users' own words (`user_id`, `text`; optional `updated_at`) into each encoder's text space.

    Rows that cannot be used are quarantined, unchanged ones skipped. `options` says by space id how an encoder is loaded again.
    Raises `ManifestError` where the file as a whole cannot be read.
    """
    records = RecordFile(path, mapping or {})
    records.require("user_id")
    records.require("text")
    tables, report = Tables(home.create()), UsersReport()
    with Quarantine(home.quarantine, path) as quarantine:
        rows = _profiles(records, quarantine, limits or MediaLimits())
        report.quarantined, report.quarantine_file = len(quarantine), quarantine.path if len(quarantine) else None
    spaces = [encoder.space for encoder in encoders]
    register_spaces(home, spaces, "user", encoders=options)
    # Before anything is written: what is dated now must be dated alike in every space.
    stored = {space.space_id: tables.embedding_index("user", space.space_id) for space in spaces}
    _date(rows, text_versions(home), first_instant(tables))
    changed = {s: {user: row for user, row in rows.items() if _sha(stored[s], user) != row["sha"]} for s in stored}
    for encoder in encoders:
        _write_profiles(tables, encoder, changed[encoder.space.space_id])
        report.texts[encoder.space.space_id] = len(changed[encoder.space.space_id])
    _write_words(tables, {user: row for one in changed.values() for user, row in one.items()})
    report.users, report.unchanged = len(rows), sum(user not in one for user in rows for one in changed.values())
    return report


def text_versions(home: Home) -> Versions[str]:
    """The hashes of users' own words, of all text spaces, retired ones too."""
    spaces = [s for s in read_spaces(home, "user", retired=True) if s.modality == "text" and s.base_space_id is None]
    known = [space.space_id for space in spaces if space.kind in CONTENT_KINDS]
    return embedding_versions(Tables(home), "user", *known)


def _sha(stored: Mapping[str, tuple[str | None, int]], user: str) -> str | None:
    return stored.get(user, (None, 0))[0]


def _date(rows: dict[str, dict[str, Any]], known: Versions[str], default_us: int) -> None:
    """Date words as a space has them; else, where nobody says, now if they replace others and just before the first interaction if not."""
    now_us = time.time_ns() // 1000
    for user, row in rows.items():
        there = known.since(user, row["sha"], row["us"])
        if there is not None:
            row["us"] = there
        elif row["us"] is None:
            row["us"] = now_us if user in known else default_us


def _profiles(records: RecordFile, quarantine: Quarantine, limits: MediaLimits) -> dict[str, dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    for number, row in records:
        user_id = "" if isinstance(row, RowError) else text_of(row, "user_id")
        try:
            if isinstance(row, RowError):
                raise row
            user_id, text, when = (
                id_of(row, "user_id"),
                clean_text(text_of(row, "text"), limits),
                timestamp_of(row, "updated_at"),
            )
            if user_id in rows:
                raise RowError(
                    "duplicate_user_id", f"user_id {user_id!r} is in an earlier row already; that row was kept"
                )
        except (RowError, MediaError) as error:
            quarantine.add(Refusal(number, user_id[:128], "row", str(row)[:200], error.code, str(error)))
            continue
        rows[user_id] = {"text": text, "sha": sha256_hex(text.encode()), "us": when}
    return rows


def _write_profiles(tables: Tables, encoder: TextEncoder, changed: dict[str, dict[str, Any]]) -> None:
    if not changed:
        return
    rows = list(changed.values())
    tables.write_embeddings(
        "user",
        encoder.space,
        list(changed),
        encoder.encode([row["text"] for row in rows]),
        content_sha256=[row["sha"] for row in rows],
        event_timestamp=np.array([row["us"] for row in rows], np.int64),
    )


def _write_words(tables: Tables, changed: dict[str, dict[str, Any]]) -> None:
    """Keep the words themselves too, for people and for spaces to come; what is stored already is not written again."""
    users = tables.read_users()
    known = dict(zip(users["user_id"].to_pylist(), users["profile_text"].to_pylist(), strict=True))
    words = {user: row["text"][:MAX_PROFILE_CHARS] for user, row in changed.items()}
    new = {user: text for user, text in words.items() if known.get(user) != text}
    if new:
        moments = [_EPOCH + timedelta(microseconds=int(changed[user]["us"])) for user in new]
        columns = {"user_id": list(new), "profile_text": list(new.values()), "event_timestamp": moments}
        tables.write_users(pa.table(columns))
