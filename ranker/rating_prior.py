"""The collaborative prior of ratings, in closed form: every user's tastes over items are one draw of a Gaussian process.

A rating is its item's mean, plus the user's taste for the item, plus a mood that holds for a session, plus noise. Tastes have one covariance over
items, which starts from what content says and is learned from all users by EM (Schwaighofer, Tresp and Yu, "Learning Gaussian process kernels via
hierarchical Bayes", NIPS 2004; at scale: Yu, Zhu, Lafferty and Gong, "Fast nonparametric matrix factorization for large-scale collaborative
filtering", SIGIR 2009). It is matrix factorisation whose rank is not chosen, and whose posterior is exact: a user is a few equations, a new event
needs no training, and a new item has the covariance that its content gives it. Here are the fit and the posterior; `click_rows` makes a model's
inputs of them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from ranker.collaborative import cosines
from ranker.errors import RankerError
from ranker.protocols import Ints

MAX_ITEMS: Final = 8_000  # five matrices of items x items are held while fitting: 2.6 GB in float64
MAX_EVENTS: Final = 2_000  # newest of a user; a user costs the cube of them
_BIAS_ROUNDS: Final = 10
_USER_SHRINKAGE_EVENTS: Final = 1.0
Values = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class RatingPriorConfig:
    """Settings of `fit_rating_prior`; variances are shares of the variance of all ratings.

    Attributes:
        noise: variance of a rating that nothing explains.
        constant: variance of how generous users are: the same for every item.
        own: variance of the taste for an item that no other item shares.
        drift: variance of a user's mood, which fades with the time between events; 0 for none.
        drift_seconds: after which a mood has faded to 1 / e.
        prior_users: how many users what the start says (`constant`, `own`, content) is worth.
        steps: of EM.
        shrinkage_events: an item with so many ratings has half of its deviation believed.
    """

    noise: float = 0.55
    constant: float = 0.16
    own: float = 0.08
    drift: float = 0.12
    drift_seconds: float = 1_000.0
    prior_users: float = 100.0
    steps: int = 25
    shrinkage_events: float = 5.0

    def __post_init__(self) -> None:
        if min(self.noise, self.own, self.drift_seconds, self.prior_users) <= 0:
            raise RankerError(f"noise, own, drift_seconds and prior_users must be above 0: {self}")
        if min(self.constant, self.drift, self.steps, self.shrinkage_events) < 0:
            raise RankerError(f"constant, drift, steps and shrinkage_events must not be negative: {self}")


@dataclass(frozen=True)
class Ratings:
    """n ratings, sorted by user and then time, where users and items are numbers from 0.

    Attributes:
        user, item: [n].
        value: the ratings [n], on any scale.
        time_s: seconds [n].
        items: how many items there are, rated or not.
    """

    user: Ints
    item: Ints
    value: Values
    time_s: Values
    items: int

    def __post_init__(self) -> None:
        if len({len(self.user), len(self.item), len(self.value), len(self.time_s)}) != 1 or not len(self.user):
            raise RankerError(
                f"users ({len(self.user)}), items ({len(self.item)}), ratings ({len(self.value)}) and times ({len(self.time_s)}) "
                "must be one to one, and some"
            )
        if self.item.min() < 0 or self.item.max() >= self.items:
            raise RankerError(f"items must be from 0 to {self.items - 1}; found {self.item.min()} to {self.item.max()}")
        back = (np.diff(self.user) < 0) | ((np.diff(self.user) == 0) & (np.diff(self.time_s) < 0))
        if back.any():
            raise RankerError(f"ratings must be sorted by user and time: row {int(np.argmax(back)) + 1} goes back")
        if not np.isfinite(self.value).all():
            raise RankerError(f"rating {int(np.argmin(np.isfinite(self.value)))} is not finite: leave such rows out")

    def of_users(self, events: Flags) -> Iterator[Ints]:
        """The chosen events' numbers, oldest first, by user; users without one are passed over."""
        at = np.flatnonzero(events)
        if len(at):
            yield from np.split(at, np.flatnonzero(np.diff(self.user[at])) + 1)


