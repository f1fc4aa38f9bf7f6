"""Rankers on public data: full ranking, every method's settings chosen on validation, in one run.

`movielens-1m` and `lastfm-2k` have no order in time: a user's items are a set, and the test's items are ranked among all that the user has not in
training; `movielens-1m-cold` holds a fifth of the items out of all training, and ranks them among themselves. In `movielens-100k`, `beauty` and
`toys` the last event of each user is ranked among all items not met before. The fusion ranker is measured beside popularity, the collaborative
priors and, where there is an order, SASRec, user by user.
The data are read from the folder that TRIPTYCH_DATA names.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from benchmarks.common import Options, Record, run
from benchmarks.rankers import ablations, clicks, serving
from benchmarks.rankers.films import films
from benchmarks.rankers.fusion import Known, Tell, spaces_of_set
from benchmarks.rankers.jobs import Jobs, JobsError, Outcome, named
from benchmarks.rankers.measured import (
    Session,
    claim_cost,
    measure_fused_cold,
    measure_fused_next,
    measure_fused_set,
)
from benchmarks.rankers.sasrec import SasrecConfig, train_sasrec
from benchmarks.rankers.sequences import LeaveOneOut, Sequences, amazon, judge_last, movielens_100k
from benchmarks.rankers.sets import Interactions, Matrix, lastfm_2k, movielens_1m, subset
from ranker.collaborative import EaseConfig, fit_ease
from ranker.full_ranking import joined, ndcg, places, recall

SETS: Final[dict[str, Callable[[], Interactions]]] = {"movielens-1m": movielens_1m, "lastfm-2k": lastfm_2k}
COLD_SET: Final = "movielens-1m-cold"
ORDERED: Final[dict[str, Callable[[], Sequences]]] = {
    "movielens-100k": movielens_100k,
    "beauty": partial(amazon, "Beauty"),
    "toys": partial(amazon, "Toys"),
}
PEERS: Final = {  # chosen on validation among these
    "movielens-100k": [
        SasrecConfig(dropout=0.5, batch_users=32, look_epochs=2, patience=8),
        SasrecConfig(dropout=0.5, batch_users=64, look_epochs=3, patience=8),
    ],
    "beauty": [
        SasrecConfig(dropout=0.5, length=50, batch_users=256, look_epochs=2),
        SasrecConfig(dim=128, dropout=0.5, length=50, batch_users=256, look_epochs=2, label_smoothing=0.1),
    ],
}
PEERS["toys"] = PEERS["beauty"]
# Weights of 12,000 items take two cores a minute each.
PLAIN_ORDERED: Final = {
    "movielens-100k": [EaseConfig(l2) for l2 in (100.0, 300.0, 500.0)],
    "beauty": [EaseConfig(50.0)],
    "toys": [EaseConfig(50.0)],
}
PRIORS_ORDERED: Final = {
    "movielens-100k": [
        EaseConfig(l2, dropout, power) for l2, dropout, power in product((50.0, 100.0, 300.0), (0.0, 0.2), (0.0, 0.5))
    ],
    "beauty": [EaseConfig(50.0, 0.2, 0.5), EaseConfig(100.0, 0.0, 0.5)],
    "toys": [EaseConfig(50.0, 0.2, 0.5), EaseConfig(100.0, 0.0, 0.5)],
}
COST, ABLATED_NEXT, ABLATED_SETS = "cost", "movielens-100k-ablations", "lastfm-2k-ablations"
PARTS: Final = (*SETS, COLD_SET, *ORDERED, clicks.NAME, COST, ABLATED_NEXT, ABLATED_SETS)
K, K_LAST = 20, 10
SEEDS, MINUTES = 3, 25.0
BATCH_USERS: Final = 1_000
LOG_SECONDS: Final = 30.0
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
    """How long, how often, and how many at once."""
    parser.add_argument(
        "--minutes", type=float, default=MINUTES, help="training time of each SASRec at most (default %(default)s)"
    )
    parser.add_argument("--seeds", type=int, default=SEEDS, help="seeds of each trained model (default %(default)s)")
    parser.add_argument("--processes", type=int, default=1, help="trainings at a time (default %(default)s)")
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="cuda: train there (default %(default)s); costs are claimed of the CPU only",
    )
    parser.add_argument(
        "--kept", type=Path, help="folder that keeps each training's outcome: a run that was cut off goes on from there"
    )


def measure_all(options: Options, record: Record) -> None:
    """Every wanted set that is there."""
    record.note("options", {name: value for name, value in options.values.items() if name != "kept"})
    kept = options.values.get("kept")
    kept = kept / "quick" if kept and options.quick else kept  # less data is other data
    jobs = Jobs(options.values.get("processes", 1), kept, options.values.get("device", "cpu"))
    seeds, minutes = (options.values.get("seeds", SEEDS), options.values.get("minutes", MINUTES))
    if options.quick:
        seeds, minutes = 1, 0.1
    if seeds < 1:
        raise JobsError(f"--seeds is {seeds}: give 1 or more")
    with telling() as tell:
        session, absent = Session(range(seeds), record, tell, jobs), []
        for name in PARTS:
            if options.wants(name):
                try:
                    _measure(name, options.quick, 60.0 * minutes, session)
                except FileNotFoundError as error:
                    print(f"{name} is left out: {error}")
                    absent.append(name)
                session.cost.note(name, record)
    if absent == [name for name in PARTS if options.wants(name)]:
        raise JobsError(f"nothing was measured: {', '.join(absent)} cannot be read")
    claim_cost(record, _before(options))


def _before(options: Options) -> dict[str, Any]:
    """The details that this run's are written into, where there are any."""
    kept = options.json is not None and options.only and options.json.exists()
    return dict(json.loads(options.json.read_text(encoding="utf-8"))["details"]) if options.json and kept else {}


