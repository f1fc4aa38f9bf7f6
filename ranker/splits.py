"""A training set split by a protocol: which labels train, choose and test, what of the rest training may read, and what the test is judged by.

`protocols` makes the roles and `leakage` checks them; here they meet histories, item versions and popularity. By `time` training reads the whole
set, since all that it counts is counted up to an instant; by every other protocol it reads a copy without what is held out.
"""

# Shapes are part of names: I items, R item versions.

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from feature_store.history import Events
from ranker import leakage, protocols
from ranker.config import RankerConfig
from ranker.data import NO_ROW, Ints, Labels, Split, TrainingSet, time_split
from ranker.errors import EvaluationError, TooFewError
from ranker.protocols import Role, Roles
from ranker.resume import events_digest, labels_digest, names_digest

BY_TIME: Final = "time"
PROTOCOLS: Final[Mapping[str, str]] = {  # by the names of the command line: those of `protocols` and `leakage`
    BY_TIME: "global_time",
    "leave-one-out": "leave_one_out",
    "ratio": "ratio",
    "cold-items": "cold_items",
    "cold-users": "cold_users",
}
VALIDATION_SHARE: Final = 0.1  # of items or users that are held out beside the test's fifth
NEVER_US: Final = 2**62


@dataclass(frozen=True)
class HeldOut:
    """What a model is judged on.

    Attributes:
        protocol: by which it was held out.
        ts: the whole set; where the protocol lets the file's order decide ties, events that tied are microseconds apart.
        labels: the test's.
        learned: events that a model could learn from, by user.
        candidates: item rows that are ranked; None for all.
        likes: likes of each item in training's labels [I]; None where popularity is counted up to each label.
    """

    protocol: str
    ts: TrainingSet
    labels: Labels
    learned: Mapping[str, Events]
    candidates: Ints | None = None
    likes: Ints | None = None

    @cached_property
    def learned_counts(self) -> tuple[Ints, int]:
        """(how many users met each item in what could be learned from [I], how many users met any)."""
        return _met(self.ts, self.learned)


@dataclass(frozen=True)
class Plan:
    """A split by a protocol: roles of `ts.labels`, the split, and the set that training reads in place of `ts`."""

    protocol: str
    ts: TrainingSet
    roles: Roles
    split: Split
    training: TrainingSet
    candidates: Ints | None = None

    def held_out(self, config: RankerConfig) -> HeldOut:
        """What the test is judged by."""
        if self.protocol == BY_TIME:
            return _later(self.ts, self.split.test_start_us)
        train = self.split.train
        liked = train.item_row[train.positive(config)]
        likes = np.bincount(self.ts.items.item_R[liked], minlength=len(self.ts.items.names))
        return HeldOut(self.protocol, self.ts, self.split.test, self.training.events, self.candidates, likes)


def check_protocol(name: str) -> str:
    """The name, if it is a protocol's; else `EvaluationError`."""
    if name not in PROTOCOLS:
        raise EvaluationError(f"there is no protocol {name!r}; choose one of {', '.join(PROTOCOLS)}")
    return name


def plan_split(ts: TrainingSet, protocol: str, config: RankerConfig, seed: int, roles: Roles | None = None) -> Plan:
    """Split by a protocol; `roles` of the labels are made by it, unless they are given.

    Raises `LeakageError` where roles are not what the protocol promises, `TooFewError` where a part is empty.
    """
    check_protocol(protocol)
    if protocol == BY_TIME:
        return _by_time(ts, roles)
    if protocol in ("leave-one-out", "ratio"):
        ts = untied(ts)
    roles = _roles(ts, protocol, config, seed) if roles is None else roles
    _check(ts, protocol, roles)
    parts = [ts.labels.take(np.flatnonzero(roles == role)) for role in (Role.TRAIN, Role.VALIDATION, Role.TEST)]
    if not all(len(part) for part in parts):
        counts = ", ".join(f"{len(part)} for {what}" for part, what in zip(parts, _PARTS, strict=True))
        raise TooFewError(f"by the protocol {protocol} there are labels {counts}: each needs some")
    training, test_rows, validation_rows = _visible(ts, protocol, roles, seed)
    end_us = int(ts.labels.timestamps_us.max()) + 1
    split = Split(parts[0], parts[1], parts[2], end_us, end_us, by_time=False, candidates=validation_rows)
    return Plan(protocol, ts, roles, split, training, test_rows)


_PARTS: Final = ("training", "validation", "the test")


