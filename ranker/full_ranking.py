"""Full ranking of many relevant items: where each of a user's items stands among all that may be ranked, and the metrics of that.

Items that score the same stand in random order: a relevant item's gain is its mean over the places that it may have, which is exact, since
the metrics are sums over relevant items. `metrics` has the gains of one item.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse
from numpy.typing import NDArray
from scipy.special import gammaln

from ranker import metrics

Values = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Places:
    """Places of n relevant items of users: how many items stand above each, how many beside it (itself too), and among how many.

    Attributes:
        user: number of the user [n], ascending.
        above, ties: items above, and items with the same score [n].
        candidates: how many items were ranked for the user [n].
    """

    user: Ints
    above: Ints
    ties: Ints
    candidates: Ints

    def per_user(self, gains: Values) -> tuple[Values, Values, Ints]:
        """(sum of `gains` [n] by user, number of relevant items by user, the users), for those users that have any."""
        users, first, count = np.unique(self.user, return_index=True, return_counts=True)
        return np.add.reduceat(gains, first), count.astype(np.float64), users

    def take(self, chosen: NDArray[np.bool_]) -> "Places":
        """The chosen relevant items [n] alone, as if a user had no others; what stands above each stays as it is."""
        return Places(*(getattr(self, name)[chosen] for name in Places.__dataclass_fields__))


def places(
    scores: NDArray[np.floating],
    relevant: scipy.sparse.csr_matrix,
    masked: scipy.sparse.csr_matrix,
    first_user: int = 0,
) -> Places:
    """Places of every relevant item [B, I] among all that are not masked, by `scores` [B, I]; a NaN score counts as the lowest.

    Users are numbered from `first_user`, so that batches can be joined. Relevant items that are masked are not counted.
    """
    found: list[tuple[Ints, Ints, Ints, Ints]] = []
    for row in range(scores.shape[0]):
        clean = np.nan_to_num(scores[row].astype(np.float64), nan=-np.inf, posinf=np.inf, neginf=-np.inf)
        allowed = np.ones(len(clean), bool)
        allowed[_items(masked, row)] = False
        wanted = _items(relevant, row)
        wanted = wanted[allowed[wanted]]
        ranked = np.sort(clean[allowed])
        left, right = (np.searchsorted(ranked, clean[wanted], side) for side in ("left", "right"))
        same = np.full(len(wanted), first_user + row, np.int64)
        found.append((same, len(ranked) - right, right - left, np.full(len(wanted), len(ranked), np.int64)))
    return Places(*(np.concatenate(parts).astype(np.int64) for parts in zip(*found, strict=True)))


def relevant_pairs(
    relevant: scipy.sparse.csr_matrix, masked: scipy.sparse.csr_matrix, first_user: int = 0
) -> tuple[Ints, Ints]:
    """(user, item) of every relevant item that is not masked [n], in the order of `places`: what slices of its rows are made from."""
    kept = []
    for row in range(relevant.shape[0]):
        wanted = _items(relevant, row)
        kept.append(wanted[~np.isin(wanted, _items(masked, row))])
    users = np.repeat(np.arange(len(kept), dtype=np.int64) + first_user, [len(items) for items in kept])
    return users, np.concatenate([np.zeros(0, np.int64), *kept])


def joined(parts: list[Places]) -> Places:
    """Places of several batches of users, in order."""
    return Places(*(np.concatenate([getattr(part, name) for part in parts]) for name in Places.__dataclass_fields__))


def ndcg(found: Places, k: int) -> Values:
    """NDCG@k by user with a relevant item; the ideal has as many at the top as there are, at most k."""
    gained, count, _ = found.per_user(metrics.ndcg_at_k(found.above, found.ties, k))
    ideal = np.cumsum(1.0 / np.log2(np.arange(2, k + 2)))
    return np.asarray(gained / ideal[np.minimum(count, k).astype(np.int64) - 1], np.float64)


def recall(found: Places, k: int) -> Values:
    """Recall@k by user: the share of the relevant items within the first k."""
    gained, count, _ = found.per_user(metrics.recall_at_k(found.above, found.ties, k))
    return gained / count


def hit_rate(found: Places, k: int) -> Values:
    """HR@k by user: whether any relevant item is within the first k; with ties, the chance of it if their orders were independent."""
    inside = np.clip(metrics.recall_at_k(found.above, found.ties, k), 0.0, 1.0 - 1e-12)
    outside, _, _ = found.per_user(np.log1p(-inside))
    return np.round(1.0 - np.exp(outside), 9)


def reciprocal_rank(found: Places) -> Values:
    """1 / place of the first relevant item by user (Voorhees, TREC-8 1999); its mean is MRR. With ties, the mean over their orders."""
    groups, first, together = np.unique(
        np.stack([found.user, found.above], 1), axis=0, return_index=True, return_counts=True
    )
    _, best = np.unique(groups[:, 0], return_index=True)
    cases = np.stack([found.above[first], found.ties[first], together], 1)[best]
    distinct, which = np.unique(cases, axis=0, return_inverse=True)
    return np.asarray([_reciprocal_of_first(*case) for case in distinct.tolist()], np.float64)[which]


def _reciprocal_of_first(above: int, ties: int, together: int) -> float:
    """Mean of 1 / (above + J), J the first place of `together` relevant items among `ties` whose orders are all equally likely."""
    j = np.arange(1, ties - together + 2)
    log_chance = _log_binomial(ties - j, together - 1) - _log_binomial(ties, together)
    return float((np.exp(log_chance) / (above + j)).sum())


def _log_binomial(n: Any, k: int) -> Any:
    """Logarithm of n over k, which itself overflows where hundreds of items tie."""
    return gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)


def user_auc(found: Places) -> tuple[Values, Values]:
    """(AUC by user, number of relevant items), NaN for users whose every candidate is relevant: the mean place of relevant ones."""
    middle = found.candidates - found.above - (found.ties - 1) / 2.0
    ranks, count, _ = found.per_user(middle)
    candidates, _, _ = found.per_user(found.candidates.astype(np.float64))
    others = candidates / count - count
    with np.errstate(divide="ignore", invalid="ignore"):
        auc = (ranks - count * (count + 1) / 2.0) / (count * others)
    return np.where(others > 0, auc, np.nan), count


def gauc(found: Places) -> float:
    """AUC by user, weighted by relevant items; users without another candidate are left out."""
    auc, weight = user_auc(found)
    there = np.isfinite(auc)
    return float(np.average(auc[there], weights=weight[there])) if there.any() else 0.5


def user_metrics(found: Places, ks: tuple[int, ...] = (10, 20)) -> dict[str, Values]:
    """NDCG, recall and HR at each k, MRR and AUC by user with a relevant item: what a bootstrap over users takes."""
    at_k = {
        f"{name}_at_{k}": metric(found, k)
        for k in ks
        for name, metric in (("ndcg", ndcg), ("recall", recall), ("hr", hit_rate))
    }
    return {**at_k, "mrr": reciprocal_rank(found), "auc": user_auc(found)[0]}


def _items(matrix: scipy.sparse.csr_matrix, row: int) -> Ints:
    return np.asarray(matrix.indices[matrix.indptr[row] : matrix.indptr[row + 1]], np.int64)