@contextmanager
def telling() -> Iterator[Tell]:
    """Shows the newest line: as a status on a terminal, else every half minute in a log."""
    console, told = Console(stderr=True), [0.0]

    def log(line: str) -> None:
        if time.monotonic() - told[0] > LOG_SECONDS:
            told[0] = time.monotonic()
            console.print(line, markup=False)

    with console.status("") as status:
        yield status.update if console.is_terminal else log


def _measure(name: str, quick: bool, seconds: float, session: Session) -> None:
    if name == clicks.NAME:
        clicks.measure_clicks(session.seeds, seconds / 60.0, session.record, quick=quick)
    elif name == COST:
        _cost(session)
    elif name in (ABLATED_NEXT, ABLATED_SETS):
        _ablations(name, quick, session)
    elif name == COLD_SET:
        measure_fused_cold(_quickly(movielens_1m(), quick), session)
    elif name in SETS:
        split = _quickly(SETS[name](), quick)
        measure_set(split, session.record)
        measure_fused_set(split, session)
    else:
        sequences = ORDERED[name]()
        split = LeaveOneOut.of(sequences)
        content, tags = films(sequences.item_names, session.tell) if name == "movielens-100k" else ({}, [])
        sasrec = measure_ordered(name, split, content, seconds, session)
        measure_fused_next(name, split, Known("fusion", content, tags), sasrec, session)


def _cost(session: Session) -> None:
    """What serving costs, and what of training goes into loading data."""
    sequences = movielens_100k()
    content, tags = films(sequences.item_names, session.tell)
    found = serving.cost(sequences, content, tags, session.tell)
    session.record.note("preset small", {name: round(value, 4) for name, value in found.items()})
    session.record.claim("score500_ms", found["score500_ms"], "ms", bar=3.0, better="lower")


def _ablations(name: str, quick: bool, session: Session) -> None:
    measure: ablations.Measure
    if name == ABLATED_SETS:
        split, config, metric = _quickly(lastfm_2k(), quick), ablations.SHORTER_SETS, f"ndcg_{K}"
        table = ablations.variants(spaces_of_set(split), (), ordered=False)
        measure = partial(ablations.ablate_set, split, config)
    else:
        sequences, config, metric = movielens_100k(), ablations.SHORTER_NEXT, f"ndcg_{K_LAST}"
        table = ablations.variants(*films(sequences.item_names, session.tell), ordered=True)
        measure = partial(ablations.ablate_next, LeaveOneOut.of(sequences), config)
    ablations.measure_ablations(name.removesuffix("-ablations"), metric, table, config, measure, session)


