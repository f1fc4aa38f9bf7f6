"""The simple methods that a model of ratings must beat: biases of users and items, biased matrix factorisation, and biases as they run through time.

Each is given ratings and says what it expects; settings are chosen, and scores calibrated, by the benchmark.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
Ints = NDArray[np.int64]
BIAS_ROUNDS: Final = 10
SWEEPS: Final = 15
START_STD: Final = 0.1


def fit_biases(
    user: Ints, item: Ints, value: Values, shape: tuple[int, int], shrinkage: tuple[float, float]
) -> tuple[float, Values, Values]:
    """(mean, biases of users [U], of items [I]); shrunk by so many ratings of a user, and of an item."""
    mean, of_user, of_item = float(value.mean()), np.zeros(shape[0]), np.zeros(shape[1])
    for _ in range(BIAS_ROUNDS):
        rest = np.bincount(item, value - mean - of_user[user], shape[1])
        of_item = rest / (np.bincount(item, minlength=shape[1]) + shrinkage[1])
        rest = np.bincount(user, value - mean - of_item[item], shape[0])
        of_user = rest / (np.bincount(user, minlength=shape[0]) + shrinkage[0])
    return mean, of_user, of_item


def fit_factors(
    user: Ints, item: Ints, value: Values, shape: tuple[int, int], rank: int, ridge: float, seed: int
) -> tuple[float, Values, Values]:
    """Biased matrix factorisation by alternating ridge regressions: (mean, users [U, rank + 2], items [I, rank + 2]).

    A user is (factors, bias, 1), an item (factors, 1, bias): the inner product with the mean is the rating (Koren, Bell and Volinsky, "Matrix
    factorization techniques for recommender systems", Computer 2009).
    """
    rng, mean = np.random.default_rng(seed), float(value.mean())
    users = np.concatenate(
        [START_STD * rng.standard_normal((shape[0], rank)), np.zeros((shape[0], 1)), np.ones((shape[0], 1))], 1
    )
    items = np.concatenate(
        [START_STD * rng.standard_normal((shape[1], rank)), np.ones((shape[1], 1)), np.zeros((shape[1], 1))], 1
    )
    of_user, of_item = np.r_[:rank, rank], np.r_[:rank, rank + 1]
    for _ in range(SWEEPS):
        _solve(users, of_user, items, user, item, value - mean, ridge)
        _solve(items, of_item, users, item, user, value - mean, ridge)
    return mean, users, items


def _solve(found: Values, free: Ints, given: Values, own: Ints, other: Ints, value: Values, ridge: float) -> None:
    """Put the ridge solution into the free columns of every row of `found` that has a rating."""
    fixed = np.setdiff1d(np.arange(found.shape[1]), free)
    order = np.argsort(own, kind="stable")
    for at in np.split(order, np.flatnonzero(np.diff(own[order])) + 1):
        seen = given[other[at]]
        rest = value[at] - seen[:, fixed] @ found[own[at[0]], fixed]
        design = seen[:, free]
        found[own[at[0]], free] = np.linalg.solve(design.T @ design + ridge * np.eye(len(free)), design.T @ rest)


def running_biases(
    user: Ints,
    item: Ints,
    value: Values,
    time_s: Values,
    shape: tuple[int, int],
    shrinkage: tuple[float, float],
    start: float,
) -> Values:
    """What biases of all ratings strictly before each rating's instant expect of it [n]; `start` is the mean before there is any."""
    user_sum, user_count, item_sum, item_count = ([0.0] * size for size in (shape[0], shape[0], shape[1], shape[1]))
    total, count, expected = 20.0 * start, 20.0, np.empty(len(value))
    order = np.argsort(time_s, kind="stable")
    for at in np.split(order, np.flatnonzero(np.diff(time_s[order])) + 1):
        mean, known = total / count, []
        for row in at:
            u, i = user[row], item[row]
            of_user, of_item = (
                user_sum[u] / (user_count[u] + shrinkage[0]),
                item_sum[i] / (item_count[i] + shrinkage[1]),
            )
            expected[row] = mean + of_user + of_item
            known.append((u, i, value[row], of_user, of_item))
        for u, i, rating, of_user, of_item in known:
            user_sum[u] += rating - mean - of_item
            item_sum[i] += rating - mean - of_user
            user_count[u], item_count[i] = user_count[u] + 1, item_count[i] + 1
            total, count = total + rating, count + 1
    return expected
