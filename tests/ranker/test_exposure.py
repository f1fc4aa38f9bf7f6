"""Positions and propensities of replies enter training, and leave no trace at serving."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from feature_store.history import Events
from ranker.config import RankerConfig
from ranker.evaluate import tasks
from ranker.examples import build_examples
from ranker.exposure import (
    ATTRIBUTION_HOURS,
    HOUR_US,
    MAX_INVERSE_PROPENSITY,
    Impressions,
    attributed,
    position_bucket,
    weights,
)
from ranker.fit import build_model, build_vocabulary
from ranker.loop import fit
from ranker.scorer import Context
from ranker.sequences import Histories
from tests.ranker.newcomers import auc
from tests.ranker.sets import SMALL
from tests.ranker.shown import labels_of, replies

ITEMS, KINDS, PLACES = 60, 4, 8
NAN = float("nan")
SINGLE = replace(SMALL, batch_users=0, batch_size=64, learning_rate=1e-2)


# ---- what labels say ---------------------------------------------------------------------------------------------------


def test_weights_are_clipped_inverse_propensities_with_mean_one():
    """Rare shows count more, up to a bound; labels that know nothing count 1, and where none knows anything there are no weights."""
    found = weights(np.array([1.0, 0.5, 1e-6, NAN]))
    raw = np.array([1.0, 2.0, MAX_INVERSE_PROPENSITY])
    assert np.allclose(found[:3], raw / raw.mean())
    assert found[3] == 1.0
    assert weights(None) is None
    assert weights(np.full(3, NAN)) is None


def test_positions_fall_into_logarithmic_buckets():
    """The first place has a bucket of its own, and so has what is not known."""
    found = position_bucket(np.array([NAN, 1, 2, 3, 4, 7, 8, 1e9]))
    assert found.tolist() == [0, 1, 2, 2, 3, 3, 4, 9]


@pytest.mark.parametrize(("hours", "counts"), [(ATTRIBUTION_HOURS, True), (ATTRIBUTION_HOURS + 0.01, False)])
def test_what_comes_after_the_window_is_no_answer(hours, counts):
    """A click within the window is the reply's, with its place and propensity; a later one is a click like any other."""
    late = int(hours * HOUR_US)
    rows = [("u", "r", 1, "impression", 0, 1.0, 0.5), ("u", "r", 2, "impression", 0, 2.0, 0.5)]
    labels = labels_of([*rows, ("u", "r", 1, "view", late, 1.0, 0.5)])
    impressions = Impressions.of(labels, RankerConfig())
    assert (impressions.row.tolist(), impressions.position.tolist()) == ([1, 2], [1.0, 2.0])
    assert impressions.clicked.tolist() == [counts, False]
    assert np.isfinite(attributed(labels).propensities).tolist() == [True, True, counts]


def test_replies_are_told_apart():
    """Equal names of two users' replies are two; a reply of which no showing was recorded says nothing of what was not clicked."""
    shown = [("u", "r", 1, "impression", 5, 1.0, NAN), ("v", "r", 2, "skip", 6, NAN, NAN)]
    labels = labels_of([*shown, ("v", "r", 3, "view", 7, 4.0, NAN), ("v", "other", 4, "view", 8, 1.0, NAN)])
    impressions = Impressions.of(labels, RankerConfig())
    assert len(impressions) == 2
    assert [labels.users[i] for i in impressions.label] == ["u", "v"]
    reply, number = impressions.shown(np.array([1, 0]))
    assert reply.tolist() == [0, 0, 1]
    assert impressions.row[number].tolist() == [2, 3, 1]
    assert impressions.clicked[number].tolist() == [False, True, False]


# ---- what is learned ---------------------------------------------------------------------------------------------------


def nobody(fitted, items=ITEMS):
    """Scores of all items for a user of whom nothing is known."""
    from ranker.checkpoint import Checkpoint
    from ranker.scorer import Ranker, UserState

    space_ids = {m: s.space_id for m, s in fitted.run.ts.spaces.items()}
    dims, files = {"fused": fitted.model.fused_dim}, {"model.safetensors": ""}
    manifest = {"model_id": "x", "space_ids": space_ids, "dims": dims, "files": files}
    ranker = Ranker(Checkpoint(fitted.model, fitted.vocabulary, manifest))
    tokens = ranker.item_tokens(fitted.run.ts.items.batch(np.arange(items)))
    return ranker.score(UserState(Events(), ranker.no_items()), tokens, range(items), Context(10**12)).scores


