"""Replies in memory that showed items in places, and what users did with them: planted tastes, a planted effect of the place."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from feature_store.history import Events
from ranker.data import Labels, Split, TrainingSet
from tests.ranker.sets import FOREVER_US, training_set

MINUTE_US = 60_000_000
Row = tuple[str, str, int, str, int, float, float]  # user, reply, item, event type, time, position, propensity


def labels_of(rows: list[Row]) -> Labels:
    """Labels of events, in order of time."""
    rows = sorted(rows, key=lambda row: row[4])
    user, reply, item, kind, time, position, propensity = (list(column) for column in zip(*rows, strict=True))
    ids, values = [f"e{n}" for n in range(len(rows))], np.full(len(rows), np.nan)
    return Labels(
        ids, user, np.asarray(item, np.int64), kind, values, np.asarray(time, np.int64), (), reply,
        np.asarray(position, np.float64), np.asarray(propensity, np.float64),
    )  # fmt: skip


def replies(
    rng: np.random.Generator,
    users: int,
    each: int,
    show: Callable[[], tuple[list[int], list[float]]],
    chance: Callable[[int, list[int]], np.ndarray],
    items: int,
    kinds: int,
    *,
    log_shown: bool = True,
) -> tuple[TrainingSet, Split]:
    """`each` replies to each user a minute apart: what `show` gives (items, propensities), clicked by `chance` (user, items). No test part.

    Without `log_shown` clicks alone are recorded.
    """
    rows: list[Row] = []
    for user in range(users):
        for number in range(each):
            shown, propensity = show()
            clicked = rng.random(len(shown)) < chance(user, shown)
            now = (1 + number) * MINUTE_US + user
            for place, item in enumerate(shown):
                told = (f"u{user:04d}", f"r{number}", item)
                how = (float(place + 1), propensity[place])
                rows += [(*told, "impression", now, *how)] if log_shown else []
                rows += [(*told, "view", now + 1_000 * (1 + place), *how)] if clicked[place] else []
    labels = labels_of(rows)
    ts = replace(training_set(rng, [[0]], items, kinds), labels=labels, events=_clicks(labels))
    few = labels.take(np.flatnonzero(labels.timestamps_us > each * MINUTE_US))
    return ts, Split(labels, few, few, FOREVER_US, FOREVER_US, by_time=False)


def _clicks(labels: Labels) -> dict[str, Events]:
    """All users' events."""
    users = np.asarray(labels.users, object)
    events = {}
    for user in sorted(set(labels.users)):
        at = np.flatnonzero(users == user).tolist()
        ids, names = [labels.event_ids[i] for i in at], [f"i{labels.item_row[i]}" for i in at]
        kinds = [labels.event_types[i] for i in at]
        events[user] = Events(ids, names, kinds, labels.values[at], labels.timestamps_us[at])
    return events
