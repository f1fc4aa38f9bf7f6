"""The click model learns what the prior cannot say, on planted and on real ratings, and its chances hold."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.rankers.sequences import movielens_100k
from ranker import protocols
from ranker.calibration import sigmoid
from ranker.click import ClickConfig, ClickLabels, fit_click
from ranker.click_metrics import auc, ece, gauc
from ranker.click_rows import RowsConfig, frozen_rows, training_rows
from ranker.errors import LeakageError, TrainingSetError
from ranker.protocols import Role
from ranker.rating_prior import RatingPriorConfig, Ratings, fit_rating_prior, item_means

USERS, ITEMS, EVENTS = 200, 40, 30
PRIOR = RatingPriorConfig(steps=6, prior_users=20.0)
ROWS = RowsConfig(events=16, folds=3)
SMALL = ClickConfig(batch_size=128, max_epochs=3, warm_up_steps=10)
DAY_SECONDS = 86_400.0


def world(user, item, value, time_s, liked_from):
    """(ratings, labels) by each user's own time."""
    ratings = Ratings(user, item, value, time_s, int(item.max()) + 1)
    roles = protocols.ratio(user, time_s)
    known = value[roles == Role.TRAIN]
    return ratings, ClickLabels((value >= liked_from).astype(np.int64), (value - known.mean()) / known.std(), roles)


@pytest.fixture
def planted(rng):
    """Two kinds of items, liked oppositely by users, who differ in level too, and a tie of likes to how sharp their taste is."""
    kind = np.where(np.arange(ITEMS) % 2, 1.0, -1.0)
    taste, level, quality = (
        rng.standard_normal((USERS, 1)),
        0.5 * rng.standard_normal((USERS, 1)),
        rng.standard_normal(ITEMS),
    )
    means = taste * kind + level + 0.5 * quality
    user = np.repeat(np.arange(USERS), EVENTS)
    item = np.concatenate([rng.permutation(ITEMS)[:EVENTS] for _ in range(USERS)])
    value = means[user, item] + 0.7 * rng.standard_normal(len(user))
    return world(user, item, value, np.tile(np.arange(EVENTS) * DAY_SECONDS, USERS), 0.0)


def made(ratings, labels, config=ROWS):
    """(training rows, validation rows, test rows) of the frozen regime."""
    train, known = labels.roles == Role.TRAIN, labels.roles <= Role.VALIDATION
    rows = [training_rows(ratings, labels.click > 0, train, None, PRIOR, config)]
    for role, seen in ((Role.VALIDATION, train), (Role.TEST, known)):
        prior = fit_rating_prior(ratings, seen, None, PRIOR)
        rows.append(frozen_rows(prior, ratings, labels.click > 0, seen, labels.roles == role, config))
    return rows


def popularity(ratings, labels):
    return np.bincount(ratings.item[labels.roles == Role.TRAIN], minlength=ratings.items)


def biases(ratings, labels, events):
    """Item means, and users' mean difference from them, shrunk."""
    means = item_means(ratings.user[events], ratings.item[events], labels.rating[events], ratings.items, PRIOR)
    rest = np.bincount(ratings.user[events], (labels.rating - means[ratings.item])[events])
    return means[ratings.item] + (rest / (np.bincount(ratings.user[events]) + 3))[ratings.user]


def test_it_beats_biases_on_planted_tastes(planted):
    """AUC and AUC by user are far above biases', and calibrated chances are near what happens."""
    ratings, labels = planted
    train, validation, test = made(ratings, labels)
    model = fit_click(train, validation, labels, popularity(ratings, labels), SMALL)
    click, user = labels.click[test.event], ratings.user[test.event]
    plain = biases(ratings, labels, labels.roles <= Role.VALIDATION)[test.event]
    assert auc(click, model.logits(test)) > auc(click, plain) + 0.05
    assert gauc(click, model.logits(test), user) > gauc(click, plain, user) + 0.1
    assert ece(click, model.chances(test)) < 0.1
    assert np.corrcoef(model.ratings(test), labels.rating[test.event])[0, 1] > 0.6


