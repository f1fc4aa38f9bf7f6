"""Users' histories as flat arrays, for losses over all places of a history at once: what lies strictly before each label is a prefix of it.

An event is seen in the version of its item that was valid when it happened.
"""

# Shapes are part of names: E events of all users, U users, B of a batch, L events of one user.

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from feature_store.history import Events
from ranker.data import NO_ROW, Ints, Labels, TrainingSet
from ranker.exposure import attributed, is_shown
from ranker.inputs import Vocabulary, encode_names
from ranker.model import FusionRanker
from ranker.scorer import event_strength


@dataclass(frozen=True)
class Histories:
    """Events of U users, sorted by (user, time), each user's last one a label or before one.

    Attributes:
        users: their names [U].
        starts: where each user's events begin [U + 1].
        row, event, strength, time_us: item row, index of the event's type, how much it speaks for its item, when [E].
        label: whether it is a label to learn from [E].
        before: how many of the user's events lie strictly before it [E].
        device, propensity: of labels, index of the device it happened on, 0 where that is not known, and with which chance the item was
            shown, NaN where that is not known [E].
    """

    users: list[str]
    starts: Ints
    row: Ints
    event: Ints
    strength: NDArray[np.float32]
    time_us: Ints
    label: NDArray[np.bool_]
    before: Ints
    device: Ints
    propensity: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.users)

    @property
    def lengths(self) -> Ints:
        """Events of each user [U]."""
        return np.diff(self.starts)

    @classmethod
    def of(
        cls, ts: TrainingSet, labels: Labels, model: FusionRanker, vocabulary: Vocabulary, *, newest: int | None = None
    ) -> "Histories":
        """Histories up to each user's last positive label of an item that was new; of the `newest` events where that is given."""
        good = set(labels.take(np.flatnonzero(labels.positive(model.config))).event_ids)
        users = sorted(set(labels.users))
        parts = [part for part in (_flatten(ts, user, good, newest) for user in users) if len(part.row)]
        kinds = [kind for part in parts for kind in part.kept.event_types]
        values = np.concatenate([np.zeros(0), *(part.kept.values for part in parts)])
        device_of = dict(zip(labels.event_ids, labels.devices, strict=True)) if labels.devices else {}
        shown = attributed(labels).propensities
        chance_of = {} if shown is None else dict(zip(labels.event_ids, shown.tolist(), strict=True))
        chances = [chance_of.get(event_id, np.nan) for part in parts for event_id in part.kept.event_ids]
        devices = [device_of.get(event_id) for part in parts for event_id in part.kept.event_ids]
        return cls(
            [part.user for part in parts],
            np.cumsum([0, *(len(part.row) for part in parts)]).astype(np.int64),
            _joined([part.row for part in parts]),
            encode_names(kinds, vocabulary.event_index, len(kinds)).cpu().numpy(),
            event_strength(model, kinds, values).cpu().numpy(),
            _joined([part.kept.timestamps_us for part in parts]),
            _joined([part.label for part in parts]).astype(bool),
            _joined([part.before for part in parts]),
            encode_names(devices, vocabulary.device_index, len(devices)).cpu().numpy(),
            np.asarray(chances, np.float64),
        )

    def padded(self, at: Ints) -> tuple[Ints, NDArray[np.bool_]]:
        """Numbers of events [B, L] of users `at`, oldest first, and which of them are there; padding is at the end."""
        lengths = self.lengths[at]
        column = np.arange(int(lengths.max()))[None]
        there = column < lengths[:, None]
        return np.where(there, self.starts[at][:, None] + column, 0), there


def _joined(parts: list[Ints]) -> Ints:
    return np.concatenate([np.zeros(0, np.int64), *parts])


@dataclass(frozen=True)
class _Part:
    """One user's events up to the last label: rows, whether they are labels, how many lie strictly before, and the events."""

    user: str
    row: Ints
    label: Ints
    before: Ints
    kept: Events


def _flatten(ts: TrainingSet, user: str, good: set[str], newest: int | None) -> _Part:
    events = ts.events[user]
    items = ts.items.numbers(events.item_ids)
    rows = ts.items.rows_at(items, events.timestamps_us)
    label = np.asarray([event_id in good for event_id in events.event_ids], bool)
    known = np.flatnonzero(rows != NO_ROW)
    met = known[~is_shown([events.event_types[i] for i in known])]
    first = np.zeros(len(items), bool)
    first[met] = _first_time(items[met], events.timestamps_us[met])
    label = (label & first)[known]
    end = int(np.flatnonzero(label)[-1]) + 1 if label.any() else 0
    window = slice(0 if newest is None else max(0, end - newest), end)
    kept = events.take(known[window])
    before = np.searchsorted(kept.timestamps_us, kept.timestamps_us, side="left")
    return _Part(user, rows[known[window]], label[window].astype(np.int64), before, kept)


def _first_time(items: Ints, times: Ints) -> NDArray[np.bool_]:
    """Which events [n] are about an item that the user had not met strictly before."""
    first: dict[int, int] = {}
    for item, t in zip(items.tolist(), times.tolist(), strict=True):
        first.setdefault(item, t)
    return np.asarray([first[item] == t for item, t in zip(items.tolist(), times.tolist(), strict=True)], bool)
