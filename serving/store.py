"""Milvus as a request sees it: answers soon, or the request goes on without it and says so.

After a failure of the store's own it is left alone for a while, so that a dead one costs the requests of that time nothing; a
request that it refused, or that had too little time, speaks for itself only. The address is looked up again on the next try,
since a restarted Milvus may have another.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Final, TypeVar

import structlog

from feature_store.connection import connect
from feature_store.errors import StoreRequestError, StoreUnavailable
from feature_store.home import Home
from feature_store.milvus_core import MilvusCore
from serving import budget
from serving.errors import Overloaded
from serving.settings import ServeSettings
from serving.workers import Worker

READ_THREADS: Final = 4
LOAD_TIMEOUT_SECONDS: Final = 60.0
# What is left for scoring after the store has used all the time it may.
SHARE_OF_BUDGET: Final = 0.5
# On either a request goes on with what is in memory, and says so.
NO_ANSWER: Final = (StoreUnavailable, StoreRequestError)

T = TypeVar("T")
log = structlog.get_logger("serving.store")


class Store:
    """Reads for requests (`read`) and bulk loads of the hot tier (`load`), each on threads of its own."""

    def __init__(self, home: Home, settings: ServeSettings) -> None:
        self._home = home
        self._settings = settings
        self._readers = Worker("store", settings.queue_capacity, READ_THREADS)
        self._loader = Worker("load", settings.queue_capacity)
        self._core: MilvusCore | None = None
        self._loading_core: MilvusCore | None = None
        self._left_alone_until = 0.0
        self._last_error = ""

    async def read(self, job: Callable[[MilvusCore], T]) -> T:
        """The job's result on a core with a short timeout.

        Raises `StoreUnavailable` where Milvus is down, slow or busy, and the job's other errors as they are.
        """
        if time.monotonic() < self._left_alone_until:
            raise StoreUnavailable(self._last_error)
        most = self._settings.store_timeout_seconds
        seconds = min(most, SHARE_OF_BUDGET * budget.remaining())
        try:
            async with asyncio.timeout(seconds):
                return await self._readers.run(self._on_core, job)
        except StoreUnavailable as error:
            raise self._failed(str(error)) from error
        except TimeoutError as error:
            message = f"Milvus did not answer within {seconds:.2g} s"
            # A caller in a hurry says nothing about the store.
            raise (self._failed(message) if seconds >= most else StoreUnavailable(message)) from error
        except Overloaded as error:
            raise StoreUnavailable(str(error)) from error

    async def load(self, job: Callable[[MilvusCore], T]) -> T:
        """The job's result on a core with a long timeout; raises the feature store's errors."""
        return await self._loader.run(self._on_loading_core, job)

    def close(self) -> None:
        """End the threads and the connection."""
        self._readers.close()
        self._loader.close()
        for core in (self._core, self._loading_core):
            if core is not None:
                core.close()

    def _on_core(self, job: Callable[[MilvusCore], T]) -> T:
        core = self._core  # read once: a failure on another thread may take it away at any time
        if core is None:
            core = self._core = connect(self._home, self._settings.store_timeout_seconds)
        return job(core)

    def _on_loading_core(self, job: Callable[[MilvusCore], T]) -> T:
        core, self._loading_core = self._loading_core or connect(self._home, LOAD_TIMEOUT_SECONDS), None
        result = job(core)  # where it fails, the next job looks the address up again
        self._loading_core = core
        return result

    def _failed(self, message: str) -> StoreUnavailable:
        log.warning("store unavailable", error=message, retry_seconds=self._settings.store_retry_seconds)
        self._left_alone_until = time.monotonic() + self._settings.store_retry_seconds
        self._last_error = message
        self._core = None
        return StoreUnavailable(message)