@dataclass(frozen=True)
class Filtered:
    """A user's n events, each seen in the light of those before it; ratings in standard units (see `RatingPrior`).

    Attributes:
        factor: lower Cholesky factor of the ratings' covariance [n, n].
        white: the ratings' residuals, whitened by it [n].
        prior_mean: of each event's rating before anything is known of the user [n].
        prior_variance: of taste and mood, without noise [n].
    """

    factor: Values
    white: Values
    prior_mean: Values
    prior_variance: Values

    @property
    def surprise(self) -> Values:
        """Each rating less what was expected of it after all events before it [n]."""
        return np.asarray(self.white * np.diag(self.factor), np.float64)

    def predict(self, seen: int, wanted: Ints) -> tuple[Values, Values]:
        """(mean, variance without noise) of `wanted` events [m], after the first `seen` events' ratings, and no others.

        Row w of the factor up to column `seen` is what event w shares with those events: one factor serves every length of history.
        """
        shared = self.factor[wanted, :seen]
        return (
            self.prior_mean[wanted] + shared @ self.white[:seen],
            self.prior_variance[wanted] - (shared**2).sum(1),
        )


@dataclass(frozen=True)
class RatingPrior:
    """What is known of ratings before a user's own are seen, in standard units: (rating - centre) / scale.

    Attributes:
        covariance: of tastes over items [I, I].
        mean: of each item's rating [I].
        centre, scale: mean and standard deviation of the ratings it was fitted on.
        config: its settings.
    """

    covariance: Values
    mean: Values
    centre: float
    scale: float
    config: RatingPriorConfig

    def standard(self, ratings: Values) -> Values:
        """Ratings in standard units."""
        return (ratings - self.centre) / self.scale

    def filter(self, item: Ints, rating: Values, time_s: Values) -> Filtered:
        """One user's events [n], oldest first, each in the light of those before it."""
        known = _known(self.covariance, item, time_s, self.config)
        variance = np.diag(known).copy()
        known[np.diag_indices(len(item))] += self.config.noise
        factor = scipy.linalg.cholesky(known, lower=True, overwrite_a=True, check_finite=False)
        residual = self.standard(rating) - self.mean[item]
        white = scipy.linalg.solve_triangular(factor, residual, lower=True, check_finite=False)
        return Filtered(factor, white, self.mean[item], variance)

    def predict(self, history: tuple[Ints, Values, Values], item: Ints, time_s: float) -> tuple[Values, Values]:
        """(mean, variance without noise) of a user's ratings for items [m] at an instant, in the ratings' own units.

        `history` is the user's events (items, ratings, times in seconds), oldest first; the newest `MAX_EVENTS` count. It may be empty.
        """
        met, rating, when = history[0][-MAX_EVENTS:], history[1][-MAX_EVENTS:], history[2][-MAX_EVENTS:]
        mean, variance = self.mean[item], np.diag(self.covariance)[item] + self.config.drift
        if len(met):
            seen = self.filter(met, rating, when)
            shared = self.covariance[np.ix_(met, item)] + self.config.drift * _faded(when[:, None], time_s, self.config)
            solved = scipy.linalg.solve_triangular(seen.factor, shared, lower=True)
            mean, variance = mean + seen.white @ solved, variance - (solved**2).sum(0)
        return self.centre + self.scale * mean, self.scale**2 * variance


def fit_rating_prior(
    ratings: Ratings, events: Flags, content: Values | None = None, config: RatingPriorConfig | None = None
) -> RatingPrior:
    """Fit item means and the covariance of tastes on the chosen events alone.

    The covariance is the mode of its posterior by EM: tastes of every user given their ratings (E), and then
    `(sum over users of E[taste taste^T] + prior_users * start) / (users + prior_users)` (M), which is the mode under an inverse-Wishart-like prior
    `|K|^(-prior_users / 2) exp(-prior_users / 2 tr(start K^-1))`. No step lowers `log_posterior`.

    Args:
        ratings: all events.
        events: which of them [n] may be learned from.
        content: kernel [I, I] of what content says that tastes share, as of `content_kernel`; None: nothing.
        config: the settings.

    Raises:
        RankerError: there are more than `MAX_ITEMS` items, no two different ratings, or the kernel does not fit.
    """
    config = config or RatingPriorConfig()
    start = _start(ratings.items, content, config)
    centre, scale = _unit(ratings.value[events])
    standard = (ratings.value - centre) / scale
    mean = item_means(ratings.user[events], ratings.item[events], standard[events], ratings.items, config)
    prior = RatingPrior(start, mean, centre, scale, config)
    for _ in range(config.steps):
        prior = _em_step(prior, start, ratings, events)
    return prior


