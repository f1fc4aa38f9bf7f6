"""A batch queue that threads share: some push, others wait for the next batch; who would push much may wait for room first."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, Generic

from serving.batching.queue import BatchQueue, Lane, Policy, R, Taken

HELD_BACK_SECONDS: Final = 0.1  # rows that may not go now are looked at again after this
CLOSED: Final = "the server is shutting down"


class Inbox(Generic[R]):
    """A `BatchQueue` with a lock and a bell. `size` is what a row counts for when room is asked for, in bytes."""

    def __init__(self, budget: Callable[[Any], int], policy: Policy, size: Callable[[R], int] = lambda _: 0) -> None:
        self._queue: BatchQueue[R] = BatchQueue(budget, policy)
        self._size = size
        self._bytes = 0
        lock = threading.Lock()
        self._changed = threading.Condition(lock)
        self._room = threading.Condition(lock)  # of its own: a bell for takers must not wake who waits for room
        self._closed = self._unbounded = False

    def __len__(self) -> int:
        return len(self._queue)

    def push(self, rows: Sequence[R]) -> bool:
        """Add rows; False, and nothing added, where the inbox is closed."""
        with self._changed:
            if self._closed:
                return False
            self._queue.push(rows)
            self._bytes += sum(map(self._size, rows))
            self._changed.notify()
        return True

    @property
    def bytes(self) -> int:
        """Size of the rows that wait."""
        return self._bytes

    def wait_for_room(self, most_bytes: int) -> None:
        """Return when the waiting rows are smaller than this, or no bound holds any more."""
        with self._room:
            self._room.wait_for(lambda: self._bytes < most_bytes or self._closed or self._unbounded)

    def lift_bound(self) -> None:
        """Whoever waits for room goes on, now and ever after: for the end, when those who wait are to come home."""
        with self._room:
            self._unbounded = True
            self._room.notify_all()

    def take(self) -> Taken[R] | None:
        """Wait for the next batch, or for rows to drop; None once the inbox is closed."""
        with self._changed:
            while not self._closed:
                taken = self._queue.take(time.monotonic())
                if taken.batch or taken.dropped:
                    self._left(taken.batch, taken.dropped)
                    if len(self._queue):
                        self._changed.notify()  # one push of many rows has work for several
                    return taken
                self._changed.wait(HELD_BACK_SECONDS if len(self._queue) else None)
        return None

    def done(self, batch: list[R]) -> None:
        """A taken batch is worked off: others may go."""
        with self._changed:
            self._queue.done(batch)
            self._changed.notify()

    def shared_by(self, takers: int) -> None:
        """How many take batches from it at once."""
        with self._changed:
            self._queue.takers = takers

    def depth(self, lane: Lane) -> int:
        """How many rows wait in a lane."""
        with self._changed:
            return self._queue.depth(lane)

    def drain(self) -> list[R]:
        """Take everything that waits."""
        with self._changed:
            return self._drain()

    def prune(self) -> list[R]:
        """Take the rows for which nobody waits any more."""
        with self._changed:
            dead = self._queue.prune(time.monotonic())
            self._left(dead)
        return dead

    def close(self) -> list[R]:
        """Send all takers home; what waited is returned."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            return self._drain()

    def _drain(self) -> list[R]:
        rows = self._queue.drain()
        self._left(rows)
        return rows

    def _left(self, *lists: Sequence[R]) -> None:
        """Under the lock: rows are no longer here."""
        self._bytes -= sum(self._size(row) for rows in lists for row in rows)
        self._room.notify_all()
