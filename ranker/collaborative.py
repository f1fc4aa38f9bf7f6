"""Collaborative priors: what users who met the same items also met, in closed form (EASE and its kin) or as factors (SVD).

They are baselines, make candidates for retrieval, and are mixed into the fusion ranker once it is trained (`mixing`). Factors may also be a part of its
item token; it then reads them out of fold (`folds`), since weights that were fitted on a user's own events have seen that user's labels.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import scipy.sparse
from numpy.typing import NDArray
from scipy.linalg import lapack

from ranker.errors import RankerError

MAX_EASE_ITEMS: Final = 20_000  # the weights are items x items: 3.2 GB in float64 while they are fitted
BLOCK: Final = 1_024
Floats = NDArray[np.float32]
Fit = Callable[[scipy.sparse.csr_matrix], Floats]


@dataclass(frozen=True)
class EaseConfig:
    """Settings of `fit_ease`.

    Attributes:
        l2: strength of ridge regularisation, in interactions.
        dropout: share of a user's items that is hidden while the rest predicts them (0 is plain EASE).
        user_power: a user with n items weighs n ** -user_power, so that a few heavy users do not say everything.
        content: how many interactions a cosine of 1 between two items' content is worth.
    """

    l2: float = 500.0
    dropout: float = 0.0
    user_power: float = 0.0
    content: float = 0.0


def fit_ease(
    histories: scipy.sparse.csr_matrix, config: EaseConfig | None = None, content: Floats | None = None
) -> Floats:
    """Item-item weights float32 [I, I] with a zero diagonal: `histories @ weights` scores every item for every user.

    The minimum of `sum_u w_u |x_u - x_u B|^2 + sum_ij (l2 + dropout / (1 - dropout) g_i) B_ij^2` over B with a zero diagonal, where g_i
    is the weighted count of item i (Steck, WWW 2019; with dropout: Steck, NeurIPS 2020).

    Args:
        histories: which user [U] met which item [I], 0 or 1, or weights.
        config: the settings.
        content: float32 [I, d], whose cosines are added to the Gram matrix as if users had met like items together; 0 where unknown.

    Raises:
        RankerError: there are more than `MAX_EASE_ITEMS` items, or a setting makes no sense.
    """
    config = config or EaseConfig()
    items = histories.shape[1]
    if items > MAX_EASE_ITEMS:
        raise RankerError(
            f"EASE keeps items x items weights, and {items:,} items are more than {MAX_EASE_ITEMS:,}: use svd"
        )
    if config.l2 <= 0 or not 0 <= config.dropout < 1:
        raise RankerError(
            f"EASE needs l2 above 0 and dropout from 0 up to 1, not l2 {config.l2} and dropout {config.dropout}"
        )
    gram = _gram(histories.astype(np.float64), config.user_power)
    penalty = config.l2 + config.dropout / (1.0 - config.dropout) * gram.diagonal()
    if content is not None and config.content:
        gram += config.content * cosines(content)
    gram[np.diag_indices(items)] += penalty
    weights = _inverse(gram)
    weights /= -weights.diagonal()
    np.fill_diagonal(weights, 0.0)
    return weights


def interactions(users: NDArray[np.int64], items: NDArray[np.int64], shape: tuple[int, int]) -> scipy.sparse.csr_matrix:
    """Who met what as ones [U, I], of pairs of numbers [n]; pairs that come twice count once."""
    found = scipy.sparse.csr_matrix((np.ones(len(users), np.float32), (users, items)), shape=shape)
    found.sum_duplicates()
    found.data[:] = 1.0
    return found


def _gram(histories: scipy.sparse.csr_matrix, user_power: float) -> NDArray[np.float64]:
    """Weighted Gram matrix [I, I]; the weights' mean is 1, so that `l2` means the same for any power."""
    counts = np.maximum(histories.getnnz(axis=1), 1).astype(np.float64)
    weights = counts**-user_power
    weighted = scipy.sparse.diags(weights / weights.mean()) @ histories
    return np.asarray((weighted.T @ histories).todense())


def _inverse(gram: NDArray[np.float64]) -> Floats:
    """Inverse [I, I] of a positive definite matrix, which is overwritten: by its Cholesky factor, without copies."""
    columns = gram if gram.flags.f_contiguous else gram.T  # else lapack makes a copy
    lower, failed = lapack.dpotrf(columns, lower=1, overwrite_a=1, clean=0)
    if failed:
        raise RankerError(f"the regression's matrix is not positive definite (at item {failed}): raise l2")
    lower, _ = lapack.dpotri(lower, lower=1, overwrite_c=1)
    inverse = np.asarray(lower.T, np.float32)  # its upper triangle
    for first in range(0, len(inverse), BLOCK):
        block = slice(first, first + BLOCK)
        inverse[first + BLOCK :, block] = inverse[block, first + BLOCK :].T
        inverse[block, block] = np.triu(inverse[block, block]) + np.triu(inverse[block, block], 1).T
    return inverse


def cosines(content: Floats) -> NDArray[np.float64]:
    """Cosines [I, I] between rows of content [I, d] about their mean; 0 for rows of zeros, whose content is unknown."""
    unit = centred(content).astype(np.float64)
    return np.asarray(unit @ unit.T)


def centred(content: Floats) -> Floats:
    """Rows [I, d] about the mean of those that are not 0, of unit length; rows of zeros stay 0."""
    raw = content.astype(np.float64)
    there = np.abs(raw).sum(1) > 0
    about = np.where(there[:, None], raw - raw[there].mean(0) if there.any() else raw, 0.0)
    return np.asarray(about / np.maximum(np.linalg.norm(about, axis=1, keepdims=True), 1e-12), np.float32)


@dataclass(frozen=True)
class SvdConfig:
    """Truncated SVD of the interactions, by its number of factors."""

    rank: int = 64


def fit_svd(histories: scipy.sparse.csr_matrix, rank: int, *, seed: int = 0) -> Floats:
    """Item factors float32 [I, rank] of the truncated SVD: `histories @ factors @ factors.T` scores every item for every user.

    Raises `RankerError` where there are not more items and users than `rank`.
    """
    from sklearn.decomposition import TruncatedSVD

    if rank < 1 or rank >= min(histories.shape):
        raise RankerError(
            f"rank {rank} must be from 1 to below the {min(histories.shape)} items or users that there are"
        )
    found = TruncatedSVD(rank, random_state=seed).fit(histories.astype(np.float64))
    return np.asarray(found.components_.T, np.float32)


def out_of_fold(
    histories: scipy.sparse.csr_matrix, fit: Fit, folds: int, *, seed: int = 0
) -> Iterator[tuple[NDArray[np.int64], Floats]]:
    """(users, weights fitted on all other users) by fold; every user is in one of them.

    What a model learns from must not have been fitted on its own labels: fitted on all of them, the prior knows the answer, and the
    model learns to trust it more than it deserves.
    """
    users: Any = histories.shape[0]
    if not 2 <= folds <= users:
        raise RankerError(f"{folds} folds of {users} users: there must be from 2 to as many folds as users")
    for held_out in np.array_split(np.random.default_rng(seed).permutation(users), folds):
        kept = np.setdiff1d(np.arange(users), held_out)
        yield np.sort(held_out), fit(histories[kept])
