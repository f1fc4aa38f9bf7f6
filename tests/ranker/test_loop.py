"""Training learns what is planted, stops by validation, and one seed gives one model."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ranker.examples import build_examples
from ranker.loop import fit, some_users
from ranker.scoring import Scoring
from tests.ranker.sets import SMALL, ordered, unordered, with_image


def test_what_comes_next_is_learned_at_all_places_of_a_history(rng):
    """Of 60 items, where chance gives .08, the one that follows is found from what came last."""
    ts, split = ordered(rng)
    fitted = fit(ts, split, SMALL, 0)
    assert Scoring.of(fitted.run, split.test).ndcg() > 0.5
    assert fitted.looks[0].loss > fitted.looks[-1].loss


def test_sets_are_learned_from_their_hidden_half(rng):
    """Users of a kind get items of their kind: far above chance, which is .13."""
    ts, split = unordered(rng)
    config = replace(SMALL, history="set", layers=0, set_dim=16, kl_weight=0.1, max_epochs=20)
    fitted = fit(ts, split, config, 0)
    assert Scoring.of(fitted.run, split.test).ndcg() > 0.3


def test_the_same_seed_gives_the_same_weights_and_another_gives_others(rng):
    """Also with losses over whole histories and single labels in one step."""
    ts, split = ordered(rng, users=40)
    config = replace(SMALL, batch_size=16, attention=True, max_epochs=2)
    one, two, three = (fit(ts, split, config, seed).model.state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], three[name]) for name in one)


def test_training_in_bfloat16_learns_as_well(rng):
    """Products are of half precision, weights are not; with some of the items, and with sets, too."""
    for ts, split, config in (
        (*ordered(rng), SMALL),
        (*ordered(rng), replace(SMALL, full_softmax=20, max_epochs=16)),
        (*unordered(rng), replace(SMALL, history="set", layers=0, set_dim=16, max_epochs=20)),
    ):
        fitted = fit(ts, split, replace(config, precision="bfloat16"), 0)
        assert Scoring.of(fitted.run, split.test).ndcg() > 0.3
        assert {value.dtype for value in fitted.model.parameters()} == {torch.float32}


def test_bfloat16_is_asked_for_by_its_setting(rng):
    """The same training in it and not in it ends with other weights."""
    ts, split = ordered(rng, users=40)
    one, other = (
        fit(ts, split, replace(SMALL, precision=precision, max_epochs=1), 0).model.state_dict()
        for precision in ("float32", "bfloat16")
    )
    assert any(not torch.equal(value, other[name]) for name, value in one.items())


def test_a_sampled_softmax_learns_as_well(rng):
    """With a third of the items in a step."""
    ts, split = ordered(rng)
    fitted = fit(ts, split, replace(SMALL, full_softmax=20), 0)
    assert Scoring.of(fitted.run, split.test).ndcg() > 0.4


def test_without_ids_items_of_one_content_score_alike(rng):
    """A model whose tokens know no ids tells items by their content alone; its neighbour with ids does not."""
    ts, split = ordered(rng, users=40)
    spread = {}
    for ids in (True, False):
        fitted = fit(ts, split, replace(SMALL, ids=ids, max_epochs=2), 0)
        items = fitted.run.encoded(np.arange(len(ts.items)))
        same = fitted.run.inputs.take(torch.zeros(60, dtype=torch.long))
        tokens = fitted.model.items(replace(same, index_N=fitted.run.inputs.index_N)).token_ND.detach()
        assert items.token_ND.shape == tokens.shape
        spread[ids] = float(tokens.std(0).max())
    assert spread[True] > 1e-3
    assert spread[False] < 1e-6


def test_a_fixed_number_of_epochs_looks_at_nothing(rng):
    """Training on everything for as long as validation said needs no validation."""
    ts, split = ordered(rng, users=40)
    fitted = fit(ts, replace(split, validation=split.validation.take(np.zeros(0, np.int64))), SMALL, 0, epochs=3)
    assert fitted.epochs == 3
    assert not fitted.looks


def test_cold_steps_teach_content_to_stand_for_ids(rng):
    """Trained with candidates read without their ids, items of the right kind come first without them too."""
    ts, split = unordered(rng)
    config = replace(SMALL, history="set", layers=0, set_dim=16, cold_share=1.0, max_epochs=20)
    fitted = fit(ts, split, config, 0)
    run, model = fitted.run, fitted.model
    rows = np.arange(len(ts.items))
    with torch.no_grad():
        cold, warm = run.encoded(rows, without_ids=True), run.encoded(rows)
        kept = torch.arange(0, 60, 4)[:5]  # five items of kind 0
        bag = warm.token_ND[kept].sum(0, keepdim=True) / np.sqrt(5)
        scores = model.joined(model.read_sets(bag)[0]) @ cold.token_ND.T + cold.bias_N
    best = scores[0].argsort(descending=True)[:15].numpy()
    assert np.mean(best % 4 == 0) > 0.8


@pytest.mark.parametrize("fusion", ["gate", "sum", "concat"])
def test_every_fusion_trains(rng, fusion):
    """The gate and what it is compared with: only `sum` adds the slots as they are, only `concat` has a layer over all of them."""
    ts, split = ordered(rng, users=40)
    fitted = fit(ts, split, replace(SMALL, fusion=fusion, max_epochs=2), 0)
    assert np.isfinite(fitted.looks[-1].loss)
    model, inputs = fitted.model, fitted.run.inputs
    known = replace(inputs, index_N=model.id_row[inputs.index_N])
    with torch.no_grad():
        added = (model.slots(inputs) * model.encoder.there(known)[..., None]).sum(1)
        assert torch.allclose(model.items(inputs).token_ND, added, rtol=0, atol=1e-6) == (fusion == "sum")
    assert (model.encoder.concat is not None) == (fusion == "concat")


def test_late_fusion_adds_the_scores_of_experts_that_know_one_modality_each(rng):
    """It learns; an expert's token does not change with another's modality; and a score is the mean of the experts'."""
    ts, split = unordered(rng)
    ts = with_image(ts)
    config = replace(SMALL, history="set", layers=0, set_dim=16, fusion="late", max_epochs=20)
    fitted = fit(ts, split, config, 0)
    assert Scoring.of(fitted.run, split.test).ndcg() > 0.3
    model, inputs = fitted.model, fitted.run.inputs
    at = {name: number for number, name in enumerate(model.shapes.modalities)}
    blind = replace(inputs, present_NM=inputs.present_NM & (torch.arange(2) != at["image"]))
    with torch.no_grad():
        items, without = model.items(inputs), model.items(blind)
        changed = [
            (one != other).any(1).numpy()
            for one, other in zip(items.token_ND.chunk(2, 1), without.token_ND.chunk(2, 1), strict=True)
        ]
        read = model.read_sets(torch.randn(3, 32))[0]
        single = [vector @ token.T for vector, token in zip(read, items.token_ND.chunk(2, 1), strict=True)]
        assert torch.allclose(model.joined(read) @ items.token_ND.T, sum(single) / 2, atol=1e-5)
    assert not changed[at["text"]].any()
    assert (changed[at["image"]] == (np.arange(60) % 2 == 0)).all()


