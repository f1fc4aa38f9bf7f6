"""Rows hold what was known before their labels, and nothing of the labels themselves."""

from dataclasses import replace

import numpy as np
import pytest

from ranker.click_rows import CONTEXT, ClickRows, RowsConfig, frozen_rows, running_rows, training_rows
from ranker.errors import RankerError
from ranker.rating_prior import RatingPriorConfig, Ratings, fit_rating_prior

USERS, ITEMS, EVENTS = 30, 15, 12
PRIOR = RatingPriorConfig(steps=2, prior_users=10.0)
ROWS = RowsConfig(events=5, folds=3, windows=4)
UNIT = (3.0, 1.0)


@pytest.fixture
def ratings(rng):
    """Users whose ratings have pairs of equal times."""
    user = np.repeat(np.arange(USERS), EVENTS)
    item = np.concatenate([rng.permutation(ITEMS)[:EVENTS] for _ in range(USERS)])
    time_s = np.sort(rng.integers(0, 1_000, (USERS, EVENTS // 2)), axis=1).repeat(2, axis=1).ravel().astype(float)
    return Ratings(user, item, rng.integers(1, 6, len(user)).astype(float), time_s, ITEMS)


def clicked(ratings):
    return ratings.value >= 4


def first(ratings, count):
    return np.tile(np.arange(EVENTS) < count, USERS)


def same(one, other, rows):
    return all(np.array_equal(getattr(one, name)[rows], getattr(other, name)[rows]) for name in vars(one))


def with_other_ratings(ratings, changed):
    return replace(ratings, value=np.where(changed, 7 - ratings.value, ratings.value))


def test_a_frozen_row_is_what_the_prior_and_the_history_say(ratings):
    """Mean and variance, the gaps, surprises and correlations of the newest events, newest first, and padding after them."""
    seen, wanted = first(ratings, 3), ~first(ratings, 9)
    prior = fit_rating_prior(ratings, seen, None, PRIOR)
    rows = frozen_rows(prior, ratings, clicked(ratings), seen, wanted, ROWS)
    assert rows.event.tolist() == np.flatnonzero(wanted).tolist()
    at = rows.event[4]
    start = EVENTS * ratings.user[at]
    history = np.arange(start, start + 3)
    mean, variance = prior.predict(
        (ratings.item[history], ratings.value[history], ratings.time_s[history]), ratings.item[[at]], ratings.time_s[at]
    )
    assert prior.centre + prior.scale * rows.context[4, CONTEXT.index("mean")] == pytest.approx(mean[0], rel=1e-5)
    assert prior.scale**2 * rows.context[4, CONTEXT.index("variance")] / 2 == pytest.approx(variance[0], rel=1e-5)
    newest = history[::-1]
    filtered = prior.filter(ratings.item[history], ratings.value[history], ratings.time_s[history])
    np.testing.assert_allclose(rows.surprise[4], [*filtered.surprise[::-1], 0, 0], rtol=1e-5)
    np.testing.assert_allclose(rows.gap_s[4], [*(ratings.time_s[at] - ratings.time_s[newest]), 0, 0])
    spread = np.sqrt(np.diag(prior.covariance))
    item = ratings.item[at]
    shared = prior.covariance[item, ratings.item[newest]] / (spread[item] * spread[ratings.item[newest]])
    np.testing.assert_allclose(rows.similarity[4], [*shared, 0, 0], rtol=1e-5)
    assert rows.there[4].tolist() == [1, 1, 1, 0, 0]


def test_a_training_row_has_seen_neither_its_label_nor_what_follows(ratings):
    """Other ratings of a user, from a place on, leave the rows of all cuts before it as they are, and change those of later ones."""
    events = first(ratings, 10)
    one = training_rows(ratings, clicked(ratings), events, None, PRIOR, ROWS)
    changed = (ratings.user == 8) & ~first(ratings, 6)
    turned = with_other_ratings(ratings, changed)
    other = training_rows(turned, clicked(turned), events, None, PRIOR, ROWS)
    own = ratings.user[one.event] == 8
    history_ends = EVENTS * 8 + np.round(np.exp(2 * (one.context[:, CONTEXT.index("user_events")] + 2)) - 1)
    early = own & (history_ends <= EVENTS * 8 + 6)
    assert early.sum() > 4
    assert same(one, other, early)
    assert not same(one, other, own & ~early)


def test_training_rows_follow_each_cut(ratings):
    """Cuts at shares of the training events; labels are events of training after their cut, within the window."""
    rows = training_rows(
        ratings, clicked(ratings), first(ratings, 10), None, PRIOR, replace(ROWS, cuts=(0.5, 0.8), least_labels=2)
    )
    assert len(rows) == USERS * 4
    assert sorted(rows.event[ratings.user[rows.event] == 2] - 2 * EVENTS) == [5, 6, 8, 9]


def test_a_running_row_has_seen_what_is_strictly_before(ratings):
    """Other ratings at a label's instant or later, of any user, leave its row as it is; earlier ones change it."""
    one = running_rows(ratings, clicked(ratings), ~first(ratings, 0), None, PRIOR, ROWS, unit=UNIT)
    instant = np.quantile(ratings.time_s, 0.6)
    turned = with_other_ratings(ratings, ratings.time_s >= instant)
    other = running_rows(turned, clicked(turned), ~first(ratings, 0), None, PRIOR, ROWS, unit=UNIT)
    assert sorted(one.event) == list(range(len(ratings.user)))
    early = ratings.time_s[one.event] <= instant
    assert same(one, other, early)
    assert not same(one, other, ~early)
    first_of_all = one.take(np.flatnonzero(one.event == np.argmin(ratings.time_s)))
    assert not first_of_all.there.any()


def test_long_histories_are_cut_to_the_newest(ratings, monkeypatch):
    """A user with more events than the prior takes gets rows from the newest of them."""
    monkeypatch.setattr("ranker.click_rows.MAX_EVENTS", 4)
    seen = first(ratings, 9)
    prior = fit_rating_prior(ratings, seen, None, PRIOR)
    rows = frozen_rows(prior, ratings, clicked(ratings), seen, ~seen, ROWS)
    assert (rows.there.sum(1) == 4).all()
    assert np.exp(2 * (rows.context[0, CONTEXT.index("user_events")] + 2)) - 1 == pytest.approx(4, rel=1e-4)


def test_what_comes_after_is_not_seen(ratings):
    """A split in which a user's seen events follow wanted ones is refused by the user's number, as is a join of nothing."""
    prior = fit_rating_prior(ratings, first(ratings, 5), None, PRIOR)
    with pytest.raises(RankerError, match="user 0: what is seen must come before"):
        frozen_rows(prior, ratings, clicked(ratings), ~first(ratings, 5), first(ratings, 5), ROWS)
    with pytest.raises(RankerError, match="no label"):
        ClickRows.joined([])
