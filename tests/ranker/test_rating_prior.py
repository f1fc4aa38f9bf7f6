"""The rating prior is the Gaussian process it says it is, learns its covariance by EM, and never sees what it is asked about."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import multivariate_normal
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel

from ranker import rating_prior
from ranker.errors import RankerError
from ranker.rating_prior import (
    RatingPriorConfig,
    Ratings,
    content_kernel,
    fit_rating_prior,
    log_posterior,
    out_of_fold,
    prior_before_ratings,
)

USERS, ITEMS, EVENTS = 60, 12, 10
HOUR_SECONDS = 3_600.0
QUICK = RatingPriorConfig(steps=5, prior_users=10.0)


@pytest.fixture
def planted(rng):
    """(ratings, true tastes [U, I]): two kinds of items, which a user likes oppositely, on a scale of one's own."""
    kind = np.where(np.arange(ITEMS) % 2, 1.0, -1.0)
    tastes = rng.standard_normal((USERS, 1)) * kind + 0.3 * rng.standard_normal((USERS, ITEMS))
    user = np.repeat(np.arange(USERS), EVENTS)
    item = np.concatenate([rng.permutation(ITEMS)[:EVENTS] for _ in range(USERS)])
    value = 50 + 10 * (tastes[user, item] + 0.2 * rng.standard_normal(len(user)))
    time_s = np.tile(np.arange(EVENTS) * HOUR_SECONDS, USERS)
    return Ratings(user, item, value, time_s, ITEMS), tastes


def everything(ratings):
    return np.ones(len(ratings.user), bool)


def one_user(ratings, user):
    at = np.flatnonzero(ratings.user == user)
    return ratings.item[at], ratings.value[at], ratings.time_s[at]


def test_the_posterior_is_a_gaussian_processs(planted):
    """Without a mood, on a kernel that scikit-learn has too, its regressor gives the same means and variances."""
    ratings, _ = planted
    points = np.linspace(0, 3, ITEMS)[:, None]
    kernel = ConstantKernel(0.7) * RBF(0.8)
    config = RatingPriorConfig(constant=0.0, own=1e-9, drift=0.0, noise=0.4)
    prior = prior_before_ratings(ITEMS, kernel(points), config, (50.0, 10.0))
    item, value, time_s = one_user(ratings, 0)
    mean, variance = prior.predict((item, value, time_s), np.arange(ITEMS), time_s[-1])
    peer = GaussianProcessRegressor(kernel, alpha=0.4, optimizer=None).fit(points[item], (value - 50) / 10)
    expected, deviation = peer.predict(points, return_std=True)
    np.testing.assert_allclose(mean, 50 + 10 * expected, rtol=1e-6)
    np.testing.assert_allclose(variance, (10 * deviation) ** 2, rtol=1e-5, atol=1e-5)


def test_one_factor_serves_every_length_of_history(planted):
    """What the filter says after the first n events is what the formula says of those n alone, mood and all."""
    ratings, _ = planted
    prior = fit_rating_prior(ratings, everything(ratings), None, QUICK)
    item, value, time_s = one_user(ratings, 3)
    filtered = prior.filter(item, value, time_s)
    for seen in (0, 1, 4, 9):
        mean, variance = filtered.predict(seen, np.arange(seen, EVENTS))
        for place in range(seen, EVENTS):
            history = (item[:seen], value[:seen], time_s[:seen])
            alone, width = prior.predict(history, item[[place]], time_s[place])
            assert prior.centre + prior.scale * mean[place - seen] == pytest.approx(alone[0])
            assert prior.scale**2 * variance[place - seen] == pytest.approx(width[0])


def test_a_surprise_is_the_rating_less_what_was_expected(planted):
    """Each is the standard rating less the filter's mean after all events before it."""
    ratings, _ = planted
    prior = fit_rating_prior(ratings, everything(ratings), None, QUICK)
    item, value, time_s = one_user(ratings, 5)
    filtered = prior.filter(item, value, time_s)
    expected = [filtered.predict(n, np.array([n]))[0][0] for n in range(EVENTS)]
    np.testing.assert_allclose(filtered.surprise, prior.standard(value) - expected, atol=1e-12)


