"""Ranking metrics of one relevant item among many candidates, with ties treated as random order.

All are computed from two counts for each label: how many candidates score higher than the relevant one, and how many score the
same (itself included). The values agree with scikit-learn's `ndcg_score` and `roc_auc_score`, which average over ties too.
"""

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]
Values = NDArray[np.float64]


def place(scores: NDArray[np.floating], target: int) -> tuple[int, int]:
    """(candidates above the target, candidates that tie with it including itself); a NaN score counts as the lowest."""
    clean = np.where(np.isnan(scores), -np.inf, scores)
    return int((clean > clean[target]).sum()), int((clean == clean[target]).sum())


def _mean_over_ties(cumulative: Values, above: Counts, ties: Counts) -> Values:
    """Mean of a per-position gain over the positions above + 1 .. above + ties, from the gain's running sum (0 first)."""
    last = len(cumulative) - 1
    return np.asarray(
        (cumulative[np.minimum(above + ties, last)] - cumulative[np.minimum(above, last)]) / ties, np.float64
    )


def ndcg_at_k(above: Counts, ties: Counts, k: int = 10) -> Values:
    """NDCG@k [n]: 1 / log2(1 + rank) within the first k, which is the normalised gain of a single relevant item."""
    discounts = 1.0 / np.log2(np.arange(2, k + 2))
    return _mean_over_ties(np.concatenate([[0.0], np.cumsum(discounts)]), above, ties)


def recall_at_k(above: Counts, ties: Counts, k: int = 20) -> Values:
    """Recall@k [n]: whether the relevant item is within the first k."""
    return _mean_over_ties(np.arange(k + 1, dtype=np.float64), above, ties)


def auc(above: Counts, ties: Counts, candidates: Counts) -> Values:
    """Area under the ROC curve [n]: the chance that the relevant item outranks another one; NaN where there is no other."""
    others = (candidates - 1).astype(np.float64)
    with np.errstate(invalid="ignore"):
        return np.asarray(1.0 - (above + (ties - 1) / 2.0) / others, np.float64)


def summary(above: Counts, ties: Counts, candidates: Counts) -> dict[str, float]:
    """Mean NDCG@10, Recall@20, AUC, and how many labels there were; without any label, only that."""
    if not len(above):
        return {"labels": 0}
    auc_n = auc(above, ties, candidates)
    return {
        "ndcg_at_10": float(ndcg_at_k(above, ties).mean()),
        "recall_at_20": float(recall_at_k(above, ties).mean()),
        "auc": float(np.nanmean(auc_n)) if np.isfinite(auc_n).any() else 0.5,
        "labels": len(above),
    }
