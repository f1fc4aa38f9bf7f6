"""The prior is chosen on validation and weighs what helps."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ranker import mixing
from ranker.collaborative import EaseConfig, SvdConfig
from ranker.config import of_kind
from ranker.errors import RankerError, TrainingSetError
from ranker.loop import fit
from ranker.mixing import mix_prior
from ranker.prior import LINEAR, Prior, bent
from ranker.scoring import Scoring
from tests.ranker.sets import FOREVER_US, SMALL, ordered, unordered, with_version

SET = replace(SMALL, history="set", layers=0, set_dim=16)


@pytest.fixture(autouse=True)
def _few_settings(monkeypatch):
    monkeypatch.setattr(mixing, "SETTINGS", [EaseConfig(10.0, 0.2, 0.5), EaseConfig(100.0, 0.2, 0.5)])


@pytest.mark.parametrize(("make", "config"), [(ordered, SMALL), (unordered, SET)])
def test_the_mixture_is_what_was_chosen_and_no_worse_on_validation(rng, make, config):
    """A network that has hardly learned gains by the prior, and the model that is scored has it in it."""
    ts, split = make(rng)
    fitted = fit(ts, split, replace(config, max_epochs=1, learning_rate=1e-5), 0)
    scoring = Scoring.of(fitted.run, split.validation)
    before = scoring.ndcg()
    mix = mix_prior(fitted)
    assert mix.share > 0
    assert mix.mixed > before
    assert mix.knee is None or config.history == "order"
    assert Scoring.of(fitted.run, split.validation).ndcg() == pytest.approx(mix.mixed, abs=1e-3)


def test_a_history_says_the_same_one_user_at_a_time_and_all_at_once(rng):
    """The model's prior and the matrix that settings are chosen by agree."""
    ts, split = ordered(rng, users=40)
    fitted = fit(ts, split, replace(SMALL, max_epochs=1), 0)
    run = fitted.run
    weights = rng.normal(size=(60, 60)).astype(np.float32)
    prior = Prior.of(weights, np.arange(1, 61), 60, 60)
    prior.scale.fill_(2.0)
    prior.decay.fill_(0.3)
    scoring = Scoring.of(run, split.validation)
    at = np.arange(len(scoring))
    with torch.no_grad():
        history = scoring.examples.history(at, run.model.items(run.inputs), np.arange(60))
        one = prior(history)[:, 1:].numpy()
    assert np.allclose(one, 2.0 * (scoring.events(0.3) @ weights), atol=1e-4)


def test_what_each_event_adds_sums_to_the_score(rng):
    """Before its bend, also for an item asked for twice; an unknown one gets nothing from any event."""
    ts, split = ordered(rng, users=40)
    fitted = fit(ts, split, replace(SMALL, max_epochs=1), 0)
    weights = rng.normal(size=(60, 60)).astype(np.float32)
    prior = Prior.of(weights, np.arange(1, 61), 60, 9)
    prior.decay.fill_(0.3)
    prior.knee.fill_(0.5)
    scoring = Scoring.of(fitted.run, split.validation)
    asked = torch.tensor([7, 0, 60, 7])
    with torch.no_grad():
        items = fitted.model.items(fitted.run.inputs)
        history = scoring.examples.history(np.arange(len(scoring)), items, np.arange(60))
        by_event, whole = prior.by_event(history, asked), prior.raw(history)[:, asked]
    assert by_event.shape == (len(scoring), 4, history.mask_BL.shape[1])
    torch.testing.assert_close(bent(by_event.sum(2), 0.5), whole, atol=1e-5, rtol=0)
    assert (by_event[:, 1] == 0).all()


