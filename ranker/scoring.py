"""Scores of many users at once over all items, as validation, the choice of the prior and the benchmarks need them.

One user at a time, with the same numbers, is `scorer`'s work.
"""

# Shapes are part of names: B users or labels, L events, I items, R item versions.
# ruff: noqa: N803, N806

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import scipy.sparse
import torch
from numpy.typing import NDArray
from torch import Tensor

from feature_store.history import history_as_of
from ranker import full_ranking, metrics
from ranker.collaborative import interactions
from ranker.data import NO_ROW, Ints, Labels
from ranker.examples import Examples, build_examples
from ranker.inputs import Items, tensor_of
from ranker.prior import event_weights
from ranker.run import Run, allowed_candidates, forward
from ranker.steps import bag

Floats = NDArray[np.float32]
K_LABELS, K_SETS = 10, 20
BATCH_USERS = 512


class Scoring(ABC):
    """Tasks to be ranked: one a label where histories have an order, one a user where they are sets.

    `run` may be a model in training: scores are those of its present weights.
    """

    run: Run

    @staticmethod
    def of(run: Run, labels: Labels) -> "LabelScoring | SetScoring":
        """Everything that does not depend on weights."""
        if run.config.history == "set":
            return SetScoring(run, Sets.of(run, labels))
        return LabelScoring(run, build_examples(run.ts, labels, run.model, run.vocabulary))

    @abstractmethod
    def __len__(self) -> int:
        """How many tasks there are."""

    @abstractmethod
    def scores(self) -> Iterator[tuple[Ints, Tensor]]:
        """(numbers of tasks, scores [B, R]) in batches; what must not be ranked is not masked yet."""

    @abstractmethod
    def events(self, decay: float) -> scipy.sparse.csr_matrix:
        """What each task's history says of each item version [T, R], as `Prior` weighs it."""

    @abstractmethod
    def gains(self, at: Ints, score_BR: Tensor) -> NDArray[np.float64]:
        """NDCG of each of the tasks `at`."""

    def ndcg(self) -> float:
        """Mean NDCG@10 of the labels, or NDCG@20 of the sets."""
        return self.ndcg_of(self.scores())

    def ndcg_of(self, scores: Iterable[tuple[Ints, Tensor]]) -> float:
        """The same of given scores."""
        return float(np.concatenate([self.gains(at, self._open(score_BR)) for at, score_BR in scores]).mean())

    def _open(self, score_BR: Tensor) -> Tensor:
        if self.run.split.candidates is None:
            return score_BR
        left_out_R = np.setdiff1d(np.arange(score_BR.shape[1]), self.run.split.candidates)
        return score_BR.index_fill(1, tensor_of(left_out_R), -torch.inf)


@dataclass(frozen=True)
class LabelScoring(Scoring):
    """Each label by the history before it."""

    run: Run
    examples: Examples

    def __len__(self) -> int:
        """How many labels there are."""
        return len(self.examples)

    @torch.no_grad()
    def scores(self) -> Iterator[tuple[Ints, Tensor]]:
        """(numbers of labels, scores [B, R])."""
        self.run.model.eval()
        rows = np.arange(len(self.run.ts.items))
        order = np.argsort((self.examples.row_nL != NO_ROW).sum(1), kind="stable")  # alike in length: little padding
        for first in range(0, len(order), BATCH_USERS):
            at = order[first : first + BATCH_USERS]
            yield at, forward(self.run, self.examples, at, rows, None)[0].score_BC

    def events(self, decay: float) -> scipy.sparse.csr_matrix:
        """Fading histories [T, R]."""
        there = self.examples.row_nL != NO_ROW
        known = self.run.inputs.index_N.cpu().numpy()[np.maximum(self.examples.row_nL, 0)] > 0
        counts = there & known & (self.examples.strength_nL.cpu().numpy() > 0)
        weight = event_weights(tensor_of(counts), tensor_of(there), decay).cpu().numpy()
        task, column = np.nonzero(weight)
        shape = (len(self), len(self.run.ts.items))
        rows = self.examples.row_nL[task, column]
        return scipy.sparse.csr_matrix((weight[task, column], (task, rows)), shape=shape)

    def gains(self, at: Ints, score_BR: Tensor) -> NDArray[np.float64]:
        """NDCG@10 of labels."""
        above, ties = label_places(self.run, self.examples, at, score_BR)
        return metrics.ndcg_at_k(above, ties, K_LABELS)


