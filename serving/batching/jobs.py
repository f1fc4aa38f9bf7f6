"""What waits for what: a call waits for its items, an item's job does the work once for every call that asked for the same.

A call may be abandoned at any time; a job lives as long as one of its calls does. Every item is settled exactly once.
"""

import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from encoders.staged import StagedEncoder, Unit
from serving.batching.queue import Lane

Vector = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Trace:
    """Where an item's time went, in seconds, and the largest batch (rows, padded length) that it was in.

    `shared` items had no forward pass of their own: they were cached, or under way already.
    """

    decode: float = 0.0
    prepare: float = 0.0
    queue: float = 0.0
    forward: float = 0.0
    rows: int = 0
    length: int = 0
    shared: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """A vector [dim], not to be written to, or why there is none."""

    vector: Vector | None = None
    error: Exception | None = None
    trace: Trace = Trace()


class Call:
    """One request's items. `done` is called once, by whichever thread settles the last item.

    Args:
        lane: of all its items.
        expires: on the monotonic clock; what has not reached a forward pass by then is dropped.
        count: number of items, at least 1.
    """

    def __init__(self, lane: Lane, expires: float, count: int, done: Callable[[list[Outcome]], None]) -> None:
        self.lane = lane
        self.expires = expires
        self._abandoned = False
        self._outcomes: list[Outcome | None] = [None] * count
        self._left = count
        self._done = done
        self._lock = threading.Lock()

    def abandon(self) -> None:
        """Nobody waits any more."""
        self._abandoned = True

    def live(self, now: float) -> bool:
        """Whether its answer can still be of use."""
        return not self._abandoned and now < self.expires

    def settle(self, position: int, outcome: Outcome) -> None:
        """Give an item its outcome; raises `RuntimeError` if it has one."""
        with self._lock:
            if self._outcomes[position] is not None:
                raise RuntimeError(f"item {position} was settled twice")
            self._outcomes[position] = outcome
            self._left -= 1
            last = self._left == 0
        if last:
            self._done([one for one in self._outcomes if one is not None])


class Job:
    """One thing to encode, for all calls that asked for it. Its fields are changed under the cache's lock or by one stage at a time."""

    def __init__(self, key: Hashable, encoder: StagedEncoder, call: Call, position: int) -> None:
        self.key = key
        self.encoder = encoder
        self.lane = call.lane
        self.callers = [(call, position)]
        self.settled = False
        self.trace = Trace()
        self.pooled: list[Vector | None] = []

    def live(self, now: float) -> bool:
        """Whether it is open and any of its calls still waits."""
        return not self.settled and any(call.live(now) for call, _ in self.callers)

    def join(self, call: Call, position: int) -> None:
        """Another call wants the same; the job becomes as urgent as its most urgent call."""
        self.callers.append((call, position))
        self.lane = min(self.lane, call.lane)

    def note(self, **seconds: float) -> None:
        """Set stages of the trace."""
        self.trace = replace(self.trace, **seconds)  # type: ignore[arg-type]

    def pool(self, index: int, row: Vector, queued: float, forward: float, shape: tuple[int, int]) -> bool:
        """Take the pooled row of unit `index`, from a batch of `shape` (rows, length); True if it was the last."""
        self.pooled[index] = row
        old = self.trace
        rows, length = max((old.rows, old.length), shape, key=lambda pair: pair[0] * pair[1])
        self.trace = replace(old, queue=max(old.queue, queued), forward=old.forward + forward, rows=rows, length=length)
        return all(one is not None for one in self.pooled)


class RowGroup(NamedTuple):
    """Rows of different encoders never share a batch, whatever their own groups are called."""

    space_id: str
    own: Hashable


@dataclass(eq=False, slots=True)
class UnitRow:
    """A job's unit, waiting for its forward pass."""

    job: Job
    index: int
    unit: Unit
    group: Hashable
    arrived: float

    @property
    def length(self) -> int:
        """Tokens, samples, or 1."""
        return self.unit.length

    @property
    def nbytes(self) -> int:
        """Memory of its pixels or samples; a text's few ids count for nothing."""
        return int(getattr(self.unit.data, "nbytes", 0))

    @property
    def lane(self) -> Lane:
        """Its job's."""
        return self.job.lane

    def live(self, now: float) -> bool:
        """Whether its job is."""
        return self.job.live(now)


def rows_of(job: Job, units: tuple[Unit, ...], now: float) -> list[UnitRow]:
    """The rows of a prepared job."""
    job.pooled = [None] * len(units)
    space_id = job.encoder.space.space_id
    return [UnitRow(job, index, unit, RowGroup(space_id, unit.group), now) for index, unit in enumerate(units)]


@dataclass(frozen=True, slots=True)
class Item:
    """One input of a call: where it stands in the call, how it is to be encoded, and its content as it came."""

    position: int
    modality: str
    encoder: StagedEncoder
    query: bool
    content: Any = field(repr=False)
