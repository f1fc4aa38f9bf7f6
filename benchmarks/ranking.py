"""Rankers on public data: full ranking, every method's settings chosen on validation, in one run.

`movielens-1m` and `lastfm-2k` have no order in time: a user's items are a set, and the test's items are ranked among all that the user has not in
training. In `movielens-100k` and `beauty` the last event of each user is ranked among all items not met before. Measured until now are popularity,
the collaborative priors and, where there is an order, SASRec.
The data are read from the folder that TRIPTYCH_DATA names.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from itertools import product
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from benchmarks.common import Options, Record, run
from benchmarks.rankers.sasrec import SasrecConfig, fit_sasrec
from benchmarks.rankers.sequences import LeaveOneOut, Sequences, amazon, movielens_100k
from benchmarks.rankers.sets import Interactions, Matrix, lastfm_2k, movielens_1m, subset
from ranker.collaborative import EaseConfig, fit_ease
from ranker.full_ranking import Places, hit_rate, joined, ndcg, places, recall

SETS: Final[dict[str, Callable[[], Interactions]]] = {"movielens-1m": movielens_1m, "lastfm-2k": lastfm_2k}
ORDERED: Final[dict[str, Callable[[], Sequences]]] = {
    "movielens-100k": movielens_100k,
    "beauty": partial(amazon, "Beauty"),
}
PEERS: Final = {  # chosen on validation among these
    "movielens-100k": [SasrecConfig(dropout=0.3), SasrecConfig(dropout=0.5)],
    "beauty": [
        SasrecConfig(dropout=0.5, length=50, batch_users=256, look_epochs=2),
        SasrecConfig(dim=128, dropout=0.5, length=50, batch_users=256, look_epochs=2, label_smoothing=0.1),
    ],
}
# Weights of 12,000 items take two cores a minute each.
PLAIN_ORDERED: Final = {
    "movielens-100k": [EaseConfig(l2) for l2 in (100.0, 300.0, 500.0)],
    "beauty": [EaseConfig(50.0)],
}
PRIORS_ORDERED: Final = {
    "movielens-100k": [
        EaseConfig(l2, dropout, power) for l2, dropout, power in product((50.0, 100.0, 300.0), (0.0, 0.2), (0.0, 0.5))
    ],
    "beauty": [EaseConfig(50.0, 0.2, 0.5), EaseConfig(100.0, 0.0, 0.5)],
}
K, K_LAST = 20, 10
BATCH_USERS: Final = 1_000
QUICK_USERS: Final = 500
Content = NDArray[np.float32] | None

# Plain EASE has one setting; the priors' further ones are tried around its best.
PLAIN: Final = [EaseConfig(l2=l2) for l2 in (30.0, 100.0, 200.0, 500.0, 1_000.0)]
DROPOUTS: Final = (0.0, 0.2, 1 / 3, 0.5)
POWERS: Final = (0.0, 0.5)
SHRUNK: Final = (0.5, 1.0)
CONTENTS: Final = (10.0, 20.0, 50.0)
DECAYS: Final = (0.0, 0.05, 0.2, 0.5)


def add_options(parser: argparse.ArgumentParser) -> None:
    """How long, and how often."""
    parser.add_argument(
        "--minutes", type=float, default=25.0, help="training time of each trained model at most (default 25)"
    )
    parser.add_argument("--seeds", type=int, default=3, help="seeds of each trained model (default 3)")


def measure_all(options: Options, record: Record) -> None:
    """Every wanted set that is there."""
    record.note("options", dict(options.values))
    for name, load in {**SETS, **ORDERED}.items():
        if options.wants(name):
            try:
                found = load()
            except FileNotFoundError as error:
                print(f"{name} is left out: {error}")
                continue
            if isinstance(found, Interactions):
                measure_set(subset(found, QUICK_USERS) if options.quick else found, record)
            else:
                seeds, minutes = (1, 0.1) if options.quick else (options.values["seeds"], options.values["minutes"])
                measure_ordered(name, LeaveOneOut.of(found), range(seeds), 60.0 * minutes, record)


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


# ---- sets with an order ----------------------------------------------------------------------------------------------


def measure_ordered(name: str, split: LeaveOneOut, seeds: Sequence[int], seconds: float, record: Record) -> None:
    """Popularity, EASE over sets, the prior over histories that fade, and SASRec over some seeds."""
    histories = split.sequences.matrix(split.train)
    results = {"popularity": judge_last(split, popularity(histories)(histories), split.test)}
    results["ease"] = _best_prior(name, split, PLAIN_ORDERED[name], (0.0,))
    results["prior"] = _best_prior(name, split, PRIORS_ORDERED[name], DECAYS)
    results["sasrec"] = _sasrec(name, split, seeds, seconds)
    for method, found in results.items():
        record.note(f"{name} {method}", found)


def _best_prior(
    name: str, split: LeaveOneOut, configs: Sequence[EaseConfig], decays: Sequence[float]
) -> dict[str, Any]:
    """The test's figures by the settings that are best on validation; weights are fitted on training alone, histories are as long as they are."""
    best, found = -1.0, {}
    histories, longer = split.sequences.matrix(split.train), split.sequences.from_last >= 1
    for config in track(configs, f"{name}: EASE", console=Console(stderr=True), transient=True):
        weights = fit_ease(histories, config)
        for decay in decays:
            scores = split.sequences.recent(split.train, decay) @ weights
            value = judge_last(split, scores, split.validation)[f"ndcg_{K_LAST}"]
            if value > best:
                tested = judge_last(split, split.sequences.recent(longer, decay) @ weights, split.test)
                best, found = value, {**tested, "settings": f"{asdict(config)}, decay {decay}"}
    return found


def _sasrec(name: str, split: LeaveOneOut, seeds: Sequence[int], seconds: float) -> dict[str, Any]:
    """SASRec by the settings that are best on validation, its mean over the seeds."""
    console = Console(stderr=True)

    def fit(config: SasrecConfig, seed: int) -> Any:
        with console.status(f"{name}: SASRec, seed {seed}") as status:
            return fit_sasrec(split, config, seed, seconds, lambda line: status.update(f"{name}: SASRec {line}"))

    tried = [fit(config, seeds[0]) for config in PEERS[name]]
    at = int(np.argmax([fitted.ndcg for fitted in tried]))
    fitted = [tried[at], *(fit(PEERS[name][at], seed) for seed in seeds[1:])]
    found = [judge_last(split, one.test, split.test) for one in fitted]
    means = {metric: round(float(np.mean([one[metric] for one in found])), 4) for metric in found[0]}
    return {
        **means,
        "ndcg_by_seed": [one[f"ndcg_{K_LAST}"] for one in found],
        "epochs": [one.epochs for one in fitted],
        "minutes": [round(one.seconds / 60, 1) for one in fitted],
        "settings": str(asdict(PEERS[name][at])),
    }


def judge_last(split: LeaveOneOut, scores: NDArray[np.floating[Any]], events: NDArray[np.int64]) -> dict[str, Any]:
    """HR@10 and NDCG@10 of one held-out event a user among all items that the user had not met before it."""
    found: Places = places(np.asarray(scores), split.relevant(events), split.met_before(events))
    return {
        f"hr_{K_LAST}": round(float(hit_rate(found, K_LAST).mean()), 4),
        f"ndcg_{K_LAST}": round(float(ndcg(found, K_LAST).mean()), 4),
    }


if __name__ == "__main__":
    run(measure_all, (*SETS, *ORDERED), "Rankers on public data, by full ranking.", more=add_options)
