"""What a user did before an instant, and what that says about their taste.

One pure function, `history_as_of`, is used by training, by building users and by serving, so that the three can never disagree
about "strictly before". Interests are exponentially decayed means of item vectors.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from encoders.space import EmbeddingSpace

DAY_US: Final = 86_400_000_000
EVENT_WEIGHTS: Final[Mapping[str, float]] = {
    "view": 0.3,
    "click": 1.0,
    "like": 2.0,
    "purchase": 3.0,
    "review": 2.0,
    "rating": 2.0,
    "skip": 0.0,
    "dislike": 0.0,
    "hide": 0.0,
    "impression": 0.0,
}


@dataclass(frozen=True)
class Events:
    """Events of one user, as parallel arrays of one length.

    Attributes:
        event_ids: unique names of the events.
        item_ids: items they were about.
        event_types: `view`, `click`, `purchase`, `rating` ...
        values: float64 [n], NaN where the event has none (a rating's stars, a view's seconds).
        timestamps_us: int64 [n], microseconds since 1970.
    """

    event_ids: list[str] = field(default_factory=list)
    item_ids: list[str] = field(default_factory=list)
    event_types: list[str] = field(default_factory=list)
    values: NDArray[np.float64] = field(default_factory=lambda: np.empty(0, np.float64))
    timestamps_us: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))

    def __post_init__(self) -> None:
        lengths = {
            len(self.event_ids),
            len(self.item_ids),
            len(self.event_types),
            len(self.values),
            len(self.timestamps_us),
        }
        if len(lengths) != 1:
            raise ValueError(f"arrays of events must have one length, not {sorted(lengths)}")

    def __len__(self) -> int:
        return len(self.event_ids)

    def take(self, rows: Sequence[int] | NDArray[np.int64]) -> Self:
        """The events at `rows`, in that order."""
        at = [int(row) for row in rows]
        return type(self)(
            [self.event_ids[i] for i in at],
            [self.item_ids[i] for i in at],
            [self.event_types[i] for i in at],
            self.values[at] if at else self.values[:0],
            self.timestamps_us[at] if at else self.timestamps_us[:0],
        )


def merge_events(*parts: Events) -> Events:
    """All events of one user from several sources, oldest first; an event_id counts once, where it comes first."""
    joined = Events(
        [e for part in parts for e in part.event_ids],
        [i for part in parts for i in part.item_ids],
        [t for part in parts for t in part.event_types],
        np.concatenate([np.empty(0, np.float64), *(part.values for part in parts)]),
        np.concatenate([np.empty(0, np.int64), *(part.timestamps_us for part in parts)]),
    )
    first = {event_id: row for row, event_id in reversed(list(enumerate(joined.event_ids)))}
    rows = sorted(first.values(), key=lambda i: (joined.timestamps_us[i], joined.event_ids[i]))
    return joined.take(rows)


def history_as_of(events: Events, t_us: int, exclude_event_id: str | None = None, limit: int | None = None) -> Events:
    """The events strictly before `t_us`, oldest first, ties by event_id; the newest `limit` of them.

    Strictly, since events of one user often share a second, and a label must not be among its own inputs.
    `exclude_event_id` leaves out one event by name, whatever its time.
    """
    rows = np.flatnonzero(events.timestamps_us < t_us)
    if exclude_event_id is not None:
        rows = np.asarray([i for i in rows if events.event_ids[i] != exclude_event_id], np.int64)
    times = events.timestamps_us[rows]
    if len(rows) > 1 and not np.all(times[1:] > times[:-1]):
        rows = rows[np.lexsort((np.asarray([events.event_ids[i] for i in rows]), times))]
    if limit is not None:
        rows = rows[max(0, len(rows) - limit) :]
    return events.take(rows)


@dataclass(frozen=True)
class Decay:
    """How much an event says about taste at a later instant.

    Attributes:
        half_life_days: an event counts half as much after so many days.
        event_weights: weight by event type; a type that is not named has weight 1.
        rating_floor: a `rating` of this value or less says nothing in favour; above it the weight grows linearly ...
        rating_top: ... up to this value, where it is whole.
    """

    half_life_days: float = 30.0
    event_weights: Mapping[str, float] = field(default_factory=lambda: dict(EVENT_WEIGHTS), hash=False)
    rating_floor: float = 2.0
    rating_top: float = 5.0

    def weights(self, event_types: Sequence[str], values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Weights [n], not below 0, by type and, for ratings, by value; without regard to age."""
        weights = np.asarray([self.event_weights.get(kind, 1.0) for kind in event_types], np.float64)
        rated = np.asarray([kind == "rating" for kind in event_types], bool) & np.isfinite(values)
        liking = (np.where(rated, values, 0.0) - self.rating_floor) / (self.rating_top - self.rating_floor)
        return np.maximum(0.0, np.where(rated, weights * np.clip(liking, 0.0, 1.0), weights))

    def recipe(self) -> dict[str, object]:
        """All that changes an interest vector, for the digest of its space."""
        return {
            "decay": "exponential",
            "half_life_days": self.half_life_days,
            "event_weights": dict(sorted(self.event_weights.items())),
            "rating_floor": self.rating_floor,
            "rating_top": self.rating_top,
        }


def interest(
    vectors: NDArray[np.float32],
    ages_us: NDArray[np.int64],
    weights: NDArray[np.float64],
    decay: Decay | None = None,
) -> NDArray[np.float32] | None:
    """The user's interest: unit vector [d] along the mean of `vectors` [n, d], weighted by `weights` [n] and decayed by age [n].

    None where nothing counts: no events, no positive weight, or vectors that cancel out. Only the ratio of ages matters, so the
    newest event is taken as age 0 and very old histories do not underflow.
    """
    if len(vectors) == 0:
        return None
    half_life_us = (decay or Decay()).half_life_days * DAY_US
    total = (weights * np.exp2(-(ages_us - ages_us.min()) / half_life_us)) @ vectors.astype(np.float64)
    norm = float(np.linalg.norm(total))
    return (total / norm).astype(np.float32) if norm > 1e-9 else None


def interest_space(space: EmbeddingSpace, decay: Decay | None = None) -> EmbeddingSpace:
    """The space of users' interests in an item space: a weighted mean of its vectors, named by the decay's parameters too."""
    slug = space.space_id.removeprefix(f"{space.modality}_")
    stem = slug[:-9] if len(slug) > 9 and slug[-9] == "_" else slug
    return EmbeddingSpace.from_recipe(
        space.modality,
        f"{stem}_interest",
        space.dim,
        {"aggregate": "mean", "base": space.space_id, **(decay or Decay()).recipe()},
        kind=space.kind,
        description=f"users' decayed interests in {space.space_id}",
        base_space_id=space.space_id,
    )
