"""Factors are read out of fold: no user's own events are in them."""

from dataclasses import replace

import numpy as np
import torch

from ranker.folds import FOLDS, Folds, batches, histories
from ranker.loop import fit
from ranker.scoring import Scoring
from tests.ranker.sets import SMALL, ordered
from tests.ranker.test_steps import run_of

FACTORS = replace(SMALL, collaborative=8)


def test_a_batch_reads_factors_that_its_users_had_no_part_in(rng):
    """What a fold's users met may change without changing the factors that they are trained with; those of others change."""
    ts, split = ordered(rng)
    run = run_of(ts, split, FACTORS)
    folds = Folds.of(run)
    members = [user for user, fold in folds.fold_of.items() if fold == 0]
    train = split.train
    of_members = np.isin(train.users, members)
    rows = np.where(of_members, (train.item_row + 7) % 60, train.item_row)
    changed = run_of(ts, replace(split, train=replace(train, item_row=rows)), FACTORS)
    again = Folds.of(changed)
    assert again.fold_of == folds.fold_of
    grams = [[table @ table.T for table in one.factors] for one in (folds, again)]  # rotation does not matter
    assert torch.allclose(grams[0][0], grams[1][0], atol=1e-4)
    assert not torch.allclose(grams[0][1], grams[1][1], atol=1e-2)


def test_factors_of_all_folds_lie_alike(rng):
    """After the rotation an item's factors in a fold are near those of everybody."""
    ts, split = ordered(rng)
    run = run_of(ts, split, FACTORS)
    folds = Folds.of(run)
    full = run.model.encoder.factor_IK
    assert torch.allclose(full[1:].norm(dim=1), torch.tensor(8.0).sqrt(), atol=1e-3)
    assert (full[0] == 0).all()
    cosines = [
        float(torch.nn.functional.cosine_similarity(table[1:], full[1:], dim=1).mean()) for table in folds.factors
    ]
    assert len(cosines) == FOLDS
    assert min(cosines) > 0.8


def test_batches_hold_users_of_one_fold(rng):
    """Each number is in one batch, and all of a batch are of one fold."""
    folds = rng.integers(0, 3, 100)
    parts = batches(np.arange(100), 16, rng, folds)
    assert sorted(np.concatenate(parts).tolist()) == list(range(100))
    assert all(len(set(folds[part].tolist())) == 1 for part in parts)
    assert max(map(len, parts)) <= 16


def test_a_model_with_factors_learns_and_reads_everybodys_when_it_is_done(rng):
    """Factors are masked where the id is, and what is served are those of all users."""
    ts, split = ordered(rng)
    fitted = fit(ts, split, FACTORS, 0)
    assert Scoring.of(fitted.run, split.test).ndcg() > 0.4
    encoder = fitted.model.eval().encoder
    assert "factors" in encoder.slot_names
    assert encoder.there(fitted.run.inputs)[:, -1].all()
    unknown = replace(fitted.run.inputs, index_N=0 * fitted.run.inputs.index_N)
    assert not encoder.there(unknown)[:, -1].any()
    assert not torch.equal(encoder.fold_IK, encoder.factor_IK)


def test_histories_are_the_positive_labels(rng):
    """Who met what, once each."""
    ts, split = ordered(rng, users=20)
    run = run_of(ts, split)
    users, met = histories(run)
    assert met.shape == (len(users), 60)
    expected = {(user, int(row)) for user, row in zip(split.train.users, split.train.item_row, strict=True)}
    assert met.nnz == len(expected)
