"""Which waiting rows go into the next batch. Pure: no threads, no clock, no encoder.

Batches form when somebody asks for one, so that no row waits for company. Rows of the interactive lane go first. The bulk lane has
what is left: while interactive traffic is about, small batches that leave one taker free where there are several, and a turn of its
own where it has had none for long.
"""

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Generic, Protocol, TypeVar


class Lane(IntEnum):
    """Who waits for a row; the smaller goes first."""

    INTERACTIVE = 0
    BULK = 1


class Row(Protocol):
    """What the queue needs to know of a row; `lane` may become more urgent while it waits."""

    @property
    def group(self) -> Hashable:
        """Only rows of one group share a batch."""

    @property
    def length(self) -> int:
        """In the unit of the group's budget."""

    @property
    def lane(self) -> Lane:
        """Its lane now."""

    @property
    def arrived(self) -> float:
        """When it was pushed, in seconds of the clock that `take` is told."""

    def live(self, now: float) -> bool:
        """Whether anybody still waits for it."""


R = TypeVar("R", bound=Row)


@dataclass(frozen=True)
class Policy:
    """How lanes and lengths are weighed.

    Attributes:
        aging_seconds: where bulk rows have waited this long since they came and since the lane's last turn, one batch of them goes
            before interactive ones; never two in a row.
        calm_seconds: interactive traffic is about until this long after its last row.
        bulk_share: while it is, a bulk batch holds this part of the budget, so that who comes next waits little.
        waste_share: part of a batch that may be padding.
        forward_share: part of the budget for which a forward pass costs as much as for its rows: padding below that is cheaper
            than another pass.
    """

    aging_seconds: float = 1.0
    calm_seconds: float = 5.0
    bulk_share: float = 1 / 8
    waste_share: float = 0.1
    forward_share: float = 1 / 32


@dataclass(frozen=True)
class Taken(Generic[R]):
    """The next batch, of one group and lane, and rows for which nobody waits any more."""

    batch: list[R]
    dropped: list[R]


class BatchQueue(Generic[R]):
    """Waiting rows. `budget(group)` is the padded length (rows times the longest) that one batch may have; one row always may.

    `takers` is how many may work on batches at once; they tell `done`. Not for several threads at once.
    """

    def __init__(self, budget: Callable[[Any], int], policy: Policy = Policy()) -> None:
        self._budget = budget
        self._policy = policy
        self._rows: list[R] = []
        self._interactive_at = float("-inf")
        self._bulk_at = float("-inf")
        self._last_lane = Lane.INTERACTIVE
        self._bulk_in_hand: set[int] = set()
        self.takers = 1

    def __len__(self) -> int:
        return len(self._rows)

    def push(self, rows: Iterable[R]) -> None:
        """Add rows behind those that wait."""
        for row in rows:
            self._rows.append(row)
            if row.lane is Lane.INTERACTIVE:
                self._interactive_at = max(self._interactive_at, row.arrived)

    def depth(self, lane: Lane) -> int:
        """How many rows wait in a lane."""
        return sum(row.lane is lane for row in self._rows)

    def drain(self) -> list[R]:
        """Take everything, without regard to batches."""
        rows, self._rows = self._rows, []
        return rows

    def prune(self, now: float) -> list[R]:
        """Remove and return the rows for which nobody waits any more."""
        dead = [row for row in self._rows if not row.live(now)]
        if dead:
            self._remove(dead)
        return dead

    def take(self, now: float) -> Taken[R]:
        """Remove and return the next batch; it holds the row that leads, and rows like it. Empty where nobody may go."""
        dropped = self.prune(now)
        leader = self._leader(now)
        if leader is None:
            return Taken([], dropped)
        batch = self._fill(leader, now)
        self._remove(batch)
        self._last_lane = leader.lane
        if leader.lane is Lane.BULK:
            self._bulk_at = now
            self._bulk_in_hand.add(id(batch))
        return Taken(batch, dropped)

    def done(self, batch: list[R]) -> None:
        """The batch, as `take` gave it, is worked off."""
        self._bulk_in_hand.discard(id(batch))

    def _remove(self, rows: list[R]) -> None:
        gone = {id(row) for row in rows}
        self._rows = [row for row in self._rows if id(row) not in gone]

    def _leader(self, now: float) -> R | None:
        first: dict[Lane, R] = {}
        for row in self._rows:
            first.setdefault(row.lane, row)
            if len(first) == len(Lane):
                break
        interactive, bulk = first.get(Lane.INTERACTIVE), first.get(Lane.BULK)
        if bulk is not None and self._about(now) and len(self._bulk_in_hand) >= max(1, self.takers - 1):
            bulk = None
        if interactive is None or bulk is None:
            return interactive or bulk
        aged = now - max(bulk.arrived, self._bulk_at) >= self._policy.aging_seconds
        return bulk if aged and self._last_lane is Lane.INTERACTIVE else interactive

    def _about(self, now: float) -> bool:
        """Whether interactive traffic is."""
        return now - self._interactive_at < self._policy.calm_seconds

    def _fill(self, leader: R, now: float) -> list[R]:
        budget = self._budget(leader.group)
        most = self._most(leader, budget, now)
        mates = [row for row in self._rows if row.group == leader.group and row.lane is leader.lane]
        mates.sort(key=lambda row: row.length)  # stable: of equal lengths the oldest goes first
        at = next(i for i, row in enumerate(mates) if row is leader)
        low, high = self._window([row.length for row in mates], at, most, budget * self._policy.forward_share)
        return mates[low:high]

    def _most(self, leader: R, budget: int, now: float) -> float:
        return budget * self._policy.bulk_share if leader.lane is Lane.BULK and self._about(now) else budget

    def _window(self, lengths: list[int], at: int, most: float, cheap: float) -> tuple[int, int]:
        """Grow `at` to a range of sorted `lengths`, each time by the side that pads less, while budget and padding allow."""
        low, high, total = at, at + 1, lengths[at]

        def fits(start: int, end: int, real: int) -> bool:
            padded = (end - start) * lengths[end - 1]
            return padded <= most and padded - real <= max(cheap, self._policy.waste_share * padded)

        while True:
            count, longest = high - low, lengths[high - 1]
            sides = []
            if high < len(lengths):
                sides.append(((lengths[high] - longest) * count, low, high + 1, lengths[high]))
            if low > 0:
                sides.append((longest - lengths[low - 1], low - 1, high, lengths[low - 1]))
            for _, start, end, more in sorted(sides):
                if fits(start, end, total + more):
                    low, high, total = start, end, total + more
                    break
            else:
                return low, high
