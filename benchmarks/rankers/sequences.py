"""Public data sets with an order: each user's events oldest first, and the protocols that hold out the last of them.

Order is by (user, timestamp), stable in the file's order, which also decides ties, for every method alike: of MovieLens-100K's 943 last events 415
tie with another event of their user.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from benchmarks.rankers.sets import Matrix, data_folder
from ranker.collaborative import interactions
from ranker.full_ranking import hit_rate, ndcg, places
from ranker.leakage import check_split
from ranker.protocols import Role

K: Final = 10
LEAST_EVENTS: Final = 3  # one to learn from, one for validation, one for the test
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Sequences:
    """n events of U users over I items, sorted by user, oldest first.

    Attributes:
        user, item: numbers from 0 [n].
        timestamp: seconds since 1970 [n], or the place in the sequence where the set has no times.
        rating: [n], NaN where the set has none.
        item_names: the files' own ids [I].
    """

    name: str
    user: Ints
    item: Ints
    timestamp: Ints
    rating: NDArray[np.float64]
    item_names: tuple[str, ...]

    @property
    def users(self) -> int:
        """U."""
        return int(self.user[-1]) + 1

    @property
    def from_last(self) -> Ints:
        """How many events of the same user come after each [n]: 0 for the last."""
        ends = np.searchsorted(self.user, self.user, side="right")
        return np.asarray(ends - 1 - np.arange(len(self.user)), np.int64)

    def matrix(self, events: NDArray[np.bool_]) -> Matrix:
        """Which user met which item in the chosen events, as ones [U, I]."""
        return interactions(self.user[events], self.item[events], (self.users, len(self.item_names)))

    def recent(self, events: NDArray[np.bool_], decay: float) -> Matrix:
        """The same, where the n-th newest of a user's chosen events weighs `1 / (1 + decay n)`, and an item that came twice as its newest."""
        at = np.flatnonzero(events)
        after = np.searchsorted(self.user[at], self.user[at], side="right") - 1 - np.arange(len(at))
        weights = (1.0 / (1.0 + decay * after)).astype(np.float32)
        order = np.argsort(weights, kind="stable")  # the newest comes last, and is kept
        found = np.zeros((self.users, len(self.item_names)), np.float32)
        found[self.user[at][order], self.item[at][order]] = weights[order]
        return scipy.sparse.csr_matrix(found)


@dataclass(frozen=True)
class LeaveOneOut:
    """The last event of each user is the test's, the one before validation's [U]; each is ranked among what the user had not met before it."""

    sequences: Sequences
    train: NDArray[np.bool_]  # events [n] that models may learn from
    validation: Ints  # numbers of events [U]
    test: Ints

    @classmethod
    def of(cls, sequences: Sequences) -> "LeaveOneOut":
        """Split; every user has at least three events. Raises `LeakageError` where the order is not what the protocol wants."""
        last = sequences.from_last
        roles = np.select([last == 0, last == 1], [Role.TEST, Role.VALIDATION], Role.TRAIN).astype(np.int8)
        check_split("leave_one_out", roles, sequences.user, sequences.item, sequences.timestamp)
        return cls(sequences, last >= 2, np.flatnonzero(last == 1), np.flatnonzero(last == 0))

    def relevant(self, events: Ints) -> Matrix:
        """The events' own items, as ones [U, I]."""
        chosen = np.zeros(len(self.sequences.user), bool)
        chosen[events] = True
        return self.sequences.matrix(chosen)

    def met_before(self, events: Ints) -> Matrix:
        """What each user met before the chosen event, without that event's item, as ones [U, I]."""
        bound = np.zeros(self.sequences.users, np.int64)
        bound[self.sequences.user[events]] = events
        earlier = np.arange(len(self.sequences.user)) < bound[self.sequences.user]
        found = self.sequences.matrix(earlier) - self.relevant(events)
        return (found > 0).astype(np.float32).tocsr()


def movielens_100k() -> Sequences:
    """943 users, 1,682 items, 100,000 ratings with times."""
    path = data_folder("movielens-100k") / "ml-100k.inter"
    lines = [line.split("\t") for line in path.read_text().splitlines()[1:]]
    columns: dict[str, Any] = dict(zip(("user", "item", "rating", "timestamp"), zip(*lines, strict=True), strict=True))
    times = np.asarray(columns["timestamp"], np.float64).astype(np.int64)
    return _sorted("movielens-100k", columns["user"], columns["item"], times, np.asarray(columns["rating"], np.float64))


def amazon(category: str) -> Sequences:
    """Purchases of `Beauty` or `Toys`, in the file's order: a user and then the items, oldest first."""
    lines = (data_folder("amazon") / f"{category}.user_sequence.txt").read_text().splitlines()
    rows = [(user, item, at) for user, *items in map(str.split, lines) for at, item in enumerate(items)]
    users, items, places = zip(*rows, strict=True)
    return _sorted(f"amazon-{category.lower()}", users, items, np.asarray(places, np.int64), np.full(len(rows), np.nan))


def _sorted(name: str, users: Any, items: Any, times: Ints, ratings: NDArray[np.float64]) -> Sequences:
    """Number users and items, leave out users with too few events, and sort."""
    _, user, events = np.unique(np.asarray(users), return_inverse=True, return_counts=True)
    names, item = np.unique(np.asarray(items), return_inverse=True)
    kept = np.flatnonzero(events[user] >= LEAST_EVENTS)
    order = kept[np.lexsort((times[kept], user[kept]))]
    _, numbered = np.unique(user[order], return_inverse=True)
    return Sequences(
        name,
        numbered.astype(np.int64),
        item[order].astype(np.int64),
        times[order],
        ratings[order],
        tuple(names.tolist()),
    )


def judge_last(split: LeaveOneOut, scores: NDArray[np.floating[Any]], events: NDArray[np.int64]) -> dict[str, Any]:
    """HR@10 and NDCG@10 of one held-out event a user among all items that the user had not met before it."""
    gains = gains_of_last(split, scores, events)
    return {metric: round(float(values.mean()), 4) for metric, values in gains.items()}


def gains_of_last(
    split: LeaveOneOut, scores: NDArray[np.floating[Any]], events: NDArray[np.int64]
) -> dict[str, NDArray[np.float64]]:
    """The same by user."""
    found = places(np.asarray(scores), split.relevant(events), split.met_before(events))
    return {f"hr_{K}": hit_rate(found, K), f"ndcg_{K}": ndcg(found, K)}
