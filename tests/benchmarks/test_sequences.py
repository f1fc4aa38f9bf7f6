"""Events are in the order that the protocols state, and what is held out is nobody's history."""

import numpy as np
import pytest

from benchmarks.rankers.sequences import LeaveOneOut, Sequences, amazon, movielens_100k


@pytest.fixture
def small():
    """Two users, five and three events; the first meets item 1 twice."""
    user, item = np.array([0, 0, 0, 0, 0, 1, 1, 1]), np.array([1, 2, 1, 3, 4, 2, 0, 1])
    return Sequences("small", user, item, np.arange(8), np.full(8, np.nan), tuple("abcde"))


def test_the_last_event_is_held_out_and_the_one_before(small):
    """By user: the last is the test's, the one before validation's, the rest is for training."""
    split = LeaveOneOut.of(small)
    assert small.from_last.tolist() == [4, 3, 2, 1, 0, 2, 1, 0]
    assert split.train.tolist() == [True, True, True, False, False, True, False, False]
    assert (split.validation.tolist(), split.test.tolist()) == ([3, 6], [4, 7])
    assert split.relevant(split.test).toarray().tolist() == [[0, 0, 0, 0, 1], [0, 1, 0, 0, 0]]


def test_what_was_met_before_is_masked_and_what_is_asked_for_is_not(small):
    """The test's histories have validation's events too; an item that comes again is not masked where it is the one asked for."""
    split = LeaveOneOut.of(small)
    assert split.met_before(split.validation).toarray().tolist() == [[0, 1, 1, 0, 0], [0, 0, 1, 0, 0]]
    assert split.met_before(split.test).toarray().tolist() == [[0, 1, 1, 1, 0], [1, 0, 1, 0, 0]]
    again = split.met_before(np.array([2, 7]))
    assert again.toarray().tolist() == [[0, 0, 1, 0, 0], [1, 0, 1, 0, 0]]


def test_newer_events_weigh_more(small):
    """Without decay all weigh 1; with it the newest does, and an item that came twice weighs as the newer one."""
    everything = np.ones(8, bool)
    assert (small.recent(everything, 0.0) != small.matrix(everything)).nnz == 0
    decayed = small.recent(everything, 1.0).toarray()
    assert decayed[0] == pytest.approx([0, 1 / 3, 1 / 4, 1 / 2, 1])
    assert decayed[1] == pytest.approx([1 / 2, 1, 1 / 3, 0, 0])


def public(load, *arguments):
    try:
        return load(*arguments)
    except FileNotFoundError as error:
        pytest.skip(str(error))


def test_movielens_100k_is_in_order_of_time():
    """943 users, 1,682 items, 100,000 events; 415 of the last events tie with the one before."""
    found = public(movielens_100k)
    same_user = np.diff(found.user) == 0
    assert (found.users, len(found.item_names), len(found.user)) == (943, 1_682, 100_000)
    assert (np.diff(found.timestamp)[same_user] >= 0).all()
    split = LeaveOneOut.of(found)
    assert int((found.timestamp[split.test] == found.timestamp[split.validation]).sum()) == 415
    assert set(np.unique(found.rating)) == {1.0, 2.0, 3.0, 4.0, 5.0}


@pytest.mark.parametrize(
    ("category", "sizes"), [("Beauty", (22_363, 12_101, 198_502)), ("Toys", (19_412, 11_924, 167_597))]
)
def test_amazon_is_in_the_files_order(category, sizes):
    """Users, items and purchases as the set's makers state; nobody has fewer than five."""
    found = public(amazon, category)
    assert (found.users, len(found.item_names), len(found.user)) == sizes
    assert np.bincount(found.user).min() >= 5
    assert (np.diff(found.timestamp)[np.diff(found.user) == 0] == 1).all()
