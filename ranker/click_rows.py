"""What the click model sees of each label: what the prior expects of it, and the user's newest events with how much each of them surprised.

Two regimes. Frozen: a label sees the first so many events of its user, and a prior fitted on others (`training_rows`, by fold) or on all that came
before the split (`frozen_rows`). Running: a label sees everything strictly before its instant, by a prior that is fitted anew at a few instants
on everything before them (`running_rows`). In neither has a label's rating, or a later one, reached its own row.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ranker.errors import RankerError
from ranker.protocols import Ints
from ranker.rating_prior import (
    MAX_EVENTS,
    Filtered,
    Flags,
    RatingPrior,
    RatingPriorConfig,
    Ratings,
    Values,
    fit_rating_prior,
    out_of_fold,
    prior_before_ratings,
)

CONTEXT: Final = (
    "mean", "variance", "user_level", "user_spread", "user_events", "user_likes", "gap", "item_level",
)  # fmt: skip
LEVEL_SHRINKAGE_EVENTS: Final = 2.0
NO_GAP_SECONDS: Final = 1e6  # since a last event that there is none of
MINUTE_SECONDS: Final = 60.0
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class RowsConfig:
    """How rows are made.

    Attributes:
        events: newest events of a user that a row holds.
        folds: of users, for the priors of training rows.
        cuts: shares of a user's training events after which a training history ends.
        window: share of a user's training events that are labels after each cut.
        least_labels: labels after a cut at least, where there are so many.
        windows: how many priors `running_rows` fits, each for an equal share of all events in order of time.
    """

    events: int = 64
    folds: int = 5
    cuts: tuple[float, ...] = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    window: float = 0.15
    least_labels: int = 4
    windows: int = 10


@dataclass(frozen=True)
class ClickRows:
    """N labels as the click model reads them; ratings in the prior's standard units. Events of the history are newest first, padded by 0.

    Attributes:
        event: the label's number among all events [N].
        item: its item [N].
        context: what `CONTEXT` names [N, 8].
        gap_s: seconds from each event of the history to the label [N, L].
        surprise: by how much each was above what was expected of it [N, L].
        similarity: correlation of the tastes for its item and for the label's [N, L].
        there: 1 where there is an event, 0 for padding [N, L].
    """

    event: Ints
    item: Ints
    context: Floats
    gap_s: Floats
    surprise: Floats
    similarity: Floats
    there: Floats

    def __len__(self) -> int:
        return len(self.event)

    def take(self, chosen: NDArray[Any]) -> "ClickRows":
        """The chosen rows."""
        return ClickRows(*(getattr(self, name)[chosen] for name in ClickRows.__dataclass_fields__))

    @classmethod
    def joined(cls, parts: Sequence["ClickRows"]) -> "ClickRows":
        """The rows of all parts, in their order; raises `RankerError` where there is none."""
        if not parts:
            raise RankerError("there is no label to make a row of: users need events before their labels")
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in cls.__dataclass_fields__))


def training_rows(
    ratings: Ratings,
    clicked: Flags,
    events: Flags,
    content: Values | None = None,
    prior: RatingPriorConfig | None = None,
    config: RowsConfig | None = None,
    *,
    seed: int = 0,
) -> ClickRows:
    """Rows to train on: after each of several cuts through a user's events, the labels that follow, by a prior of other users alone.

    Args:
        ratings: all events.
        clicked: whether each was a click (liked, say) [n].
        events: which of them may be learned from.
        content: kernel of content [I, I], or None.
        prior: settings of the prior.
        config: settings of the rows.
        seed: of the folds.
    """
    config, parts = config or RowsConfig(), list[ClickRows]()
    for users, fitted in out_of_fold(ratings, events, content, prior, folds=config.folds, seed=seed):
        for at in ratings.of_users(events & np.isin(ratings.user, users)):
            newest = at[-MAX_EVENTS:]
            parts += _user_rows(fitted, ratings, clicked, newest, _training_labels(len(newest), config), config)
    return ClickRows.joined(parts)


def frozen_rows(
    prior: RatingPrior, ratings: Ratings, clicked: Flags, seen: Flags, wanted: Flags, config: RowsConfig | None = None
) -> ClickRows:
    """Rows of the wanted labels after each user's `seen` events: what a model knows that was last refreshed when those ended.

    Raises `RankerError` where an event of a user that is seen comes after one that is wanted.
    """
    config, parts = config or RowsConfig(), list[ClickRows]()
    for at in ratings.of_users(seen | wanted):
        first = int(seen[at].sum())
        if seen[at[first:]].any() or wanted[at[:first]].any():
            raise RankerError(f"user {ratings.user[at[0]]}: what is seen must come before what is wanted")
        if first < len(at):
            parts += _user_rows(prior, ratings, clicked, at, [(first, np.arange(first, len(at)))], config)
    return ClickRows.joined(parts)


def running_rows(
    ratings: Ratings,
    clicked: Flags,
    wanted: Flags,
    content: Values | None = None,
    prior: RatingPriorConfig | None = None,
    config: RowsConfig | None = None,
    *,
    unit: tuple[float, float],
) -> ClickRows:
    """Rows of the wanted labels, each after all that was strictly before its instant.

    `unit` is the centre and the scale of ratings in the first window, when none is known yet: what the scale of the form says (3.5 and 1 for five stars).
    """
    config, parts = config or RowsConfig(), list[ClickRows]()
    bounds = [-np.inf, *np.quantile(ratings.time_s, np.linspace(0, 1, config.windows + 1)[1:-1]), np.inf]
    for start, end in pairwise(bounds):
        inside = (ratings.time_s >= start) & (ratings.time_s < end)
        if not (inside & wanted).any():
            continue
        before_window = ratings.time_s < start
        if before_window.any():
            fitted = fit_rating_prior(ratings, before_window, content, prior)
        else:
            fitted = prior_before_ratings(ratings.items, content, prior, unit)
        for at in ratings.of_users(np.isin(ratings.user, ratings.user[inside & wanted])):
            labels = np.flatnonzero((inside & wanted)[at])
            before = np.searchsorted(ratings.time_s[at], ratings.time_s[at[labels]], side="left")
            asked = [(int(seen), labels[before == seen]) for seen in np.unique(before)]
            parts += _user_rows(fitted, ratings, clicked, at, asked, config)
    return ClickRows.joined(parts)


def _training_labels(events: int, config: RowsConfig) -> list[tuple[int, Ints]]:
    """(events seen, labels after them) for each cut through a user's events."""
    labels = max(config.least_labels, int(config.window * events))
    cuts = sorted({max(1, int(share * events)) for share in config.cuts})
    return [(cut, np.arange(cut, min(events, cut + labels))) for cut in cuts if cut < events]