def held_out_of(ts: TrainingSet, manifest: Mapping[str, Any], config: RankerConfig) -> HeldOut:
    """What a checkpoint's training left for the test, by its manifest.

    Raises `EvaluationError` where labels, events or items are no longer those that were split: which labels it has learned from is then unknown.
    """
    made = manifest.get("protocol") or {"name": BY_TIME}
    if made["name"] == BY_TIME:  # whatever was added since lies on one side of that instant
        return _later(ts, int(manifest["data"]["test_start_us"]))
    here = describe(ts, made["name"], int(made["seed"]))
    differ = [what for what in ("labels", "events", "items") if here[what] != made[what]]
    if differ:
        raise EvaluationError(
            f"the {' and '.join(differ)} of this training set are not those that {manifest['model_id']} was split by ({made['name']}): restore the "
            "folder that it was trained on, or train again"
        )
    return plan_split(ts, made["name"], config, int(made["seed"])).held_out(config)


def describe(ts: TrainingSet, protocol: str, seed: int) -> dict[str, Any]:
    """What the manifest says of the protocol, from which `held_out_of` finds the same test."""
    found = {"name": protocol, "seed": seed}
    if protocol != BY_TIME:
        found |= {"labels": labels_digest(ts, ts.labels), "events": events_digest(ts), "items": names_digest(ts)}
    return found


# ---- by time -----------------------------------------------------------------------------------------------------------


def _by_time(ts: TrainingSet, roles: Roles | None) -> Plan:
    split = time_split(ts.labels)
    cuts = [split.train_end_us, split.test_start_us]
    made = np.searchsorted(cuts, ts.labels.timestamps_us, side="right").astype(np.int8)
    roles = made if roles is None else roles
    _check(ts, BY_TIME, roles)
    if not np.array_equal(roles, made):
        raise EvaluationError(
            f"the roles given are not those of the protocol {BY_TIME}, which cuts at 70 and 80 %: leave them out"
        )
    return Plan(BY_TIME, ts, roles, split, ts)


def _later(ts: TrainingSet, start_us: int) -> HeldOut:
    labels = ts.labels.take(np.flatnonzero(ts.labels.timestamps_us >= start_us))
    before = {user: np.flatnonzero(events.timestamps_us < start_us) for user, events in ts.events.items()}
    return HeldOut(BY_TIME, ts, labels, {user: ts.events[user].take(rows) for user, rows in before.items()})


# ---- roles -------------------------------------------------------------------------------------------------------------


def _roles(ts: TrainingSet, protocol: str, config: RankerConfig, seed: int) -> Roles:
    user, item, time_us = _arrays(ts)
    if protocol == "cold-items":
        return protocols.cold_items(item, len(ts.items.names), seed=seed, validation_share=VALIDATION_SHARE)
    if protocol == "cold-users":
        return protocols.cold_users(user, int(user.max()) + 1, seed=seed, validation_share=VALIDATION_SHARE)
    judged = _new_likes(ts, config)
    roles = np.full(len(user), Role.DROPPED, np.int8)
    make = protocols.leave_one_out if protocol == "leave-one-out" else protocols.ratio
    roles[judged] = make(user[judged], time_us[judged])
    return _with_the_rest(roles, judged, user)


def _with_the_rest(roles: Roles, judged: NDArray[np.bool_], user: Ints) -> Roles:
    """Roles of the labels that nobody is judged by (dislikes, items met again): those before a user's first held-out one train, the rest is dropped."""
    at, users = np.arange(len(roles)), int(user.max(initial=-1)) + 1
    first, learns = np.full(users, len(roles)), np.zeros(users, bool)
    held = np.flatnonzero(judged & (roles != Role.TRAIN))
    np.minimum.at(first, user[held], held)
    learns[user[judged & (roles == Role.TRAIN)]] = True
    rest = np.where(learns[user] & (at < first[user]), Role.TRAIN, Role.DROPPED)
    return np.where(judged, roles, rest).astype(np.int8)


def _new_likes(ts: TrainingSet, config: RankerConfig) -> NDArray[np.bool_]:
    """Which labels [n] can be judged: they like an item that the user had not met before."""
    first = {event_id for events in ts.events.values() for event_id in _first_meetings(events)}
    new = np.asarray([event_id in first for event_id in ts.labels.event_ids], bool)
    return np.asarray(ts.labels.positive(config) & new)


def _first_meetings(events: Events) -> Iterable[str]:
    pairs = zip(reversed(events.item_ids), reversed(events.event_ids), strict=True)
    return dict(pairs).values()  # the last one stays, and that is the first event


