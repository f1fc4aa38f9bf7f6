"""Leases: one writer per view at a time, in SQLite beside the registry, since Milvus has no conditional upsert.

Each lease carries a fencing token that only grows. A writer that was paused beyond its lease finds that out before its next write, and
one that was paused in the middle of a write after it: such a late write is remembered, so that the next load mends the view, and so is a
lease that ended without being given back (`docs/decisions/014-one-writer-per-view.md`).
"""

import math
import os
import socket
import sqlite3
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Final

from feature_store.errors import LeaseError

LEASE_SECONDS: Final = 60.0
_TABLE: Final = "CREATE TABLE IF NOT EXISTS leases (view TEXT PRIMARY KEY, owner TEXT NOT NULL, token INTEGER NOT NULL, expires REAL NOT NULL)"
_LATE: Final = (
    "CREATE TABLE IF NOT EXISTS late_marks (view TEXT PRIMARY KEY, token INTEGER NOT NULL, noted REAL NOT NULL)"
)
LATE_SECONDS: Final = 60.0  # for which a server may still have a request that was given up: the longest deadline, twice
RENEWED_AFTER: Final = 1 / 3  # of the lease's length
_TAKE: Final = """
    INSERT INTO leases (view, owner, token, expires) VALUES (:view, :owner, 1, :expires)
    ON CONFLICT (view) DO UPDATE SET owner = :owner, token = token + 1, expires = :expires WHERE expires < :now
    RETURNING token
"""
# Not given back: its owner was killed or is paused, and a write of it may arrive yet.
_ABANDONED: Final = """
    INSERT OR REPLACE INTO late_marks SELECT view, token, :now FROM leases WHERE view = :view AND expires > 0 AND expires < :now
"""


@contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")


class Lease:
    """The right to write one view until it expires; `check` renews it.

    Attributes:
        view: what may be written.
        token: grows with every owner of the view.
    """

    def __init__(self, leases: "Leases", view: str, owner: str, token: int, taken: float) -> None:
        self.view = view
        self.token = token
        self._leases = leases
        self._owner = owner
        self._renewed = taken  # by the monotonic clock, read before the store was asked

    def remaining_seconds(self) -> float:
        """For how long nobody else may have the view; negative where the lease has run out."""
        return self._renewed + self._leases.lease_seconds - time.monotonic()

    def check(self) -> None:
        """Renew the lease where it is due. Raises `LeaseError` where somebody else has it by now: do not write."""
        if self.remaining_seconds() < self._leases.lease_seconds * (1 - RENEWED_AFTER) and not self._renew():
            raise LeaseError(f"the lease of view {self.view} (token {self.token}) was taken over by another writer")

    def confirm(self) -> bool:
        """Whether the view was ours until now, to be asked after a write; else the late write is remembered."""
        if self.remaining_seconds() > 0 or self._renew():
            return True
        self.remember_late()
        return False

    def remember_late(self) -> None:
        """Note that a write may come, or may have come, when the view is no longer ours."""
        self._leases.remember_late(self.view, self.token)

    def _renew(self) -> bool:
        now = time.monotonic()
        is_ours = self._leases.renew(self.view, self._owner, self.token)
        self._renewed = now if is_ours else -math.inf
        return is_ours

    def release(self) -> None:
        """Give the view back."""
        self._leases.expire(self.view, self._owner, self.token)


class Leases:
    """All leases of one home, in the SQLite file at `path`."""

    def __init__(self, path: Path, lease_seconds: float = LEASE_SECONDS) -> None:
        self.path = path
        self.lease_seconds = lease_seconds

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """The open file. Raises `LeaseError` where it cannot be read or written: on a full disk nobody may write a view."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self.path, timeout=30.0, isolation_level=None)) as db:
                db.execute(_TABLE)
                db.execute(_LATE)
                yield db
        except (sqlite3.OperationalError, OSError) as error:
            raise LeaseError(
                f"the writers' leases in {self.path} cannot be kept ({error}): no view is written"
            ) from error

    def take(self, view: str, wait_seconds: float = 0.0) -> Lease:
        """Take the view's lease, waiting for another writer at most `wait_seconds`. Raises `LeaseError` naming who has it."""
        owner = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        deadline = time.monotonic() + wait_seconds
        while True:
            with self._connection() as db:
                now, taken = time.time(), time.monotonic()
                asked = {"view": view, "owner": owner, "now": now, "expires": now + self.lease_seconds}
                with _transaction(db):
                    db.execute(_ABANDONED, asked)
                    row = db.execute(_TAKE, asked).fetchone()
                if row is not None:
                    return Lease(self, view, owner, int(row[0]), taken)
                holder = db.execute("SELECT owner FROM leases WHERE view = ?", (view,)).fetchone()
            if time.monotonic() >= deadline:
                raise LeaseError(
                    f"view {view} is being written by {holder[0] if holder else 'somebody'}: try again when it is done"
                )
            time.sleep(0.05)

    @contextmanager
    def hold(self, view: str, wait_seconds: float = 0.0) -> Iterator[Lease]:
        """The view's lease for the length of a `with` block."""
        lease = self.take(view, wait_seconds)
        try:
            yield lease
        finally:
            with suppress(LeaseError):  # One that cannot be given back runs out.
                lease.release()

    def renew(self, view: str, owner: str, token: int) -> bool:
        """Extend a lease that is still the owner's, even one that has run out with nobody taking over."""
        return self._set_expiry(view, owner, token, time.time() + self.lease_seconds)

    def expire(self, view: str, owner: str, token: int) -> bool:
        """End a lease now."""
        return self._set_expiry(view, owner, token, 0.0)

    def _set_expiry(self, view: str, owner: str, token: int, expires: float) -> bool:
        statement = "UPDATE leases SET expires = ? WHERE view = ? AND owner = ? AND token = ?"
        with self._connection() as db:
            return db.execute(statement, (expires, view, owner, token)).rowcount == 1

    def remember_late(self, view: str, token: int) -> None:
        """Note that rows may have been stored under a lease that had been lost."""
        with self._connection() as db:
            db.execute("INSERT OR REPLACE INTO late_marks VALUES (?, ?, ?)", (view, token, time.time()))

    def has_late(self, view: str) -> bool:
        """Whether the view must be loaded in full, since a late write may have put older rows over newer ones."""
        with self._connection() as db:
            return db.execute("SELECT 1 FROM late_marks WHERE view = ?", (view,)).fetchone() is not None

    def forget_late(self, view: str, load_started: float | None = None) -> None:
        """Note that the view was loaded in full, from `load_started` on (seconds since 1970; left out: whatever was noted is mended).

        What was noted less than `LATE_SECONDS` before that stays noted: such a write may have come after the load had looked.
        """
        until = math.inf if load_started is None else load_started - LATE_SECONDS
        with self._connection() as db:
            db.execute("DELETE FROM late_marks WHERE view = ? AND noted < ?", (view, until))
