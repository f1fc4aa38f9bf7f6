"""The durable event log: what users did, on disk before it is acknowledged.

One SQLite file in WAL mode with synchronous=FULL, so that an event that `append` returned from survives a crash of the
process or the machine. Serving appends and reads it; the event drain moves it into the offline interactions.
"""

import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Final

BUSY_TIMEOUT_SECONDS: Final = 10.0

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS events (
  seq INTEGER PRIMARY KEY AUTOINCREMENT,
  event_id TEXT NOT NULL UNIQUE, user_id TEXT NOT NULL, item_id TEXT NOT NULL, event_type TEXT NOT NULL,
  value REAL, timestamp_us INTEGER NOT NULL, impression_id TEXT, request_id TEXT, propensity REAL,
  created_us INTEGER NOT NULL, device TEXT, position INTEGER
);
CREATE INDEX IF NOT EXISTS events_by_user ON events (user_id, timestamp_us);
CREATE TABLE IF NOT EXISTS progress (name TEXT PRIMARY KEY, seq INTEGER NOT NULL);
"""


@dataclass(frozen=True)
class LoggedEvent:
    """One interaction. `seq` is its place in the log (0 before it is appended); times are microseconds UTC."""

    event_id: str
    user_id: str
    item_id: str
    event_type: str
    value: float | None
    timestamp_us: int
    impression_id: str | None = None
    request_id: str | None = None
    propensity: float | None = None
    device: str | None = None
    position: int | None = None
    created_us: int = 0
    seq: int = 0


_LATER: Final = {"device": "TEXT", "position": "INTEGER"}  # columns that a log of an earlier version lacks
_STORED: Final = tuple(field.name for field in fields(LoggedEvent) if field.name != "seq")
_INSERT: Final = f"INSERT INTO events ({', '.join(_STORED)}) VALUES ({', '.join('?' * len(_STORED))}) ON CONFLICT (event_id) DO NOTHING"  # noqa: S608 -- constant names
_SELECT: Final = f"SELECT {', '.join(_STORED)}, seq FROM events"  # noqa: S608 -- constant names


class EventLog:
    """The log at `path`, made where it is missing. Safe for many threads and several processes.

    Raises:
        sqlite3.OperationalError: the disk is full, or another writer kept it for more than `BUSY_TIMEOUT_SECONDS`.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(
            path, timeout=BUSY_TIMEOUT_SECONDS, isolation_level=None, check_same_thread=False
        )
        self._connection.execute("PRAGMA journal_mode=WAL")
        # FULL, not SQLite's usual NORMAL for WAL: each commit is synced, because each commit is acknowledged.
        self._connection.execute("PRAGMA synchronous=FULL")
        self._connection.executescript(_SCHEMA)
        self._add_later_columns()

    def append(self, events: Sequence[LoggedEvent]) -> tuple[int, int]:
        """Write `events` in one transaction; return (accepted, duplicates) once they are on disk.

        An event whose `event_id` is known keeps its first form. `created_us` 0 becomes now.
        """
        now_us = time.time_ns() // 1000
        rows = [(*astuple(event)[:-2], event.created_us or now_us) for event in events]
        with self._transaction() as connection:
            before = connection.total_changes
            connection.executemany(_INSERT, rows)
            accepted = connection.total_changes - before
        return accepted, len(rows) - accepted

    def for_users(self, user_ids: Iterable[str], since_us: int | None = None) -> list[LoggedEvent]:
        """Events of these users at or after `since_us`, oldest first."""
        wanted = sorted(set(user_ids))
        marks = ", ".join("?" * len(wanted))
        where = f" WHERE user_id IN ({marks}) AND timestamp_us >= ? ORDER BY timestamp_us, event_id"
        return self._select(where, (*wanted, -(2**63) if since_us is None else since_us))

    def newest_of(self, user_id: str, before_us: int, limit: int) -> list[LoggedEvent]:
        """The user's newest `limit` events strictly before `before_us`, oldest first."""
        where = " WHERE user_id = ? AND timestamp_us < ? ORDER BY timestamp_us DESC, event_id DESC LIMIT ?"
        return self._select(where, (user_id, before_us, limit))[::-1]

    def read_after(self, seq: int, limit: int = 10_000) -> list[LoggedEvent]:
        """Up to `limit` events whose `seq` is greater, in the order in which they were appended."""
        return self._select(" WHERE seq > ? ORDER BY seq LIMIT ?", (seq, limit))

    def __len__(self) -> int:
        with self._lock:
            return int(self._connection.execute("SELECT count(*) FROM events").fetchone()[0])

    @property
    def drained_until(self) -> int:
        """`seq` of the last event that has reached the offline interactions; 0 at first."""
        with self._lock:
            row = self._connection.execute("SELECT seq FROM progress WHERE name = 'drained'").fetchone()
        return int(row[0]) if row else 0

    def mark_drained(self, seq: int) -> None:
        """Remember that all events up to `seq` are in the offline interactions; never goes back."""
        with self._transaction() as connection:
            connection.execute(
                "INSERT INTO progress VALUES ('drained', ?) ON CONFLICT (name) DO UPDATE SET seq = max(seq, excluded.seq)",
                (seq,),
            )

    def close(self) -> None:
        """Close the file; the log cannot be used afterwards."""
        with self._lock:
            self._connection.close()

    def _add_later_columns(self) -> None:
        if not self._lacking():  # no writer is waited for where there is nothing to do
            return
        with self._transaction() as connection:
            for name in self._lacking():
                connection.execute(f"ALTER TABLE events ADD COLUMN {name} {_LATER[name]}")

    def _lacking(self) -> set[str]:
        return _LATER.keys() - {row[1] for row in self._connection.execute("PRAGMA table_info(events)")}

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def _select(self, where: str, parameters: Sequence[object]) -> list[LoggedEvent]:
        with self._lock:
            rows = self._connection.execute(_SELECT + where, parameters).fetchall()
        return [LoggedEvent(*row) for row in rows]
