"""Rankers on public data: full ranking, every method's settings chosen on validation, in one run.

`movielens-1m` and `lastfm-2k` have no order in time: a user's items are a set, and the test's items are ranked among all that the user has not in
training. Measured until now are popularity and the collaborative priors, plain EASE being the strongest simple method there.
The data are read from the folder that TRIPTYCH_DATA names.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import product
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from benchmarks.common import Options, Record, run
from benchmarks.rankers.sets import Interactions, Matrix, lastfm_2k, movielens_1m, subset
from ranker.collaborative import EaseConfig, fit_ease
from ranker.full_ranking import joined, ndcg, places, recall

SETS: Final[dict[str, Callable[[], Interactions]]] = {"movielens-1m": movielens_1m, "lastfm-2k": lastfm_2k}
K: Final = 20
BATCH_USERS: Final = 1_000
QUICK_USERS: Final = 500
Content = NDArray[np.float32] | None

# Plain EASE has one setting; the priors' further ones are tried around its best.
PLAIN: Final = [EaseConfig(l2=l2) for l2 in (30.0, 100.0, 200.0, 500.0, 1_000.0)]
DROPOUTS: Final = (0.0, 0.2, 1 / 3, 0.5)
POWERS: Final = (0.0, 0.5)
SHRUNK: Final = (0.5, 1.0)
CONTENTS: Final = (10.0, 20.0, 50.0)


def measure_all(options: Options, record: Record) -> None:
    """Every wanted set that is there."""
    for name, load in SETS.items():
        if options.wants(name):
            try:
                split = load()
            except FileNotFoundError as error:
                print(f"{name} is left out: {error}")
                continue
            measure_set(subset(split, QUICK_USERS) if options.quick else split, record)


def measure_set(split: Interactions, record: Record) -> None:
    """Popularity, EASE, EASE with dropout and weighed users, and that with each kind of content."""
    results = {"popularity": judge(popularity(split.train), split.train, split.test)}
    base, _ = chosen(split, PLAIN, "EASE")
    results["ease"] = on_test(split, base)
    shrunk = [
        EaseConfig(share * base.l2, dropout, power) for share, dropout, power in product(SHRUNK, DROPOUTS, POWERS)
    ]
    prior, best = chosen(split, shrunk, "EASE with dropout")
    results["prior"] = on_test(split, prior)
    for kind, content in split.content.items():
        configs = [EaseConfig(**{**asdict(prior), "content": weight}) for weight in CONTENTS]
        config, value = chosen(split, configs, f"prior and {kind}", content)
        results[f"prior_{kind}"] = on_test(split, config, content)
        results[f"prior_{kind}"]["validation_gain"] = round(value - best, 4)
    for method, found in results.items():
        record.note(f"{split.name} {method}", found)


def chosen(
    split: Interactions, configs: Sequence[EaseConfig], what: str, content: Content = None
) -> tuple[EaseConfig, float]:
    """The settings with the best NDCG on validation, and that NDCG."""
    tried = []
    for config in track(configs, f"{split.name}: {what}", console=Console(stderr=True), transient=True):
        weights = fit_ease(split.fitted, config, content)
        tried.append(judge(lambda users, w=weights: users @ w, split.fitted, split.validation)[f"ndcg_{K}"])
    at = int(np.argmax(tried))
    return configs[at], tried[at]


def on_test(split: Interactions, config: EaseConfig, content: Content = None) -> dict[str, Any]:
    """The settings' figures on the test, fitted on the whole training."""
    weights = fit_ease(split.train, config, content)
    return {**judge(lambda users: users @ weights, split.train, split.test), "settings": str(asdict(config))}


def popularity(train: Matrix) -> Callable[[Matrix], NDArray[np.float32]]:
    """Scores every user alike, by how many users met an item."""
    counts = np.asarray(train.sum(0), np.float32)
    return lambda users: np.broadcast_to(counts, users.shape)


def judge(score: Callable[[Matrix], NDArray[np.float32]], train: Matrix, wanted: Matrix) -> dict[str, Any]:
    """Recall@20 and NDCG@20, the mean over users with a wanted item; a user's items in training are masked."""
    parts = [
        places(score(train[first : first + BATCH_USERS]), wanted[first : first + BATCH_USERS], train[first : first + BATCH_USERS], first)
        for first in range(0, train.shape[0], BATCH_USERS)
    ]  # fmt: skip
    found = joined(parts)
    return {
        f"recall_{K}": round(float(recall(found, K).mean()), 4),
        f"ndcg_{K}": round(float(ndcg(found, K).mean()), 4),
    }


if __name__ == "__main__":
    run(measure_all, tuple(SETS), "Rankers on public data, by full ranking.")
