"""Metrics of many relevant items, against scikit-learn and against counting."""

from itertools import permutations

import numpy as np
import pytest
import scipy.sparse
from sklearn.metrics import label_ranking_average_precision_score, ndcg_score, roc_auc_score

from ranker.full_ranking import (
    Places,
    gauc,
    hit_rate,
    joined,
    ndcg,
    places,
    recall,
    reciprocal_rank,
    relevant_pairs,
    user_auc,
)

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


def test_mrr_of_one_relevant_item_is_scikit_learns_average_precision(rng):
    """Without ties, 1 / rank of the only relevant item is label ranking average precision."""
    scores = np.argsort(rng.random((USERS, ITEMS)), axis=1).astype(np.float32)
    relevant = np.eye(ITEMS, dtype=bool)[rng.integers(0, ITEMS, USERS)]
    found = places(scores, sparse(relevant), sparse(np.zeros_like(relevant)))
    wanted = label_ranking_average_precision_score(relevant.astype(int), scores)
    assert reciprocal_rank(found).mean() == pytest.approx(wanted)


@pytest.mark.parametrize("scores", [[2, 2, 2, 2, 2], [3, 2, 2, 2, 1], [3, 3, 2, 2, 2], [5, 4, 3, 2, 1]])
def test_mrr_is_the_mean_over_all_orders_of_ties(scores):
    """Three of five items are relevant; every order of what ties is tried."""
    relevant = np.array([0, 1, 0, 1, 1], bool)
    firsts = []
    for order in permutations(range(5)):
        ranked = sorted(range(5), key=lambda item, order=order: (-scores[item], order[item]))
        firsts.append(1 / (1 + next(place for place, item in enumerate(ranked) if relevant[item])))
    found = places(np.array([scores], np.float32), sparse(relevant[None]), sparse(np.zeros((1, 5))))
    assert reciprocal_rank(found) == pytest.approx([np.mean(firsts)])


def test_mrr_of_thousands_that_tie_does_not_overflow():
    """A constant scorer over 5,000 items of which 1,000 are relevant: the first is on place 5 or so."""
    nothing = np.zeros(1_000, np.int64)
    found = Places(nothing, nothing, nothing + 5_000, nothing + 5_000)
    assert 0.3 < reciprocal_rank(found)[0] < 0.5


def test_nobody_has_no_mrr():
    """Without a relevant item there are no values, and no error."""
    nothing = np.zeros(0, np.int64)
    assert reciprocal_rank(Places(nothing, nothing, nothing, nothing)).shape == (0,)


def test_slices_of_places_are_made_from_their_items(case):
    """Pairs come in the order of places, and taking those of some items judges users by these alone."""
    scores, relevant, masked = case
    masked[:, 0] = True  # of the relevant ones too
    arguments = sparse(relevant), sparse(masked)
    user, item = relevant_pairs(*arguments)
    found = places(scores, *arguments)
    np.testing.assert_array_equal(user, found.user)
    assert relevant[user, item].all()
    assert not masked[user, item].any()
    few = found.take(item < 10)
    alone = places(scores, sparse(relevant & (np.arange(ITEMS) < 10)), sparse(masked))
    np.testing.assert_array_equal(ndcg(few, 10), ndcg(alone, 10))
