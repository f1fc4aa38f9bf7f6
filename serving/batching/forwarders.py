"""The encoding threads of a server: as many as its device runs forward passes well at once.

On a GPU that is one. On a CPU several passes of a thread each do as much as one of several threads, wait for each other nowhere, and
suffer little from whatever else needs a core: decoders, the event loop, neighbours.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Final, Protocol, runtime_checkable

from encoders.bulk import compute_with, computing_threads
from encoders.staged import StagedEncoder
from serving.batching.cache import Jobs
from serving.batching.forwarder import CLOSE_SECONDS, Forwarder
from serving.batching.inbox import Inbox
from serving.batching.jobs import UnitRow
from serving.metrics import Metrics

MIN_RETRY_SECONDS: Final = 0.05
MAX_RETRY_SECONDS: Final = 10.0


class Forwarders:
    """Encoding threads that share one inbox.

    Args:
        load: makes the encoders; run on a thread of ours, once.
        on_state: told, from our threads, when all serve, and when one has ceased to.
    """

    def __init__(
        self,
        load: Callable[[], Sequence[StagedEncoder]],
        inbox: Inbox[UnitRow],
        jobs: Jobs,
        metrics: Metrics,
        on_state: Callable[[bool], None],
    ) -> None:
        self._load, self._inbox, self._jobs, self._metrics, self._on_state = load, inbox, jobs, metrics, on_state
        self._started: Future[None] = Future()
        self._starter = threading.Thread(target=self._start, name="load encoders", daemon=True)
        self._changing = threading.Lock()
        self._closed = self._all_up = False
        self.members: list[Forwarder] = []

    def start(self) -> "Future[None]":
        """Load, warm up, serve; the future is done when all threads do, or fails with what the first failed with."""
        self._started.set_running_or_notify_cancel()  # from now on who waits for it may give up, but cannot cancel it
        self._starter.start()
        return self._started

    @property
    def up(self) -> bool:
        """Whether any thread serves."""
        return any(forwarder.up for forwarder in self.members)

    @property
    def has_served(self) -> bool:
        """Whether they ever all did, or tried."""
        return self._started.done()

    def retry_seconds(self) -> float:
        """Roughly when half of what waits will be done."""
        rate = sum(forwarder.rows_per_second for forwarder in self.members)
        estimate = len(self._inbox) / rate / 2 if rate else MIN_RETRY_SECONDS
        return min(MAX_RETRY_SECONDS, max(MIN_RETRY_SECONDS, estimate))

    def close(self) -> None:
        """Finish the batches under way and refuse what waits."""
        with self._changing:
            self._closed = True
            members = list(self.members)
        if self._starter.ident is not None:
            self._starter.join(CLOSE_SECONDS)
        for forwarder in members:
            forwarder.closing()
        for forwarder in members:
            forwarder.close()
        self._inbox.close()

    def _start(self) -> None:
        try:
            encoders = self._load()
            cores = computing_threads()  # once: an encoding thread changes what the others would read
            count, threads = lanes_of(encoders, cores)
            self._inbox.shared_by(count)
            warm = partial(_warm, encoders, threads, cores)
            futures = [forwarder.start() for forwarder in self._hired(warm, count)]
            for future in futures:
                future.result()
        except BaseException as error:  # noqa: BLE001 - whoever waits for the start must hear of it
            self._started.set_exception(error)
        else:
            self._started.set_result(None)

    def _hired(self, warm: Callable[[], None], count: int) -> list[Forwarder]:
        with self._changing:
            if not self._closed:
                self.members = [
                    Forwarder(self._inbox, self._jobs, self._metrics, warm, self._changed, lambda: not self.up)
                    for _ in range(count)
                ]
            return self.members

    def _changed(self) -> None:
        with self._changing:
            everybody = all(forwarder.up for forwarder in self.members)
            self._metrics.workers_up.set(sum(forwarder.up for forwarder in self.members))
            if everybody != self._all_up:
                self._all_up = everybody
                self._on_state(everybody)


@runtime_checkable
class Laned(Protocol):
    """An encoder that several threads may forward with at once, as ours are."""

    def lanes(self, threads: int) -> tuple[int, int]:
        """How many forwards run well at once, and with how many of torch's `threads` each."""


def _warm(encoders: Sequence[StagedEncoder], threads: int, cores: int) -> None:
    """Make the calling thread ready to forward."""
    compute_with(threads, others=cores)
    for encoder in encoders:
        encoder.warm_up()


def lanes_of(encoders: Sequence[StagedEncoder], threads: int) -> tuple[int, int]:
    """How many forward passes may run at once, and with how many of torch's `threads` each."""
    return min((one.lanes(threads) for one in encoders if isinstance(one, Laned)), default=(1, threads))
