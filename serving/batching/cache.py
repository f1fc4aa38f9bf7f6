"""Vectors by what they were made from, bounded in bytes; and what is being made now, so that nothing is made twice at once.

A failure is told to everybody who waits for it and is not remembered: the next call tries again.
"""

import threading
from collections.abc import Hashable
from dataclasses import replace
from typing import Final

from cachetools import LRUCache

from encoders.staged import StagedEncoder
from serving.batching.jobs import Call, Job, Outcome, Trace, Vector
from serving.errors import DeadlineExceeded
from serving.metrics import Metrics

# What an entry costs beside its numbers: the key with its digest, the array's header, the cache's two tables.
ENTRY_BYTES: Final = 512
TOO_LATE: Final = "the deadline passed before the forward pass"


class Jobs:
    """The cache and the jobs under way, for any number of threads.

    Args:
        max_bytes: of cached vectors; 0 keeps none.
        metrics: count lookups.
    """

    def __init__(self, max_bytes: int, metrics: Metrics) -> None:
        self._cache: LRUCache[Hashable, Vector] = LRUCache(max_bytes, getsizeof=lambda v: v.nbytes + ENTRY_BYTES)
        self._under_way: dict[Hashable, Job] = {}
        self._lock = threading.Lock()
        self._metrics = metrics
        metrics.cache_bytes.set_function(lambda: self._cache.currsize)

    @property
    def under_way(self) -> int:
        """How many jobs are open."""
        return len(self._under_way)

    def open(self, key: Hashable, encoder: StagedEncoder, call: Call, position: int) -> Job | None:
        """A new job for the caller to do; None where the item was answered from the cache or joined a job under way."""
        with self._lock:
            vector = self._cache.get(key)
            running = self._under_way.get(key)
            if vector is None and running is None:
                job = self._under_way[key] = Job(key, encoder, call, position)
            elif vector is None and running is not None:
                running.join(call, position)
        if vector is not None:
            self._metrics.cache.labels("hit").inc()
            call.settle(position, Outcome(vector, trace=Trace(shared=True)))
            return None
        if running is not None:
            self._metrics.cache.labels("coalesced").inc()
            return None
        self._metrics.cache.labels("miss").inc()
        return job

    def settle(self, job: Job, outcome: Outcome) -> None:
        """End a job and tell all its callers; a job that has ended stays as it is."""
        with self._lock:
            if job.settled:
                return
            self._end(job, outcome)
        for number, (call, position) in enumerate(job.callers):
            call.settle(position, replace(outcome, trace=replace(job.trace, shared=number > 0)))

    def drop(self, job: Job, now: float) -> bool:
        """End a job for which nobody waits any more; False, and it goes on, where somebody has joined it or it has ended."""
        with self._lock:
            if job.settled or job.live(now):
                return False
            self._end(job, Outcome())
        for call, position in job.callers:
            call.settle(position, Outcome(error=DeadlineExceeded(TOO_LATE)))
        return True

    def _end(self, job: Job, outcome: Outcome) -> None:
        """Under the lock: no call can join it after this."""
        job.settled = True
        self._under_way.pop(job.key, None)
        vector = outcome.vector
        if vector is not None:
            vector.setflags(write=False)  # from now on it is shared
            if vector.nbytes + ENTRY_BYTES <= self._cache.maxsize:
                self._cache[job.key] = vector
