"""A request's time: how much is left of it, and where it went.

A passed deadline cancels the coroutine while a worker's thread runs on, so workers ask the budget before they start.
"""

import contextvars
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from protos.triptych.v1 import common_pb2
from serving.errors import DeadlineExceeded

_deadline: Final[contextvars.ContextVar[float]] = contextvars.ContextVar("deadline", default=float("inf"))


def set_deadline(seconds: float) -> None:
    """Give the current request `seconds` from now."""
    _deadline.set(time.monotonic() + seconds)


def deadline() -> float:
    """The current request's end on the monotonic clock; infinite outside requests."""
    return _deadline.get()


def remaining() -> float:
    """Seconds that the current request has left, at least 0."""
    return max(0.0, _deadline.get() - time.monotonic())


def check(end: float) -> None:
    """Raise `DeadlineExceeded` if `end` has passed."""
    if time.monotonic() > end:
        raise DeadlineExceeded("the deadline passed while the request waited")


class Stopwatch:
    """Milliseconds by stage, in the order in which stages began; a stage that runs twice adds up."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._stages: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure a block."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - start)

    def add(self, name: str, seconds: float) -> None:
        """Count `seconds` that were measured elsewhere."""
        self._stages[name] = self._stages.get(name, 0.0) + 1000 * seconds

    def timings(self) -> list[common_pb2.StageTiming]:
        """All stages, and `total` since the stopwatch was made."""
        stages = {**self._stages, "total": 1000 * (time.perf_counter() - self._start)}
        return [common_pb2.StageTiming(stage=name, milliseconds=value) for name, value in stages.items()]
