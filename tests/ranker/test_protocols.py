"""Protocols give the roles that they state, on cases small enough to read and on real data."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.rankers.sequences import LeaveOneOut, movielens_100k
from ranker import leakage, protocols
from ranker.errors import EvaluationError
from ranker.protocols import Role

TRAIN, VALIDATION, TEST, DROPPED = Role

# Few users and fewer instants, so that ties are everywhere.
events = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9), st.integers(0, 7)), min_size=1, max_size=80).map(
    lambda rows: tuple(np.asarray(column, np.int64) for column in zip(*rows, strict=True))
)


def public(load):
    try:
        return load()
    except FileNotFoundError as error:
        pytest.skip(str(error))


def test_the_last_event_is_the_tests_and_the_one_before_validations():
    """Events need not be sorted; users with fewer than three are dropped, all of theirs."""
    user, time = np.array([0, 1, 0, 0, 1, 0, 2]), np.array([9, 1, 3, 5, 2, 4, 7])
    assert protocols.leave_one_out(user, time).tolist() == [TEST, DROPPED, TRAIN, VALIDATION, DROPPED, TRAIN, DROPPED]


def test_the_files_order_decides_between_events_of_one_instant():
    """Of three events of one instant the last in the file is the test's, and it is counted as tied."""
    user, time = np.array([0, 0, 0, 0]), np.array([5, 5, 5, 1])
    roles = protocols.leave_one_out(user, time)
    assert roles.tolist() == [TRAIN, VALIDATION, TEST, TRAIN]
    assert protocols.tied(roles, user, time) == 1


def test_all_events_of_an_instant_are_on_one_side_of_a_global_cut():
    """The cut falls inside three tied events, and all of them go to the later side."""
    time = np.array([0, 1, 2, 3, 4, 5, 6, 7, 7, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17])
    plain = protocols.global_time(np.arange(20))
    assert np.bincount(plain).tolist() == [16, 2, 2]
    moved = protocols.global_time(time, train_until=0.4, validation_until=0.6)
    assert np.bincount(moved).tolist() == [7, 5, 8]


def test_events_that_are_all_of_one_instant_cannot_be_cut():
    """Nothing would be left to train on: a clear error, not an empty part."""
    with pytest.raises(EvaluationError, match="one instant"):
        protocols.global_time(np.full(10, 3))


def test_a_ratio_is_of_each_users_own_events():
    """Of ten events eight train, one is validation's, one the test's; of five the last is validation's, and none is the test's."""
    user = np.array([0] * 10 + [1] * 5)
    roles = protocols.ratio(user, np.arange(15)[::-1])
    assert roles[:10].tolist() == [TEST, VALIDATION, *[TRAIN] * 8]
    assert roles[10:].tolist() == [VALIDATION, *[TRAIN] * 4]


@given(events)
def test_every_protocol_passes_its_own_guard(case):
    """Whatever the ties and the order of the file, what a protocol makes is free of leakage."""
    user, item, time = case
    made = {
        "leave_one_out": protocols.leave_one_out(user, time),
        "ratio": protocols.ratio(user, time),
        "cold_items": protocols.cold_items(item, 10, validation_share=0.2),
        "cold_users": protocols.cold_users(user, 6, share=0.3, validation_share=0.3),
    }
    if len(np.unique(time)) == len(time):
        made["global_time"] = protocols.global_time(time)
    for name, roles in made.items():
        assert (roles.dtype, roles.shape) == (np.int8, user.shape)
        leakage.check_split(name, roles, user, item, time)


@given(st.integers(5, 10_000), st.integers(0, 3))
def test_held_out_numbers_are_those_that_others_draw(count, seed):
    """For a share of .2 they are numpy's legacy draw of `count // 5`, whether or not validation is drawn as well."""
    wanted = np.sort(np.random.RandomState(seed).choice(count, count // 5, replace=False))
    test, validation = protocols.held_out(count, seed=seed, validation_share=0.1)
    np.testing.assert_array_equal(test, wanted)
    np.testing.assert_array_equal(protocols.held_out(count, seed=seed)[0], wanted)
    assert len(validation) == int(count * 0.1)
    assert not np.isin(validation, test).any()


def test_a_held_out_items_events_are_all_the_tests():
    """Roles follow the item alone."""
    item = np.array([3, 1, 3, 0, 2, 4, 1])
    (held,), _ = protocols.held_out(5, seed=1)
    roles = protocols.cold_items(item, 5, seed=1)
    np.testing.assert_array_equal(roles == TEST, item == held)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: protocols.cold_items(np.array([7]), 5), "from 0 to 4; found 7"),
        (lambda: protocols.held_out(5, share=0.7, validation_share=0.4), "leave something to train on"),
        (lambda: protocols.ratio(np.zeros(2, int), np.zeros(3)), "2 users of events and 3 times"),
        (lambda: protocols.global_time(np.arange(5), train_until=0.9, validation_until=0.8), "must ascend"),
    ],
)
def test_what_cannot_be_split_is_refused_with_the_value(call, message):
    """Numbers out of range, shares that leave nothing, arrays that do not fit."""
    with pytest.raises(EvaluationError, match=message):
        call()


def test_no_events_have_no_roles():
    """An empty file is split into nothing."""
    nothing = np.zeros(0, np.int64)
    assert not len(protocols.leave_one_out(nothing, nothing))
    assert not len(protocols.global_time(nothing))
    assert not len(protocols.ratio(nothing, nothing))


def test_movielens_is_split_as_the_benchmark_splits_it(rng):
    """In any order of users; of the 943 last events 415 tie."""
    found = public(movielens_100k)
    split = LeaveOneOut.of(found)
    time_us = found.timestamp * 1_000_000
    roles = protocols.leave_one_out(found.user, time_us)
    np.testing.assert_array_equal(np.flatnonzero(roles == TEST), split.test)
    np.testing.assert_array_equal(np.flatnonzero(roles == VALIDATION), split.validation)
    np.testing.assert_array_equal(roles == TRAIN, split.train)
    assert protocols.tied(roles, found.user, time_us) == 415
    shuffled = np.argsort(rng.permutation(found.users)[found.user], kind="stable")
    np.testing.assert_array_equal(protocols.leave_one_out(found.user[shuffled], time_us[shuffled]), roles[shuffled])