def test_no_step_lowers_what_em_raises(planted, rng):
    """The penalised likelihood rises with every step, with content and mood; its likelihood part is the normal density's."""
    ratings, _ = planted
    events, content = everything(ratings), content_kernel({"it": rng.standard_normal((ITEMS, 3))}, {}, {"it": 0.2})
    fitted = [fit_rating_prior(ratings, events, content, replace(QUICK, steps=steps)) for steps in range(8)]
    values = [log_posterior(prior, ratings, events, content) for prior in fitted]
    assert (np.diff(values) > -1e-8).all()
    assert values[-1] > values[0] + 1
    first, last = (likelihood(prior, ratings) for prior in (fitted[0], fitted[-1]))
    penalty = [penalty_of(prior, fitted[0].covariance) for prior in (fitted[0], fitted[-1])]
    assert values[-1] - values[0] == pytest.approx(last - first - (penalty[1] - penalty[0]))


def likelihood(prior, ratings):
    """Sum over users of scipy's log-density of their ratings."""
    total, config = 0.0, prior.config
    for user in range(USERS):
        item, value, time_s = one_user(ratings, user)
        mood = config.drift * np.exp(-np.abs(time_s[:, None] - time_s) / config.drift_seconds)
        covariance = prior.covariance[np.ix_(item, item)] + mood + config.noise * np.eye(EVENTS)
        total += multivariate_normal(prior.mean[item], covariance).logpdf(prior.standard(value))
    return total


def penalty_of(prior, start):
    inverse = np.linalg.inv(prior.covariance)
    return prior.config.prior_users / 2 * (np.linalg.slogdet(prior.covariance)[1] + np.trace(start @ inverse))


def test_the_planted_covariance_is_learned(planted):
    """Items of one kind become alike and of two kinds opposite, which no content had said; held-out ratings are explained."""
    ratings, tastes = planted
    prior = fit_rating_prior(ratings, everything(ratings), None, replace(QUICK, steps=20))
    same = np.equal.outer(np.arange(ITEMS) % 2, np.arange(ITEMS) % 2)
    off = ~np.eye(ITEMS, dtype=bool)
    assert prior.covariance[same & off].min() > 0 > prior.covariance[~same].max()
    unseen = np.setdiff1d(np.arange(ITEMS), one_user(ratings, 7)[0])
    found = np.concatenate([prior.predict(one_user(ratings, user), unseen, 0.0)[0] for user in range(USERS)])
    assert np.corrcoef(found, tastes[:, unseen].ravel())[0, 1] > 0.8


def test_a_fold_never_sees_its_own_users(planted):
    """Whatever the held-out users had rated, their prior is the same to the bit; folds hold every user once."""
    ratings, _ = planted
    changed = replace(ratings, value=np.where(ratings.user == 11, 100 - ratings.value, ratings.value))
    folds = list(
        zip(*(out_of_fold(of, everything(of), None, QUICK, folds=4) for of in (ratings, changed)), strict=True)
    )
    assert sorted(np.concatenate([users for (users, _), _ in folds])) == list(range(USERS))
    for (users, one), (_, other) in folds:
        assert np.array_equal(one.covariance, other.covariance) == (11 in users)
        assert np.array_equal(one.mean, other.mean) == (11 in users)


def test_only_the_chosen_events_are_learned_from(planted):
    """Ratings of other events may be anything."""
    ratings, _ = planted
    events = np.arange(len(ratings.user)) % EVENTS < 8
    changed = replace(ratings, value=np.where(events, ratings.value, -1e6))
    one, other = (fit_rating_prior(of, events, None, QUICK) for of in (ratings, changed))
    np.testing.assert_array_equal(one.covariance, other.covariance)
    assert (one.centre, one.scale) == (other.centre, other.scale)


