"""Threads that do what the event loop must not, each behind a bounded queue.

Torch never runs on the loop. A full queue refuses at once, with a hint when to come back, rather than answer everybody late.
"""

import asyncio
import functools
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, ParamSpec, TypeVar

from serving import budget
from serving.errors import Overloaded

SMOOTHING: Final = 0.2  # weight of the newest job in the running mean of job seconds
MIN_RETRY_SECONDS: Final = 0.05

P = ParamSpec("P")
T = TypeVar("T")


class Worker:
    """`threads` threads and room for `capacity` jobs, running ones included.

    A job whose deadline passed while it waited is not started.
    """

    def __init__(self, name: str, capacity: int, threads: int = 1) -> None:
        self.name = name
        self._capacity = capacity
        self._threads = threads
        self._pending = 0
        self._mean_seconds = MIN_RETRY_SECONDS
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=name)

    async def run(self, job: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The job's result. Raises `Overloaded` at once where the queue is full, `DeadlineExceeded`, or the job's error."""
        if self._pending >= self._capacity:
            raise Overloaded(f"{self._pending} jobs are waiting for {self.name}", self.retry_seconds())
        loop = asyncio.get_running_loop()
        self._pending += 1
        call = functools.partial(job, *args, **kwargs)
        future = self._executor.submit(self._timed, budget.deadline(), call)
        # Counted off when the thread is done with it, not when the caller has given up.
        future.add_done_callback(lambda done: self._released(loop, done))
        return await asyncio.wrap_future(future)

    def retry_seconds(self) -> float:
        """Roughly when half of what waits will be done."""
        return max(MIN_RETRY_SECONDS, self._mean_seconds * self._pending / self._threads / 2)

    def close(self) -> None:
        """Wait for running jobs; drop waiting ones."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _timed(self, end: float, call: Callable[[], T]) -> T:
        budget.check(end)
        start = time.monotonic()
        try:
            return call()
        finally:
            self._mean_seconds += SMOOTHING * (time.monotonic() - start - self._mean_seconds)

    def _released(self, loop: asyncio.AbstractEventLoop, _: "Future[T]") -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(self._count_off)

    def _count_off(self) -> None:
        self._pending -= 1
