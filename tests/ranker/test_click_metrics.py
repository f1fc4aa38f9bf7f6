"""Metrics of chances agree with scikit-learn's, and bad input is named."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

from ranker import click_metrics
from ranker.errors import EvaluationError

# (label, score on a coarse grid, user): ties, users with one event and users with one class are common.
events = st.lists(
    st.tuples(st.integers(0, 1), st.integers(0, 10).map(lambda tenth: tenth / 10), st.integers(0, 6)), min_size=1
).map(lambda rows: tuple(np.asarray(column) for column in zip(*rows, strict=True)))


@given(events)
def test_auc_by_user_is_scikit_learns_of_each(case):
    """With ties as half; users with one class have none and are left out of GAUC, which weighs the others by their events."""
    labels, scores, user = case
    found = click_metrics.user_auc(labels, scores, user)
    weighed, weight = 0.0, 0
    for auc, events_of, number in zip(found.auc, found.events, found.user, strict=True):
        mine = user == number
        assert events_of == mine.sum()
        if len(np.unique(labels[mine])) < 2:
            assert np.isnan(auc)
            continue
        assert auc == pytest.approx(roc_auc_score(labels[mine], scores[mine]))
        weighed, weight = weighed + auc * mine.sum(), weight + mine.sum()
    assert click_metrics.gauc(labels, scores, user) == pytest.approx(
        weighed / weight if weight else np.nan, nan_ok=True
    )


@given(events)
def test_ece_is_the_weighted_gap_of_scikit_learns_curve(case):
    """Over ten bins of equal width, empty ones left out."""
    labels, chances, _ = case
    observed, predicted = calibration_curve(labels, chances, n_bins=10)
    bins = np.searchsorted(np.linspace(0, 1, 11)[1:-1], chances)
    sizes = np.bincount(bins, minlength=10)
    wanted = np.average(np.abs(observed - predicted), weights=sizes[sizes > 0])
    assert click_metrics.ece(labels, chances) == pytest.approx(wanted)


def test_auc_and_log_loss_are_scikit_learns(rng):
    """With weights and without; weights are how often an event counts."""
    labels, chances, user = rng.integers(0, 2, 300), rng.random(300), rng.integers(0, 20, 300)
    weights = rng.integers(0, 3, 300).astype(np.float64)
    assert click_metrics.auc(labels, chances) == roc_auc_score(labels, chances)
    assert click_metrics.logloss(labels, chances) == log_loss(labels, chances)
    repeated = np.repeat(np.arange(300), weights.astype(int))
    for metric in (click_metrics.auc, click_metrics.logloss, click_metrics.ece):
        assert metric(labels, chances, weights) == pytest.approx(metric(labels[repeated], chances[repeated]))
    summary = click_metrics.click_summary(labels, chances, user)
    assert set(summary) == {"auc", "gauc", "logloss", "ece", "labels"}
    assert summary["labels"] == 300


def test_one_class_has_no_auc():
    """Not a number, rather than a made-up half; weights may leave one class too."""
    assert np.isnan(click_metrics.auc(np.ones(3), np.arange(3)))
    assert np.isnan(click_metrics.auc(np.array([0, 1, 1]), np.arange(3), np.array([0.0, 1.0, 2.0])))
    assert np.isnan(click_metrics.gauc(np.ones(3), np.arange(3), np.zeros(3, int)))


def test_chances_that_are_right_have_no_calibration_error(rng):
    """Labels drawn with the chances given: the error is that of counting, while confident ones are off."""
    chances = rng.random(100_000)
    labels = rng.random(100_000) < chances
    assert click_metrics.ece(labels, chances) < 0.01
    assert click_metrics.ece(labels, chances > 0.5) > 0.2
    assert brier_score_loss(labels, chances) < brier_score_loss(labels, (chances > 0.5).astype(float))


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([0, 1, 2], [0.1, 0.2, 0.3], "label 2 is 2: labels are 0 or 1"),
        ([0, 1, 1], [0.1, np.nan, 0.3], "score 1 is nan"),
        ([0, 1], [0.1], "must be one to one"),
        ([], [], "must be one to one, and some"),
    ],
)
def test_bad_input_is_named(labels, scores, message):
    """The first bad value and where it is."""
    with pytest.raises(EvaluationError, match=message):
        click_metrics.auc(np.array(labels), np.array(scores))


def test_logits_are_not_taken_for_chances():
    """A calibration error of numbers beyond 0..1 means nothing, and the message says what they may be; users must fit too."""
    with pytest.raises(EvaluationError, match="are these logits"):
        click_metrics.ece(np.array([0, 1]), np.array([-2.0, 3.0]))
    with pytest.raises(EvaluationError, match="2 labels and 3 users"):
        click_metrics.gauc(np.array([0, 1]), np.array([0.5, 0.5]), np.zeros(3, int))
