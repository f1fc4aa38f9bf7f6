"""Paired bootstrap over users: intervals of means, and of differences between scorers that were judged on the same users.

Users are drawn with replacement, and every scorer of a table is judged by the same draws, which is what makes differences paired (Efron and
Tibshirani 1993, chapters 13 and 16). Intervals are percentiles. Metrics that are no mean over users (AUC, ECE) are computed anew for each draw.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ranker.errors import EvaluationError
from ranker.protocols import Ints

Values = NDArray[np.float64]
RESAMPLES: Final = 2_000
POOLED_RESAMPLES: Final = 500  # each computes the metric anew
LEVEL: Final = 0.95
_BATCH_DRAWS: Final = 1 << 22  # drawn users in memory at once


@dataclass(frozen=True)
class Estimate:
    """A mean over users, the bounds of its interval, and how many users it is of."""

    mean: float
    low: float
    high: float
    users: int


@dataclass(frozen=True)
class Difference:
    """The mean of one scorer less that of another on the same users, its interval, and the two-sided p-value of there being none."""

    mean: float
    low: float
    high: float
    p: float
    users: int


def estimates(
    values: Mapping[str, Values],
    *,
    weights: Values | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> dict[str, Estimate]:
    """Each scorer's mean over users with its interval, by scorer.

    Args:
        values: a metric by user [U] for each scorer, users in one order; average over training seeds first. Users with a NaN (no AUC, no list)
            are left out for all scorers alike.
        weights: how much each user counts [U], as for GAUC; default: all alike.
        resamples: draws of U users.
        seed: of the draws; the same seed gives the same interval.
        level: share of the draws inside the interval.
    """
    kept, weight = _kept(values, weights)
    draws = _resampled(kept, weight, resamples, seed)
    means = np.average(kept, axis=1, weights=weight)
    lows, highs = _bounds(draws, level)
    return {
        name: Estimate(float(means[at]), float(lows[at]), float(highs[at]), kept.shape[1])
        for at, name in enumerate(values)
    }


def differences(
    values: Mapping[str, Values],
    model: str,
    *,
    weights: Values | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> dict[str, Difference]:
    """`model`'s mean less each other scorer's, by the other's name; arguments as of `estimates`.

    p is twice the smaller share of draws in which the difference is at most, or at least, 0, one draw added to both counts so that it is never 0
    (Davison and Hinkley 1997, equation 4.11): the level at which the interval would just touch 0.
    """
    if model not in values:
        raise EvaluationError(f"{model!r} was not judged; there are {', '.join(values)}")
    kept, weight = _kept(values, weights)
    names = list(values)
    gains = kept[names.index(model)] - kept
    draws = _resampled(gains, weight, resamples, seed)
    means = np.average(gains, axis=1, weights=weight)
    lows, highs = _bounds(draws, level)
    tails = np.minimum((draws <= 0).sum(0), (draws >= 0).sum(0))
    p = np.minimum(2.0 * (tails + 1) / (resamples + 1), 1.0)
    return {
        name: Difference(float(means[at]), float(lows[at]), float(highs[at]), float(p[at]), kept.shape[1])
        for at, name in enumerate(names)
        if name != model
    }


def pooled(
    metric: Callable[[Values], float],
    user: Ints,
    *,
    resamples: int = POOLED_RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> Estimate:
    """A metric of all events together (AUC, log loss, ECE) with its interval over users.

    Args:
        metric: the metric, given how often each event counts [n].
        user: each event's user [n]; a drawn user brings all of theirs, as often as they are drawn.
        resamples: draws of as many users as there are.
        seed: of the draws.
        level: share of the draws inside the interval.

    Draws for which the metric is NaN are left out.
    """
    _check(resamples, level)
    users, number = np.unique(user, return_inverse=True)
    if not len(users):
        raise EvaluationError("there is no event to bootstrap over")
    rng = np.random.default_rng(seed)
    drawn = np.empty(resamples)
    for at in range(resamples):
        times = np.bincount(rng.integers(0, len(users), len(users)), minlength=len(users)).astype(np.float64)
        drawn[at] = metric(times[number])
    found = drawn[np.isfinite(drawn)]
    low, high = _bounds(found[:, None], level)[:, 0].tolist() if len(found) else (float("nan"), float("nan"))
    return Estimate(float(metric(np.ones(len(user)))), low, high, len(users))


def _kept(values: Mapping[str, Values], weights: Values | None) -> tuple[Values, Values]:
    """(values of all scorers [M, U'], weights [U']) of the users for whom all have one."""
    lengths = {name: len(of) for name, of in values.items()}
    if len(set(lengths.values())) != 1:
        raise EvaluationError(f"scorers must be judged on the same users; there are {lengths or 'no scorers'}")
    together = np.stack([np.asarray(of, np.float64) for of in values.values()])
    weight = np.ones(together.shape[1]) if weights is None else np.asarray(weights, np.float64)
    if weight.shape != together.shape[1:]:
        raise EvaluationError(f"there are {together.shape[1]} users and weights of shape {weight.shape}")
    there = np.isfinite(together).all(0) & (weight > 0)
    if not there.any():
        raise EvaluationError(f"no user has a value by every scorer ({', '.join(values)}): there is nothing to average")
    return together[:, there], weight[there]


def _resampled(values: Values, weight: Values, resamples: int, seed: int) -> Values:
    """Weighted means [resamples, M] of values [M, U] over draws of U users, the same draws for each of the M."""
    rng, users = np.random.default_rng(seed), values.shape[1]
    weighed = np.concatenate([values * weight, weight[None]]).T  # [U, M + 1]
    batch = max(1, _BATCH_DRAWS // (users * len(weighed[0])))
    parts = []
    for first in range(0, resamples, batch):
        drawn = rng.integers(0, users, (min(batch, resamples - first), users))
        sums = weighed[drawn].sum(1)
        parts.append(sums[:, :-1] / sums[:, -1:])
    return np.concatenate(parts)


def _bounds(draws: Values, level: float) -> Values:
    """Percentiles [2, M] of draws [R, M] that leave half of the rest on each side."""
    _check(len(draws), level)
    return np.asarray(np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0), np.float64)


def _check(resamples: int, level: float) -> None:
    if resamples < 1 or not 0 < level < 1:
        raise EvaluationError(f"resamples {resamples} must be at least 1, and the level {level} between 0 and 1")