def prior_before_ratings(
    items: int, content: Values | None, config: RatingPriorConfig | None, unit: tuple[float, float]
) -> RatingPrior:
    """The prior while no rating is known: items differ by their content alone. `unit` is the centre and the scale of ratings to come."""
    config = config or RatingPriorConfig()
    return RatingPrior(_start(items, content, config), np.zeros(items), *unit, config)


def out_of_fold(
    ratings: Ratings,
    events: Flags,
    content: Values | None = None,
    config: RatingPriorConfig | None = None,
    *,
    folds: int = 5,
    seed: int = 0,
) -> Iterator[tuple[Ints, RatingPrior]]:
    """(users, prior fitted on the events of all other users) by fold: what a model learns from has not seen its own labels.

    Raises `RankerError` as `fit_rating_prior`, and where there are fewer users than folds.
    """
    users = np.unique(ratings.user[events])
    if not 2 <= folds <= len(users):
        raise RankerError(f"{folds} folds of {len(users)} users: there must be from 2 to as many folds as users")
    for held in np.array_split(np.random.default_rng(seed).permutation(users), folds):
        yield np.sort(held), fit_rating_prior(ratings, events & ~np.isin(ratings.user, held), content, config)


def log_posterior(prior: RatingPrior, ratings: Ratings, events: Flags, content: Values | None = None) -> float:
    """What EM raises: log-likelihood of the chosen ratings and log-density of the covariance, up to constants, in nats."""
    start = _start(ratings.items, content, prior.config)
    total = 0.0
    for at in ratings.of_users(events):
        at = at[-MAX_EVENTS:]  # noqa: PLW2901 - the same events, fewer of them
        seen = prior.filter(ratings.item[at], ratings.value[at], ratings.time_s[at])
        total -= float(np.log(np.diag(seen.factor)).sum() + 0.5 * seen.white @ seen.white)
    factor = scipy.linalg.cho_factor(prior.covariance, lower=True)
    determinant = 2.0 * np.log(np.diag(factor[0])).sum()
    return total - 0.5 * prior.config.prior_users * float(determinant + np.trace(scipy.linalg.cho_solve(factor, start)))


def content_kernel(
    vectors: Mapping[str, NDArray[Any]], tags: Mapping[str, NDArray[Any]], weights: Mapping[str, float]
) -> Values:
    """Kernel [I, I] of content for `fit_rating_prior`: a weighted sum of cosines, each of variance `weight` for items that have the content.

    Args:
        vectors: embeddings [I, d] by name, compared about their mean; a row of 0 is unknown, and shares nothing.
        tags: weighted tags [I, T] by name (by inverse frequency, say), compared as they are.
        weights: of each name; those without one are left out.
    """
    if unknown := sorted(set(weights) - {*vectors, *tags}):
        there = ", ".join(sorted({*vectors, *tags}))
        raise RankerError(f"there is no content {unknown[0]!r} to weigh; there is {there or 'none'}")
    if wrong := [name for name, weight in weights.items() if weight < 0]:
        raise RankerError(f"the weight of {wrong[0]!r} is {weights[wrong[0]]}: a kernel's weight must not be negative")
    parts = [
        weight * (cosines(np.asarray(vectors[name])) if name in vectors else _cosines(tags[name]))
        for name, weight in weights.items()
    ]
    if not parts:
        raise RankerError("no content is given a weight: leave the kernel out")
    return np.asarray(np.sum(parts, axis=0), np.float64)