def test_cold_users_and_items_are_expected(planted, rng):
    """A user without events gets the items' means; an item without ratings, the mean of all moved by its content."""
    ratings, _ = planted
    vectors = np.where(np.arange(ITEMS) % 2, 1.0, -1.0)[:, None] + 0.1 * rng.standard_normal((ITEMS, 4))
    content = content_kernel({"it": vectors}, {}, {"it": 0.5})
    warm = ratings.item != 0
    prior = fit_rating_prior(ratings, warm, content, QUICK)
    empty = (np.zeros(0, np.int64), np.zeros(0), np.zeros(0))
    mean, variance = prior.predict(empty, np.arange(ITEMS), 0.0)
    np.testing.assert_allclose(mean, prior.centre + prior.scale * prior.mean)
    assert prior.mean[0] == pytest.approx(0, abs=0.2)
    lover = (np.array([2, 4]), np.array([80.0, 80.0]), np.zeros(2))
    knows, narrower = prior.predict(lover, np.array([0, 1]), 0.0)
    assert knows[0] > mean[0] + 1
    assert knows[1] < mean[1] - 1
    assert (narrower < variance[:2]).all()


def test_a_mood_fades():
    """A liked item lifts another more at once than a day later, and beyond the mood's time only tastes are left."""
    prior = prior_before_ratings(3, None, RatingPriorConfig(drift=0.3, drift_seconds=600.0), (0.0, 1.0))
    history = (np.array([0]), np.array([2.0]), np.zeros(1))
    now, soon, later, much_later = (prior.predict(history, np.array([1]), at)[0][0] for at in (0.0, 600.0, 1e5, 1e6))
    assert now > soon > later == pytest.approx(much_later)
    assert later > 0


def test_an_item_that_came_twice_counts_twice():
    """Two ratings of one item are two observations, in the fit as in the posterior."""
    user, item = np.repeat(np.arange(20), 3), np.tile([0, 0, 1], 20)
    value = np.tile([1.0, 1.0, -1.0], 20) * np.repeat(np.where(np.arange(20) % 2, 1.0, -1.0), 3)
    ratings = Ratings(user, item, value, np.tile([0.0, 1e6, 2e6], 20), 2)
    events = np.ones(60, bool)
    values = [
        log_posterior(fit_rating_prior(ratings, events, None, replace(QUICK, steps=n)), ratings, events)
        for n in range(6)
    ]
    assert (np.diff(values) > 0).all()


def test_content_is_a_sum_of_cosines(rng):
    """Vectors are compared about their mean, tags as they are; what is unknown shares nothing, and the kernel is one."""
    vectors, tags = rng.standard_normal((6, 4)), np.eye(6)[:, :3]
    vectors[5] = 0
    kernel = content_kernel({"plot": vectors}, {"genre": tags}, {"plot": 0.3, "genre": 0.2})
    assert np.diag(kernel).tolist() == pytest.approx([0.5, 0.5, 0.5, 0.3, 0.3, 0.0])
    assert not kernel[5].any()
    assert np.linalg.eigvalsh(kernel).min() > -1e-12


def test_what_makes_no_sense_is_refused(planted, monkeypatch):
    """Too many items (and what to use instead), rows out of order, one rating alone, settings, kernels and names that do not fit."""
    ratings, _ = planted
    events = everything(ratings)
    with pytest.raises(RankerError, match=r"must be sorted by user and time: row 1 "):
        replace(ratings, time_s=-ratings.time_s)
    with pytest.raises(RankerError, match="items must be from 0 to 4"):
        replace(ratings, items=5)
    with pytest.raises(RankerError, match="not finite"):
        replace(ratings, value=np.where(ratings.user == 4, np.nan, ratings.value))
    with pytest.raises(RankerError, match="two different ratings"):
        fit_rating_prior(replace(ratings, value=np.ones(len(events))), events)
    with pytest.raises(RankerError, match=r"content kernel is \(3, 3\)"):
        fit_rating_prior(ratings, events, np.eye(3))
    with pytest.raises(RankerError, match="noise"):
        RatingPriorConfig(noise=0.0)
    with pytest.raises(RankerError, match="no content 'sound'"):
        content_kernel({"text": np.eye(3)}, {}, {"sound": 1.0})
    with pytest.raises(RankerError, match="must not be negative"):
        content_kernel({"text": np.eye(3)}, {}, {"text": -1.0})
    with pytest.raises(RankerError, match="1 folds of 60 users"):
        next(out_of_fold(ratings, events, folds=1))
    monkeypatch.setattr(rating_prior, "MAX_ITEMS", ITEMS - 1)
    with pytest.raises(RankerError, match=r"12 items are more than 11: use `collaborative.fit_svd`"):
        fit_rating_prior(ratings, events)
