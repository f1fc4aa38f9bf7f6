"""Protocol, calibration and metrics together, on real data: what others measured for a known method comes out."""

import numpy as np
import pytest

from benchmarks.rankers.sequences import movielens_100k
from ranker import leakage, protocols
from ranker.calibration import choose_calibration, sigmoid
from ranker.click_metrics import click_summary
from ranker.protocols import Role

SHRINKAGE_EVENTS = 5.0
ROUNDS = 20


@pytest.fixture(scope="module")
def ratings():
    try:
        return movielens_100k()
    except FileNotFoundError as error:
        pytest.skip(str(error))


def biases(user, item, labels, fitted):
    """Mean + a shrunk deviation of each user and each item, fitted in turns."""
    mean = labels[fitted].mean()
    found = {"user": np.zeros(user.max() + 1), "item": np.zeros(item.max() + 1)}
    sides = {"user": user, "item": item}
    for _ in range(ROUNDS):
        for side, other in (("item", "user"), ("user", "item")):
            rest = labels[fitted] - mean - found[other][sides[other][fitted]]
            count = np.bincount(sides[side][fitted], minlength=len(found[side]))
            sums = np.bincount(sides[side][fitted], rest, len(found[side]))
            found[side] = sums / (count + SHRINKAGE_EVENTS)
    return mean + found["user"][user] + found["item"][item]


def test_biases_on_movielens_reach_what_is_known_of_them(ratings):
    """Rating >= 4, each user's own time split: AUC .79 to .80, GAUC .71, and calibrated chances are within .02 of what happens."""
    time_us = ratings.timestamp * 1_000_000
    labels = (ratings.rating >= 4).astype(np.int64)
    roles = protocols.ratio(ratings.user, time_us)
    leakage.check_split("ratio", roles, ratings.user, ratings.item, time_us)
    scores = biases(ratings.user, ratings.item, labels, roles == Role.TRAIN)
    held, tested = roles == Role.VALIDATION, roles == Role.TEST
    calibrated = choose_calibration(scores[held], labels[held], roles[held])
    found = click_summary(labels[tested], calibrated(scores[tested]), ratings.user[tested])
    assert found["auc"] == pytest.approx(0.79, abs=0.01)
    assert found["gauc"] == pytest.approx(0.71, abs=0.01)
    assert found["ece"] < 0.02
    raw = click_summary(labels[tested], sigmoid(scores[tested]), ratings.user[tested])
    assert raw["ece"] > 3 * found["ece"]
    assert raw["logloss"] > found["logloss"]