def item_means(user: Ints, item: Ints, value: Values, items: int, config: RatingPriorConfig) -> Values:
    """Mean of every item [I] once users' own levels are taken off, shrunk towards the mean of all; of an item without ratings it is that mean."""
    mean = value.mean()
    _, number = np.unique(user, return_inverse=True)
    of_user, counts = np.zeros(number.max() + 1), np.bincount(number)
    for _ in range(_BIAS_ROUNDS):
        sums = np.bincount(item, value - mean - of_user[number], items)
        of_item = sums / np.maximum(np.bincount(item, minlength=items) + config.shrinkage_events, 1e-9)
        of_user = np.bincount(number, value - mean - of_item[item]) / (counts + _USER_SHRINKAGE_EVENTS)
    return np.asarray(mean + of_item, np.float64)


# ---- how it is done ----------------------------------------------------------------------------------------------------


def _em_step(prior: RatingPrior, start: Values, ratings: Ratings, events: Flags) -> RatingPrior:
    """One step: each user's second moment of tastes is K + K (a a^T - C) K on the user's items, C the inverse covariance, a = C residual."""
    covariance, config, users = prior.covariance, prior.config, 0
    spread = np.zeros_like(covariance)
    for at in ratings.of_users(events):
        at = at[-MAX_EVENTS:]  # noqa: PLW2901 - the same events, fewer of them
        item, users = ratings.item[at], users + 1
        known = _known(covariance, item, ratings.time_s[at], config)
        known[np.diag_indices(len(item))] += config.noise
        inverse = np.linalg.inv(known)
        solved = inverse @ (prior.standard(ratings.value[at]) - prior.mean[item])
        _add(spread, item, np.outer(solved, solved) - inverse)
    moved = covariance @ spread @ covariance
    moved += users * covariance + config.prior_users * start
    moved /= users + config.prior_users
    return RatingPrior((moved + moved.T) / 2, prior.mean, prior.centre, prior.scale, config)


def _add(total: Values, item: Ints, part: Values) -> None:
    """Add part [n, n] to the items' places; an item that came twice gets both."""
    if len(np.unique(item)) == len(item):
        total[np.ix_(item, item)] += part
    else:
        np.add.at(total, np.ix_(item, item), part)


def _known(covariance: Values, item: Ints, time_s: Values, config: RatingPriorConfig) -> Values:
    """Covariance [n, n] of taste and mood at events [n]; a copy."""
    found = covariance[np.ix_(item, item)]
    if config.drift:
        found += config.drift * _faded(time_s[:, None], time_s, config)
    return found


def _faded(one: Values, other: Values | float, config: RatingPriorConfig) -> Values:
    """How much of a mood is left between two times, in 0..1."""
    return np.asarray(np.exp(-np.abs(one - other) / config.drift_seconds), np.float64)


def _start(items: int, content: Values | None, config: RatingPriorConfig) -> Values:
    """The covariance [I, I] before any rating is seen."""
    if items > MAX_ITEMS:
        raise RankerError(
            f"the rating prior keeps items x items covariances, and {items:,} items are more than {MAX_ITEMS:,}: use "
            "`collaborative.fit_svd`, whose factors grow with the items alone, or fit it on the items with most ratings"
        )
    start = np.full((items, items), config.constant)
    if content is not None:
        if content.shape != start.shape:
            raise RankerError(
                f"the content kernel is {content.shape}, and there are {items} items: it must be items x items"
            )
        start += content
    start[np.diag_indices(items)] += config.own
    return start


def _unit(values: Values) -> tuple[float, float]:
    """(mean, standard deviation); raises where there is nothing to explain."""
    if not len(values) or not values.std() > 0:
        raise RankerError(f"a rating prior needs two different ratings: there are {len(values)}, all alike")
    return float(values.mean()), float(values.std())


def _cosines(tags: NDArray[Any]) -> Values:
    """Cosines [I, I] between rows of tags [I, T]; 0 for rows without one."""
    raw = np.asarray(tags, np.float64)
    unit = raw / np.maximum(np.linalg.norm(raw, axis=1, keepdims=True), 1e-12)
    return np.asarray(unit @ unit.T)
