"""The peers of the click model are the methods that their names say, and given a fair chance."""

import numpy as np
import pytest

from benchmarks.rankers.rating_peers import fit_biases, fit_factors, running_biases

USERS, ITEMS, EVENTS = 80, 40, 25


@pytest.fixture
def rated(rng):
    """(user, item, true mean, rating) of users and items with biases and two factors."""
    users, items = rng.standard_normal((USERS, 2)), rng.standard_normal((ITEMS, 2))
    true = 3 + rng.standard_normal((USERS, 1)) + rng.standard_normal(ITEMS) + users @ items.T
    user = np.repeat(np.arange(USERS), EVENTS)
    item = np.concatenate([rng.permutation(ITEMS)[:EVENTS] for _ in range(USERS)])
    return user, item, true, true[user, item] + 0.1 * rng.standard_normal(len(user))


def test_factors_find_what_biases_leave(rated):
    """Unseen pairs of a rank-two world: biases explain about half of the variance, factorisation nearly all."""
    user, item, true, value = rated
    mean, of_user, of_item = fit_biases(user, item, value, (USERS, ITEMS), (1.0, 1.0))
    factored = fit_factors(user, item, value, (USERS, ITEMS), 2, 0.1, 0)
    unseen = np.ones((USERS, ITEMS), bool)
    unseen[user, item] = False
    biased = (mean + of_user[:, None] + of_item)[unseen]
    whole = (factored[0] + factored[1] @ factored[2].T)[unseen]
    left = [np.mean((found - true[unseen]) ** 2) / true[unseen].var() for found in (biased, whole)]
    assert 0.2 < left[0] < 0.9
    assert left[1] < 0.1


def test_each_sweep_solves_its_regressions(rated):
    """At the end no item's factors or bias can be bettered, given the users'."""
    user, item, _, value = rated
    mean, users, items = fit_factors(user, item, value, (USERS, ITEMS), 3, 2.0, 1)
    at = item == 7
    design = users[user[at]][:, [0, 1, 2, 4]]
    rest = value[at] - mean - users[user[at], 3]
    free = items[7, [0, 1, 2, 4]]
    np.testing.assert_allclose(design.T @ (rest - design @ free), 2.0 * free, atol=1e-8)
    assert items[7, 3] == users[5, 4] == 1


def test_who_was_never_seen_gets_the_mean(rated):
    """Biases of users and items without ratings are 0."""
    user, item, _, value = rated
    mean, of_user, of_item = fit_biases(user, item, value, (USERS + 1, ITEMS + 1), (1.0, 1.0))
    assert mean == pytest.approx(value.mean())
    assert of_user[-1] == of_item[-1] == 0


def test_running_biases_see_what_is_strictly_before(rated, rng):
    """Ratings at an instant or later change nothing before them, ties included; the first of all expect the start."""
    user, item, _, value = rated
    time_s = rng.integers(0, 50, len(user)).astype(float)
    one = running_biases(user, item, value, time_s, (USERS, ITEMS), (1.0, 1.0), 3.5)
    other = running_biases(user, item, np.where(time_s >= 20, -9.0, value), time_s, (USERS, ITEMS), (1.0, 1.0), 3.5)
    np.testing.assert_array_equal(one[time_s <= 20], other[time_s <= 20])
    assert not np.array_equal(one[time_s > 20], other[time_s > 20])
    assert (one[time_s == time_s.min()] == 3.5).all()
    late = time_s > 40
    assert np.corrcoef(one[late], value[late])[0, 1] > 0.4
