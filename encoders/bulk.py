"""Bulk encoding: any number of sources in, one outcome each out, in their order, with memory bounded whatever the length.

Sources are decoded and prepared by a pool, planned into batches one window at a time, and run by one lane per device; the next
batches are ready while these run. On a CPU a lane is a thread of one core or a few: two forwards of one thread each do as much as
one of two threads while nothing else runs, and twice as much beside decoders, which stop one half of a two-threaded forward.
"""

import queue
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, Final, TypeVar

import numpy as np

from encoders.batching import in_windows
from encoders.errors import MediaError
from encoders.staged import WINDOW_ITEMS, Stages, Units, load, prepare_each, window_batches
from encoders.vectors import Progress, Vectors

S = TypeVar("S")
T = TypeVar("T")
Outcome = Vectors | MediaError

MIN_WORKERS: Final = 2
JOBS_AHEAD: Final = 8  # per worker: prepared beyond the window that is being planned
TEXTS_PER_JOB: Final = 32  # tokenizers are faster on lists; a picture or a clip is a job of its own
REPEATS: Final = 65_536  # outcomes remembered by key: 200 MB of 768 dimensions
_POLL_SECONDS: Final = 0.05


@dataclass(eq=False)
class _Item:
    """One source on its way: its outcome to be, its units, and their pooled rows [units, dim] as far as they are there."""

    outcome: "Future[Outcome]" = field(default_factory=Future)
    units: Units = ()
    pooled: list[Any] = field(default_factory=list)
    left: int = 0


@dataclass(frozen=True)
class _Batch:
    """A collated batch and, for each of its rows, the item and which of its units it is."""

    inputs: Any
    owners: list[tuple[_Item, int]]


class Repeats:
    """Outcomes by key, so that identical sources are encoded once; the oldest are forgotten beyond `most`.

    One instance may serve several streams of one encoder, one after the other.
    """

    def __init__(self, most: int = REPEATS) -> None:
        self._most = most
        self._known: OrderedDict[Hashable, Future[Outcome]] = OrderedDict()
        self._lock = threading.Lock()

    def first(self, key: Hashable, outcome: "Future[Outcome]") -> "Future[Outcome] | None":
        """The outcome of the first source with this key, or None if this is it."""
        with self._lock:
            known = self._known.get(key)
            if known is not None and not known.cancelled():
                self._known.move_to_end(key)
                return known
            self._known[key] = outcome
            if len(self._known) > self._most:
                self._known.popitem(last=False)
            return None

    def forget_unfinished(self) -> None:
        """Drop what will never be there, after a stream that was left early."""
        with self._lock:
            for key in [key for key, outcome in self._known.items() if not outcome.done()]:
                del self._known[key]


def encode_stream(
    encoder: Stages,
    sources: Iterable[S],
    decode: Callable[[S], T],
    *,
    key: Callable[[S], Hashable] | None = None,
    workers: int | None = None,
    window: int = WINDOW_ITEMS,
    query: bool = False,
    repeats: Repeats | None = None,
    progress: Progress = None,
) -> Iterator[Outcome]:
    """One outcome per source, in their order: a unit vector [dim], or why there is none.

    Args:
        encoder: one caller at a time, this stream or another.
        sources: read one by one by another thread, not far ahead of what is given out.
        decode: a source to what the encoder takes; called by `workers` threads at once; raises `MediaError`.
        key: what makes two sources the same; identical ones are decoded and encoded once. May raise `MediaError`.
        workers: decoding threads; by default as many as torch computes with, at least 2.
        window: items that are sorted by length together, at most.
        query: the sources are queries' texts.
        repeats: remembers keys beyond this stream.
        progress: called in the caller's thread with 1 as each outcome is given.

    Raises:
        EncoderError: a model gave a vector that is none. Other errors of `sources`, `decode` and the model come through too.
    """
    threads = computing_threads()
    run = _Run(
        encoder,
        partial(prepare_each, encoder, query=query),
        decode,
        key,
        workers or max(MIN_WORKERS, threads),
        max(1, window),
        repeats or Repeats(),
    )
    try:
        for outcome in run.outcomes(sources, threads):
            yield outcome
            if progress:
                progress(1)
    finally:
        run.close()


