"""How often items were liked before an instant: the baseline that a ranker must beat, and the prior that it starts from.

Counts are strictly before the instant, like everything that goes into a prediction.
"""

# Shapes are part of names: B instants, C items.
# ruff: noqa: N803, N806

from typing import Self

import numpy as np
from numpy.typing import NDArray

from ranker.config import RankerConfig
from ranker.data import NO_ROW, Ints, TrainingSet, positive_events


class Popularity:
    """Likes of each item over time, from all events of a training set.

    Args:
        items: item numbers [E] of positive events.
        times_us: their times [E].
        released_us: when each item became available [I].
    """

    def __init__(self, items: Ints, times_us: Ints, released_us: Ints) -> None:
        self.times = np.sort(times_us)
        self.released = np.searchsorted(self.times, released_us, side="left")
        self.available = np.sort(released_us)
        # One sorted array for all items: count(i, t) is a difference of two positions in it.
        self.keys = np.sort(items * self._width + np.searchsorted(self.times, times_us, side="left"))
        self.starts = np.searchsorted(self.keys, np.arange(len(released_us) + 1) * self._width)

    @classmethod
    def of(cls, ts: TrainingSet, config: RankerConfig) -> Self:
        """Popularity by the positive events of `ts`; events of unknown items do not count."""
        index = ts.items.index
        items = [index.get(i, NO_ROW) for events in ts.events.values() for i in events.item_ids]
        times = [events.timestamps_us for events in ts.events.values()]
        liked = [positive_events(events.event_types, events.values, config) for events in ts.events.values()]
        known = np.asarray(items, np.int64)
        good = (known != NO_ROW) & np.concatenate([np.zeros(0, bool), *liked])
        return cls(known[good], np.concatenate([np.zeros(0, np.int64), *times])[good], ts.items.released_I)

    @property
    def _width(self) -> int:
        return len(self.times) + 1

    def counts(self, items_C: Ints, times_B: Ints) -> NDArray[np.int64]:
        """Likes [B, C] of each item strictly before each instant."""
        before_B = np.searchsorted(self.times, times_B, side="left")
        at_BC = np.searchsorted(self.keys, items_C[None] * self._width + before_B[:, None], side="left")
        return np.asarray(at_BC - self.starts[items_C][None], np.int64)

    def log_share(self, items_C: Ints, times_B: Ints) -> NDArray[np.float32]:
        """Log of (an item's share of the likes since its release / the average share) [B, C].

        One average like is added to every item, so that a new one starts at 0: as popular as the average, not as the worst.
        """
        likes_BC = self.counts(items_C, times_B)
        total_B1 = np.searchsorted(self.times, times_B, side="left")[:, None]
        available_B1 = np.maximum(1, np.searchsorted(self.available, times_B, side="left"))[:, None]
        chances_BC = np.maximum(0, total_B1 - self.released[items_C][None])
        share_BC = (likes_BC + 1.0) / (chances_BC / available_B1 + 1.0)
        return np.asarray(np.log(share_BC), np.float32)