def test_before_training_the_prior_speaks_alone(planted):
    """A network of no steps gives the prior's mean, but for attention's first weights; without attention, exactly."""
    ratings, labels = planted
    train, validation, test = made(ratings, labels)
    still = replace(SMALL, learning_rate=0.0, attention=False, max_epochs=1)
    model = fit_click(train, validation, labels, popularity(ratings, labels), still)
    np.testing.assert_allclose(model.ratings(test), test.context[:, 0], rtol=1e-6)
    assert auc(labels.click[test.event], model.logits(test)) == auc(labels.click[test.event], test.context[:, 0])


def test_one_seed_gives_one_model(planted):
    """Scores are the same to the bit, another seed's are not, and the caller's random state is left alone."""
    ratings, labels = planted
    train, validation, test = made(ratings, labels)
    state = torch.random.get_rng_state()
    counts = popularity(ratings, labels)
    one, again, other = (fit_click(train, validation, labels, counts, SMALL, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.chances(test), again.chances(test))
    assert not np.array_equal(one.logits(test), other.logits(test))
    assert torch.equal(state, torch.random.get_rng_state())


def test_events_that_are_not_there_change_nothing(planted):
    """Whatever stands in the padding."""
    ratings, labels = planted
    train, validation, test = made(ratings, labels, replace(ROWS, events=200))
    model = fit_click(train, validation, labels, popularity(ratings, labels), SMALL)
    assert (test.there == 0).any()
    padded = replace(test, **{name: np.pad(getattr(test, name), ((0, 0), (0, 4))) for name in ("gap_s", "similarity", "there")},
                     surprise=np.pad(test.surprise, ((0, 0), (0, 4)), constant_values=9.0))  # fmt: skip
    np.testing.assert_allclose(model.logits(padded), model.logits(test), atol=1e-5)


def test_training_stops_by_validation(planted):
    """The best look's weights are kept, and epochs end after `patience` without a better one."""
    ratings, labels = planted
    train, validation, _ = made(ratings, labels)
    eager = replace(SMALL, max_epochs=30, patience=2, learning_rate=0.05)
    model = fit_click(train, validation, labels, popularity(ratings, labels), eager)
    best = int(np.argmin(model.looks))
    assert len(model.looks) < 30
    assert len(model.looks) - 1 - best == 2
    click = labels.click[validation.event]
    chances = sigmoid(model.logits(validation))
    assert -np.log(np.where(click, chances, 1 - chances)).mean() == pytest.approx(model.looks[best], rel=1e-5)


def test_the_test_reaches_neither_weights_nor_calibration(planted):
    """Rows of other roles are refused by name, as is less than a batch."""
    ratings, labels = planted
    train, validation, test = made(ratings, labels)
    counts = popularity(ratings, labels)
    with pytest.raises(LeakageError, match="the click model"):
        fit_click(test, validation, labels, counts, SMALL)
    with pytest.raises(LeakageError, match="the click model's stop"):
        fit_click(train, test, labels, counts, SMALL)
    with pytest.raises(TrainingSetError, match="less than one batch of 99999"):
        fit_click(train, validation, labels, counts, replace(SMALL, batch_size=99_999))


def test_real_ratings_are_explained_beyond_biases():
    """Four hundred users of MovieLens and the films rated most: above biases on validation's and the test's labels."""
    try:
        events = movielens_100k()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    known = np.isin(events.item, np.argsort(-np.bincount(events.item))[:400]) & (events.user < 400)
    _, item = np.unique(events.item[known], return_inverse=True)
    _, user = np.unique(events.user[known], return_inverse=True)
    ratings, labels = world(user, item, events.rating[known], events.timestamp[known].astype(float), 4.0)
    train, validation, test = made(ratings, labels)
    model = fit_click(train, validation, labels, popularity(ratings, labels), SMALL)
    rows = np.concatenate([validation.event, test.event])
    ours = np.concatenate([model.logits(validation), model.logits(test)])
    plain = np.concatenate([
        biases(ratings, labels, labels.roles == Role.TRAIN)[validation.event],
        biases(ratings, labels, labels.roles <= Role.VALIDATION)[test.event],
    ])  # fmt: skip
    assert auc(labels.click[rows], ours) > auc(labels.click[rows], plain) + 0.005
    assert gauc(labels.click[rows], ours, user[rows]) > gauc(labels.click[rows], plain, user[rows])
    assert ece(labels.click[test.event], model.chances(test)) < 0.08
