"""The closed forms are the minima of what they claim to minimise, and a fold's weights have not seen its users."""

import numpy as np
import pytest
import scipy.sparse

from ranker.collaborative import MAX_EASE_ITEMS, EaseConfig, cosines, fit_ease, fit_svd, out_of_fold
from ranker.errors import RankerError


@pytest.fixture
def histories(rng):
    dense = rng.random((40, 12)) < rng.uniform(0.1, 0.5, 12)
    return scipy.sparse.csr_matrix(dense.astype(np.float32))


CONFIGS = [
    EaseConfig(3.0),
    EaseConfig(3.0, dropout=0.4),
    EaseConfig(5.0, user_power=0.5),
    EaseConfig(2.0, 0.3, 0.7, 4.0),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_ease_is_at_the_minimum(histories, config, rng):
    """No change of a weight off the diagonal lowers the loss: its gradient there is zero, and the diagonal is zero."""
    content = rng.standard_normal((12, 5)).astype(np.float32)
    found = fit_ease(histories, config, content).astype(np.float64)
    x, counts = histories.toarray().astype(np.float64), np.maximum(histories.getnnz(axis=1), 1)
    weight = counts**-config.user_power
    gram = x.T @ (x * (weight / weight.mean())[:, None])
    penalty = config.l2 + config.dropout / (1 - config.dropout) * gram.diagonal()
    gram = gram + config.content * cosines(content)
    gradient = gram @ (found - np.eye(12)) + penalty[:, None] * found
    np.fill_diagonal(gradient, 0.0)
    assert np.abs(found.diagonal()).max() == 0
    assert np.abs(gradient).max() < 1e-5 * np.abs(gram).max()


def test_dropout_is_the_mean_over_what_is_hidden(histories, rng):
    """Regressing whole histories on many halves of them gives what the closed form gives."""
    x = histories.toarray().astype(np.float64)
    masks = rng.random((4_000, *x.shape)) < 0.5
    halves = (x * masks / 0.5).reshape(-1, 12)
    wholes = np.broadcast_to(x, masks.shape).reshape(-1, 12)
    gram, target = halves.T @ halves / len(masks), halves.T @ wholes / len(masks)
    found = fit_ease(histories, EaseConfig(1.0, dropout=0.5)).astype(np.float64)
    gradient = gram @ found - target + found
    np.fill_diagonal(gradient, 0.0)
    assert np.abs(gradient).max() < 0.05 * np.abs(target).max()


def test_items_met_together_predict_each_other(rng):
    """Two groups of items that users never mix: the best unseen item is of the user's own group."""
    group = np.arange(60) % 2
    dense = (rng.random((60, 20)) < 0.6) & (group[:, None] == np.arange(20) % 2)
    histories = scipy.sparse.csr_matrix(dense.astype(np.float32))
    for scores in (histories @ fit_ease(histories, EaseConfig(5.0)), histories @ (f := fit_svd(histories, 2)) @ f.T):
        best = np.where(dense, -np.inf, scores).argmax(1)
        told = dense.any(1) & (dense.sum(1) < 10)  # who met some of their group's ten, and not all
        assert (best % 2 == group)[told].mean() > 0.95


def test_content_links_items_that_nobody_met_together():
    """Item 2 was met by nobody, and looks like item 0: who met item 0 gets it before item 3, which looks like nothing."""
    histories = scipy.sparse.csr_matrix(np.array([[1, 1, 0, 0]] * 5 + [[0, 1, 0, 0]] * 5, np.float32))
    content = np.array([[1, 0], [0, 1], [1, 0], [0, 0]], np.float32)
    plain, told = (fit_ease(histories, EaseConfig(1.0, content=c), content) for c in (0.0, 2.0))
    assert plain[0, 2] == plain[0, 3] == 0
    assert told[0, 2] > 0.1
    assert told[0, 3] == 0


def test_a_fold_has_not_seen_its_users(histories, seed):
    """Every user is held out once, and what others' weights say of a user does not change with that user's events."""
    seen = []
    for users, weights in out_of_fold(histories, fit_ease, 4, seed=seed):
        changed = histories.tolil()
        changed[users] = 1.0 - histories[users].toarray()
        again = {tuple(u): w for u, w in out_of_fold(changed.tocsr(), fit_ease, 4, seed=seed)}
        np.testing.assert_array_equal(again[tuple(users)], weights)
        seen += users.tolist()
    assert sorted(seen) == list(range(40))


def test_what_cannot_be_fitted_is_refused(histories):
    """Too many items, and settings without a sense, are named."""
    with pytest.raises(RankerError, match="use svd"):
        fit_ease(scipy.sparse.csr_matrix((2, MAX_EASE_ITEMS + 1)))
    with pytest.raises(RankerError, match="l2 0"):
        fit_ease(histories, EaseConfig(0.0))
    with pytest.raises(RankerError, match="dropout 1"):
        fit_ease(histories, EaseConfig(1.0, dropout=1.0))
    with pytest.raises(RankerError, match="rank 12"):
        fit_svd(histories, 12)
    with pytest.raises(RankerError, match="1 folds"):
        next(out_of_fold(histories, fit_ease, 1))