def _arrays(ts: TrainingSet) -> tuple[Ints, Ints, Ints]:
    """(user numbers by sorted name, item numbers, times in us) of the labels, in the order of the file."""
    user = np.unique(np.asarray(ts.labels.users, object), return_inverse=True)[1]
    return user.astype(np.int64), ts.items.item_R[ts.labels.item_row], ts.labels.timestamps_us


def _check(ts: TrainingSet, protocol: str, roles: Roles) -> None:
    user, item, time_us = _arrays(ts)
    leakage.check_split(PROTOCOLS[protocol], roles, user, item, time_us)


# ---- ties --------------------------------------------------------------------------------------------------------------


def untied(ts: TrainingSet) -> TrainingSet:
    """The set with each user's events in order and at least a microsecond apart: ties are decided by event_id, for every model alike.

    Only what ties is moved, and what would tie with it then.
    """
    events = {user: _apart(one) for user, one in ts.events.items()}
    when = {
        event_id: t
        for one in events.values()
        for event_id, t in zip(one.event_ids, one.timestamps_us.tolist(), strict=True)
    }
    times = np.asarray([when[event_id] for event_id in ts.labels.event_ids], np.int64)
    rows = ts.items.rows_at(ts.items.item_R[ts.labels.item_row], times)
    moved = replace(ts.labels, timestamps_us=times, item_row=np.where(rows == NO_ROW, ts.labels.item_row, rows))
    return replace(ts, events=events, labels=moved.take(np.argsort(times, kind="stable")))


def _apart(events: Events) -> Events:
    order = np.lexsort((np.asarray(events.event_ids, object), events.timestamps_us))
    ordered, place = events.take(order), np.arange(len(events))
    return replace(ordered, timestamps_us=np.maximum.accumulate(ordered.timestamps_us - place) + place)


# ---- what training may read ----------------------------------------------------------------------------------------------


def _visible(ts: TrainingSet, protocol: str, roles: Roles, seed: int) -> tuple[TrainingSet, Ints | None, Ints | None]:
    """(the set without what is held out; item rows that the test ranks; those that validation ranks), None for all."""
    hidden: tuple[Role, ...] = (Role.TEST,)
    test_rows = validation_rows = None
    if protocol == "cold-items":
        hidden = (Role.VALIDATION, Role.TEST)
        drawn = protocols.held_out(len(ts.items.names), seed=seed, validation_share=VALIDATION_SHARE)
        test_rows, validation_rows = (np.flatnonzero(np.isin(ts.items.item_R, items)) for items in drawn)
        training = _without_items(ts, *drawn)
    elif protocol == "cold-users":
        held = {ts.labels.users[at] for at in np.flatnonzero(roles == Role.TEST)}
        kept = {user: events for user, events in ts.events.items() if user not in held}
        profiles = {user: profile for user, profile in ts.profiles.items() if user not in held}
        training = replace(ts, events=kept, profiles=profiles)
    else:
        training = replace(ts, events=_before_the_test(ts, roles))
    read = {event_id for events in training.events.values() for event_id in events.event_ids}
    used = np.asarray([event_id in read for event_id in ts.labels.event_ids], bool)
    leakage.check_hidden(roles, used, hidden, "a history of training")
    return training, test_rows, validation_rows


def _without_items(ts: TrainingSet, test: Ints, validation: Ints) -> TrainingSet:
    """Without events of held-out items; the test's are never there, so that nothing is fitted on their content either."""
    names = {ts.items.names[i] for i in np.concatenate([test, validation])}
    events = {
        user: one.take([at for at, item in enumerate(one.item_ids) if item not in names])
        for user, one in ts.events.items()
    }
    since = np.where(np.isin(ts.items.item_R, test), NEVER_US, ts.items.valid_from_R)
    return replace(ts, events=events, items=replace(ts.items, valid_from_R=since))


def _before_the_test(ts: TrainingSet, roles: Roles) -> dict[str, Events]:
    """Each user's events up to the first of the test."""
    first: dict[str, int] = {}
    for at in np.flatnonzero(roles == Role.TEST).tolist():
        first.setdefault(ts.labels.users[at], int(ts.labels.timestamps_us[at]))
    return {
        user: events.take(np.flatnonzero(events.timestamps_us < first.get(user, NEVER_US)))
        for user, events in ts.events.items()
    }


def _met(ts: TrainingSet, learned: Mapping[str, Events]) -> tuple[Ints, int]:
    counts, users = np.zeros(len(ts.items.names), np.int64), 0
    for events in learned.values():
        known = [ts.items.index[item] for item in set(events.item_ids) if item in ts.items.index]
        counts[known] += 1
        users += bool(known)
    return counts, users
