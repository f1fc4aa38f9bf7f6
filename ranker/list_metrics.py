"""Metrics of recommended lists beyond accuracy: how much of the catalogue they show, how known it is, and how varied a list is.

Lists are item numbers int64 [U, k], best first; a list that is shorter ends in `NO_ITEM`. Counts of items are of training events alone, since a
metric that knows the test's popularity would leak it into a choice between models.
"""

from typing import Any, Final

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from ranker.errors import EvaluationError

Values = NDArray[np.float64]
Ints = NDArray[np.int64]
NO_ITEM: Final = -1
_BATCH_USERS: Final = 256  # of diversity: their items' vectors are in memory at once


def top_items(scores: NDArray[np.floating[Any]], masked: scipy.sparse.csr_matrix, k: int) -> Ints:
    """The k best items [B, k] of scores [B, I] that are not masked; of equal ones the lower number first, NaN scores last."""
    lists = np.full((len(scores), k), NO_ITEM, np.int64)
    for row, given in enumerate(np.asarray(scores, np.float64)):
        allowed = np.ones(len(given), bool)
        allowed[masked.indices[masked.indptr[row] : masked.indptr[row + 1]]] = False
        items = np.flatnonzero(allowed)
        best = np.where(np.isnan(given[items]), -np.inf, given[items])
        if len(items) > k:
            near = best >= np.partition(best, -k)[-k]
            items, best = items[near], best[near]
        chosen = items[np.argsort(-best, kind="stable")[:k]]
        lists[row, : len(chosen)] = chosen
    return lists


def exposure(lists: Ints, items: int) -> Ints:
    """In how many lists each item is [I]."""
    shown = lists[lists != NO_ITEM]
    if len(shown) and not 0 <= shown.min() <= shown.max() < items:
        raise EvaluationError(f"items in lists must be from 0 to {items - 1}; found {shown.min()} to {shown.max()}")
    return np.bincount(shown, minlength=items)


def coverage(lists: Ints, items: int) -> float:
    """Share of the catalogue that is in any list (catalogue coverage: Ge, Delgado-Battenfeld and Jannach, RecSys 2010)."""
    return float((exposure(lists, items) > 0).mean())


def gini(lists: Ints, items: int) -> float:
    """Gini index of items' exposure: 0 where all are in equally many lists, towards 1 where few are in all.

    sum over items by ascending exposure x_j of (2 j - I - 1) x_j / (I sum x) (Castells, Hurley and Vargas, Recommender Systems Handbook,
    section on aggregate diversity); NaN where nothing is shown.
    """
    shown = np.sort(exposure(lists, items)).astype(np.float64)
    if not shown.sum():
        return float("nan")
    return float(((2 * np.arange(1, items + 1) - items - 1) * shown).sum() / (items * shown.sum()))


def mean_popularity(lists: Ints, counts: NDArray[Any]) -> Values:
    """Mean number of training events of a list's items by user [U] (average recommendation popularity: Yin et al., VLDB 2012)."""
    return _mean_of(lists, np.asarray(counts, np.float64))


def novelty(lists: Ints, counts: NDArray[Any], users: int) -> Values:
    """Mean self-information of a list's items in bits, by user [U]: log2(users / count) (Zhou et al., PNAS 2010).

    `counts` [I] are the training users that met each item, of `users`. One is added to both, so that an item that nobody met has a finite
    value, the highest, and one that everybody met has 0.
    """
    if len(counts) and np.max(counts) > users:
        raise EvaluationError(f"an item was met by {np.max(counts)} users of {users}: count each user once")
    return _mean_of(lists, np.log2((users + 1.0) / (np.asarray(counts, np.float64) + 1.0)))


def diversity(lists: Ints, content: NDArray[np.floating[Any]]) -> Values:
    """Intra-list diversity by user [U]: mean cosine distance over pairs of a list's items (Ziegler et al., WWW 2005).

    `content` is [I, d]; items whose row is 0 have no content and are in no pair. NaN for lists with fewer than two items that have it.
    """
    length = np.linalg.norm(content, axis=1, keepdims=True)
    unit = np.divide(content, length, out=np.zeros(content.shape, np.float64), where=length > 0)
    parts = [_distances(lists[first : first + _BATCH_USERS], unit) for first in range(0, len(lists), _BATCH_USERS)]
    return np.concatenate([np.zeros(0), *parts])


def _distances(lists: Ints, unit: Values) -> Values:
    """1 - the mean cosine of pairs: the squared length of the vectors' sum has every pair twice, and each vector once with itself."""
    vectors = np.where((lists != NO_ITEM)[:, :, None], unit[lists], 0.0)
    there = (vectors**2).sum((1, 2))  # unit vectors: how many
    pairs = np.round(there) * (np.round(there) - 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(pairs > 0, 1.0 - ((vectors.sum(1) ** 2).sum(1) - there) / pairs, np.nan)


def _mean_of(lists: Ints, values: Values) -> Values:
    """Mean of items' values by list [U]; NaN for an empty list."""
    there = lists != NO_ITEM
    exposure(lists, len(values))  # refuses items that do not exist
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(there, values[lists], 0.0).sum(1) / there.sum(1), np.float64)


def mean_of_users(values: Values) -> float:
    """Mean over users that have a value, NaN where nobody has."""
    there = np.isfinite(values)
    return float(values[there].mean()) if there.any() else float("nan")


def list_summary(
    lists: Ints, counts: NDArray[Any], users: int, content: NDArray[np.floating[Any]] | None = None
) -> dict[str, float]:
    """Coverage, Gini, mean popularity, novelty and, where there is content, intra-list diversity: means over users with a list."""
    found = {
        "coverage": coverage(lists, len(counts)),
        "gini": gini(lists, len(counts)),
        "mean_popularity": mean_of_users(mean_popularity(lists, counts)),
        "novelty_bits": mean_of_users(novelty(lists, counts, users)),
    }
    if content is not None:
        found["diversity"] = mean_of_users(diversity(lists, content))
    return found
