"""Threads that clean, look up, decode and prepare what calls bring, so that rows are ready when the encoding thread is.

An errand is a call's texts, or one picture or sound. Lanes hold here as they do for batches: a bulk client's pictures do not
keep a person waiting. Late and abandoned errands are dropped before any work. Who decodes waits while too much that is decoded
waits for its forward pass: a small file may be large by then.
"""

import hashlib
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import structlog

from encoders.errors import MediaError
from encoders.media import clean_text
from encoders.staged import prepare_each
from serving.batching.cache import TOO_LATE, Jobs
from serving.batching.inbox import CLOSED, Inbox
from serving.batching.jobs import Call, Item, Job, Outcome, UnitRow, rows_of
from serving.batching.queue import Lane, Policy, Taken
from serving.errors import DeadlineExceeded, ItemFailedError, Unavailable
from serving.metrics import Metrics

TEXT: Final = "text"
UNPREPARED: Final = "this input could not be prepared"
Decode = Callable[[str, bytes], Any]
log = structlog.get_logger("serving.batching")


@dataclass(eq=False, slots=True)
class Errand:
    """Items of one call with the same encoder, to be made ready together."""

    call: Call
    items: list[Item]
    arrived: float
    group: Hashable = None
    length: int = 1

    @property
    def lane(self) -> Lane:
        """Its call's."""
        return self.call.lane

    def live(self, now: float) -> bool:
        """Whether its call is."""
        return self.call.live(now)

    def refuse(self, error: Exception) -> None:
        """Settle all items with an error."""
        for item in self.items:
            self.call.settle(item.position, Outcome(error=error))


class Preparer:
    """`threads` threads that make errands ready and hand their rows on.

    Args:
        decode: a picture's or sound's bytes to what its encoder takes; raises `MediaError`.
        jobs: where answers and jobs under way are looked up.
        forward: takes rows that are ready; False once it is closed.
        wait_for_room: called by each thread before it takes its next errand; may block.
    """

    def __init__(
        self,
        name: str,
        threads: int,
        decode: Decode,
        jobs: Jobs,
        forward: Callable[[Sequence[UnitRow]], bool],
        metrics: Metrics,
        policy: Policy,
        wait_for_room: Callable[[], None] = lambda: None,
    ) -> None:
        self._decode, self._jobs, self._forward, self._metrics = decode, jobs, forward, metrics
        self._wait_for_room = wait_for_room
        self._inbox: Inbox[Errand] = Inbox(lambda _: 1, policy)
        self._inbox.shared_by(threads)
        self._threads = [threading.Thread(target=self._run, name=f"{name} {i}", daemon=True) for i in range(threads)]
        for thread in self._threads:
            thread.start()

    def submit(self, errand: Errand) -> None:
        """Queue an errand; after `close` it is refused."""
        if not self._inbox.push([errand]):
            errand.refuse(Unavailable(CLOSED))

    @property
    def waiting(self) -> int:
        """Errands that no thread has taken."""
        return len(self._inbox)

    def prune(self) -> None:
        """Let go of errands for which nobody waits any more, and of the bytes that they hold."""
        for errand in self._inbox.prune():
            errand.refuse(DeadlineExceeded(TOO_LATE))

    def close(self) -> None:
        """Finish what is being prepared and refuse what waits."""
        for errand in self._inbox.close():
            errand.refuse(Unavailable(CLOSED))
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while (taken := self._next()) is not None:
            for errand in taken.dropped:
                errand.refuse(DeadlineExceeded(TOO_LATE))
            for errand in taken.batch:
                self._prepare(errand)
            self._inbox.done(taken.batch)

    def _next(self) -> Taken[Errand] | None:
        self._wait_for_room()  # with empty hands: what waits here can still be pruned, or be overtaken
        return self._inbox.take()

    def _prepare(self, errand: Errand) -> None:
        """Make an errand ready; whatever goes wrong is its own trouble, and each of its items is settled or on its way."""
        unread, opened = deque(errand.items), list[tuple[Job, Item]]()
        try:
            while unread:
                if (pair := self._open(errand.call, unread[0])) is not None:
                    opened.append(pair)
                unread.popleft()
            self._ready(opened, errand.items[0])
        except Exception as error:  # noqa: BLE001 - this thread serves all other calls too
            self._fail([job for job, _ in opened], error)
            for item in unread:
                errand.call.settle(item.position, Outcome(error=ItemFailedError(UNPREPARED)))

    def _ready(self, opened: list[tuple[Job, Item]], like: Item) -> None:
        decoded = [(job, content) for job, item in opened if (content := self._content(job, item)) is not None]
        if decoded:
            self._units([job for job, _ in decoded], [content for _, content in decoded], like)

    def _open(self, call: Call, item: Item) -> tuple[Job, Item] | None:
        """The item's job and the cleaned item, if it is for us to do."""
        try:
            clean = clean_item(item)
            key = key_of(clean)
        except MediaError as error:
            call.settle(item.position, Outcome(error=error))
            return None
        job = self._jobs.open(key, item.encoder, call, item.position)
        return None if job is None else (job, clean)

    def _content(self, job: Job, item: Item) -> Any:
        """What the encoder takes, or None where the job is settled."""
        if item.modality == TEXT:
            return item.content
        start = time.perf_counter()
        try:
            return self._decode(item.modality, item.content)
        except MediaError as error:
            self._jobs.settle(job, Outcome(error=error))
        except Exception as error:  # noqa: BLE001 - the decode pool's trouble is this item's alone
            self._fail([job], error)
        finally:
            seconds = time.perf_counter() - start
            job.note(decode=seconds)
            self._metrics.decode_seconds.labels(item.modality).observe(seconds)
        return None

    def _units(self, jobs: list[Job], contents: list[Any], like: Item) -> None:
        start = time.perf_counter()
        try:
            prepared = prepare_each(like.encoder, contents, query=like.query)
        except Exception as error:  # noqa: BLE001 - a tokenizer or transform that breaks
            self._fail(jobs, error)
            return
        seconds = time.perf_counter() - start
        self._metrics.prepare_seconds.labels(like.modality).observe(seconds)
        rows: list[UnitRow] = []
        now = time.monotonic()
        for job, units in zip(jobs, prepared, strict=True):
            job.note(prepare=seconds)
            if isinstance(units, MediaError):
                self._jobs.settle(job, Outcome(error=units))
            else:
                rows += rows_of(job, units, now)
        if rows and not self._forward(rows):
            for row in rows:
                self._jobs.settle(row.job, Outcome(error=Unavailable(CLOSED)))

    def _fail(self, jobs: list[Job], error: Exception) -> None:
        log.error("preparing failed", error=repr(error), items=len(jobs), exc_info=error)
        for job in jobs:
            self._jobs.settle(job, Outcome(error=ItemFailedError(UNPREPARED)))


def clean_item(item: Item) -> Item:
    """The item with its text cleaned; raises `MediaError`."""
    if item.modality != TEXT:
        return item
    return Item(item.position, item.modality, item.encoder, item.query, clean_text(item.content))


def key_of(item: Item) -> Hashable:
    """What the item's vector depends on: its content, the space, and the role where the space has two."""
    content = item.content.encode() if item.modality == TEXT else item.content
    return hashlib.sha256(content).digest(), item.modality, item.encoder.space.space_id, item.query
