"""Who may come in: permits on Embed calls, by the bytes that they bring and the lane that they want.

What comes in past the limits would only wait, in memory, for an answer that is late. Bulk calls may hold half of everything, so that
a flood of them leaves room for interactive ones.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from serving.batching.queue import Lane
from serving.errors import Overloaded
from serving.metrics import Metrics
from serving.settings import ServeSettings

BULK_SHARE: Final = 0.5


class Admission:
    """Counts what is under way; used on the event loop only.

    Args:
        waiting: rows that wait for a forward pass now.
        retry_seconds: when to come back.
    """

    def __init__(
        self, settings: ServeSettings, metrics: Metrics, waiting: Callable[[], int], retry_seconds: Callable[[], float]
    ) -> None:
        self._settings, self._metrics = settings, metrics
        self._waiting, self._retry_seconds = waiting, retry_seconds
        self._calls: Counter[Lane] = Counter()
        self._bytes: Counter[Lane] = Counter()
        metrics.bytes_held.set_function(self._bytes.total)

    @contextmanager
    def admitted(self, lane: Lane, size: int) -> Iterator[None]:
        """Hold a permit for a call of `size` bytes. Raises `Overloaded` where there is none."""
        self._check(lane, size)
        self._calls[lane] += 1
        self._bytes[lane] += size
        try:
            yield
        finally:
            self._calls[lane] -= 1
            self._bytes[lane] -= size

    def _check(self, lane: Lane, size: int) -> None:
        limits, share = self._settings, BULK_SHARE if lane is Lane.BULK else 1.0
        if lane is Lane.BULK and self._calls[lane] >= max(1, limits.permits * share):
            self._refuse("bulk_permits", f"{self._calls[lane]} bulk calls are under way")
        self._check_bytes(self._bytes.total(), size, limits.max_bytes_in_flight)
        self._check_bytes(self._bytes[lane], size, limits.max_bytes_in_flight * share)
        if self._waiting() >= limits.queue_rows:
            self._refuse("queue", f"{self._waiting()} rows wait for the encoder")

    def _check_bytes(self, held: int, size: int, most: float) -> None:
        # A call that is alone may be larger than the limit: it could never come in otherwise.
        if held and held + size > most:
            self._refuse("bytes", f"{held} bytes are under way; {size} more are too many")

    def _refuse(self, reason: str, message: str) -> None:
        self._metrics.rejections.labels(reason).inc()
        raise Overloaded(message, self._retry_seconds())
