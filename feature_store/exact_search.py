"""Exact nearest neighbours by a pass over all vectors, and recall against them: what an index's answers are judged by.

Knows nothing of Milvus: vectors come in blocks, in any order, so that memory does not grow with the catalogue. Scores are float64, better
than any server's float32. Who measures an index is `index_report.py`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from feature_store.errors import IndexReportError

# Scores that differ by less, in units of the largest score there can be, are one score: servers compute in float32, whose rounding
# of a sum over some hundred dims is of this size.
TIE_TOLERANCE: Final = 1e-6

Vectors = NDArray[np.float32]
Scores = NDArray[np.float64]


@dataclass(frozen=True)
class ExactNeighbours:
    """The nearest rows of each query, best first.

    Attributes:
        ids: [q, k], fewer columns where there are fewer rows.
        scores: [q, k], larger is nearer: cosine, inner product, or the negative squared distance.
        tolerance: [q], the difference below which two scores of this query are one.
        rows: how many rows were looked at.
    """

    ids: NDArray[np.object_]
    scores: Scores
    tolerance: Scores
    rows: int

    @property
    def k(self) -> int:
        """Neighbours per query."""
        return int(self.ids.shape[1])

    def first(self, k: int) -> "ExactNeighbours":
        """The nearest `k` of them."""
        return ExactNeighbours(self.ids[:, :k], self.scores[:, :k], self.tolerance, self.rows)


def similarity(queries: Vectors, vectors: Vectors, metric: str) -> Scores:
    """Scores [q, n] of queries [q, dim] and vectors [n, dim], larger is nearer. Raises `IndexReportError` for an unknown metric.

    `COSINE` and `IP` are Milvus's scores, `L2` is Milvus's squared distance, negated. A zero vector has cosine 0 with everything.
    """
    q, x = np.asarray(queries, np.float64), np.asarray(vectors, np.float64)
    match metric:
        case "IP":
            return np.asarray(q @ x.T)
        case "COSINE":
            return np.asarray(_unit(q) @ _unit(x).T)
        case "L2":
            squares = np.square(q).sum(1)[:, None] + np.square(x).sum(1)[None, :]
            return np.asarray(2.0 * (q @ x.T) - squares)
    raise IndexReportError(f"metric {metric!r} cannot be checked; there are COSINE, IP and L2")


def _unit(vectors: Scores) -> Scores:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(norms == 0.0, 1.0, norms))


def exact_neighbours(
    queries: Vectors,
    blocks: Iterable[tuple[Sequence[str], Vectors]],
    k: int,
    metric: str,
    *,
    leave_out: Sequence[str] | None = None,
) -> ExactNeighbours:
    """The `k` nearest rows of each query [q, dim] among all blocks of (ids [n], vectors [n, dim]).

    `leave_out` names one id per query that is no neighbour of it: itself, where the queries are rows of the same view.
    """
    count, rows, largest = len(queries), 0, 0.0
    best_ids, best = np.empty((count, 0), object), np.empty((count, 0))
    for ids, vectors in blocks:
        if not len(ids):
            continue
        names, scores = np.asarray(ids, object), similarity(queries, vectors, metric)
        if leave_out is not None:
            _mask_out(scores, ids, leave_out)
        top = _best(scores, k)
        merged_ids = np.concatenate([best_ids, names[top]], axis=1)
        merged = np.concatenate([best, np.take_along_axis(scores, top, 1)], axis=1)
        keep = _best(merged, k)
        best_ids, best = np.take_along_axis(merged_ids, keep, 1), np.take_along_axis(merged, keep, 1)
        rows += len(ids)
        largest = max(largest, float(np.linalg.norm(vectors, axis=1).max()))
    found = min(k, max(0, rows - 1)) if leave_out is not None else best.shape[1]
    return ExactNeighbours(best_ids[:, :found], best[:, :found], _tolerance(queries, largest, metric), rows)


def _mask_out(scores: Scores, ids: Sequence[str], leave_out: Sequence[str]) -> None:
    at = {name: column for column, name in enumerate(ids)}
    for row, name in enumerate(leave_out):
        if name in at:
            scores[row, at[name]] = -np.inf


def _best(scores: Scores, k: int) -> NDArray[np.int64]:
    """Columns [q, min(k, n)] of the largest scores, best first."""
    k = min(k, scores.shape[1])
    top = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    order = np.argsort(-np.take_along_axis(scores, top, 1), axis=1, kind="stable")
    return np.asarray(np.take_along_axis(top, order, 1))


def _tolerance(queries: Vectors, largest_norm: float, metric: str) -> Scores:
    norms = np.linalg.norm(np.asarray(queries, np.float64), axis=1)
    size = {
        "COSINE": np.ones_like(norms),
        "IP": norms * largest_norm,
        "L2": np.square(norms) + largest_norm**2,
    }[metric]
    return np.asarray(TIE_TOLERANCE * size)


def score_hits(
    queries: Vectors,
    hits: Sequence[Sequence[str]],
    metric: str,
    nearest: ExactNeighbours,
    vectors_of: Callable[[list[str]], Mapping[str, Vectors]],
) -> list[dict[str, float]]:
    """The exact score of every hit, per query: id -> score, without the ids that have no vector.

    The scores of the nearest are known; `vectors_of` reads the vectors [dim] of the others. No score is taken from a server's word.
    """
    known = [dict(zip(ids, map(float, row), strict=True)) for ids, row in zip(nearest.ids, nearest.scores, strict=True)]
    others = [[name for name in found if name not in near] for found, near in zip(hits, known, strict=True)]
    missing = sorted({name for names in others for name in names})
    stored = vectors_of(missing) if missing else {}
    for query, names, scores in zip(queries, others, known, strict=True):
        there = [name for name in names if name in stored]
        if there:
            block = np.stack([stored[name] for name in there])
            scores.update(zip(there, similarity(query[None], block, metric)[0].tolist(), strict=True))
    return known


def recall_at_k(
    nearest: ExactNeighbours, hits: Sequence[Sequence[str]], scores: Sequence[Mapping[str, float]]
) -> NDArray[np.float64]:
    """Recall [q] of each query's first k hits against its k exact neighbours.

    For one query it is |{h among the first k hits : score(h) >= score of the k-th exact neighbour}| / k, where k is the number of
    exact neighbours (all rows, where the view has fewer than were asked for), each id counts once, and score(h) is h's exact score
    (`score_hits`), so that any of several rows tied for the k-th place is as right as another. An id without a score counts as wrong.
    """
    k = nearest.k
    if k == 0:
        raise IndexReportError("recall needs at least one row to find; these queries have no neighbours")
    wanted = nearest.scores[:, -1] - nearest.tolerance
    right = [
        sum(known.get(name, -np.inf) >= least for name in set(found[:k]))
        for found, known, least in zip(hits, scores, wanted, strict=True)
    ]
    return np.asarray(right, np.float64) / k
