"""Calibration recovers what was done to the logits, on validation alone, and keeps what it learned as plain data."""

import json
import subprocess
import sys

import numpy as np
import pytest
import scipy.special
from sklearn.calibration import calibration_curve

from ranker import calibration
from ranker.calibration import Isotonic, Logistic, Temperature, choose_calibration, fit_calibration, reliability
from ranker.click_metrics import auc, ece, logloss
from ranker.errors import EvaluationError, LeakageError
from ranker.protocols import Role

EVENTS = 20_000


@pytest.fixture
def world(rng):
    """(true logits, labels drawn from them, roles that are all validation's)."""
    true = rng.normal(0.3, 1.5, EVENTS)
    labels = (rng.random(EVENTS) < calibration.sigmoid(true)).astype(np.int64)
    return true, labels, np.full(EVENTS, Role.VALIDATION, np.int8)


def test_a_temperature_is_recovered(world):
    """Logits that are three times too confident get a temperature of three, and their order stays."""
    true, labels, roles = world
    fitted = fit_calibration("temperature", 3 * true, labels, roles)
    assert fitted.temperature == pytest.approx(3, rel=0.1)
    assert auc(labels, fitted(3 * true)) == pytest.approx(auc(labels, true))
    assert ece(labels, fitted(3 * true)) < ece(labels, calibration.sigmoid(3 * true)) / 3


def test_a_shift_and_a_slope_are_recovered(world):
    """Platt's line undoes a shift and a scale, whatever the scale's size."""
    true, labels, roles = world
    for scale in (0.01, 1.0, 1_000.0):
        fitted = fit_calibration("logistic", scale * (true + 2), labels, roles)
        assert fitted.slope * scale == pytest.approx(1, rel=0.1)
        assert fitted.intercept == pytest.approx(-2, abs=0.2)


def test_an_isotonic_fit_undoes_any_monotone_warp(world):
    """Logits warped by a cube, which no line undoes; chances never fall with the logit, and never are 0 or 1."""
    true, labels, roles = world
    half = EVENTS // 2
    fitted = fit_calibration("isotonic", true[:half] ** 3, labels[:half], roles[:half])
    line = fit_calibration("logistic", true[:half] ** 3, labels[:half], roles[:half])
    rest, warped = labels[half:], true[half:] ** 3
    assert ece(rest, fitted(warped)) < ece(rest, line(warped)) / 2
    chances = fitted(np.linspace(-1e6, 1e6, 1_001))
    assert (np.diff(chances) >= 0).all()
    assert 0 < chances[0] < chances[-1] < 1


def test_the_form_is_chosen_by_what_was_not_fitted(world):
    """A cubic warp asks for isotonic; of sixty events that one mostly fits the noise, and a smooth form is taken."""
    true, labels, roles = world
    assert isinstance(choose_calibration(true**3, labels, roles), Isotonic)
    few = [slice(60 * at, 60 * (at + 1)) for at in range(30)]
    chosen = [choose_calibration(2 * true[at], labels[at], roles[at]) for at in few]
    assert sum(isinstance(one, Temperature | Logistic) for one in chosen) > len(few) / 2


@pytest.mark.parametrize("kind", calibration.KINDS)
def test_it_is_kept_as_plain_data(world, kind):
    """Through JSON and back it gives the same chances."""
    true, labels, roles = world
    fitted = fit_calibration(kind, true, labels, roles)
    again = calibration.from_dict(json.loads(json.dumps(calibration.to_dict(fitted))))
    assert again == fitted
    np.testing.assert_array_equal(again(true), fitted(true))
    assert logloss(labels, fitted(true)) < 0.7


def test_training_calibrates_only_where_it_is_said_to_be_out_of_fold(world):
    """With `with_training` training's events are taken too; the test's never are."""
    logits, labels, roles = world
    roles = roles.copy()
    roles[:50] = Role.TRAIN
    with pytest.raises(LeakageError, match="training event"):
        fit_calibration("logistic", logits, labels, roles)
    assert fit_calibration("logistic", logits, labels, roles, with_training=True)(logits).min() > 0
    roles[60] = Role.TEST
    with pytest.raises(LeakageError, match="test event"):
        fit_calibration("logistic", logits, labels, roles, with_training=True)


@pytest.mark.parametrize("role", [Role.TRAIN, Role.TEST, Role.DROPPED])
def test_only_validation_calibrates(world, role):
    """One event of another role is refused, by its name and number; so is one hidden in a choice of forms."""
    true, labels, roles = world
    roles[17] = role
    for fit in (
        lambda: fit_calibration("temperature", true, labels, roles),
        lambda: choose_calibration(true, labels, roles),
    ):
        with pytest.raises(LeakageError, match=r"calibration is given \w+ event 17: it takes validation events alone"):
            fit()


def test_what_cannot_be_calibrated_is_refused(world):
    """One class, too few of one class to choose by, an unknown form, roles that do not fit, data of no form."""
    true, labels, roles = world
    with pytest.raises(EvaluationError, match="both classes"):
        fit_calibration("logistic", true, np.ones(EVENTS), roles)
    with pytest.raises(EvaluationError, match="only 1 labels of one class"):
        choose_calibration(true, (np.arange(EVENTS) == 3).astype(int), roles)
    with pytest.raises(EvaluationError, match="no calibration 'beta'"):
        fit_calibration("beta", true, labels, roles)
    with pytest.raises(EvaluationError, match="3 roles"):
        fit_calibration("logistic", true, labels, roles[:3])
    with pytest.raises(EvaluationError, match="is no calibration"):
        calibration.from_dict({"kind": "temperature", "slope": 1.0})


def test_the_curve_is_scikit_learns(world):
    """Bins that have events agree; an empty one is NaN and weighs nothing."""
    true, labels, _ = world
    chances = 0.5 * calibration.sigmoid(true)
    curve = reliability(labels, chances)
    observed, predicted = calibration_curve(labels, chances, n_bins=10)
    np.testing.assert_allclose(curve.observed[:5], observed)
    np.testing.assert_allclose(curve.predicted[:5], predicted)
    assert np.isnan(curve.observed[5:]).all()
    assert curve.weight[5:] == (0.0,) * 5
    assert sum(curve.weight) == EVENTS


def test_chances_of_any_logit_are_exact(rng):
    """As scipy's sigmoid, far out too, and without a warning."""
    logits = np.concatenate([rng.normal(0, 10, 1_000), [-1e4, -700, -40, 0, 40, 1e4]])
    np.testing.assert_allclose(calibration.sigmoid(logits), scipy.special.expit(logits), rtol=1e-12)


def test_applying_costs_numpy_alone():
    """A server that has neither scipy nor scikit-learn can apply what was fitted elsewhere."""
    code = (
        "import sys; from ranker.calibration import from_dict; "
        "from_dict({'kind': 'temperature', 'temperature': 2.0})([1.0]); print({'scipy', 'sklearn', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
