"""Exact Shapley values over a few groups of features.

With G groups there are 2**G subsets, and every one of them is scored: no sampling, no approximation (Shapley 1953; for models,
Strumbelj and Kononenko, JMLR 2010).
"""

from functools import lru_cache
from math import factorial

import numpy as np
from numpy.typing import NDArray


def subsets(groups: int) -> NDArray[np.bool_]:
    """Membership bool [2**groups, groups] of every subset; row b holds the groups whose bits are set in b."""
    member: NDArray[np.bool_] = (np.arange(2**groups)[:, None] >> np.arange(groups)) % 2 == 1
    return member


@lru_cache
def _weights(groups: int) -> NDArray[np.float64]:
    """Matrix [2**groups, groups] that turns the values of all subsets into Shapley values."""
    member = subsets(groups)
    size = member.sum(1)
    count = [
        factorial(s) * factorial(groups - s - 1) / factorial(groups) if s < groups else 0.0 for s in range(groups + 1)
    ]
    joined = np.asarray([count[s - 1] if s else 0.0 for s in size])[:, None]
    return np.where(member, joined, -np.asarray(count)[size][:, None])


def values(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Shapley values [n, groups] of subset scores [n, 2**groups] (ordered as `subsets`); they sum to all - none."""
    groups = int(scores.shape[1]).bit_length() - 1
    return scores @ _weights(groups)
