"""Collaborative factors as a part of the item token, out of fold: a step of training sees what users other than its own met.

Fitted on everybody, factors have seen the very labels that a step learns from. So users are dealt into folds, a batch holds users of one fold
alone, and reads factors fitted on the other folds' users, rotated to lie like those of everybody, which validation, test and serving read.
"""

# Shapes are part of names: U users, I items of the vocabulary, K factors.
# ruff: noqa: N803, N806

from dataclasses import dataclass

import numpy as np
import scipy.linalg
import scipy.sparse
from numpy.typing import NDArray
from torch import Tensor

from ranker.collaborative import fit_svd, interactions, out_of_fold
from ranker.data import Ints
from ranker.inputs import tensor_of
from ranker.run import Run

FOLDS = 5
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Folds:
    """Factors by item index [1 + I, K] of each fold's others, and the fold of each user."""

    factors: list[Tensor]
    fold_of: dict[str, int]

    @classmethod
    def of(cls, run: Run) -> "Folds":
        """Fit on the training's positive labels, and store those of everybody in the model."""
        users, met = histories(run)
        rank = run.config.collaborative
        everybody = fit_svd(met, rank)
        run.model.encoder.factor_IK.copy_(_table(everybody))
        factors, fold_of = list[Tensor](), dict[str, int]()
        for fold, (members, found) in enumerate(out_of_fold(met, lambda kept: fit_svd(kept, rank), FOLDS)):
            rotation, _ = scipy.linalg.orthogonal_procrustes(found, everybody)
            factors.append(_table((found @ rotation).astype(np.float32)))
            fold_of |= {users[member]: fold for member in members.tolist()}
        return cls(factors, fold_of)

    def numbers(self, users: list[str]) -> Ints:
        """The fold of each user [n]; whoever has no label is in the first."""
        return np.asarray([self.fold_of.get(user, 0) for user in users], np.int64)


def _table(factors_IK: Floats) -> Tensor:
    """Factors by item index, each as long as the root of their number; 0 for the unknown item and for items that nobody met."""
    length_I1 = np.linalg.norm(factors_IK, axis=1, keepdims=True)
    unit_IK = factors_IK / np.maximum(length_I1, 1e-9) * (length_I1 > 1e-6)
    return tensor_of(np.pad(unit_IK * np.sqrt(factors_IK.shape[1]), ((1, 0), (0, 0))).astype(np.float32))


def histories(run: Run) -> tuple[list[str], scipy.sparse.csr_matrix]:
    """(users, who met what in training's positive labels [U, I])."""
    labels = run.split.train.take(np.flatnonzero(run.split.train.positive(run.config)))
    users = sorted(set(labels.users))
    number = {user: n for n, user in enumerate(users)}
    user_n = np.asarray([number[user] for user in labels.users], np.int64)
    item_n = run.inputs.index_N.cpu().numpy()[labels.item_row]
    known = item_n > 0
    return users, interactions(user_n[known], item_n[known] - 1, (len(users), len(run.vocabulary.items)))


def batches(numbers: Ints, size: int, rng: np.random.Generator, folds: Ints | None) -> list[Ints]:
    """`numbers` in random batches; with `folds` [n], each of one fold."""
    if folds is None:
        return _cut(rng.permutation(numbers), size)
    parts = [part for fold in np.unique(folds) for part in _cut(rng.permutation(numbers[folds[numbers] == fold]), size)]
    return [parts[at] for at in rng.permutation(len(parts))]


def _cut(numbers: Ints, size: int) -> list[Ints]:
    return [numbers[first : first + size] for first in range(0, len(numbers), size)]
