"""Metrics of chances for labelled events: AUC, AUC by user, log loss and calibration error.

AUC and log loss are scikit-learn's. AUC by user is counted here for all users at once, and agrees with scikit-learn's of each.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ranker.calibration import BINS, checked, reliability
from ranker.errors import EvaluationError
from ranker.protocols import Ints

Values = NDArray[np.float64]


def auc(labels: NDArray[Any], scores: NDArray[Any], weights: Values | None = None) -> float:
    """Area under the ROC curve: the chance that one that happened is above one that did not, ties as half; NaN for one class."""
    from sklearn.metrics import roc_auc_score

    labels, scores = checked(labels, scores)
    there = np.ones(len(labels), bool) if weights is None else weights > 0
    if len(np.unique(labels[there])) < 2:
        return float("nan")
    return float(roc_auc_score(labels, scores, sample_weight=weights))


def logloss(labels: NDArray[Any], chances: NDArray[Any], weights: Values | None = None) -> float:
    """Mean of -log of the chance given to what happened, in nats."""
    from sklearn.metrics import log_loss

    labels, chances = checked(labels, chances)
    return float(log_loss(labels, chances, sample_weight=weights, labels=[0, 1]))


def ece(labels: NDArray[Any], chances: NDArray[Any], weights: Values | None = None, *, bins: int = BINS) -> float:
    """Expected calibration error over bins of equal width (Naeini et al., AAAI 2015; Guo et al., ICML 2017)."""
    return reliability(labels, chances, bins=bins, weights=weights).ece


@dataclass(frozen=True)
class UserAuc:
    """AUC of each user's own events: `auc` [U], NaN for users with one class; `events` [U]; `user` [U], their numbers, ascending."""

    auc: Values
    events: Values
    user: Ints

    @property
    def mean(self) -> float:
        """GAUC: mean weighted by events (Zhou et al., Deep Interest Network, KDD 2018, equation 7); users with one class are left out."""
        there = np.isfinite(self.auc)
        return float(np.average(self.auc[there], weights=self.events[there])) if there.any() else float("nan")


def user_auc(labels: NDArray[Any], scores: NDArray[Any], user: Ints) -> UserAuc:
    """AUC by user from the mid-ranks of their own events (Mann and Whitney 1947), for all users in one sort."""
    labels, scores = checked(labels, scores)
    if len(user) != len(labels):
        raise EvaluationError(f"there are {len(labels)} labels and {len(user)} users: they must be one to one")
    order = np.lexsort((scores, user))
    labels, scores, user = labels[order], scores[order], user[order]
    users, first, count = np.unique(user, return_index=True, return_counts=True)
    starts = np.flatnonzero(np.r_[True, (np.diff(user) != 0) | (np.diff(scores) != 0)])
    size = np.diff(np.r_[starts, len(user)])
    middle = np.repeat(starts + (size + 1) / 2, size) - np.repeat(first, count)
    happened, ranks = np.add.reduceat(labels, first), np.add.reduceat(labels * middle, first)
    with np.errstate(invalid="ignore", divide="ignore"):
        area = (ranks - happened * (happened + 1) / 2) / (happened * (count - happened))
    return UserAuc(np.where((happened > 0) & (happened < count), area, np.nan), count.astype(np.float64), users)


def gauc(labels: NDArray[Any], scores: NDArray[Any], user: Ints) -> float:
    """Mean AUC of users' own events, weighted by their number of events; NaN where every user has one class."""
    return user_auc(labels, scores, user).mean


def click_summary(labels: NDArray[Any], chances: NDArray[Any], user: Ints) -> dict[str, float]:
    """AUC, GAUC, log loss and ECE of chances [n] for labels [n], and how many labels there are."""
    return {
        "auc": auc(labels, chances),
        "gauc": gauc(labels, chances, user),
        "logloss": logloss(labels, chances),
        "ece": ece(labels, chances),
        "labels": len(labels),
    }
