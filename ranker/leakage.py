"""Guards against leakage: whether what a model may learn from has anything of the test or of the future in it.

Each guard either returns or raises `LeakageError`, which names the first offender in the order of the file. They check roles, however those were
made: a file's own split, a cache, or a protocol of `protocols`. `check_training_set` is of a whole set, also one that was made by hand.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from ranker.errors import EvaluationError, LeakageError, RankerError, TrainingSetError
from ranker.protocols import Ints, Role, Roles, ranks

if TYPE_CHECKING:
    from ranker.data import TrainingSet  # brings torch, which calibration does without

Times = NDArray[Any]
Flags = NDArray[np.bool_]
_NAMES: Final = {Role.TRAIN: "training", Role.VALIDATION: "validation", Role.TEST: "test", Role.DROPPED: "dropped"}


def check_split(protocol: str, roles: Roles, user: Ints, item: Ints, time_us: Times) -> None:
    """Check roles [n] as the protocol of that name promises them; raises `LeakageError`, or `EvaluationError` for a name that is none."""
    guards: dict[str, Callable[[], None]] = {
        "leave_one_out": lambda: check_leave_one_out(roles, user, time_us),
        "global_time": lambda: check_global_time(roles, time_us),
        "ratio": lambda: check_order(roles, user, time_us),
        "cold_items": lambda: check_held_out(roles, item, "item"),
        "cold_users": lambda: check_held_out(roles, user, "user"),
    }
    if protocol not in guards:
        raise EvaluationError(f"there is no protocol {protocol!r}; there are {', '.join(guards)}")
    _check_lengths(roles, user=user, item=item, time_us=time_us)
    guards[protocol]()


def check_global_time(roles: Roles, time_us: Times) -> None:
    """Everything that trains is strictly before everything of validation, and that before everything of the test."""
    for early, late in ((Role.TRAIN, Role.TEST), (Role.TRAIN, Role.VALIDATION), (Role.VALIDATION, Role.TEST)):
        if (roles == late).any():
            _check_earlier(roles, time_us, early, late)


def _check_earlier(roles: Roles, time_us: Times, early: Role, late: Role) -> None:
    of_late = np.flatnonzero(roles == late)
    first = of_late[np.argmin(time_us[of_late])]
    _refuse(
        (roles == early) & (time_us >= time_us[first]),
        lambda at: (
            f"{_NAMES[early]} event {at} ({instant(time_us[at])}) is not before {_NAMES[late]} event {first} ({instant(time_us[first])}): "
            "cut by time, with all events of one instant on one side"
        ),
    )


def check_order(roles: Roles, user: Ints, time_us: Times) -> None:
    """Each user's events go from training over validation to the test, by time and, where times tie, in the file's order."""
    kept = np.flatnonzero(roles != Role.DROPPED)
    order = kept[np.lexsort((time_us[kept], user[kept]))]
    back = (np.diff(user[order]) == 0) & (np.diff(roles[order].astype(np.int64)) < 0)
    wrong = np.zeros(len(roles), bool)
    wrong[order[1:][back]] = True
    previous = np.zeros(len(roles), np.int64)
    previous[order[1:]] = order[:-1]
    _refuse(
        wrong,
        lambda at: (
            f"{_name(roles[at])} event {at} of user {user[at]} ({instant(time_us[at])}) comes after {_name(roles[previous[at]])} event "
            f"{previous[at]} ({instant(time_us[previous[at]])}): order the user's events by time, ties as in the file, before splitting"
        ),
    )


def check_leave_one_out(roles: Roles, user: Ints, time_us: Times) -> None:
    """As `check_order`, and each user that is not dropped has one event in the test, one in validation, and any to learn from."""
    check_order(roles, user, time_us)
    kept = np.flatnonzero(roles != Role.DROPPED)
    rank, count = ranks(user[kept], time_us[kept])
    after = count - 1 - rank
    meant = np.select([after == 0, after == 1], [Role.TEST, Role.VALIDATION], Role.TRAIN)
    wrong = np.zeros(len(roles), bool)
    wrong[kept] = (meant != roles[kept]) | (count < len(_NAMES) - 1)
    _refuse(
        wrong,
        lambda at: (
            f"event {at} of user {user[at]} is a {_name(roles[at])} event, but a user's last one is for the test, the one before for "
            "validation, and some must be left to learn from: use `protocols.leave_one_out`"
        ),
    )


def check_held_out(roles: Roles, number: Ints, what: str = "item") -> None:
    """No item (or user) of the test has an event in training or validation, and none of validation has one in training."""
    for late in (Role.TEST, Role.VALIDATION):
        _check_none_earlier(roles, number, late, what)


def _check_none_earlier(roles: Roles, number: Ints, late: Role, what: str) -> None:
    held = np.unique(number[roles == late])
    _refuse(
        (roles < late) & np.isin(number, held),
        lambda at: (
            f"{_name(roles[at])} event {at} is about {what} {number[at]}, which is held out for {_NAMES[late]}: all events of a held-out "
            f"{what} must be on one side"
        ),
    )


def check_fitted(roles: Roles, used: Flags, what: str) -> None:
    """What was fitted (a scaler, popularity, a prior) used training events alone; `used` says which events [n] it read."""
    _check_lengths(roles, used=used)
    _refuse(
        used & (roles != Role.TRAIN),
        lambda at: f"{what} is fitted with {_name(roles[at])} event {at}: fit it on the training events alone",
    )


def check_hidden(roles: Roles, used: Flags, hidden: tuple[Role, ...], what: str) -> None:
    """None of the events with a role of `hidden` was read; `used` says which events [n] were."""
    _check_lengths(roles, used=used)
    _refuse(
        used & np.isin(roles, hidden),
        lambda at: f"{what} has {_name(roles[at])} event {at} in it: take out what is held out before training",
    )


def check_training_set(ts: "TrainingSet") -> None:
    """Each label is an event of its user, at the same instant and about the same item, and its item version was there strictly before it.

    Raises `LeakageError`, or `TrainingSetError` for what is no leak but cannot be used either.
    """
    labels, items = ts.labels, ts.items
    _check_labels_are_events(ts)
    since, until, t = items.valid_from_R[labels.item_row], items.valid_to_R[labels.item_row], labels.timestamps_us
    _refuse(
        since >= t,
        lambda at: (
            f"label {labels.event_ids[at]!r} at {instant(t[at])} is given version {labels.item_row[at]} of its item, which is true only after {instant(since[at])}: "
            "a label may see only what was true strictly before it; name an older version, or leave the label out"
        ),
    )
    _refuse(
        until < t,
        lambda at: (
            f"label {labels.event_ids[at]!r} at {instant(t[at])} is given version {labels.item_row[at]} of its item, which ended at {instant(until[at])}: "
            "name the version that was true at the label"
        ),
        TrainingSetError,
    )
    _check_versions(ts)


def _check_labels_are_events(ts: "TrainingSet") -> None:
    """A label's event that is dated otherwise than the label would stand in the label's own history."""
    labels, items = ts.labels, ts.items
    found = {
        event_id: (user, item, int(t))
        for user, events in ts.events.items()
        for event_id, item, t in zip(events.event_ids, events.item_ids, events.timestamps_us, strict=True)
    }
    names = [items.names[i] for i in items.item_R[labels.item_row]]
    for event_id, user, item, t in zip(labels.event_ids, labels.users, names, labels.timestamps_us, strict=True):
        event = found.get(event_id)
        if event is None:
            raise TrainingSetError(
                f"label {event_id!r} is no event: events.parquet needs every label too, under the same event_id"
            )
        if event[:2] != (user, item):
            raise TrainingSetError(
                f"label {event_id!r} is of user {user!r} and item {item!r}, but its event of user {event[0]!r} and item {event[1]!r}: both must agree"
            )
        if event[2] != t:
            raise LeakageError(
                f"label {event_id!r} is of {instant(t)}, but its event of {instant(event[2])}: the label could be in its own history; both need one time"
            )


def _check_versions(ts: "TrainingSet") -> None:
    """No two versions of an item are true at once, and none ends before it begins."""
    items = ts.items
    order = np.lexsort((items.valid_from_R, items.item_R))
    since, until, item = items.valid_from_R[order], items.valid_to_R[order], items.item_R[order]
    overlap = np.append((item[1:] == item[:-1]) & (until[:-1] > since[1:]), np.zeros(min(1, len(item)), bool))
    _refuse(
        overlap | (until < since),
        lambda at: (
            f"version {order[at]} of item {items.names[item[at]]!r} is true after {instant(since[at])} and up to {instant(until[at])}, at "
            "once with the item's next version, or never: versions of one item must follow each other"
        ),
        TrainingSetError,
    )


def check_before(input_us: Times, label_us: Times, what: str = "history") -> None:
    """Each input's time is strictly before its label's [n]: what ties with the label is out too.

    For histories, flatten them: a row for each (history event, label) pair.
    """
    _check_lengths(label_us, **{what: input_us})
    _refuse(
        np.asarray(input_us >= label_us),
        lambda at: (
            f"{what} {at} is of {instant(input_us[at])}, which is not before its label at {instant(label_us[at])}: "
            "take only what is strictly before a label"
        ),
    )


def check_only(roles: Roles, allowed: Role, what: str) -> None:
    """All events [n] have the role `allowed`: calibration, for one, is fitted on validation."""
    _refuse(
        np.asarray(roles != allowed),
        lambda at: f"{what} is given {_name(roles[at])} event {at}: it takes {_NAMES[allowed]} events alone",
    )


def instant(time_us: Any) -> str:
    """A time in us since 1970, as ISO 8601 in UTC."""
    return f"{np.datetime64(int(time_us), 'us')}Z"


def _name(role: Any) -> str:
    return _NAMES[Role(int(role))]


def _refuse(wrong: Flags, message: Callable[[int], str], kind: type[RankerError] = LeakageError) -> None:
    """Raise for the first offender, and say how many there are."""
    offenders = np.flatnonzero(wrong)
    if len(offenders):
        more = f" ({len(offenders) - 1:,} more like it)" if len(offenders) > 1 else ""
        raise kind(message(int(offenders[0])) + more)


def _check_lengths(first: NDArray[Any], **others: NDArray[Any]) -> None:
    for name, array in others.items():
        if len(array) != len(first):
            raise EvaluationError(
                f"{name} has {len(array)} rows, not {len(first)}: arrays of events must be one to one"
            )
