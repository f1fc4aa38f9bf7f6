"""Metrics of lists, against scikit-learn, against counting, and at their ends."""

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics.pairwise import cosine_distances

from ranker import list_metrics
from ranker.errors import EvaluationError
from ranker.list_metrics import NO_ITEM

USERS, ITEMS, K = 300, 50, 10


@pytest.fixture
def lists(rng):
    """Lists of ten different items for 300 users, two of which are shorter and one empty."""
    made = np.argsort(rng.random((USERS, ITEMS)), axis=1)[:, :K]
    made[3, 4:] = made[5, 1:] = made[7] = NO_ITEM
    return made


def test_top_items_are_the_best_that_are_not_masked(rng):
    """As a full sort gives them, equal scores by number; NaN is last, and a list ends where the items do."""
    scores = rng.integers(0, 8, (40, 30)).astype(np.float32)
    scores[rng.random(scores.shape) < 0.1] = np.nan
    masked = rng.random(scores.shape) < 0.3
    masked[0, 4:] = True
    found = list_metrics.top_items(scores, scipy.sparse.csr_matrix(masked), K)
    for row in range(40):
        ordered = sorted(
            np.flatnonzero(~masked[row]), key=lambda i, row=row: (-np.nan_to_num(scores[row, i], nan=-1), i)
        )
        wanted = [*ordered[:K], *[NO_ITEM] * (K - len(ordered[:K]))]
        assert found[row].tolist() == wanted


def test_diversity_is_the_mean_distance_of_pairs(lists, rng):
    """As scikit-learn's cosine distances give it; items without content are in no pair, lists with fewer than two have none."""
    content = rng.standard_normal((ITEMS, 16)).astype(np.float32)
    content[rng.random(ITEMS) < 0.2] = 0
    found = list_metrics.diversity(lists, content)
    for user in range(USERS):
        have = [item for item in lists[user] if item != NO_ITEM and content[item].any()]
        if len(have) < 2:
            assert np.isnan(found[user])
        else:
            pairs = cosine_distances(content[have])[np.triu_indices(len(have), 1)]
            assert found[user] == pytest.approx(pairs.mean(), abs=1e-6)


def test_lists_of_alike_items_are_not_diverse():
    """0 for copies, 1 for items at right angles, 2 for opposites."""
    content = np.array([[2.0, 0], [1, 0], [0, 3], [-1, 0]])
    lists = np.array([[0, 1], [0, 2], [0, 3]])
    assert list_metrics.diversity(lists, content).tolist() == [0, 1, 2]


def test_coverage_counts_each_item_once(lists):
    """The share of items that are in some list."""
    shown = {int(item) for item in lists.ravel()} - {NO_ITEM}
    assert list_metrics.coverage(lists, ITEMS) == len(shown) / ITEMS
    assert list_metrics.coverage(lists[:1], ITEMS) == K / ITEMS


@given(st.lists(st.integers(0, 9), min_size=1, max_size=60))
def test_gini_is_half_the_relative_mean_difference(shown):
    """Its other definition: the mean absolute difference of two items' exposures, over twice their mean."""
    lists = np.asarray(shown)[:, None]
    counts = np.bincount(shown, minlength=10)
    wanted = np.abs(counts[:, None] - counts[None]).mean() / (2 * counts.mean())
    assert list_metrics.gini(lists, 10) == pytest.approx(wanted)


def test_gini_at_its_ends():
    """0 where all items are shown alike, 1 - 1 / I where one is shown to all, none where nothing is shown."""
    assert list_metrics.gini(np.arange(ITEMS)[:, None], ITEMS) == pytest.approx(0)
    assert list_metrics.gini(np.zeros((USERS, 1), int), ITEMS) == pytest.approx(1 - 1 / ITEMS)
    assert np.isnan(list_metrics.gini(np.full((2, 2), NO_ITEM), ITEMS))


def test_popularity_and_novelty_are_of_training_counts():
    """Of eight users seven met item 0, all met item 1, none met item 2; a shorter list is judged by what it has."""
    counts = np.array([7, 8, 0])
    lists = np.array([[0, 2], [1, NO_ITEM], [NO_ITEM, NO_ITEM]])
    np.testing.assert_array_equal(list_metrics.mean_popularity(lists, counts), [3.5, 8, np.nan])
    bits = list_metrics.novelty(lists, counts, 8)
    np.testing.assert_allclose(bits, [(np.log2(9 / 8) + np.log2(9)) / 2, 0, np.nan])


def test_the_summary_has_what_there_is(lists, rng):
    """Diversity only with content; users without a list do not make it NaN."""
    counts = rng.integers(0, USERS, ITEMS)
    plain = list_metrics.list_summary(lists, counts, USERS)
    assert set(plain) == {"coverage", "gini", "mean_popularity", "novelty_bits"}
    whole = list_metrics.list_summary(lists, counts, USERS, rng.standard_normal((ITEMS, 4)))
    assert 0 < whole["diversity"] < 2
    assert all(np.isfinite(value) for value in whole.values())
    assert np.isnan(list_metrics.list_summary(np.full((2, 2), NO_ITEM), counts, USERS)["novelty_bits"])


def test_items_that_do_not_exist_are_refused(lists):
    """By every metric that counts them; so are counts of more users than there are."""
    with pytest.raises(EvaluationError, match="from 0 to 9; found 0 to 49"):
        list_metrics.coverage(lists, 10)
    with pytest.raises(EvaluationError, match="from 0 to 9; found"):
        list_metrics.mean_popularity(lists, np.zeros(10))
    with pytest.raises(EvaluationError, match="met by 9 users of 8"):
        list_metrics.novelty(lists, np.full(ITEMS, 9), 8)
