"""Metrics of one relevant item, on cases to read and against a kept library."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score, roc_auc_score

from ranker import metrics

# Few distinct values, so that ties are common.
scores_and_target = st.lists(st.integers(0, 6).map(float), min_size=2, max_size=60).flatmap(
    lambda scores: st.tuples(st.just(np.asarray(scores)), st.integers(0, len(scores) - 1))
)


def counts(scores, target):
    above, ties = metrics.place(scores, target)
    return np.asarray([above]), np.asarray([ties])


def relevance(scores, target):
    return (np.arange(len(scores)) == target).astype(int)


@given(scores_and_target)
def test_ndcg_agrees_with_scikit_learn(case):
    """NDCG@10 of one relevant item is scikit-learn's ndcg_score, ties included."""
    scores, target = case
    ours = metrics.ndcg_at_k(*counts(scores, target), 10)[0]
    assert np.isclose(ours, ndcg_score([relevance(scores, target)], [scores], k=10))


@given(scores_and_target)
def test_auc_agrees_with_scikit_learn(case):
    """AUC is scikit-learn's roc_auc_score, ties included."""
    scores, target = case
    ours = metrics.auc(*counts(scores, target), np.asarray([len(scores)]))[0]
    assert np.isclose(ours, roc_auc_score(relevance(scores, target), scores))


@given(scores_and_target)
def test_metrics_stay_in_range_and_ignore_the_scale_of_scores(case):
    """Every metric lies in 0..1 and depends on the order of scores alone."""
    scores, target = case
    plain = metrics.summary(*counts(scores, target), np.asarray([len(scores)]))
    warped = metrics.summary(*counts(np.exp(scores) * 3 - 1, target), np.asarray([len(scores)]))
    assert plain == warped
    assert all(0.0 <= plain[name] <= 1.0 for name in ("ndcg_at_10", "recall_at_20", "auc"))


def test_a_constant_scorer_gets_what_chance_gets():
    """Equal scores count as random order: nobody can win by refusing to decide."""
    above, ties = counts(np.zeros(200), 7)
    assert metrics.recall_at_k(above, ties, 20)[0] == 0.1
    assert metrics.auc(above, ties, np.asarray([200]))[0] == 0.5


def test_a_nan_score_is_the_lowest_and_not_the_best():
    """A scorer that breaks on an item does not put it first."""
    assert metrics.place(np.asarray([1.0, np.nan, 0.5]), 1) == (2, 1)


def test_no_labels_give_no_numbers():
    """An empty slice has a count of 0 and no made-up means."""
    nothing = np.zeros(0, np.int64)
    assert metrics.summary(nothing, nothing, nothing) == {"labels": 0}
