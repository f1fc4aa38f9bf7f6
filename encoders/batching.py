"""Which rows share a forward pass: pure planning, without torch or threads.

Rows of one length waste nothing on padding, so rows are sorted by length and a batch is closed where one more row would make it,
padded to its longest, exceed its budget. Budgets count padded lengths (tokens, samples), not rows.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Protocol, TypeVar

T = TypeVar("T")


class Row(Protocol):
    """What planning needs to know of a row: who it may share a batch with, and how long it is."""

    @property
    def group(self) -> Hashable:
        """Only rows of one group share a batch."""

    @property
    def length(self) -> int:
        """In the unit of the group's budget."""


def plan(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices of `lengths` in batches of similar length, the longest first.

    A batch holds at most `budget` when padded to its longest row, and at least one row. The longest come first, so that memory
    is at its peak at the start and the last, partial batch is of the shortest rows.
    """
    batches: list[list[int]] = []
    longest = 0
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if not batches or (len(batches[-1]) + 1) * longest > budget:
            batches.append([])
            longest = lengths[index]
        batches[-1].append(index)
    return batches


def plan_groups(rows: Sequence[Row], budget: Callable[[Hashable], int]) -> Iterator[list[int]]:
    """Indices of `rows` in batches, each of one group and within what `budget(group)` says."""
    groups: dict[Hashable, list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault(row.group, []).append(index)
    for group, members in groups.items():
        for batch in plan([rows[member].length for member in members], budget(group)):
            yield [members[place] for place in batch]


def in_windows(items: Iterable[T], cost: Callable[[T], float], limit: float, most: int) -> Iterator[list[T]]:
    """Consecutive lists of `items`, each closed where its cost reaches `limit` or it holds `most` items.

    Planning looks at one window at a time: what is in memory is bounded by `limit` and one item, however long the input is.
    """
    window: list[T] = []
    total = 0.0
    for item in items:
        window.append(item)
        total += cost(item)
        if total >= limit or len(window) >= most:
            yield window
            window, total = [], 0.0
    if window:
        yield window


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices of `lengths`, each at most `capacity`, in bins that hold at most `capacity` in all: first fit, the longest first."""
    bins: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        place = next((place for place, left in enumerate(room) if left >= lengths[index]), len(bins))
        if place == len(bins):
            bins.append([])
            room.append(capacity)
        bins[place].append(index)
        room[place] -= lengths[index]
    return bins
