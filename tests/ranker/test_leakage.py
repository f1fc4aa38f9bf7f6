"""A leak that is put in is found, and the message names who did it."""

import numpy as np
import pytest

from ranker import leakage, protocols
from ranker.errors import EvaluationError, LeakageError
from ranker.protocols import Role

SECOND_US = 1_000_000
EVENTS = 200


@pytest.fixture
def events(rng):
    """(user, item, time_us) of 200 events, 20 a user and ten an item, all at different instants, in no order."""
    return np.arange(EVENTS) % 10, rng.permutation(EVENTS) % 20, rng.permutation(EVENTS) * SECOND_US


@pytest.mark.parametrize("protocol", protocols.STATED)
def test_a_future_event_in_training_is_caught(events, protocol):
    """An event of the test that is called training is a leak by every protocol, and it is the one that is named."""
    user, item, time_us = events
    roles = {
        "leave_one_out": lambda: protocols.leave_one_out(user, time_us),
        "global_time": lambda: protocols.global_time(time_us),
        "ratio": lambda: protocols.ratio(user, time_us),
        "cold_items": lambda: protocols.cold_items(item, 20),
        "cold_users": lambda: protocols.cold_users(user, 10),
    }[protocol]()
    leakage.check_split(protocol, roles, user, item, time_us)
    tested = np.flatnonzero(roles == Role.TEST)
    leaked = int(
        tested[np.argmax(time_us[tested])]
    )  # the latest: every protocol has another of the test or validation before it
    roles[leaked] = Role.TRAIN
    with pytest.raises(LeakageError, match=rf"training event {leaked} |event {leaked} of user \d+ is a training event"):
        leakage.check_split(protocol, roles, user, item, time_us)


def test_an_event_of_the_tests_own_instant_is_a_leak():
    """Before is strict: a tie with the first event of the test is named with both times."""
    roles = np.array([Role.TRAIN, Role.TRAIN, Role.TEST], np.int8)
    leakage.check_global_time(roles, np.array([1, 2, 3]) * SECOND_US)
    with pytest.raises(
        LeakageError, match=r"training event 1 \(1970-01-01T00:00:03.000000Z\) is not before test event 2"
    ):
        leakage.check_global_time(roles, np.array([1, 3, 3]) * SECOND_US)


def test_validation_must_not_see_the_test_either():
    """A validation event after the test's first one would let the test choose the model."""
    roles = np.array([Role.TRAIN, Role.VALIDATION, Role.TEST], np.int8)
    with pytest.raises(LeakageError, match=r"validation event 1 .* is not before test event 2"):
        leakage.check_global_time(roles, np.array([1, 5, 4]))


def test_the_first_offender_is_named_and_the_others_are_counted():
    """In the order of the file."""
    item, roles = np.array([4, 7, 4, 4, 7]), np.array([Role.TRAIN] * 3 + [Role.TEST] * 2, np.int8)
    with pytest.raises(
        LeakageError, match=r"training event 0 is about item 4, which is held out for test.* \(2 more like it\)"
    ):
        leakage.check_held_out(roles, item)


def test_held_out_for_validation_is_held_out_too():
    """A validation item with an event in training is a leak; a user is named as a user."""
    with pytest.raises(LeakageError, match="about user 3, which is held out for validation"):
        leakage.check_held_out(np.array([Role.TRAIN, Role.VALIDATION], np.int8), np.array([3, 3]), "user")


def test_a_file_that_splits_its_users_at_random_is_no_ratio_by_time():
    """An event that trains after the same user's validation event is named with it."""
    roles = np.array([Role.TRAIN, Role.VALIDATION, Role.TRAIN], np.int8)
    with pytest.raises(LeakageError, match=r"training event 2 of user 8 .* comes after validation event 1"):
        leakage.check_order(roles, np.full(3, 8), np.arange(3))


def test_leave_one_out_leaves_exactly_one_out():
    """Two test events of one user, or a user with nothing to learn from, are not this protocol."""
    two = np.array([Role.TRAIN, Role.VALIDATION, Role.TEST, Role.TEST], np.int8)
    with pytest.raises(LeakageError, match="event 1 of user 0 is a validation event"):
        leakage.check_leave_one_out(two, np.zeros(4, int), np.arange(4))
    with pytest.raises(LeakageError, match="event 0 of user 0"):
        leakage.check_leave_one_out(two[1:3], np.zeros(2, int), np.arange(2))


def test_what_is_fitted_on_more_than_training_is_caught():
    """A popularity that counted an event of the test is named with it."""
    roles = np.array([Role.TRAIN, Role.TEST, Role.TRAIN], np.int8)
    leakage.check_fitted(roles, roles == Role.TRAIN, "popularity")
    with pytest.raises(LeakageError, match="popularity is fitted with test event 1"):
        leakage.check_fitted(roles, np.ones(3, bool), "popularity")


def test_history_is_strictly_before_its_label(rng):
    """A history event that was moved to its label's instant, or past it, is found among a thousand."""
    labels = rng.integers(10, 1_000, 1_000) * SECOND_US
    history = labels - rng.integers(1, SECOND_US, 1_000)
    leakage.check_before(history, labels)
    history[417] = labels[417]
    with pytest.raises(LeakageError, match=r"history 417 is of .* not before its label"):
        leakage.check_before(history, labels)


def test_arrays_that_do_not_fit_are_no_leak_but_an_error():
    """Neither is a protocol that does not exist; its message lists those that do."""
    one, two = np.zeros(1, np.int8), np.zeros(2, int)
    with pytest.raises(EvaluationError, match="user has 2 rows, not 1"):
        leakage.check_split("ratio", one, two, two, two)
    with pytest.raises(EvaluationError, match="no protocol 'random'; there are leave_one_out"):
        leakage.check_split("random", one, one, one, one)