def test_beyond_the_knee_scores_grow_as_their_logarithm():
    """Below it they stay; signs and order stay everywhere; far out it is as if there were none."""
    scores = torch.tensor([-100.0, -0.01, 0.0, 0.01, 10.0, 100.0, 1_000.0])
    found = bent(scores, 1.0)
    torch.testing.assert_close(found[1:4], scores[1:4], rtol=1e-3, atol=0)
    torch.testing.assert_close(found[5:].diff(), torch.tensor([10.0]).log(), rtol=1e-3, atol=0)
    assert (found.diff() > 0).all()
    assert found[0] == -found[5]
    torch.testing.assert_close(bent(scores, LINEAR), scores)


def test_what_outweighs_the_network_is_bent(rng, monkeypatch):
    """Where one wrong neighbour of each item has a weight above all right ones, the best mixture has a knee."""
    ts, split = ordered(rng)
    fitted = fit(ts, split, SMALL, 0)
    alone = Scoring.of(fitted.run, split.validation).ndcg()
    right = mixing.fit_ease(mixing.histories(fitted.run)[1], EaseConfig(10.0, 0.2, 0.5))
    wrong = np.zeros_like(right)
    wrong[np.arange(60), rng.permutation(60)] = 5.0 * right.max()
    monkeypatch.setattr(mixing, "_weights", lambda *_: right + wrong)
    mix = mix_prior(fitted)
    assert mix.knee is not None
    assert mix.slope < 1.0
    straight = Prior.of(right + wrong, np.arange(1, 61), 60, 60)
    torch.testing.assert_close(fitted.model.prior.item_IR, mix.slope * straight.item_IR)
    assert mix.mixed > alone
    assert Scoring.of(fitted.run, split.validation).ndcg() == pytest.approx(mix.mixed, abs=1e-3)


def test_without_a_knee_every_share_is_tried(rng):
    """NDCG may fall for small shares of the prior and rise for large ones."""
    scores = torch.as_tensor(rng.normal(size=(5, 9)).astype(np.float32))
    values = [0.5, *(0.4 for _ in mixing.SHARES[:-1]), 0.6]
    scoring = SimpleNamespace(
        run=SimpleNamespace(config=SET), scores=lambda: iter([(np.arange(5), scores)]), ndcg_of=lambda _: values.pop(0)
    )
    mix, _ = mixing._weighed(scoring, mixing.Mix(EaseConfig(), "", 0.0, 0.0, 0.3, -1.0), scores)
    assert (mix.share, mix.mixed) == (mixing.SHARES[-1], 0.6)
    assert not values


def test_the_strongest_neighbours_stay(rng, monkeypatch):
    """By absolute weight, in every block of rows; the unknown item has none, and nobody's score for it changes."""
    monkeypatch.setattr("ranker.prior.BLOCK", 7)
    weights = rng.normal(size=(30, 30)).astype(np.float32)
    prior = Prior.of(weights, np.arange(1, 31), 30, 5)
    dense = prior.matrix().toarray()
    assert (dense[0] == 0).all()
    assert (dense[:, 0] == 0).all()
    for row, full in zip(dense[1:, 1:], weights, strict=True):
        kept = np.flatnonzero(row)
        assert set(kept) == set(np.argsort(-np.abs(full))[:5])
        assert np.allclose(row[kept], full[kept])


def test_a_catalogue_too_large_for_the_inverse_goes_without(rng, monkeypatch):
    """The network stands alone there."""
    ts, split = ordered(rng, users=40)
    fitted = fit(ts, split, replace(SMALL, max_epochs=1), 0)
    monkeypatch.setattr(mixing, "MOST", 10)
    assert mix_prior(fitted) is None
    assert fitted.model.prior.neighbours == 0