def test_the_mean_of_the_weights_is_what_is_looked_at_and_stays(rng):
    """It learns as well; after a fixed number of epochs it is what the looks at that epoch saw, and not the newest weights."""
    ts, split = ordered(rng)
    config = replace(SMALL, mean_keeps=0.9)
    fitted = fit(ts, split, config, 0)
    assert max(look.ndcg for look in fitted.looks) > 0.35
    assert Scoring.of(fitted.run, split.validation).ndcg() == pytest.approx(max(look.ndcg for look in fitted.looks))
    again, newest = (fit(ts, split, one, 0, epochs=fitted.epochs).model.state_dict() for one in (config, SMALL))
    assert all(torch.equal(value, again[name]) for name, value in fitted.model.state_dict().items())
    assert not torch.equal(again["encoder.ids.weight"], newest["encoder.ids.weight"])


def test_validation_takes_users_evenly(rng):
    """Not the first ones by name; all of a user's labels or none."""
    _, split = ordered(rng, users=100)
    some = some_users(split.train, 10)
    users = sorted(set(some.users))
    assert len(users) == 10
    assert users[0] == "u0000"
    assert users[-1] == "u0099"
    assert len(some) == 10 * 8


def test_what_no_loss_trains_is_in_no_score(rng):
    """Without the loss of single labels, a served score is the tower that was trained: no cosine is added to it."""
    ts, split = unordered(rng, users=60)
    fitted = fit(ts, split, replace(SMALL, history="set", layers=0, set_dim=16, max_epochs=1), 0)
    model, run = fitted.model, fitted.run
    scoring = Scoring.of(run, split.validation)
    numbers, expected = next(iter(scoring.scores()))
    with torch.no_grad():
        items = model.items(run.inputs)
        history = build_examples(ts, split.validation, model, fitted.vocabulary).history(numbers, items, np.arange(60))
        found = model.score(model.user(history, torch.zeros(len(numbers), 9)), items).score_BC
    assert history.age_seconds_BL.dtype == torch.float64  # float32 rounds what is long ago
    assert torch.allclose(found, expected, atol=1e-4)
