"""Slices hold the labels that their names say."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ranker.errors import EvaluationError
from ranker.slices import label_slices, popularity_deciles


def members(slices):
    return {(one.group, one.name): np.flatnonzero(one.chosen).tolist() for one in slices}


def test_slices_of_a_case_to_read():
    """Five labels: item 0 and user 1 have no training event, item 2 has no text; lengths fall into their buckets."""
    user, item = np.array([0, 0, 1, 1, 2]), np.array([0, 1, 2, 2, 1])
    found = members(
        label_slices(
            user,
            item,
            history=np.array([0, 4, 5, 19, 250]),
            user_counts=np.array([9, 0, 3]),
            item_counts=np.array([0, 8, 4]),
            present={"text": np.array([True, True, False]), "image": np.array([True, True, True])},
        )
    )
    assert found == {
        ("all", "all"): [0, 1, 2, 3, 4],
        ("item", "cold"): [0],
        ("item", "warm"): [1, 2, 3, 4],
        ("user", "cold"): [2, 3],
        ("user", "warm"): [0, 1, 4],
        ("history", "0"): [0],
        ("history", "1-4"): [1],
        ("history", "5-9"): [2],
        ("history", "10-19"): [3],
        ("history", "100+"): [4],
        ("popularity", "2"): [0],
        ("popularity", "5"): [2, 3],
        ("popularity", "9"): [1, 4],
        ("modality", "no text"): [2, 3],
    }


def test_deciles_hold_a_tenth_of_the_items_each(rng):
    """A hundred items with different counts: ten in each decile, the least known first."""
    counts = rng.permutation(100)
    deciles = popularity_deciles(counts)
    np.testing.assert_array_equal(deciles, counts // 10 + 1)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=60))
def test_equally_known_items_share_a_decile(counts):
    """Deciles are 1 to 10, ascend with the count, and do not tell equals apart."""
    counts = np.asarray(counts)
    deciles = popularity_deciles(counts)
    assert 1 <= deciles.min() <= deciles.max() <= 10
    for count in np.unique(counts):
        assert len(np.unique(deciles[counts == count])) == 1
    order = np.argsort(counts, kind="stable")
    assert (np.diff(deciles[order]) >= 0).all()


def test_each_label_is_in_one_bucket_and_one_decile(rng):
    """Groups that partition do so, whatever the lengths."""
    user, item = rng.integers(0, 30, 500), rng.integers(0, 40, 500)
    history, counts = rng.integers(0, 300, 500), rng.integers(0, 90, 40)
    slices = label_slices(user, item, history=history, item_counts=counts, user_counts=rng.integers(0, 2, 30))
    for group in ("history", "popularity", "item", "user"):
        assert (sum(one.chosen.astype(int) for one in slices if one.group == group) == 1).all()


def test_what_is_not_given_makes_no_slices():
    """Without counts there is only `all`."""
    assert members(label_slices(np.zeros(2, int), np.zeros(2, int))) == {("all", "all"): [0, 1]}


def test_arrays_that_do_not_fit_are_named():
    """Too few counts, lengths of other labels, items without a user."""
    one = np.zeros(1, int)
    with pytest.raises(EvaluationError, match="item_counts has 3 rows, and labels are about numbers 7 to 7"):
        label_slices(one, one + 7, item_counts=np.ones(3))
    with pytest.raises(EvaluationError, match="1 labels and 2 lengths"):
        label_slices(one, one, history=np.zeros(2))
    with pytest.raises(EvaluationError, match="1 users and 2 items"):
        label_slices(one, np.zeros(2, int))
