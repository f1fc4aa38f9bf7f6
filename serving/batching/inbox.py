"""A batch queue that threads share: some push, others wait for the next batch."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, Generic

from serving.batching.queue import BatchQueue, Lane, Policy, R, Taken

HELD_BACK_SECONDS: Final = 0.1  # rows that may not go now are looked at again after this
CLOSED: Final = "the server is shutting down"


class Inbox(Generic[R]):
    """A `BatchQueue` with a lock and a bell."""

    def __init__(self, budget: Callable[[Any], int], policy: Policy) -> None:
        self._queue: BatchQueue[R] = BatchQueue(budget, policy)
        self._changed = threading.Condition()
        self._closed = False

    def __len__(self) -> int:
        return len(self._queue)

    def push(self, rows: Sequence[R]) -> bool:
        """Add rows; False, and nothing added, where the inbox is closed."""
        with self._changed:
            if self._closed:
                return False
            self._queue.push(rows)
            self._changed.notify()
        return True

    def take(self) -> Taken[R] | None:
        """Wait for the next batch, or for rows to drop; None once the inbox is closed."""
        with self._changed:
            while not self._closed:
                taken = self._queue.take(time.monotonic())
                if taken.batch or taken.dropped:
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
            return self._queue.drain()

    def close(self) -> list[R]:
        """Send all takers home; what waited is returned."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            return self._queue.drain()
