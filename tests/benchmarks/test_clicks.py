"""Click labels are measured as the protocol says: every method learned, chosen, calibrated and judged on the same events."""

import numpy as np
import pytest

from benchmarks.common import Record
from benchmarks.rankers import clicks
from benchmarks.rankers.clicks import ClickSet, Judge, Scored
from benchmarks.rankers.sequences import Sequences, movielens_100k
from ranker.click_metrics import auc, gauc
from ranker.protocols import Role

USERS, ITEMS, EVENTS = 90, 40, 30


@pytest.fixture
def small(rng):
    """Two kinds of items, which users like oppositely and content tells apart."""
    kind = np.where(np.arange(ITEMS) % 2, 1.0, -1.0)
    taste, quality = 1.5 * rng.standard_normal((USERS, 1)), 0.5 * rng.standard_normal(ITEMS)
    user = np.repeat(np.arange(USERS), EVENTS)
    item = np.concatenate([rng.permutation(ITEMS)[:EVENTS] for _ in range(USERS)])
    raw = 3.5 + (taste * kind + quality)[user, item] + 0.5 * rng.standard_normal(len(user))
    events = Sequences(
        "small", user, item, np.tile(np.arange(EVENTS), USERS) * 3_600 + 1, np.clip(np.round(raw), 1, 5),
        tuple(str(number) for number in range(ITEMS)),
    )  # fmt: skip
    two = np.stack([kind, -kind], 1).astype(np.float32)
    return ClickSet.of(events, {"text": two}, {name: np.maximum(two, 0) for name in set(clicks.CONTENT) - {"text"}})


@pytest.mark.long
def test_methods_parts_and_regimes_are_measured_in_one_run(small, monkeypatch):
    """On planted tastes the model is above the biases in both regimes, by an interval above 0, and the claims are its figures."""
    monkeypatch.setattr(clicks, "POOLED_RESAMPLES", 20)
    monkeypatch.setattr(clicks, "RESAMPLES", 100)
    record = Record()
    clicks.measure_set(small, range(2), 60.0, record, lambda _: None)
    found = {name.removeprefix(f"{clicks.NAME} "): detail for name, detail in record.details.items()}
    methods = [
        "biases",
        "factors",
        "prior alone",
        "click model",
        "no attention",
        "no context",
        "no drift",
        "no content",
    ]
    assert [name for name in found if "gain" not in name and "running" not in name] == ["settings", *methods]
    assert [name for name in found if name.startswith("running") and "gain" not in name] == [
        "running biases", "running prior alone", "running click model",
    ]  # fmt: skip
    assert found["gain over biases"]["gauc"][1] > 0
    assert found["running gain over biases"]["gauc"][1] > 0
    claims = {claim.name: claim.value for claim in record.claims}
    ours = found["click model"]
    assert claims == {f"ml100k_click_{metric}": ours[metric] for metric in ("auc", "gauc", "ece")}
    assert len(ours["auc_by_seed"]) == len(ours["epochs"]) == 2
    assert ours["gauc_interval"][0] < ours["gauc"] < ours["gauc_interval"][1]


def test_a_peer_is_chosen_on_validation_and_refreshed_for_the_test(small):
    """The setting with the best AUC on validation after a fit on training is fitted on both, and its test scores are given."""
    at, tested = small.events(Role.VALIDATION), small.events(Role.TEST)
    asked = []

    def score(setting, events):
        asked.append((setting, int(events.sum())))
        noise = np.random.default_rng(0).standard_normal(len(small.clicked))
        return setting * small.clicked + noise

    found = clicks.chosen(small, [0.0, 2.0, 1.0], score)
    train, known = int(small.train.sum()), int(small.known.sum())
    assert asked == [(0.0, train), (2.0, train), (1.0, train), (2.0, known)]
    np.testing.assert_array_equal(found.scores[0], score(2.0, small.known)[tested])
    assert found.facts["validation_auc"] == pytest.approx(auc(small.clicked[at], score(2.0, small.train)[at]), abs=1e-4)
    assert np.all(np.diff(found.chances[0][np.argsort(found.scores[0])]) >= 0)


def test_figures_are_means_over_seeds(small, rng):
    """AUC and AUC by user of two seeds are the means of each; a gain over oneself is 0 in every draw."""
    at = small.events(Role.TEST)
    label, user = small.clicked[at].astype(np.int64), small.ratings.user[at]
    scores = label + rng.standard_normal((2, len(at)))
    found = Scored(scores, np.full(scores.shape, label.mean()), {"settings": "none"})
    judge = Judge(label, user, quick=True)
    figures = judge.figures(found)
    assert figures["auc"] == pytest.approx(np.mean([auc(label, one) for one in scores]), abs=1e-4)
    assert figures["gauc"] == pytest.approx(np.mean([gauc(label, one, user) for one in scores]), abs=1e-4)
    assert figures["ece"] == pytest.approx(0, abs=1e-4)
    assert figures["settings"] == "none"
    assert judge.gain(found, found) == {"auc": [0, 0, 0], "gauc": [0, 0, 0]}


def test_years_are_alike_by_how_far_they_are_apart():
    """Cosines of the bumps: ten years apart exp(-1/2), five exp(-1/8), and nothing where the year is unknown."""
    bumps = clicks._near(["1990", "2000", "", "1995"])
    unit = bumps / np.maximum(np.linalg.norm(bumps, axis=1, keepdims=True), 1e-9)
    np.testing.assert_allclose((unit @ unit.T)[0], [1, np.exp(-1 / 2), 0, np.exp(-1 / 8)], atol=1e-4)


def test_movielens_is_split_as_its_protocol_says():
    """80,367 labels to train, 10,037 for validation and 9,596 for the test; likes are ratings of 4 and 5."""
    try:
        data = ClickSet.of(movielens_100k(), {}, {})
    except FileNotFoundError as error:
        pytest.skip(str(error))
    counts = np.bincount(data.roles)
    assert counts.tolist() == [80_367, 10_037, 9_596]
    assert data.clicked.mean() == pytest.approx(0.5537, abs=1e-3)


@pytest.mark.long
def test_films_have_content():
    """Plots and tags of more than nine in ten."""
    try:
        data = clicks.movielens_clicks()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    assert {len(found) for found in (*data.vectors.values(), *data.tags.values())} == {1_682}
    assert all((np.abs(found).sum(1) > 0).mean() > 0.9 for found in (*data.vectors.values(), *data.tags.values()))
