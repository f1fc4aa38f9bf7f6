"""The collaborative prior inside the model: item-to-item regression, of which each item keeps its strongest neighbours.

`collaborative` fits the weights; here they are stored sparse, and read from a history that fades. The prior is mixed in after training, with
weights chosen on validation: it has seen every training label, and a network trained beside it would learn to trust it too much.
"""

# Shapes are part of names: B users, L events, I items (index 0 is the unknown one), K neighbours.
# ruff: noqa: N803, N806, N815

from typing import Final, Self

import numpy as np
import scipy.sparse
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ranker.inputs import History

RANK: Final = 64
LINEAR: Final = 1e6  # a knee that no score comes near: all stay as they are
BLOCK: Final = 1_024  # rows at a time: the places of all weights would take twice their memory


class Prior(nn.Module):
    """Scores by what was met before; silent (None) until weights are set.

    `user_IR` and `item_IR` are the weights' leading singular directions, the items' times the slope of the line nearest to the bend: what retrieval, which
    needs inner products, sees of the prior.
    """

    neighbour_IK: Tensor
    weight_IK: Tensor
    user_IR: Tensor
    item_IR: Tensor
    scale: Tensor
    decay: Tensor
    knee: Tensor

    def __init__(self, items: int, neighbours: int, rank: int = 0) -> None:
        super().__init__()
        self.register_buffer("neighbour_IK", torch.zeros(items + 1, neighbours, dtype=torch.int32))
        self.register_buffer("weight_IK", torch.zeros(items + 1, neighbours))
        self.register_buffer("user_IR", torch.zeros(items + 1, rank))
        self.register_buffer("item_IR", torch.zeros(items + 1, rank))
        self.register_buffer("scale", torch.tensor(0.0))
        self.register_buffer("decay", torch.tensor(0.0))
        self.register_buffer("knee", torch.tensor(LINEAR))

    @classmethod
    def of(cls, weights: NDArray[np.float32], index: NDArray[np.int64], items: int, neighbours: int) -> Self:
        """The prior of `weights` [I, I] (row: met, column: scored) over items whose index in the model is `index` [I]."""
        kept = min(neighbours, len(weights))
        rank = min(RANK, len(weights) - 1)
        prior = cls(items, kept, max(0, rank))
        if kept:
            rows = torch.as_tensor(index, device=prior.weight_IK.device)
            for first in range(0, len(weights), BLOCK):
                part = weights[first : first + BLOCK]
                at = np.argpartition(-np.abs(part), kept - 1, axis=1)[:, :kept]
                here = rows[first : first + BLOCK]
                prior.neighbour_IK[here] = torch.as_tensor(index[at].astype(np.int32), device=rows.device)
                prior.weight_IK[here] = torch.as_tensor(np.take_along_axis(part, at, axis=1), device=rows.device)
        if rank > 0:
            left, right = _factors(weights, rank)
            prior.user_IR[rows], prior.item_IR[rows] = (
                torch.as_tensor(side, device=rows.device) for side in (left, right)
            )
        return prior

    @property
    def rank(self) -> int:
        """R."""
        return self.item_IR.shape[1]

    @property
    def neighbours(self) -> int:
        """K."""
        return self.weight_IK.shape[1]

    def forward(self, history: History) -> Tensor | None:
        """Scores [B, 1 + I] by item index, times `scale`; what is unknown scores 0."""
        return self.scale * self.raw(history) if self.neighbours else None

    def raw(self, history: History) -> Tensor:
        """The same without `scale`, bent at `knee`. The n-th newest event weighs 1 / (1 + decay n); weights are of unit length for each user."""
        event_BL = self.event_weights(history)
        told_BLK = event_BL[..., None] * _rows(self.weight_IK, history.index_BL)
        empty_BI = torch.zeros(len(event_BL), len(self.weight_IK))
        found_BI = empty_BI.scatter_add(
            1, _rows(self.neighbour_IK, history.index_BL).long().flatten(1), told_BLK.flatten(1)
        )
        return bent(torch.cat([torch.zeros(len(found_BI), 1), found_BI[:, 1:]], dim=1), self.knee)

    def by_event(self, history: History, index_C: Tensor) -> Tensor:
        """What each event adds to the scores of some items [B, C, L], without `scale` and before the bend, which leaves each event its share."""
        unique_U, which_C = torch.unique(index_C, return_inverse=True)
        column_I = torch.full((len(self.weight_IK),), len(unique_U))
        column_I[unique_U] = torch.arange(len(unique_U))
        told_BLK = self.event_weights(history)[..., None] * _rows(self.weight_IK, history.index_BL)
        column_BLK = column_I[_rows(self.neighbour_IK, history.index_BL).long()]
        empty_BLU = torch.zeros(*told_BLK.shape[:2], len(unique_U) + 1)
        found_BLC = empty_BLU.scatter_add(2, column_BLK, told_BLK)[..., which_C] * (index_C > 0)
        return found_BLC.transpose(1, 2)

    def user(self, history: History) -> Tensor:
        """The user side [B, R] of what `item_IR` times `scale` is the item side of."""
        return (self.event_weights(history)[..., None] * _rows(self.user_IR, history.index_BL)).sum(1)

    def event_weights(self, history: History) -> Tensor:
        """How much each event says [B, L], of unit length for each user; dislikes and unknown items say nothing."""
        known_BL = (history.strength_BL > 0) & history.mask_BL & (history.index_BL > 0)
        return event_weights(known_BL, history.mask_BL, self.decay)

    def matrix(self) -> scipy.sparse.csr_matrix:
        """The weights [1 + I, 1 + I] (row: met, column: scored), without `scale`."""
        n, k = self.weight_IK.shape
        rows = np.repeat(np.arange(n), k)
        columns, values = self.neighbour_IK.cpu().numpy().ravel(), self.weight_IK.cpu().numpy().ravel()
        found = scipy.sparse.csr_matrix((values, (rows, columns)), shape=(n, n))
        found.eliminate_zeros()
        return found


def bent(score: Tensor, knee: Tensor | float) -> Tensor:
    """Scores that grow as they are up to about `knee`, and beyond it as their logarithm.

    Few neighbours of an item have weights far above all others: what they recommend would be first whatever the network says of it.
    """
    return knee * torch.asinh(score / knee)


def event_weights(counts_BL: Tensor, mask_BL: Tensor, decay: Tensor | float) -> Tensor:
    """Weights [B, L] of events that count (bool), of unit length for each user; the n-th newest weighs 1 / (1 + decay n)."""
    newer_BL = mask_BL.sum(1, keepdim=True) - 1 - torch.arange(mask_BL.shape[1])
    event_BL = counts_BL / (1.0 + decay * newer_BL.clamp_min(0))
    unit_BL: Tensor = event_BL / event_BL.norm(dim=1, keepdim=True).clamp_min(1e-6)
    return unit_BL


def _rows(table_IK: Tensor, index_BL: Tensor) -> Tensor:
    """Rows [B, L, K] of a table: `index_select` takes half the time of indexing."""
    return table_IK.index_select(0, index_BL.flatten()).view(*index_BL.shape, table_IK.shape[1])


def _factors(weights: NDArray[np.float32], rank: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(left, right) [I, rank] whose product is the nearest of that rank to `weights`."""
    from sklearn.utils.extmath import randomized_svd

    left, values, right = randomized_svd(weights, rank, random_state=0)
    root = np.sqrt(values)
    return np.asarray(left * root, np.float32), np.asarray(right.T * root, np.float32)