def _user_rows(
    prior: RatingPrior,
    ratings: Ratings,
    clicked: Flags,
    at: Ints,
    asked: Sequence[tuple[int, Ints]],
    config: RowsConfig,
) -> Iterator[ClickRows]:
    """Rows of one user, whose events are `at`; one factorisation serves every pair of (events seen, labels)."""
    if asked:
        skipped = max(0, min(seen for seen, _ in asked) - MAX_EVENTS)
        end = 1 + max(int(labels[-1]) for _, labels in asked)
        user = _User(prior, ratings, clicked, at[skipped:end])
        for seen, labels in asked:
            yield user.rows(seen - skipped, labels - skipped, config.events)


class _User:
    """One user's events, filtered, and the sums that a row of any length of history is made of."""

    def __init__(self, prior: RatingPrior, ratings: Ratings, clicked: Flags, at: Ints) -> None:
        self.prior, self.at = prior, at
        self.item, self.time_s = ratings.item[at], ratings.time_s[at]
        self.filtered: Filtered = prior.filter(self.item, ratings.value[at], self.time_s)
        self.surprise = self.filtered.surprise
        residual = prior.standard(ratings.value[at]) - prior.mean[self.item]
        self.sums = np.concatenate([np.zeros((3, 1)), np.cumsum([residual, residual**2, clicked[at]], axis=1)], axis=1)

    def rows(self, seen: int, labels: Ints, length: int) -> ClickRows:
        """Rows of `labels` (places among the user's events) after the first `seen` events."""
        history = np.arange(max(0, seen - length), seen)[::-1]
        item, count = self.item[labels], len(labels)
        gap = self.time_s[labels][:, None] - self.time_s[history]
        spread = np.sqrt(np.diag(self.prior.covariance))
        shared = self.prior.covariance[np.ix_(item, self.item[history])]

        def padded(part: Values) -> Floats:
            whole = np.zeros((count, length), np.float32)
            whole[:, : len(history)] = part
            return whole

        return ClickRows(
            self.at[labels],
            item,
            self._context(seen, labels, gap),
            padded(gap),
            padded(self.surprise[history]),
            padded(shared / (spread[item][:, None] * spread[self.item[history]])),
            padded(np.ones(len(history))),
        )

    def _context(self, seen: int, labels: Ints, gap: Values) -> Floats:
        """What `CONTEXT` names [m, 8], each of size 1 or so."""
        mean, variance = self.filtered.predict(seen, labels)
        total, squares, likes = self.sums[:, seen]
        known = seen + LEVEL_SHRINKAGE_EVENTS
        last = gap[:, 0] if seen else np.full(len(labels), NO_GAP_SECONDS)
        of_user = (total / known, np.sqrt((squares + LEVEL_SHRINKAGE_EVENTS) / known) - 1, np.log(seen + 1) / 2 - 2,
                   (likes + LEVEL_SHRINKAGE_EVENTS / 2) / known - 0.5)  # fmt: skip
        columns = (
            mean,
            2 * variance,
            *(np.full(len(labels), value) for value in of_user),
            np.log1p(np.maximum(last, 0) / MINUTE_SECONDS) / 4 - 1,
            self.filtered.prior_mean[labels],
        )
        return np.stack(columns, 1).astype(np.float32)
