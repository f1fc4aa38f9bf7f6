"""Evaluation by full ranking: at each label the whole catalogue of that instant is ranked, and the place of the liked item counts.

For a label at t the history is everything strictly before t, and candidates are all item versions valid at t that the user had not
met before t (of held-out items, where the protocol holds items out: `splits`). Every scorer is judged on the same labels and candidates;
`popularity` counts likes up to t, even those that a frozen model cannot know of, or by protocols that are not by time those of training.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from feature_store.history import history_as_of
from ranker import metrics
from ranker.config import RankerConfig
from ranker.data import Ints, Labels, TrainingSet
from ranker.errors import TrainingSetError
from ranker.exposure import is_shown
from ranker.popularity import Popularity
from ranker.scorer import Context, Ranker, UserState
from ranker.splits import HeldOut, held_out_of
from ranker.torch_state import torch_threads

Scorer = Callable[[str, int, list[str]], NDArray[np.floating[Any]]]
SLICES: Final = ("all", "unseen_items", "seen_items")


@dataclass(frozen=True)
class Task:
    """One ranking task: who, when, among which rows, and which of them was liked."""

    user: str
    t_us: int
    rows: Ints
    target: int


def tasks(ts: TrainingSet, labels: Labels, config: RankerConfig, candidates: Ints | None = None) -> list[Task]:
    """A task for each positive label of an item that the user had not met before; ranked are `candidates` alone, if they are given."""
    ranked = None if candidates is None else np.isin(np.arange(len(ts.items)), candidates)
    made = [_task(ts, labels, int(i), ranked) for i in np.flatnonzero(labels.positive(config))]
    return [task for task in made if task is not None]


def _task(ts: TrainingSet, labels: Labels, i: int, ranked: NDArray[np.bool_] | None) -> Task | None:
    user, t_us = labels.users[i], int(labels.timestamps_us[i])
    before = history_as_of(ts.events[user], t_us, exclude_event_id=labels.event_ids[i])
    met = np.asarray(before.item_ids, object)[~is_shown(before.event_types)]  # to be shown is not to meet
    met_items = [ts.items.index[item_id] for item_id in met if item_id in ts.items.index]
    rows = ts.items.valid_rows(t_us)
    rows = rows if ranked is None else rows[ranked[rows]]
    rows = rows[~np.isin(ts.items.item_R[rows], met_items)]
    target = np.flatnonzero(rows == labels.item_row[i])
    return Task(user, t_us, rows, int(target[0])) if len(target) else None


def evaluate_scorers(
    held: HeldOut, scorers: Mapping[str, Scorer], config: RankerConfig | None = None
) -> dict[str, dict[str, dict[str, float]]]:
    """Judge `scorers` (user_id, t_us, item_ids -> scores) on the labels that were held out.

    Returns scorer -> slice -> metrics; `unseen_items` are those that nobody had met in what a model could learn from.
    """
    todo = tasks(held.ts, held.labels, config or RankerConfig(), held.candidates)
    if not todo:
        raise TrainingSetError(
            "there is no label to evaluate on: no user liked an item that was new to them in what was held out"
        )
    target_items = held.ts.items.item_R[[task.rows[task.target] for task in todo]]
    unseen = held.learned_counts[0][target_items] == 0
    slices = dict(zip(SLICES, (np.ones(len(todo), bool), unseen, ~unseen), strict=True))
    return {name: _judge(held.ts, todo, scorer, slices) for name, scorer in scorers.items()}


def _judge(
    ts: TrainingSet, todo: list[Task], scorer: Scorer, slices: Mapping[str, NDArray[np.bool_]]
) -> dict[str, dict[str, float]]:
    places = np.asarray([_place(ts, task, scorer) for task in todo], np.int64)
    sizes = np.asarray([len(task.rows) for task in todo], np.int64)
    return {name: metrics.summary(places[at, 0], places[at, 1], sizes[at]) for name, at in slices.items()}


def _place(ts: TrainingSet, task: Task, scorer: Scorer) -> tuple[int, int]:
    names = [ts.items.names[i] for i in ts.items.item_R[task.rows]]
    return metrics.place(np.asarray(scorer(task.user, task.t_us, names)), task.target)


# ---- scorers -----------------------------------------------------------------------------------------------------------


def popularity_scorer(ts: TrainingSet, config: RankerConfig | None = None) -> Scorer:
    """Ranks by the number of likes strictly before the instant."""
    counted = Popularity.of(ts, config or RankerConfig())

    def score(_user: str, t_us: int, item_ids: list[str]) -> NDArray[np.floating[Any]]:
        items = np.asarray([ts.items.index[i] for i in item_ids], np.int64)
        return np.asarray(counted.counts(items, np.asarray([t_us]))[0], np.float64)

    return score


def held_out_scorers(held: HeldOut, config: RankerConfig) -> dict[str, Scorer]:
    """What every ranker is compared with: popularity, as the protocol counts it, and a random order."""
    if held.likes is None:
        return {"popularity": popularity_scorer(held.ts, config), "random": random_scorer()}
    index, likes = held.ts.items.index, held.likes.astype(np.float64)
    return {"popularity": lambda _user, _t_us, ids: likes[[index[i] for i in ids]], "random": random_scorer()}


def random_scorer(seed: int = 0) -> Scorer:
    """Ranks at random, the same way for the same seed."""
    rng = np.random.default_rng(seed)
    return lambda _user, _t_us, item_ids: rng.random(len(item_ids))


def ranker_scorer(ts: TrainingSet, ranker: Ranker) -> Scorer:
    """Ranks as serving would: through `Ranker`, with the history strictly before the instant."""
    tokens = ranker.item_tokens(ts.items.batch(np.arange(len(ts.items))))
    asked_on = dict(
        zip(zip(ts.labels.users, ts.labels.timestamps_us.tolist(), strict=True), ts.labels.devices, strict=False)
    )

    def score(user: str, t_us: int, item_ids: list[str]) -> NDArray[np.floating[Any]]:
        history = history_as_of(ts.events[user], t_us)
        met_rows = ts.items.rows_at(ts.items.numbers(history.item_ids), np.asarray(t_us))
        history_tokens = tokens.take(met_rows) if len(met_rows) else ranker.no_items()
        state = UserState(history, history_tokens, ts.profile(user, t_us))
        rows = ts.items.rows_at(np.asarray([ts.items.index[i] for i in item_ids], np.int64), np.asarray(t_us))
        return ranker.score(state, tokens, rows, Context(t_us, asked_on.get((user, t_us), ""))).scores

    return score


# ---- reports -----------------------------------------------------------------------------------------------------------


def evaluate(
    checkpoint: Path | Ranker,
    ts: TrainingSet,
    labels: Labels | None = None,
    scorers: Mapping[str, Scorer] | None = None,
) -> dict[str, Any]:
    """Report of a checkpoint against popularity, random and any further `scorers`; by default on the test labels of its own protocol.

    Keys: `model_id`, `protocol`, `labels`, `scorers` (name -> slice -> metrics).
    """
    ranker = checkpoint if isinstance(checkpoint, Ranker) else Ranker.load(checkpoint)
    config = ranker.model.config
    held = held_out_of(ts, ranker.manifest, config)
    if labels is not None:
        held = replace(held, labels=labels)
    everyone = {"ranker": ranker_scorer(held.ts, ranker), **held_out_scorers(held, config), **(scorers or {})}
    with torch_threads(1):  # one user at a time is too little work to share
        judged = evaluate_scorers(held, everyone, config)
    return {
        "model_id": ranker.model_id,
        "protocol": held.protocol,
        "labels": judged["ranker"]["all"]["labels"],
        "scorers": judged,
    }