@dataclass(frozen=True)
class SetScoring(Scoring):
    """All labels of each user at once, by the set of what was met before them."""

    run: Run
    sets: "Sets"

    def __len__(self) -> int:
        """How many users there are."""
        return len(self.sets.users)

    @torch.no_grad()
    def scores(self) -> Iterator[tuple[Ints, Tensor]]:
        """(numbers of users, scores [B, R])."""
        run, prior = self.run, self.run.model.eval().prior
        items = run.model.items(run.inputs)
        weights = prior.matrix() * float(prior.scale) if prior.neighbours else None
        for first in range(0, len(self), BATCH_USERS):
            at = np.arange(first, min(first + BATCH_USERS, len(self)))
            score_BR = set_scores(run, items, self.sets.met[at])
            yield at, score_BR if weights is None else score_BR + _prior_scores(run, weights, self.sets.met[at])

    def events(self, decay: float) -> scipy.sparse.csr_matrix:  # noqa: ARG002 - sets do not fade
        """Sets of unit length [T, R]."""
        return unit_rows(self.sets.met)

    def gains(self, at: Ints, score_BR: Tensor) -> NDArray[np.float64]:
        """NDCG@20 of users."""
        found = full_ranking.places(score_BR.cpu().numpy(), self.sets.relevant[at], self.sets.met[at])
        return full_ranking.ndcg(found, K_SETS)


def label_places(run: Run, examples: Examples, at: Ints, score_BR: Tensor) -> tuple[Ints, Ints]:
    """How many candidates stand above each label's item, and how many beside it (itself too)."""
    rows = np.arange(score_BR.shape[1])
    allowed_BR = tensor_of(allowed_candidates(run.ts, examples, at, rows))
    score_BR = score_BR.masked_fill(~allowed_BR, -torch.inf)
    return above_and_beside(score_BR, tensor_of(examples.labels.item_row[at]))


def above_and_beside(score_BR: Tensor, target_B: Tensor) -> tuple[Ints, Ints]:
    """How many stand above each target, and how many beside it (itself too)."""
    own_B1 = score_BR.gather(1, target_B[:, None])
    return (score_BR > own_B1).sum(1).cpu().numpy(), (score_BR == own_B1).sum(1).cpu().numpy()


@dataclass(frozen=True)
class Sets:
    """U users with what they met before their labels, and the labels, as matrices of ones [U, R]."""

    users: list[str]
    met: scipy.sparse.csr_matrix
    relevant: scipy.sparse.csr_matrix

    @classmethod
    def of(cls, run: Run, labels: Labels) -> "Sets":
        """Sets as they were before each user's first label."""
        good = labels.take(np.flatnonzero(labels.positive(run.config)))
        users = sorted(set(good.users))
        number = {user: n for n, user in enumerate(users)}
        first = np.full(len(users), np.iinfo(np.int64).max)
        user_n = np.asarray([number[user] for user in good.users], np.int64)
        np.minimum.at(first, user_n, good.timestamps_us)
        shape = (len(users), len(run.ts.items))
        return cls(users, _met(run, users, first, shape), interactions(user_n, good.item_row, shape))


def set_scores(run: Run, items: Items, met_BR: scipy.sparse.csr_matrix) -> Tensor:
    """Scores [B, R] of users who met `met_BR`, without their prior."""
    user_E = np.repeat(np.arange(met_BR.shape[0]), np.diff(met_BR.indptr))
    read_XBD, _ = run.model.read_sets(bag(items.token_ND, met_BR.indices.astype(np.int64), user_E, met_BR.shape[0]))
    scores: Tensor = run.model.joined(read_XBD) @ items.token_ND.T + run.model.bias(items)
    return scores


def _prior_scores(run: Run, weights: scipy.sparse.csr_matrix, met_BR: scipy.sparse.csr_matrix) -> Tensor:
    index_R = run.inputs.index_N.cpu().numpy()
    to_index = scipy.sparse.csr_matrix(
        (np.ones(len(index_R), np.float32), (np.arange(len(index_R)), index_R)), shape=(len(index_R), weights.shape[0])
    )
    found = np.asarray((unit_rows(met_BR) @ to_index @ weights).todense(), np.float32)
    found[:, 0] = 0.0
    return tensor_of(found[:, index_R])


def unit_rows(met_BR: scipy.sparse.csr_matrix) -> scipy.sparse.csr_matrix:
    """Rows of ones at unit length."""
    return (scipy.sparse.diags(1.0 / np.sqrt(np.maximum(met_BR.getnnz(axis=1), 1))) @ met_BR).tocsr()


def _met(run: Run, users: list[str], until_us: Ints, shape: tuple[int, int]) -> scipy.sparse.csr_matrix:
    pairs = []
    for number, (user, t_us) in enumerate(zip(users, until_us.tolist(), strict=True)):
        ids = history_as_of(run.ts.events[user], t_us).item_ids
        rows = run.ts.items.rows_at(run.ts.items.numbers(ids), np.asarray(t_us))
        pairs.append(np.stack([np.full(len(rows), number), rows]))
    user_E, row_E = np.concatenate([np.zeros((2, 0), np.int64), *pairs], axis=1)
    return interactions(user_E[row_E != NO_ROW], row_E[row_E != NO_ROW], shape)
