"""What users were shown, where, and how likely: weights that undo a logging policy, and the replies that a click's absence speaks of.

Numpy only; `run` makes the losses. Nothing of it is read when serving.
"""

# Shapes are part of names: n labels, G replies, S shown items.
# ruff: noqa: N806

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ranker.config import RankerConfig
from ranker.data import Ints, Labels

SHOWN_EVENTS: Final = ("impression", "skip")  # say that an item was shown, and nothing that the user did with it
ATTRIBUTION_HOURS: Final = 24  # what is done later is no answer to the impression
HOUR_US: Final = 3_600_000_000
MAX_INVERSE_PROPENSITY: Final = 20.0  # a rarer item would carry a batch alone: some bias for far less variance
POSITION_BUCKETS: Final = 10  # 0: not known; then 1, 2-3, 4-7 ... and all from 256


def weights(propensities: NDArray[np.float64] | None) -> NDArray[np.float32] | None:
    """Clipped inverse propensities [n] with mean 1 over those that are known; 1 where it is not (NaN), None where none is.

    Self-normalised inverse propensity scoring (Swaminathan and Joachims, The self-normalized estimator for counterfactual
    learning, NeurIPS 2015).
    """
    if propensities is None or not (known := np.isfinite(propensities)).any():
        return None
    inverse = np.minimum(1.0 / np.where(known, propensities, 1.0), MAX_INVERSE_PROPENSITY)
    return np.where(known, inverse / inverse[known].mean(), 1.0).astype(np.float32)


def position_bucket(positions: NDArray[np.float64]) -> Ints:
    """Logarithmic buckets [n] of positions from 1; 0 where they are not known."""
    bucket = 1 + np.floor(np.log2(np.where(np.isfinite(positions), positions, 1.0)))
    return np.where(np.isfinite(positions), np.minimum(bucket, POSITION_BUCKETS - 1), 0).astype(np.int64)


def is_shown(event_types: list[str]) -> NDArray[np.bool_]:
    """Which events [n] only say that an item was shown."""
    return np.asarray([kind in SHOWN_EVENTS for kind in event_types], bool)


def attributed(labels: Labels) -> Labels:
    """The labels, but those that came more than `ATTRIBUTION_HOURS` after their reply was shown know nothing of it any more."""
    if not labels.impressions:
        return labels
    known, reply, shown = _replies(labels)
    first_G = np.full(int(reply.max(initial=-1)) + 1, np.iinfo(np.int64).max)
    np.minimum.at(first_G, reply[shown], labels.timestamps_us[known[shown]])
    # Counted down from the label: a reply of which no showing was recorded has the last of all instants.
    late = known[labels.timestamps_us[known] - ATTRIBUTION_HOURS * HOUR_US > first_G[reply]]
    gone = np.isin(np.arange(len(labels)), late)
    return replace(
        labels,
        impressions=["" if out else name for out, name in zip(gone, labels.impressions, strict=True)],
        positions=None if labels.positions is None else np.where(gone, np.nan, labels.positions),
        propensities=None if labels.propensities is None else np.where(gone, np.nan, labels.propensities),
    )


@dataclass(frozen=True)
class Impressions:
    """G replies that showed S items.

    Attributes:
        label: of each reply the first label, whose user and instant are the reply's [G].
        reply: of which reply each shown item was [S], ascending.
        row, position, clicked: its row, its place (from 1, NaN where not known), whether the user came to like it [S].
    """

    label: Ints
    reply: Ints
    row: Ints
    position: NDArray[np.float64]
    clicked: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.label)

    @classmethod
    def of(cls, labels: Labels, config: RankerConfig) -> "Impressions":
        """The replies of which at least one `SHOWN_EVENTS` was recorded; others may have shown what nobody wrote down."""
        labels = attributed(labels)
        known, reply, shown = _replies(labels)
        told = np.isin(reply, reply[shown])
        known, (_, first, reply) = known[told], np.unique(reply[told], return_index=True, return_inverse=True)
        pairs = np.stack([reply, labels.item_row[known]])
        (of_S, row_S), inverse = np.unique(pairs, axis=1, return_inverse=True)
        position_S, clicked_S = np.full(len(of_S), np.nan), np.zeros(len(of_S), bool)
        if labels.positions is not None:
            np.fmin.at(position_S, inverse, labels.positions[known])
        np.logical_or.at(clicked_S, inverse, labels.positive(config)[known])
        return cls(known[first], of_S, row_S, position_S, clicked_S)

    def shown(self, at: Ints) -> tuple[Ints, Ints]:
        """Of replies `at`: the place in `at` of each shown item's reply, and the item's number, both [S]."""
        starts, ends = np.searchsorted(self.reply, at), np.searchsorted(self.reply, at, side="right")
        number = np.concatenate([np.zeros(0, np.int64), *map(np.arange, starts, ends)])
        return np.repeat(np.arange(len(at)), ends - starts), number


def _replies(labels: Labels) -> tuple[Ints, Ints, NDArray[np.bool_]]:
    """Labels that know their impression [m], the number of its reply [m], and which only say that the item was shown [m]."""
    known = np.flatnonzero([bool(name) for name in labels.impressions]).astype(np.int64)
    keys = [f"{labels.users[i]}\0{labels.impressions[i]}" for i in known.tolist()]
    reply = np.unique(np.asarray(keys, object), return_inverse=True)[1].astype(np.int64)
    return known, reply, is_shown([labels.event_types[i] for i in known.tolist()])
