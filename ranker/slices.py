"""Slices: for whom, and about what, a ranker is good. Each is a mask over labels, made from training counts and what items lack.

Slices of one group may overlap with those of another, and within the groups `history` and `popularity` each label is in exactly one. What is cold
is cold by training alone: a label's own event, or the test's others, never warm it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ranker.bootstrap import RESAMPLES, Estimate, estimates
from ranker.errors import EvaluationError
from ranker.full_ranking import Places
from ranker.protocols import Ints

Flags = NDArray[np.bool_]
HISTORY_FROM: Final = (0, 1, 5, 10, 20, 50, 100)  # events; each bucket ends before the next
DECILES: Final = 10


@dataclass(frozen=True)
class Slice:
    """Some of n labels.

    Attributes:
        group: what it is about: `all`, `item`, `user`, `history`, `popularity`, `modality`.
        name: which of the group: `cold`, `5-9`, `10`, `no text`.
        chosen: whether each label is in it [n].
    """

    group: str
    name: str
    chosen: Flags


def label_slices(
    user: Ints,
    item: Ints,
    *,
    history: NDArray[Any] | None = None,
    user_counts: NDArray[Any] | None = None,
    item_counts: NDArray[Any] | None = None,
    present: Mapping[str, Flags] | None = None,
) -> list[Slice]:
    """All slices of labels (user [n], item [n]) that have a label, `all` first.

    Args:
        user: number of each label's user [n].
        item: number of each label's item [n].
        history: events that the user had before each label [n].
        user_counts: training events of each user [U].
        item_counts: training events of each item [I].
        present: which items [I] have each modality.

    What is not given makes no slices. Raises `EvaluationError` where arrays do not fit.
    """
    if len(user) != len(item):
        raise EvaluationError(f"labels have {len(user)} users and {len(item)} items: they must be one to one")
    found = [Slice("all", "all", np.ones(len(user), bool))]
    if item_counts is not None:
        found += cold("item", _of(item_counts, item, "item_counts"))
    if user_counts is not None:
        found += cold("user", _of(user_counts, user, "user_counts"))
    if history is not None:
        found += by_history(history, len(user))
    if item_counts is not None:
        found += by_popularity(item_counts, item)
    for modality, there in (present or {}).items():
        found.append(Slice("modality", f"no {modality}", ~_of(there, item, f"presence of {modality}")))
    return [one for one in found if one.chosen.any()]


@dataclass(frozen=True)
class SliceResult:
    """One metric on one slice: how many labels it has, and the estimate over its users for each scorer."""

    group: str
    name: str
    labels: int
    estimates: Mapping[str, Estimate]


def judge_slices(
    found: Mapping[str, Places],
    slices: Sequence[Slice],
    metric: Callable[[Places], NDArray[np.float64]],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[SliceResult]:
    """A metric of full ranking on each slice, for each scorer, with intervals over the slice's users.

    Args:
        found: places of the labels by scorer, all of the same labels in the same order, which is the slices' (`full_ranking.relevant_pairs`).
        slices: what `label_slices` made of these labels; within a slice, a user's relevant items are those of the slice alone.
        metric: values by user of places, such as `lambda found: ndcg(found, 10)`.
        resamples: draws of the bootstrap.
        seed: of the draws.
    """
    for name, places in found.items():
        if len(places.user) != len(slices[0].chosen):
            raise EvaluationError(
                f"{name} has {len(places.user)} places, and slices are of {len(slices[0].chosen)} labels"
            )
    results = []
    for one in slices:
        values = {name: metric(places.take(one.chosen)) for name, places in found.items()}
        judged = estimates(values, resamples=resamples, seed=seed)
        results.append(SliceResult(one.group, one.name, int(one.chosen.sum()), judged))
    return results


def cold(group: str, counts: NDArray[Any]) -> list[Slice]:
    """Labels whose item (or user) has no event in training, and the others; `counts` [n] are of each label's own."""
    return [Slice(group, "cold", counts == 0), Slice(group, "warm", counts > 0)]


def by_history(history: NDArray[Any], labels: int, starts: Sequence[int] = HISTORY_FROM) -> list[Slice]:
    """Labels by how many events the user had before: 0, 1-4, 5-9, ..., 100+."""
    if len(history) != labels:
        raise EvaluationError(
            f"there are {labels} labels and {len(history)} lengths of histories: they must be one to one"
        )
    bucket = np.searchsorted(starts, history, side="right") - 1
    return [Slice("history", name, bucket == at) for at, name in enumerate(_bucket_names(starts))]


def by_popularity(item_counts: NDArray[Any], item: Ints) -> list[Slice]:
    """Labels by the decile of their item among the catalogue's by training events: 1 least known, 10 best known.

    Items with equally many events share a decile, that of their middle place, so that some deciles may be without items.
    """
    decile = _of(popularity_deciles(item_counts), item, "item_counts")
    return [Slice("popularity", str(number), decile == number) for number in range(1, DECILES + 1)]


def popularity_deciles(item_counts: NDArray[Any]) -> Ints:
    """Decile [I] of each item, 1 to 10, by training events [I]."""
    from scipy.stats import rankdata

    middle = rankdata(item_counts, "average")
    decile = np.ceil(DECILES * (middle - 0.5) / max(len(item_counts), 1))
    return np.asarray(np.minimum(decile, DECILES), np.int64)


def _bucket_names(starts: Sequence[int]) -> list[str]:
    ends = [after - 1 for after in starts[1:]]
    closed = [str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=False)]
    return [*closed, f"{starts[-1]}+"]


def _of(values: NDArray[Any], number: Ints, name: str) -> NDArray[Any]:
    """The values of each label's own; raises where a label is about a number that the values do not have."""
    if len(number) and not 0 <= number.min() <= number.max() < len(values):
        raise EvaluationError(
            f"{name} has {len(values)} rows, and labels are about numbers {number.min()} to {number.max()}: pass a row for each"
        )
    return values[number]
