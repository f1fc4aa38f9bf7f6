"""Intervals hold what they promise, agree with scipy's, and are paired."""

import numpy as np
import pytest
import scipy.stats

from ranker.bootstrap import differences, estimates, pooled
from ranker.click_metrics import auc, ece
from ranker.errors import EvaluationError

USERS = 400


@pytest.fixture
def judged(rng):
    """Two scorers by user whose values go together, the first a little better."""
    easy = rng.normal(0.3, 0.2, USERS)
    return {"model": easy + rng.normal(0.02, 0.05, USERS), "peer": easy + rng.normal(0, 0.05, USERS)}


def test_intervals_are_scipys(judged, rng):
    """Mean and percentile interval, as `scipy.stats.bootstrap` gives them."""
    found = estimates(judged, resamples=5_000)
    for name, values in judged.items():
        theirs = scipy.stats.bootstrap((values,), np.mean, n_resamples=5_000, method="percentile", rng=rng)
        assert found[name].mean == pytest.approx(values.mean())
        width = theirs.confidence_interval.high - theirs.confidence_interval.low
        assert found[name].low == pytest.approx(theirs.confidence_interval.low, abs=0.1 * width)
        assert found[name].high == pytest.approx(theirs.confidence_interval.high, abs=0.1 * width)
        assert found[name].users == USERS


def test_a_difference_is_paired(judged):
    """Its interval is that of the users' own differences, far narrower than the scorers' own, and p is near the paired t-test's."""
    found = differences(judged, "model", resamples=20_000)["peer"]
    gains = judged["model"] - judged["peer"]
    assert found.mean == pytest.approx(gains.mean())
    half = 1.96 * gains.std() / np.sqrt(USERS)
    assert found.low == pytest.approx(gains.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(gains.mean() + half, abs=0.1 * half)
    alone = estimates(judged)["model"]
    assert found.high - found.low < (alone.high - alone.low) / 2


def test_p_is_near_that_of_the_paired_t_test(rng):
    """For a difference that is hardly there, and seen from either side."""
    gains = rng.normal(0, 1, USERS)
    gains += 1.5 / np.sqrt(USERS) - gains.mean()  # 1.5 standard errors
    values = {"a": gains, "b": np.zeros(USERS)}
    wanted = scipy.stats.ttest_1samp(gains, 0).pvalue
    found = differences(values, "a", resamples=20_000)["b"]
    assert found.p == pytest.approx(wanted, abs=0.03)
    back = differences(values, "b", resamples=20_000)["a"]
    assert (back.mean, back.low, back.high, back.p) == pytest.approx((-found.mean, -found.high, -found.low, found.p))


def test_where_there_is_no_difference_p_is_uniform(rng):
    """Of 300 comparisons of what is alike about 5 % are called different at 5 %."""
    found = [
        differences({"a": rng.random(60), "b": rng.random(60)}, "a", resamples=400, seed=at)["b"].p for at in range(300)
    ]
    assert 0.01 < np.mean(np.asarray(found) < 0.05) < 0.12


def test_a_scorer_does_not_differ_from_itself(judged):
    """A copy has a p of 1, and what always wins one that is small but not 0."""
    values = {"a": judged["peer"], "b": judged["peer"].copy(), "c": judged["peer"] - 1}
    found = differences(values, "a", resamples=999)
    assert (found["b"].mean, found["b"].p) == (0, 1)
    assert found["c"].p == 2 / 1_000


def test_the_same_seed_gives_the_same_interval(judged):
    """And another one another, near it; a scorer's interval does not depend on who else is in the table."""
    assert estimates(judged, seed=3) == estimates(judged, seed=3) != estimates(judged, seed=4)
    alone = estimates({"peer": judged["peer"]}, seed=3)["peer"]
    together = estimates(judged, seed=3)["peer"]
    assert (alone.low, alone.high) == pytest.approx((together.low, together.high))


def test_weights_count_users_as_often(rng):
    """A weighted mean is that of repeated users; a user who weighs nothing is not there."""
    values, weights = rng.random(50), rng.integers(0, 4, 50).astype(float)
    found = estimates({"a": values}, weights=weights)["a"]
    assert found.mean == pytest.approx(np.repeat(values, weights.astype(int)).mean())
    assert found.users == (weights > 0).sum()
    assert found.low < found.mean < found.high


def test_a_user_without_a_value_is_left_out_for_all(judged):
    """One scorer's NaN takes the user from the others too, so that all are judged on the same users."""
    judged["peer"][:100] = np.nan
    found = estimates(judged)
    assert found["model"].mean == pytest.approx(judged["model"][100:].mean())
    assert {one.users for one in found.values()} == {USERS - 100}


def test_many_users_are_drawn_in_batches(rng):
    """More draws than fit in memory at once give the interval that theory says."""
    values = rng.random(30_000)
    found = estimates({"a": values}, resamples=300)["a"]
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert found.high - found.low == pytest.approx(2 * half, rel=0.25)


def test_a_drawn_user_brings_all_their_events():
    """Where a user's 25 events are alike, the mean's interval is five times as wide as if each event were a user's only one."""
    labels = np.repeat(np.arange(40) % 2, 25)
    clumped = pooled(lambda times: np.average(labels, weights=times), np.repeat(np.arange(40), 25))
    loose = pooled(lambda times: np.average(labels, weights=times), np.arange(1_000))
    assert (clumped.users, loose.users) == (40, 1_000)
    assert clumped.mean == loose.mean == 0.5
    assert clumped.high - clumped.low == pytest.approx(5 * (loose.high - loose.low), rel=0.3)


@pytest.mark.parametrize("metric", [auc, ece])
def test_metrics_of_all_events_have_intervals(metric, rng):
    """AUC and ECE, which are no means over users; a draw without one of the classes is left out."""
    labels, scores, user = rng.integers(0, 2, 200), rng.random(200), rng.integers(0, 30, 200)
    found = pooled(lambda times: metric(labels, scores, times), user)
    assert found.mean == pytest.approx(metric(labels, scores))
    assert found.low < found.high
    lonely = pooled(lambda times: metric(np.array([0, 1]), np.array([0.2, 0.9]), times), np.array([0, 1]))
    assert np.isfinite([lonely.low, lonely.high]).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: estimates({"a": np.zeros(3), "b": np.zeros(4)}), "same users; there are {'a': 3, 'b': 4}"),
        (lambda: estimates({}), "no scorers"),
        (lambda: estimates({"a": np.full(3, np.nan)}), "no user has a value by every scorer"),
        (lambda: estimates({"a": np.zeros(3)}, weights=np.ones(2)), "3 users and weights of shape"),
        (lambda: estimates({"a": np.zeros(3)}, level=95), "between 0 and 1"),
        (lambda: differences({"a": np.zeros(3)}, "b"), "'b' was not judged"),
        (lambda: pooled(np.sum, np.zeros(0, int)), "no event"),
    ],
)
def test_what_cannot_be_compared_is_refused(call, message):
    """With the names and numbers that do not fit."""
    with pytest.raises(EvaluationError, match=message):
        call()