def _quickly(split: Interactions, quick: bool) -> Interactions:
    return subset(split, QUICK_USERS) if quick else split


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


def measure_ordered(
    name: str, split: LeaveOneOut, content: Mapping[str, NDArray[np.float32]], seconds: float, session: Session
) -> dict[str, NDArray[np.float64]]:
    """Popularity, EASE over sets, the prior over histories that fade, that with each kind of content, and SASRec over some seeds, whose metrics by user are returned."""
    histories = split.sequences.matrix(split.train)
    results = {"popularity": judge_last(split, popularity(histories)(histories), split.test)}
    results["ease"], *_ = _best_prior(name, split, PLAIN_ORDERED[name], (0.0,))
    results["prior"], config, decay = _best_prior(name, split, PRIORS_ORDERED[name], DECAYS)
    for kind, vectors in content.items():
        configs = [replace(config, content=weight) for weight in CONTENTS]
        results[f"prior_{kind}"], *_ = _best_prior(name, split, configs, (decay,), vectors)
    results["sasrec"], gains = _sasrec(name, split, seconds, session)
    for method, found in results.items():
        session.record.note(f"{name} {method}", found)
    return gains


def _best_prior(
    name: str, split: LeaveOneOut, configs: Sequence[EaseConfig], decays: Sequence[float], content: Content = None
) -> tuple[dict[str, Any], EaseConfig, float]:
    """The test's figures by the settings and the decay that are best on validation, and these; weights are fitted on training alone, histories are as long as they are."""
    best, found = -1.0, None
    histories, longer = split.sequences.matrix(split.train), split.sequences.from_last >= 1
    for config in track(configs, f"{name}: EASE", console=Console(stderr=True), transient=True):
        weights = fit_ease(histories, config, content)
        for decay in decays:
            scores = split.sequences.recent(split.train, decay) @ weights
            value = judge_last(split, scores, split.validation)[f"ndcg_{K_LAST}"]
            if value > best:
                best, found = value, (config, decay, weights)
    config, decay, weights = found
    tested = judge_last(split, split.sequences.recent(longer, decay) @ weights, split.test)
    return {**tested, "settings": f"{asdict(config)}, decay {decay}"}, config, decay


def _sasrec(
    name: str, split: LeaveOneOut, seconds: float, session: Session
) -> tuple[dict[str, Any], dict[str, NDArray[np.float64]]]:
    """SASRec by the settings that are best on validation: its mean over the seeds, and that of each user."""

    def fit(configs: Sequence[SasrecConfig], seeds: Sequence[int]) -> list[Outcome]:
        wanted = {
            named(name, "SASRec", f"seed {seed}", settings=[config, seconds]): partial(train_sasrec, split, config, seed, seconds)
            for config in configs
            for seed in seeds
        }  # fmt: skip
        return session.jobs.run(wanted, session.tell)

    tried = fit(PEERS[name], session.seeds[:1])
    at = int(np.argmax([one.about["validation"] for one in tried]))
    fitted = [tried[at], *fit(PEERS[name][at : at + 1], session.seeds[1:])]
    means = {metric: np.mean([one.gains[metric] for one in fitted], axis=0) for metric in fitted[0].gains}
    return {
        **{metric: round(float(values.mean()), 4) for metric, values in means.items()},
        "ndcg_by_seed": [round(float(one.gains[f"ndcg_{K_LAST}"].mean()), 4) for one in fitted],
        **{told: [one.about[told] for one in fitted] for told in ("epochs", "minutes")},
        "settings": str(asdict(PEERS[name][at])),
    }, means


if __name__ == "__main__":
    try:
        run(measure_all, PARTS, "Rankers on public data, by full ranking.", more=add_options)
    except JobsError as error:
        raise SystemExit(f"error: {error}") from None
