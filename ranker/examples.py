"""Training examples: for each label, what lies strictly before it; and batches of them as the model reads them.

Histories come from `history_as_of`, the function that serving uses, and an item is seen in the version valid at the label.
"""

# Shapes are part of names: n examples, B of a batch, L events, C candidates, R item versions, I items.
# ruff: noqa: N803, N806, N815

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from feature_store.history import Events, history_as_of
from ranker.data import NO_ROW, Ints, Labels, TrainingSet
from ranker.exposure import attributed, is_shown
from ranker.inputs import History, Vocabulary, encode_names, tensor_of
from ranker.inputs import Items as Encoded
from ranker.model import FusionRanker
from ranker.scorer import SECOND_US, event_strength


@dataclass(frozen=True)
class Examples:
    """n labels with their histories as item rows, padded at the end by `NO_ROW`, and all items met before (`seen`)."""

    labels: Labels
    row_nL: Ints
    event_nL: Tensor
    strength_nL: Tensor
    time_nL: Ints
    seen: list[Ints]
    device_n: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def history(self, at: Ints, items: Encoded, position_of_row: Ints) -> History:
        """Histories of examples `at`, from encoded `items`; `position_of_row` [R] says where in them a row is."""
        row_BL = self.row_nL[at]
        row_BL = row_BL[:, : max(1, int((row_BL != NO_ROW).sum(1).max()))]
        width = row_BL.shape[1]
        mask_BL = tensor_of(row_BL != NO_ROW)
        met = items.take(tensor_of(position_of_row[np.maximum(row_BL, 0)]))
        age_BL = (self.labels.timestamps_us[at][:, None] - self.time_nL[at, :width]) / SECOND_US
        return History(
            met.content_NMK * mask_BL[..., None, None],
            met.token_ND * mask_BL[..., None],
            met.feature_NF * mask_BL[..., None],
            met.index_N * mask_BL,
            mask_BL,
            self.event_nL[at, :width],
            self.strength_nL[at, :width],
            tensor_of(age_BL),
        )

    def seen_mask(self, at: Ints, items_C: Ints, n_items: int) -> NDArray[np.bool_]:
        """Which candidate items [B, C] each user had met before the label."""
        seen_BI = np.zeros((len(at), n_items), bool)
        for b, i in enumerate(at):
            seen_BI[b, self.seen[i]] = True
        return seen_BI[:, items_C]


def build_examples(ts: TrainingSet, labels: Labels, model: FusionRanker, vocabulary: Vocabulary) -> Examples:
    """Examples of all positive labels of items that were new to their user; to have been shown one is not to have met it."""
    labels = attributed(labels)
    parts = [
        _Before.of(ts, labels, int(i), model.config.history_length)
        for i in np.flatnonzero(labels.positive(model.config))
    ]
    return _of([part for part in parts if part.target_item not in part.seen], labels, model, vocabulary)


def examples_at(ts: TrainingSet, labels: Labels, at: Ints, model: FusionRanker, vocabulary: Vocabulary) -> Examples:
    """Examples of the labels at `at`, whatever they are."""
    parts = [_Before.of(ts, labels, int(i), model.config.history_length) for i in at]
    return _of(parts, labels, model, vocabulary)


def _of(parts: "list[_Before]", labels: Labels, model: FusionRanker, vocabulary: Vocabulary) -> Examples:
    lengths = np.asarray([len(part.rows) for part in parts], np.int64)
    filled = np.arange(model.config.history_length)[None] < lengths[:, None]
    kinds = [kind for part in parts for kind in part.events.event_types]
    values = np.concatenate([np.zeros(0), *(part.events.values for part in parts)])
    row_nL = np.full(filled.shape, NO_ROW)
    row_nL[filled] = np.concatenate([np.zeros(0, np.int64), *(part.rows for part in parts)])
    time_nL = np.repeat(labels.timestamps_us[[part.label for part in parts]][:, None], filled.shape[1], axis=1)
    time_nL[filled] = np.concatenate([np.zeros(0, np.int64), *(part.events.timestamps_us for part in parts)])
    event_nL = torch.zeros(filled.shape, dtype=torch.long)
    event_nL[tensor_of(filled)] = encode_names(kinds, vocabulary.event_index, len(kinds))
    strength_nL = torch.zeros(filled.shape)
    strength_nL[tensor_of(filled)] = event_strength(model, kinds, values)
    kept = labels.take(np.asarray([part.label for part in parts], np.int64))
    device_n = encode_names(kept.devices or None, vocabulary.device_index, len(kept))
    return Examples(kept, row_nL, event_nL, strength_nL, time_nL, [part.seen for part in parts], device_n)


@dataclass(frozen=True)
class _Before:
    """What lies before one label."""

    label: int
    target_item: int
    rows: Ints
    events: Events
    seen: Ints

    @classmethod
    def of(cls, ts: TrainingSet, labels: Labels, i: int, limit: int) -> "_Before":
        t_us = int(labels.timestamps_us[i])
        before = history_as_of(ts.events[labels.users[i]], t_us, exclude_event_id=labels.event_ids[i])
        items = ts.items.numbers(before.item_ids)
        rows = ts.items.rows_at(items, np.asarray(t_us))
        known = np.flatnonzero(rows != NO_ROW)[-limit:]
        target = int(ts.items.item_R[labels.item_row[i]])
        met = (items != NO_ROW) & ~is_shown(before.event_types)
        return cls(i, target, rows[known], before.take(known), items[met])