def test_retrieval_sees_the_prior(rng):
    """With the network silent, the nearest items in the fused space are those that the prior scores best."""
    ts, split = ordered(rng, users=60)
    fitted = fit(ts, split, replace(SMALL, max_epochs=1), 0)
    run, model = fitted.run, fitted.model
    weights = (rng.normal(size=(60, 4)) @ rng.normal(size=(4, 60))).astype(np.float32)  # of low rank: nothing is lost
    model.prior = Prior.of(weights, np.arange(1, 61), 60, 60)
    model.prior.scale.fill_(1e4)
    with torch.no_grad():
        items = model.items(run.inputs)
        model.measure_radius(items)
        examples = Scoring.of(run, split.validation).examples
        history = examples.history(np.arange(20), items, np.arange(60))
        user = model.user(history, torch.zeros(20, 9))
        near = (model.fused_user(user) @ model.fused_items(items).T).argsort(1, descending=True)[:, :5]
        best = model.prior(history)[:, 1:].argsort(1, descending=True)[:, :5]
    assert (near == best).float().mean() > 0.95


@pytest.mark.parametrize("kind", ["ease", "svd"])
def test_a_baseline_is_the_prior_alone(rng, kind, monkeypatch):
    """No network is trained; the model scores what the prior scores."""
    monkeypatch.setattr(mixing, "RANKS", (4, 8))
    ts, split = ordered(rng, users=80)
    config = replace(of_kind(kind, "tiny"), history_length=12)
    fitted = fit(ts, split, config, 0)
    assert Scoring.of(fitted.run, split.validation).ndcg() < 0.2
    mix = mix_prior(fitted)
    assert isinstance(mix.settings, EaseConfig if kind == "ease" else SvdConfig)
    assert Scoring.of(fitted.run, split.test).ndcg() > 0.2
    with torch.no_grad():
        items = fitted.model.items(fitted.run.inputs)
        examples = Scoring.of(fitted.run, split.test).examples
        history = examples.history(np.arange(10), items, np.arange(60))
        user = fitted.model.user(history, torch.zeros(10, 9))
        assert torch.allclose(fitted.model.score(user, items).score_BC, fitted.model.prior(history)[:, 1:], atol=1e-5)


def test_another_kind_is_refused():
    """By name, with those that there are."""
    with pytest.raises(RankerError, match="no kind of ranker 'mlp'; choose one of fusion, ease, svd"):
        of_kind("mlp", "tiny")


def test_a_catalogue_too_large_for_a_baseline_is_refused(rng, monkeypatch):
    """The prior is all that a baseline has; a network goes without."""
    ts, split = ordered(rng, users=40)
    monkeypatch.setattr("ranker.mixing.MOST", 59)
    assert mix_prior(fit(ts, split, replace(SMALL, max_epochs=1), 0)) is None
    with pytest.raises(TrainingSetError, match=r"60 items are more than the 59 .*train the fusion ranker"):
        mix_prior(fit(ts, split, replace(SMALL, network=False, prior="ease"), 0))


def test_the_prior_reads_no_content_that_began_after_training(rng):
    """An item's last version before training's end, and nothing of an item that had none by then."""
    ts, split = unordered(rng)
    changed = with_version(ts, 0, 5_000_000)
    space = changed.spaces["text"].space_id
    for end, expected in ((4_000_000, changed.items.vectors[space][0]), (FOREVER_US, changed.items.vectors[space][-1])):
        fitted = fit(changed, replace(split, train_end_us=end), replace(SET, max_epochs=1), 0)
        np.testing.assert_allclose(mixing._content(fitted.run, "text")[0], expected)
    late = replace(ts, items=replace(ts.items, valid_from_R=np.where(np.arange(60) == 0, 5_000_000, -1)))
    fitted = fit(late, replace(split, train_end_us=4_000_000), replace(SET, max_epochs=1), 0)
    assert not mixing._content(fitted.run, "text")[0].any()
    assert mixing._content(fitted.run, "tags")[1].any()


def test_factors_of_too_few_are_refused(rng, monkeypatch):
    """By number, rather than replaced by another prior."""
    monkeypatch.setattr(mixing, "RANKS", (64,))
    ts, split = ordered(rng, users=40)
    fitted = fit(ts, split, replace(SMALL, max_epochs=1, prior="svd"), 0)
    with pytest.raises(
        TrainingSetError, match="svd needs more than 64 items and users with likes, and there are 60 and 40"
    ):
        mix_prior(fitted)