def test_having_been_shown_an_item_is_not_having_met_it(rng):
    """A click is learned from though an impression of the same item came before it."""
    ts, split = placed(rng, users=12)
    vocabulary = build_vocabulary(ts, split)
    model = build_model(ts, split, SINGLE, vocabulary)
    clicks = [kind == "view" for kind in ts.labels.event_types]
    first = len({(u, i) for u, i, c in zip(ts.labels.users, ts.labels.item_row.tolist(), clicks, strict=True) if c})
    assert len(build_examples(ts, ts.labels, model, vocabulary)) == first
    assert Histories.of(ts, ts.labels, model, vocabulary).label.sum() == first
    assert len(tasks(ts, ts.labels, SINGLE)) == first


EFFECT = 1.5  # log-odds lost from one bucket of places to the next


def placed(rng, users=150):
    """Items of kinds 0 and 1 are liked, but those of kinds 2 and 3 usually stand above them, and what stands low is not clicked."""

    def show():
        chosen = rng.choice(ITEMS, PLACES, replace=False)
        order = np.argsort((chosen % KINDS < 2) + rng.normal(size=PLACES) * 0.5)
        return chosen[order].tolist(), [NAN] * PLACES

    def chance(_, shown):
        liking = np.where(np.asarray(shown) % KINDS < 2, 1.0, 0.0)
        return 1 / (1 + np.exp(-(0.5 + liking - EFFECT * np.floor(np.log2(1 + np.arange(len(shown)))))))

    return replies(rng, users, 5, show, chance, ITEMS, KINDS)


@pytest.fixture(scope="module")
def with_and_without():
    """Two trainings on the same clicks: one is told the places."""
    ts, split = placed(np.random.default_rng(0))
    config = replace(SINGLE, exposure_weight=5.0, max_epochs=12)
    blind = replace(ts.labels, positions=None)
    told = fit(ts, split, config, 0, epochs=12)
    return told, fit(replace(ts, labels=blind), replace(split, train=blind), config, 0, epochs=12)


def test_told_the_places_training_learns_the_taste(with_and_without):
    """With positions as inputs what is liked comes first, though it mostly stood low; without them what stood high does."""
    liked = np.arange(ITEMS) % KINDS < 2
    told, blind = (auc(liked, nobody(fitted)) for fitted in with_and_without)
    assert told > 0.8
    assert blind < 0.5


def test_the_effect_of_the_place_is_recovered(with_and_without):
    """Each bucket of lower places has a lower bias, by about what was planted."""
    bias = with_and_without[0].model.gates.position.detach().numpy()[1:5]
    steps = -np.diff(bias)
    assert (steps > 0).all()
    assert abs(steps[:2].mean() - EFFECT) < 0.75


@torch.no_grad()
def test_places_are_not_read_when_serving(with_and_without):
    """Whatever was learned of places, scores are the same to the bit without it."""
    fitted = with_and_without[0]
    before, kept = nobody(fitted), fitted.model.gates.position.clone()
    fitted.model.gates.position.zero_()
    assert (nobody(fitted) == before).all()
    fitted.model.gates.position.copy_(kept)


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(replace(SINGLE, max_epochs=10), id="single labels", marks=pytest.mark.long),
        pytest.param(replace(SMALL, learning_rate=1e-2, max_epochs=60), id="whole histories"),
    ],
)
def test_inverse_propensities_undo_what_was_shown_too_rarely(config):
    """The policy shows kinds 2 and 3 eight times as often; the others, three times as likely to be liked, come first by weights alone."""
    rng = np.random.default_rng(0)
    liked = np.arange(ITEMS) % KINDS < 2
    chances = np.where(liked, 0.06, 0.48)

    def show():
        chosen = rng.permutation(np.flatnonzero(rng.random(ITEMS) < chances))
        return chosen.tolist(), chances[chosen].tolist()

    def chance(_, shown):
        return np.where(liked[shown], 0.9, 0.3)

    ts, split = replies(rng, 200, 3, show, chance, ITEMS, KINDS, log_shown=False)
    blind = replace(ts.labels, propensities=None)
    told = fit(ts, split, config, 0, epochs=config.max_epochs)
    naive = fit(replace(ts, labels=blind), replace(split, train=blind), config, 0, epochs=config.max_epochs)
    assert auc(liked, nobody(told)) > 0.75
    assert auc(liked, nobody(naive)) < 0.4
