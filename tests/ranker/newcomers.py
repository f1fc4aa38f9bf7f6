"""Who a ranker never saw: users with one event, and items of which one modality is known. Planted data says how they should rank."""

from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score

from ranker.config import RankerConfig
from ranker.data import TrainingSet
from ranker.inputs import ItemBatch
from tests.ranker.factories import Planted, planted

SETTINGS = RankerConfig(dim=16, space_dim=12, prototypes=8, max_epochs=3)


def tastes(folder: Path) -> Planted:
    """Planted tastes in three modalities, with items that come after training."""
    dims = {"text": 24, "image": 24, "audio": 24}
    return planted(folder, n_items=200, n_users=240, late=0.4, dims=dims)


def newcomers(ts: TrainingSet, truth: Planted, modality: str) -> tuple[ItemBatch, np.ndarray]:
    """Items that came after training, under names that nobody knows and with one modality; and the kind of each in it."""
    rows = np.flatnonzero(ts.items.valid_from_R > np.sort(ts.labels.timestamps_us)[int(0.7 * len(ts.labels))])
    space_id = truth.spaces[modality].space_id
    rows = rows[ts.items.present[space_id][rows]]
    names = [f"new_{modality}_{row}" for row in rows]
    batch = ItemBatch(names, {space_id: ts.items.vectors[space_id][rows]})
    return batch, truth.kinds[modality][[int(ts.items.names[ts.items.item_R[row]][1:]) for row in rows]]


def alike(truth: Planted, item_id: str, item_ids: list[str]) -> np.ndarray:
    """In how many modalities each item is of the kind of `item_id`, [n]."""
    at, others = int(item_id[1:]), np.asarray([int(i[1:]) for i in item_ids])
    return np.sum([kind[others] == kind[at] for kind in truth.kinds.values()], axis=0)


def auc(good: np.ndarray, scores: np.ndarray) -> float:
    """Chance that something good is scored above something else; 0.5 says nothing."""
    return float(roc_auc_score(good, scores))
