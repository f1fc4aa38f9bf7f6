"""Metrics of many relevant items, against scikit-learn and against counting."""

import numpy as np
import pytest
import scipy.sparse
from sklearn.metrics import ndcg_score, roc_auc_score

from ranker.full_ranking import gauc, hit_rate, joined, ndcg, places, recall, user_auc

USERS, ITEMS = 30, 40


def sparse(dense):
    return scipy.sparse.csr_matrix(dense.astype(np.float32))


@pytest.fixture
def case(rng):
    """Scores with many ties, one to five relevant items a user, and some masked ones that are not relevant."""
    scores = rng.integers(0, 12, (USERS, ITEMS)).astype(np.float32)
    relevant = np.argsort(rng.random((USERS, ITEMS)), axis=1) < rng.integers(1, 6, (USERS, 1))
    masked = (rng.random((USERS, ITEMS)) < 0.2) & ~relevant
    return scores, relevant, masked


def test_a_users_metrics_are_those_of_scikit_learn(case):
    """NDCG@10 and AUC with ties, over what is not masked."""
    scores, relevant, masked = case
    found = places(scores, sparse(relevant), sparse(masked))
    ours, (auc, weight) = ndcg(found, 10), user_auc(found)
    for user in range(USERS):
        there = ~masked[user]
        truth, given = relevant[user][there], scores[user][there]
        assert ours[user] == pytest.approx(ndcg_score(truth[None].astype(float), given[None], k=10))
        assert auc[user] == pytest.approx(roc_auc_score(truth, given))
        assert weight[user] == truth.sum()
    assert gauc(found) == pytest.approx(np.average(auc, weights=weight))


def test_recall_is_the_mean_over_random_orders_of_ties(case, rng):
    """Breaking ties at random a thousand times gives on average what is computed at once; so does HR for users without ties inside."""
    scores, relevant, masked = case
    found = places(scores, sparse(relevant), sparse(masked))
    allowed = np.where(masked, -np.inf, scores)
    hits = np.zeros(USERS)
    for _ in range(1_000):
        top = np.argsort(-(allowed + 0.5 * rng.random(scores.shape)), axis=1)[:, :5]
        hits += np.take_along_axis(relevant, top, 1).sum(1) / relevant.sum(1)
    np.testing.assert_allclose(recall(found, 5), hits / 1_000, atol=0.08)


def test_without_ties_a_hit_is_a_hit(rng):
    """HR@k is whether any relevant item is among the first k."""
    scores = np.argsort(rng.random((USERS, ITEMS)), axis=1).astype(np.float32)
    relevant = rng.random((USERS, ITEMS)) < 0.1
    relevant[:, 0] = True
    found = places(scores, sparse(relevant), sparse(np.zeros_like(relevant)))
    top = np.argsort(-scores, axis=1)[:, :7]
    np.testing.assert_array_equal(hit_rate(found, 7), np.take_along_axis(relevant, top, 1).any(1))


def test_batches_join(case):
    """Users in two batches give what they give in one; users without a relevant item are in none."""
    scores, relevant, masked = case
    relevant[3] = False
    whole = places(scores, sparse(relevant), sparse(masked))
    halves = joined(
        [
            places(scores[:10], sparse(relevant[:10]), sparse(masked[:10])),
            places(scores[10:], sparse(relevant[10:]), sparse(masked[10:]), first_user=10),
        ]
    )
    np.testing.assert_array_equal(ndcg(whole, 10), ndcg(halves, 10))
    assert 3 not in whole.user
    assert len(ndcg(whole, 10)) == USERS - 1


def test_what_is_masked_or_unknown_is_last():
    """A masked item is no candidate even where it is relevant; a NaN stands below every number."""
    scores = np.array([[5.0, np.nan, 1.0, 9.0]], np.float32)
    found = places(scores, sparse(np.array([[0, 1, 1, 1]])), sparse(np.array([[0, 0, 0, 1]])))
    assert found.above.tolist() == [2, 1]
    assert found.candidates.tolist() == [3, 3]