def computing_threads() -> int:
    """Threads that torch computes with: the cores, unless OMP_NUM_THREADS or torch.set_num_threads say less."""
    import torch

    return int(torch.get_num_threads())


class _Run:
    """One stream: a conductor thread that plans, a pool that prepares, lanes that run forwards, and the caller that takes."""

    def __init__(
        self,
        encoder: Stages,
        prepare: Callable[[Sequence[Any]], list[Units | MediaError]],
        decode: Callable[[Any], Any],
        key: Callable[[Any], Hashable] | None,
        workers: int,
        window: int,
        repeats: Repeats,
    ) -> None:
        self._encoder, self._prepare, self._decode, self._key = encoder, prepare, decode, key
        self._window, self._repeats = window, repeats
        self._job_items = TEXTS_PER_JOB if encoder.space.modality == "text" else 1
        self._jobs_ahead = JOBS_AHEAD * workers
        self._pool = ThreadPoolExecutor(workers, "prepare")
        # Two windows and what is ahead: with less, a window might wait for room that only it could make.
        self._room = threading.Semaphore(2 * window + (self._jobs_ahead + 1) * self._job_items)
        self._taken: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._failed: Future[Outcome] = Future()
        self._threads: list[threading.Thread] = []
        self._batches: queue.Queue[_Batch | None] = queue.Queue()

    def outcomes(self, sources: Iterable[Any], threads: int) -> Iterator[Outcome]:
        """Outcomes in the order of `sources`."""
        lanes, each = self._encoder.lanes(threads)
        self._batches = queue.Queue(maxsize=lanes)
        self._alone(partial(self._compile, each, threads))
        self._start("conductor", partial(self._conduct, sources, lanes))
        for lane in range(lanes):
            self._start(f"lane-{lane}", partial(self._lane, each, threads))
        while (item := self._taken.get()) is not None:
            if not item.outcome.done():
                wait([item.outcome, self._failed], return_when=FIRST_COMPLETED)
            yield (item.outcome if item.outcome.done() else self._failed).result()
            self._room.release()
        if self._failed.done():
            self._failed.result()

    def _compile(self, each: int, others: int) -> None:
        compute_with(each, others=others)
        self._encoder.compile_forwards()

    @staticmethod
    def _alone(work: Callable[[], None]) -> None:
        """Run `work` in a thread of its own, before the run's others start."""
        with ThreadPoolExecutor(1, "encode-compile") as pool:
            pool.submit(work).result()

    def close(self) -> None:
        """Stop what still runs and wait for its end."""
        self._stop.set()
        self._pool.shutdown(cancel_futures=True)
        for thread in self._threads:
            thread.join()
        self._repeats.forget_unfinished()

    def _start(self, name: str, work: Callable[[], None]) -> None:
        def guarded() -> None:
            try:
                work()
            except _Stopped:
                pass
            except BaseException as error:  # noqa: BLE001  (whatever it is, the caller must hear of it)
                self._fail(error)
            finally:
                if name == "conductor":
                    self._taken.put(None)

        self._threads.append(threading.Thread(target=guarded, name=f"encode-{name}", daemon=True))
        self._threads[-1].start()

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            if not self._failed.done():
                self._failed.set_exception(error)
        self._stop.set()

    # ---- the conductor ----------------------------------------------------------------------------------------------

    def _conduct(self, sources: Iterable[Any], lanes: int) -> None:
        # Repeated items cost nothing, but count: a window must close before they alone fill the room.
        items, most = self._prepared(iter(sources)), window_batches(self._encoder)
        for window in in_windows(items, lambda item: load(self._encoder, item.units), most, self._window):
            self._dispatch(window)
        for _ in range(lanes):
            self._put(None)

    def _prepared(self, sources: Iterator[Any]) -> Iterator[_Item]:
        """Items in the order of their sources, each with its units, or with none where its outcome needs no forward."""
        jobs: deque[tuple[list[_Item], Future[None]]] = deque()
        while chunk := list(islice(sources, self._job_items)):
            items = [self._admit() for _ in chunk]
            jobs.append((items, self._pool.submit(self._load, items, chunk)))
            while len(jobs) > self._jobs_ahead or (jobs and jobs[0][1].done()):
                yield from _finished(*jobs.popleft())
        for items, job in jobs:
            yield from _finished(items, job)

    def _admit(self) -> _Item:
        while not self._room.acquire(timeout=_POLL_SECONDS):
            self._check()
        self._check()
        item = _Item()
        self._taken.put(item)
        return item

    def _dispatch(self, window: Sequence[_Item]) -> None:
        owners = [(item, place) for item in window for place in range(len(item.units))]
        units = [item.units[place] for item, place in owners]
        for item in window:
            item.left, item.units = len(item.units), ()
            item.pooled = [None] * item.left
        for rows in self._encoder.plan(units):
            self._put(_Batch(self._encoder.collate([units[row] for row in rows]), [owners[row] for row in rows]))

    def _put(self, batch: _Batch | None) -> None:
        while True:
            self._check()
            try:
                return self._batches.put(batch, timeout=_POLL_SECONDS)
            except queue.Full:
                continue

    def _check(self) -> None:
        if self._stop.is_set():
            raise _Stopped

    # ---- the pool ---------------------------------------------------------------------------------------------------

    def _load(self, items: Sequence[_Item], sources: Sequence[Any]) -> None:
        """Decode and prepare sources that are neither bad nor repeated."""
        self._check()
        decoded = [
            (item, media) for item, source in zip(items, sources, strict=True) for media in self._read(item, source)
        ]
        if not decoded:
            return
        for (item, _), units in zip(decoded, self._prepare([media for _, media in decoded]), strict=True):
            if isinstance(units, MediaError):
                item.outcome.set_result(units)
            else:
                item.units = units

    def _read(self, item: _Item, source: Any) -> list[Any]:
        """The decoded source; nothing where it is bad or known."""
        try:
            if self._key is not None and (first := self._repeats.first(self._key(source), item.outcome)) is not None:
                first.add_done_callback(partial(_copy, item.outcome))
                return []
            return [self._decode(source)]
        except MediaError as error:
            item.outcome.set_result(error)
            return []

    # ---- the lanes --------------------------------------------------------------------------------------------------

    def _lane(self, each: int, others: int) -> None:
        """Run batches. A GPU's results are fetched after the next batch was launched, so that it never waits for Python."""
        held: deque[tuple[_Batch, Any]] = deque()
        compute_with(each, others=others)
        while (batch := self._next(held)) is not None:
            held.append((batch, self._encoder.launch(batch.inputs)))
            if len(held) > self._encoder.launched_ahead:
                self._deliver(*held.popleft())
        while held:
            self._deliver(*held.popleft())

    def _next(self, held: deque[tuple[_Batch, Any]]) -> _Batch | None:
        while True:
            self._check()
            try:
                return self._batches.get(timeout=0 if held else _POLL_SECONDS)
            except queue.Empty:
                if held:
                    self._deliver(*held.popleft())

    def _deliver(self, batch: _Batch, launched: Any) -> None:
        complete: list[_Item] = []
        rows = self._encoder.fetch(launched)
        with self._lock:  # a clip's windows may be in the batches of two lanes
            for (item, place), row in zip(batch.owners, rows, strict=True):
                item.pooled[place] = row
                item.left -= 1
                if not item.left:
                    complete.append(item)
        vectors = self._encoder.finish([np.stack(item.pooled) for item in complete])
        vectors.setflags(write=False)  # repeated sources share one
        for item, vector in zip(complete, vectors, strict=True):
            item.pooled = []
            item.outcome.set_result(vector)


class _Stopped(Exception):  # noqa: N818  (not an error: the run was closed)
    """Ends a thread of a run that was closed."""


def _finished(items: list[_Item], job: "Future[None]") -> list[_Item]:
    job.result()
    return items


def _copy(outcome: "Future[Outcome]", first: "Future[Outcome]") -> None:
    if not first.cancelled():
        outcome.set_result(first.result())


def compute_with(threads: int, *, others: int) -> None:
    """Let torch compute with `threads` threads in this thread, and with `others` in those to come.

    OpenMP keeps the number per thread, torch the one that new threads start with: a thread of its own puts that back. A thread takes
    that number at its first question or operation, so this one is asked first: what it is then told stays.
    """
    import torch

    torch.get_num_threads()
    torch.set_num_threads(threads)
    reset = threading.Thread(target=torch.set_num_threads, args=(others,))
    reset.start()
    reset.join()
