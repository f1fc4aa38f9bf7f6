"""What each part of the fusion ranker is worth: the same training with one thing changed, over some seeds, on the test, in one table.

`gate` is the whole model without the prior, `gate and prior` with it; all others are without the prior and to be compared with `gate`. `text
alone` and its like know an item by that modality and nothing else.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.rankers.fusion import (
    NEXT,
    VARIATIONAL,
    Known,
    Tags,
    Tell,
    Trained,
    gains_of_next,
    places_of_sets,
    train_next,
    train_set,
)
from benchmarks.rankers.jobs import Outcome, named
from benchmarks.rankers.measured import Session
from benchmarks.rankers.sequences import LeaveOneOut
from benchmarks.rankers.sets import Interactions
from benchmarks.rankers.training_sets import Content
from ranker import full_ranking
from ranker.bootstrap import estimates
from ranker.config import RankerConfig

Values = NDArray[np.float64]
NO_DROPOUT: Final = {"dropout": 0.0, "content_dropout": 0.0, "modality_dropout": 0.0, "id_dropout": 0.0}
FACTORS: Final = 64
WHOLE: Final = "gate"
# A third of the time: there are 36 trainings and more of each.
SHORTER_NEXT: Final = replace(NEXT, history_length=50, max_epochs=30, patience=3)
SHORTER_SETS: Final = replace(VARIATIONAL, max_epochs=60, learning_rate=2e-3)


@dataclass(frozen=True)
class Variant:
    """What a variant changes, and what it knows of items."""

    changes: Mapping[str, Any]
    known: Known


Measure = Callable[
    [Variant, int, bool, Tell], Outcome
]  # a variant's training by a seed; with the prior where that is asked for


def variants(content: Content, tags: Tags, *, ordered: bool) -> dict[str, Variant]:
    """The table's rows, by name."""
    known = {f"{name} alone": Known(name, {name: content[name]}) for name in content}
    if tags:
        known["tags alone"] = Known("tags", {}, tags)
    alone = {row: Variant({"ids": False}, one) for row, one in known.items()}
    changes: dict[str, Mapping[str, Any]] = {
        "concatenation": {"fusion": "concat"},
        "sum": {"fusion": "sum"},
        WHOLE: {},
        "gate and factors": {"collaborative": FACTORS},
        "gate, ids aligned": {"align_weight": 0.1},
        "no dropout": NO_DROPOUT,
        **({"no time gaps": {"time_gaps": False}} if ordered else {}),
    }
    whole = Known("everything", content, tags)
    changed = {row: Variant(change, whole) for row, change in changes.items()}
    return {"id alone": Variant({}, Known("ids", {})), **alone, **changed}


def measure_ablations(
    name: str,
    metric: str,
    table: Mapping[str, Variant],
    config: RankerConfig,
    measure: Measure,
    session: Session,
) -> None:
    """A detail for each row: the metric's mean over seeds and users, its interval over users, and each seed's."""
    wanted = {
        named(name, row, f"seed {seed}", settings=[replace(config, **variant.changes)]): partial(measure, variant, seed, row == WHOLE)
        for row, variant in table.items()
        for seed in session.seeds
    }  # fmt: skip
    outcomes, seeds = session.jobs.run(wanted, session.tell), len(session.seeds)
    found: dict[str, list[Values]] = {}
    for at, row in enumerate(table):
        ones = outcomes[at * seeds : (at + 1) * seeds]
        found[row] = [one.gains["without"] for one in ones]
        if row == WHOLE:
            found[f"{WHOLE} and prior"] = [one.gains["mixed"] for one in ones if "mixed" in one.gains]
    means = {row: np.mean(values, axis=0) for row, values in found.items()}
    for row, one in estimates(means).items():
        by_seed = [round(float(values.mean()), 4) for values in found[row]]
        numbers = {metric: round(float(means[row].mean()), 4), "low": round(one.low, 4), "high": round(one.high, 4)}
        session.record.note(f"{name} ablation {row}", {**numbers, "by_seed": by_seed})


def ablate_next(split: LeaveOneOut, config: RankerConfig, variant: Variant, seed: int, prior: bool, tell: Tell) -> Outcome:  # fmt: skip
    """NDCG@10 by user, where the last event is held out."""
    changed = replace(config, **variant.changes)
    _, trained = train_next(split, variant.known, [changed], seed, tell, mixed=prior)
    return _both(trained, lambda: gains_of_next(trained)["ndcg_10"])


def ablate_set(split: Interactions, config: RankerConfig, variant: Variant, seed: int, prior: bool, tell: Tell) -> Outcome:  # fmt: skip
    """NDCG@20 by user of a set."""
    changed = replace(config, **variant.changes)
    _, trained, test = train_set(split, variant.known, [changed], seed, tell, mixed=prior)
    return _both(trained, lambda: full_ranking.ndcg(places_of_sets(trained, test), 20))


def _both(trained: Trained, values: Callable[[], Values]) -> Outcome:
    """Judge without the prior, and with it where there is one."""
    if trained.mix is None:
        return Outcome({"without": values()})
    mixed, prior = values(), trained.fitted.model.prior
    prior.scale.zero_()
    return Outcome({"without": values(), "mixed": mixed})
