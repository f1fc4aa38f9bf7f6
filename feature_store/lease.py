"""Leases: one writer per view at a time, in the ledger, since Milvus has no conditional upsert.

Each lease carries a fencing token that only grows. A writer that was paused beyond its lease finds that out before its next write, and
one that was paused in the middle of a write after it: such a late write is remembered, so that the next load mends the view, and so is a
lease that ended without being given back (`docs/decisions/014-one-writer-per-view.md`).
"""

import math
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from feature_store.connection import EMBEDDED
from feature_store.errors import LeaseError, LedgerError
from feature_store.ledger import Ledger, run

LEASE_SECONDS: Final = 60.0
LATE_SECONDS: Final = 60.0  # for which a server may still have a request that was given up: the longest deadline, twice
RENEWED_AFTER: Final = 1 / 3  # of the lease's length
POLL_SECONDS: Final = 0.05
_TAKE: Final = """
    INSERT INTO leases (view, owner, token, expires) VALUES (:view, :owner, 1, :now + :seconds)
    ON CONFLICT (view) DO UPDATE SET owner = excluded.owner, token = leases.token + 1, expires = excluded.expires
    WHERE leases.expires < :now RETURNING token
"""
# Not given back: its owner was killed or is paused, and a write of it may arrive yet.
_ABANDONED: Final = """
    INSERT INTO late_marks SELECT view, token, :now FROM leases WHERE view = :view AND expires > 0 AND expires < :now
    ON CONFLICT (view) DO UPDATE SET token = excluded.token, noted = excluded.noted
"""
_RENEW: Final = """
    UPDATE leases SET expires = {now} + :seconds WHERE view = :view AND owner = :owner AND token = :token RETURNING token
"""
_EXPIRE: Final = "UPDATE leases SET expires = 0 WHERE view = :view AND owner = :owner AND token = :token"
_LATE: Final = """
    INSERT INTO late_marks VALUES (:view, :token, {now})
    ON CONFLICT (view) DO UPDATE SET token = excluded.token, noted = excluded.noted
"""

_ADDED: Final = """
    INSERT INTO added_marks VALUES (:view, {now}) ON CONFLICT (view) DO UPDATE SET noted = excluded.noted
"""


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
    """All leases of one ledger (the SQLite file at `where`, or the database of that URL) for one `store`, as `store_name` names it."""

    def __init__(self, where: Path | str, lease_seconds: float = LEASE_SECONDS, store: str = EMBEDDED) -> None:
        self.where = where
        self.lease_seconds = lease_seconds
        self._ledger = Ledger(where)
        self._store = "" if store == EMBEDDED else f"{store} "

    def _run(self, statement: str, view: str, **values: object) -> Any:
        return self._ledger.run(statement, view=self._store + view, **values)

    def take(self, view: str, wait_seconds: float = 0.0) -> Lease:
        """Take the view's lease, waiting for another writer at most `wait_seconds`. Raises `LeaseError` naming who has it."""
        owner = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        deadline = time.monotonic() + wait_seconds
        while True:
            taken = time.monotonic()
            with self._ledger.transaction() as connection:
                # One instant for both: a lease that ends between two would be taken over and not noted.
                now = float(run(connection, "SELECT {now}")[0])
                run(connection, _ABANDONED, view=self._store + view, now=now)
                asked = {"view": self._store + view, "owner": owner, "seconds": self.lease_seconds, "now": now}
                row = run(connection, _TAKE, **asked)
                holder = run(connection, "SELECT owner FROM leases WHERE view = :view", view=self._store + view)
            if row is not None:
                return Lease(self, view, owner, int(row[0]), taken)
            if time.monotonic() >= deadline:
                raise LeaseError(f"view {view} is being written by {holder[0]}: try again when it is done")
            time.sleep(POLL_SECONDS)

    @contextmanager
    def hold(self, view: str, wait_seconds: float = 0.0) -> Iterator[Lease]:
        """The view's lease for the length of a `with` block."""
        lease = self.take(view, wait_seconds)
        try:
            yield lease
        finally:
            with suppress(LedgerError):  # One that cannot be given back runs out.
                lease.release()

    def renew(self, view: str, owner: str, token: int) -> bool:
        """Extend a lease that is still the owner's, even one that has run out with nobody taking over."""
        asked = {"owner": owner, "token": token, "seconds": self.lease_seconds}
        return self._run(_RENEW, view, **asked) is not None

    def expire(self, view: str, owner: str, token: int) -> None:
        """End a lease now."""
        self._run(_EXPIRE, view, owner=owner, token=token)

    def remember_late(self, view: str, token: int) -> None:
        """Note that rows may have been stored under a lease that had been lost."""
        self._run(_LATE, view, token=token)

    def has_late(self, view: str) -> bool:
        """Whether the view must be loaded in full, since a late write may have put older rows over newer ones."""
        return self._run("SELECT 1 FROM late_marks WHERE view = :view", view) is not None

    def forget_late(self, view: str, load_started: float | None = None) -> None:
        """Note that the view was loaded in full, from `load_started` on (`now`; left out: whatever was noted is mended).

        What was noted less than `LATE_SECONDS` before that stays noted: such a write may have come after the load had looked.
        """
        until = math.inf if load_started is None else load_started - LATE_SECONDS
        self._run("DELETE FROM late_marks WHERE view = :view AND noted < :until", view, until=until)

    def remember_added(self, view: str) -> None:
        """Note that the view has features that none of its rows brought: the next load must bring rows again that are there already."""
        self._run(_ADDED, view)

    def has_added(self, view: str) -> bool:
        """Whether the view has features that wait for a load of everything."""
        return self._run("SELECT 1 FROM added_marks WHERE view = :view", view) is not None

    def forget_added(self, view: str, load_started: float) -> None:
        """Note that everything was loaded, from `load_started` on (`now`): features that were added before then are filled."""
        self._run("DELETE FROM added_marks WHERE view = :view AND noted < :until", view, until=load_started)

    def now(self) -> float:
        """The ledger's own clock, in seconds since 1970."""
        return float(self._ledger.run("SELECT {now}")[0])
