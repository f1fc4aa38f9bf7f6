"""Evaluation protocols: which events are for training, which for validation, which for the test.

Events are flat arrays in the order of the file: user numbers, item numbers, times in us. A protocol gives each event its role; `leakage` checks
what came out, and who is ranked against what (masks, candidates) is left to the caller.
"""

from enum import IntEnum
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ranker.errors import EvaluationError

Ints = NDArray[np.int64]
Roles = NDArray[np.int8]

LEAST_EVENTS: Final = 3  # one to learn from, one for validation, one for the test
TRAIN_UNTIL: Final = 0.8
VALIDATION_UNTIL: Final = 0.9
COLD_SHARE: Final = 0.2


class Role(IntEnum):
    """What an event is for, as int8 in arrays; the order is that of time wherever a protocol has one."""

    TRAIN = 0
    VALIDATION = 1
    TEST = 2
    DROPPED = 3


# As a report states them; masks are the caller's, who states them beside.
STATED: Final = {
    "leave_one_out": "Each user's events by time, ties in the file's order: the last is the test's, the one before it validation's, the rest "
    f"is for training. Users with fewer than {LEAST_EVENTS} events are dropped.",
    "global_time": "All events by time, cut at two instants: the first 80 % train, the next 10 % are validation's, the last 10 % the test's. "
    "All events of one instant are on one side.",
    "ratio": "Each user's events by time, ties in the file's order: the first 80 % train, the next 10 % are validation's, the rest the test's.",
    "cold_items": "A fifth of the items, drawn by a seed, is held out: none of their events is for training.",
    "cold_users": "A fifth of the users, drawn by a seed, is held out: none of their events is for training.",
}


def leave_one_out(user: Ints, time_us: NDArray[Any], *, least_events: int = LEAST_EVENTS) -> Roles:
    """Roles [n]: each user's last event is for the test, the one before for validation; users with too few events are dropped.

    Order is by (user, time), stable in the file's order, which so decides ties for every model alike.
    """
    rank, count = ranks(user, time_us)
    after = count - 1 - rank
    roles = np.select([after == 0, after == 1], [Role.TEST, Role.VALIDATION], Role.TRAIN)
    return np.where(count < least_events, Role.DROPPED, roles).astype(np.int8)


def global_time(
    time_us: NDArray[Any], *, train_until: float = TRAIN_UNTIL, validation_until: float = VALIDATION_UNTIL
) -> Roles:
    """Roles [n] by two instants; the bounds are shares of all events, in order of time.

    All events of an instant have one role, the later one where it lies on a bound: nothing that trains is as late as what is tested.
    """
    _check_bounds(train_until, validation_until)
    times = np.sort(time_us)
    if not len(times):
        return np.zeros(0, np.int8)
    first = np.searchsorted(np.arange(len(times)) / len(times), [train_until, validation_until])
    # A bound at the very end leaves its part empty.
    inside = first[first < len(times)]
    roles = np.searchsorted(times[inside], time_us, side="right").astype(np.int8)
    if not (roles == Role.TRAIN).any():
        raise EvaluationError(
            f"all of the first {first[0] + 1:,} events are of one instant: nothing is left to train on before it"
        )
    return roles


def ratio(
    user: Ints,
    time_us: NDArray[Any],
    *,
    train_until: float = TRAIN_UNTIL,
    validation_until: float = VALIDATION_UNTIL,
) -> Roles:
    """Roles [n] by each event's place among the user's own: rank (from 0) / count below `train_until` trains, and so on.

    Users with few events have no event for the test: with fewer than ten, and the usual bounds.
    """
    _check_bounds(train_until, validation_until)
    rank, count = ranks(user, time_us)
    return np.searchsorted([train_until, validation_until], rank / np.maximum(count, 1), side="right").astype(np.int8)


def cold_items(
    item: Ints, items: int, *, seed: int = 0, share: float = COLD_SHARE, validation_share: float = 0.0
) -> Roles:
    """Roles [n]: events of held-out items are for the test, of some of the others for validation, the rest trains.

    `held_out` says which items those are. They are ranked among the test's items only, by the usual form of this protocol.
    """
    return _cold(item, items, seed, share, validation_share, "item")


def cold_users(
    user: Ints, users: int, *, seed: int = 0, share: float = COLD_SHARE, validation_share: float = 0.0
) -> Roles:
    """Roles [n]: all events of held-out users are for the test, of some others for validation, the rest trains.

    A held-out user's event is judged with what the user did strictly before it as history; only the model has learned nothing from it.
    """
    return _cold(user, users, seed, share, validation_share, "user")


def held_out(
    count: int, *, seed: int = 0, share: float = COLD_SHARE, validation_share: float = 0.0
) -> tuple[Ints, Ints]:
    """(numbers for the test, numbers for validation) among `count` items or users, ascending and disjoint.

    The test's are numpy's `RandomState(seed).choice(count, int(count * share), replace=False)`, so that figures compare with those of others;
    validation's are drawn after them, among the rest, and change nothing about them.
    """
    if not (0 < share < 1 and 0 <= validation_share < 1 - share):
        raise EvaluationError(
            f"shares {share} (test) and {validation_share} (validation) must leave something to train on"
        )
    random = np.random.RandomState(seed)
    test = random.choice(count, int(count * share), replace=False)
    rest = np.setdiff1d(np.arange(count), test)
    validation = random.choice(rest, int(count * validation_share), replace=False)
    return np.sort(test).astype(np.int64), np.sort(validation).astype(np.int64)


def ranks(user: Ints, time_us: NDArray[Any]) -> tuple[Ints, Ints]:
    """(place of each event among its user's by time, from 0, ties in the file's order; number of the user's events) [n]."""
    if len(user) != len(time_us):
        raise EvaluationError(
            f"there are {len(user)} users of events and {len(time_us)} times: they must be one to one"
        )
    order = np.lexsort((time_us, user))
    sorted_user = user[order]
    first = np.searchsorted(sorted_user, sorted_user, side="left")
    rank, count = np.empty(len(user), np.int64), np.empty(len(user), np.int64)
    rank[order] = np.arange(len(user)) - first
    count[order] = np.searchsorted(sorted_user, sorted_user, side="right") - first
    return rank, count


def tied(roles: Roles, user: Ints, time_us: NDArray[Any]) -> int:
    """How many of the test's events share their instant with an earlier-ranked event of the same user: there the file's order decides."""
    order = np.lexsort((time_us, user))
    same = (np.diff(user[order]) == 0) & (np.diff(time_us[order]) == 0)
    return int((same & (roles[order][1:] == Role.TEST)).sum())


def _cold(number: Ints, count: int, seed: int, share: float, validation_share: float, what: str) -> Roles:
    if len(number) and not 0 <= number.min() <= number.max() < count:
        raise EvaluationError(f"{what} numbers must be from 0 to {count - 1}; found {number.min()} to {number.max()}")
    test, validation = held_out(count, seed=seed, share=share, validation_share=validation_share)
    role = np.full(count, Role.TRAIN, np.int8)
    role[test], role[validation] = Role.TEST, Role.VALIDATION
    return role[number]


def _check_bounds(train_until: float, validation_until: float) -> None:
    if not 0 < train_until <= validation_until <= 1:
        raise EvaluationError(f"bounds {train_until} and {validation_until} must ascend and lie in 0..1")
