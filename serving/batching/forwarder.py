"""An encoding thread and its supervisor.

A batch that fails is split until the item that breaks it is alone. A thread that dies is replaced by one that is warmed up anew, and
what it had in hand is told to come back.
"""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Final

import numpy as np
import structlog

from encoders.staged import StagedEncoder
from serving.batching.cache import Jobs
from serving.batching.inbox import CLOSED, Inbox
from serving.batching.jobs import Job, Outcome, UnitRow, Vector
from serving.batching.queue import Taken
from serving.errors import ItemFailedError, Unavailable
from serving.metrics import Metrics

FIRST_PAUSE_SECONDS: Final = 0.1  # before a dead thread is replaced; doubled at each further death
LONGEST_PAUSE_SECONDS: Final = 10.0
HEALTHY_SECONDS: Final = 60.0  # a thread that lived this long died for a new reason
CLOSE_SECONDS: Final = 30.0
SUSPECT_BATCHES: Final = 3  # that failed whole, one after the other: the device may be to blame, not the items
SMOOTHING: Final = 0.1  # weight of the newest batch in the running rows per second
RESTARTING: Final = "the encoding thread died and is being restarted"

log = structlog.get_logger("serving.batching")


class Forwarder:
    """Takes batches from the inbox and settles their jobs.

    Args:
        warm: run by each new thread before it serves: loads the models, forwards once per group. If it fails the first time, `start`'s
            future does.
        on_state: told, from our threads, after `up` has changed.
        alone: whether no other forwarder could take what waits, so that it must fail when this one dies.
    """

    def __init__(
        self,
        inbox: Inbox[UnitRow],
        jobs: Jobs,
        metrics: Metrics,
        warm: Callable[[], None],
        on_state: Callable[[], None],
        alone: Callable[[], bool],
    ) -> None:
        self._inbox, self._jobs, self._metrics = inbox, jobs, metrics
        self._warm, self._on_state, self._alone = warm, on_state, alone
        self._started: Future[None] = Future()
        self._closing = threading.Event()
        self._supervisor = threading.Thread(target=self._supervise, name="encode supervisor", daemon=True)
        self._in_hand: Sequence[UnitRow] = ()
        self._up = False
        self._failed_batches = 0
        self._rows_per_second = 0.0

    def start(self) -> "Future[None]":
        """Begin; the future is done when the first thread serves, or could not be warmed up."""
        self._supervisor.start()
        return self._started

    @property
    def up(self) -> bool:
        """Whether a thread serves."""
        return self._up

    @property
    def rows_per_second(self) -> float:
        """How fast it works, of late; 0 before its first batch."""
        return self._rows_per_second

    def closing(self) -> None:
        """Take no further batch, and no further life."""
        self._closing.set()
        self._refuse(self._inbox.close(), CLOSED)

    def close(self) -> None:
        """Finish the batch under way and refuse what waits."""
        self.closing()
        if self._supervisor.ident is not None:
            self._supervisor.join(CLOSE_SECONDS)
        self._refuse(self._in_hand, CLOSED)

    # ---- lives and deaths --------------------------------------------------------------------------------------------

    def _supervise(self) -> None:
        pause = FIRST_PAUSE_SECONDS
        while not self._closing.is_set():
            born = time.monotonic()
            thread = threading.Thread(target=self._live, name="encode", daemon=True)
            thread.start()
            thread.join()
            if self._closing.is_set() or not self._after_death():
                break
            pause = FIRST_PAUSE_SECONDS if time.monotonic() - born > HEALTHY_SECONDS else pause
            self._closing.wait(pause)
            pause = min(LONGEST_PAUSE_SECONDS, 2 * pause)
        self._set_up(False)

    def _live(self) -> None:
        try:
            self._warm()
            self._set_up(True)
            if not self._started.done():
                self._started.set_result(None)
            while (taken := self._inbox.take()) is not None:
                self._serve(taken)
        except BaseException as error:  # whatever ends a thread, the supervisor replaces it
            if self._started.done():
                log.exception("the encoding thread died", error=repr(error))
            else:
                self._started.set_exception(error)

    def _after_death(self) -> bool:
        """Fail what the thread had and what waits; False where it never came to serve."""
        self._set_up(False)
        self._refuse(self._in_hand, RESTARTING)
        self._in_hand = ()
        if self._alone():
            self._refuse(self._inbox.drain(), RESTARTING)
        if self._started.exception() is not None:
            return False
        self._metrics.restarts.inc()
        return True

    def _set_up(self, up: bool) -> None:
        if self._up != up:
            self._up = up
            self._on_state()

    def _refuse(self, rows: Sequence[UnitRow], reason: str) -> None:
        for row in rows:
            self._jobs.settle(row.job, Outcome(error=Unavailable(reason)))

    # ---- one batch ---------------------------------------------------------------------------------------------------

    def _serve(self, taken: Taken[UnitRow]) -> None:
        self._in_hand = taken.batch  # first: whatever ends this thread, the supervisor must find them
        try:
            self._drop(taken.dropped)
            if taken.batch:
                start = time.perf_counter()
                good = self._forward(taken.batch)
                self._count(taken.batch, good, time.perf_counter() - start)
        finally:
            self._inbox.done(taken.batch)
        self._in_hand = ()
        if self._failed_batches >= SUSPECT_BATCHES:
            self._failed_batches = 0
            self._warm()  # dies with the device, if that is the trouble

    def _drop(self, rows: Sequence[UnitRow]) -> None:
        now = time.monotonic()
        joined = [row for row in rows if not self._jobs.drop(row.job, now) and not row.job.settled]
        if joined and not self._inbox.push(joined):  # somebody asked for the same since it was found dead
            self._refuse(joined, CLOSED)

    def _count(self, batch: Sequence[UnitRow], good: int, seconds: float) -> None:
        self._failed_batches = 0 if good else self._failed_batches + 1
        rate = len(batch) / max(seconds, 1e-6)
        self._rows_per_second += (SMOOTHING if self._rows_per_second else 1.0) * (rate - self._rows_per_second)

    def _forward(self, rows: Sequence[UnitRow]) -> int:
        """Forward rows of one group, in halves where it fails; how many rows came through."""
        encoder, begun, start = rows[0].job.encoder, time.monotonic(), time.perf_counter()
        try:
            pooled = encoder.forward([row.unit for row in rows])
            if len(pooled) != len(rows):
                raise ItemFailedError(f"{len(rows)} rows went in and {len(pooled)} came out")
        except Exception as error:  # noqa: BLE001 - any input may break a model in its own way
            return self._bisect(rows, error)
        seconds = time.perf_counter() - start
        shape = (len(rows), max(row.length for row in rows))
        self._observe(rows, shape, begun, seconds)
        complete = [
            row.job
            for row, vector in zip(rows, pooled, strict=True)
            if row.job.pool(row.index, vector, begun - row.arrived, seconds, shape)
        ]
        self._finish(encoder, [job for job in complete if not job.settled])
        return len(rows)

    def _bisect(self, rows: Sequence[UnitRow], error: Exception) -> int:
        if len(rows) == 1:
            self._fail(rows[0].job, error)
            return 0
        self._metrics.isolated.inc()
        middle = len(rows) // 2
        return self._forward(rows[:middle]) + self._forward(rows[middle:])

    def _finish(self, encoder: StagedEncoder, jobs: Sequence[Job]) -> None:
        if not jobs:
            return
        try:
            vectors = encoder.finish([np.stack([one for one in job.pooled if one is not None]) for job in jobs])
        except Exception as error:  # noqa: BLE001 - one vector that is not finite: find it
            if len(jobs) == 1:
                self._fail(jobs[0], error)
            for job in jobs if len(jobs) > 1 else ():
                self._finish(encoder, [job])
            return
        for job, vector in zip(jobs, vectors, strict=True):
            own: Vector = np.array(vector, np.float32)  # a copy: a view would keep its whole batch in memory
            self._jobs.settle(job, Outcome(own))

    def _fail(self, job: Job, error: Exception) -> None:
        log.error(
            "the encoder failed on an input", space_id=job.encoder.space.space_id, error=repr(error), exc_info=error
        )
        self._jobs.settle(job, Outcome(error=ItemFailedError("the encoder failed on this input")))

    def _observe(self, rows: Sequence[UnitRow], shape: tuple[int, int], begun: float, seconds: float) -> None:
        metrics, modality = self._metrics, rows[0].job.encoder.space.modality
        padded, real = shape[0] * shape[1], sum(row.length for row in rows)
        metrics.forward_seconds.labels(modality).observe(seconds)
        metrics.batch_rows.labels(modality).observe(len(rows))
        metrics.padding.labels(modality).observe(1 - real / padded)
        metrics.length.labels(modality, "padded").inc(padded)
        metrics.length.labels(modality, "real").inc(real)
        for row in rows:
            metrics.queue_seconds.labels(row.lane.name.lower()).observe(begun - row.arrived)
