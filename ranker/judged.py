"""A checkpoint's report: every label of the test ranked as serving would, its peers on the same labels, slices, gates and attention.

`evaluate` has the tasks and scorers, `report` the form; this puts the one into the other.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from feature_store.history import history_as_of
from ranker import metrics
from ranker.bootstrap import Estimate, differences, estimates
from ranker.data import Ints, TrainingSet
from ranker.errors import TrainingSetError
from ranker.evaluate import Scorer, Task, held_out_scorers, ranker_scorer, tasks
from ranker.full_ranking import Places
from ranker.list_metrics import list_summary
from ranker.protocols import STATED
from ranker.report import Attended, Attention, Curve, Gates, Peer, Report
from ranker.scorer import Context, Ranker, UserState
from ranker.slices import judge_slices, label_slices
from ranker.splits import BY_TIME, HeldOut, held_out_of
from ranker.torch_state import torch_threads

K: Final = 10
SHOWN_EVENTS: Final = 12
# What each protocol is, as the report states it; `protocols.STATED` has what is common to all that use them.
_BEFORE: Final = "Each test label is ranked by the history strictly before it."
_NEW_LIKES: Final = (
    "Events are labels that like an item new to their user; what else a user did before the first held-out one trains."
)
PROTOCOL: Final[Mapping[str, str]] = {
    "time": "All labels by time, cut at two instants: the first 70 % train, the next 10 % are validation's, the last 20 % the test's. "
    + _BEFORE,
    "leave-one-out": f"{STATED['leave_one_out']} The file's order is that of event_id. {_NEW_LIKES} {_BEFORE}",
    "ratio": f"{STATED['ratio']} The file's order is that of event_id. {_NEW_LIKES} {_BEFORE}",
    "cold-items": f"{STATED['cold_items']} A tenth is held out for validation in the same way. Held-out items are in no history that trains. {_BEFORE}",
    "cold-users": f"{STATED['cold_users']} A tenth is held out for validation in the same way. {_BEFORE}",
}
_MASKS: Final = "Candidates are all {items} that were there at the label; what the user had met before is left out. Ties count at the mean of their places."
_RANDOM: Final = Peer("random", "a random order")
_UP_TO_NOW: Final = Peer(
    "popularity", "likes of each item strictly before the label, also those within the test window"
)
_OF_TRAINING: Final = Peer("popularity", "likes of each item in training's labels")
Tell = Callable[[int, int], None]
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Judged:
    """One scorer on n tasks: candidates above and beside the label's item, how many there were, and the K best items [n, K]."""

    above: Ints
    ties: Ints
    candidates: Ints
    top: Ints

    def places(self) -> Places:
        """The same, each task by itself."""
        return Places(np.arange(len(self.above)), self.above, self.ties, self.candidates)

    def gains(self) -> dict[str, Values]:
        """Metrics of each task."""
        return {
            f"ndcg_at_{K}": metrics.ndcg_at_k(self.above, self.ties, K),
            f"hr_at_{K}": metrics.recall_at_k(self.above, self.ties, K),
            "recall_at_20": metrics.recall_at_k(self.above, self.ties, 20),
            "mrr": 1.0 / (self.above + (self.ties + 1) / 2.0),
            "auc": metrics.auc(self.above, self.ties, self.candidates),
        }


def report_of(ranker: Ranker, ts: TrainingSet, tell: Tell = lambda _done, _all: None) -> Report:
    """Judge a checkpoint on the test labels of its own protocol, against popularity and random."""
    config, held = ranker.model.config, held_out_of(ts, ranker.manifest, ranker.model.config)
    ts, todo = held.ts, tasks(held.ts, held.labels, config, held.candidates)
    if not todo:
        raise TrainingSetError(
            "there is no label to report on: no user liked an item that was new to them in what was held out"
        )
    scorers = {"ranker": ranker_scorer(ts, ranker), **held_out_scorers(held, config)}
    with torch_threads(1):
        done = {name: _judge(ts, todo, scorer, tell) for name, scorer in scorers.items()}
    users = np.unique([task.user for task in todo], return_inverse=True)[1]
    by_user = {name: _by_user(one.gains(), users) for name, one in done.items()}
    main = f"ndcg_at_{K}"
    return Report(
        model_id=ranker.model_id,
        scorer="ranker",
        protocol=PROTOCOL[held.protocol],
        masks=_MASKS.format(items="items" if held.candidates is None else "held-out items"),
        main_metric=main,
        metrics=_metrics(held, by_user, done),
        users=int(users.max()) + 1,
        labels=len(todo),
        facts=_facts(ranker, held),
        differences=differences({name: gains[main] for name, gains in by_user.items()}, "ranker"),
        slices=_slices(held, todo, done, users),
        training=_curves(ranker.manifest),
        gates=gates_by_category(ranker, ts),
        attention=attention_of(ranker, ts, todo),
        peers=(_UP_TO_NOW if held.likes is None else _OF_TRAINING, _RANDOM),
    )


def _judge(ts: TrainingSet, todo: list[Task], scorer: Scorer, tell: Tell) -> Judged:
    places, top = np.zeros((len(todo), 2), np.int64), np.full((len(todo), K), -1, np.int64)
    for number, task in enumerate(todo):
        items = ts.items.item_R[task.rows]
        scores = np.nan_to_num(
            np.asarray(scorer(task.user, task.t_us, [ts.items.names[i] for i in items])), nan=-np.inf
        )
        places[number] = metrics.place(scores, task.target)
        best = items[np.argsort(-scores, kind="stable")[:K]]
        top[number, : len(best)] = best
        tell(number + 1, len(todo))
    return Judged(places[:, 0], places[:, 1], np.asarray([len(task.rows) for task in todo], np.int64), top)


def _by_user(gains: Mapping[str, Values], users: Ints) -> dict[str, Values]:
    """Each user's mean over their labels."""
    counts = np.bincount(users)
    return {name: np.bincount(users, np.nan_to_num(values, nan=0.5)) / counts for name, values in gains.items()}


def _metrics(
    held: HeldOut, by_user: Mapping[str, Mapping[str, Values]], done: Mapping[str, Judged]
) -> dict[str, dict[str, Estimate]]:
    names = list(by_user["ranker"])
    found: dict[str, dict[str, Estimate]] = {scorer: {} for scorer in by_user}
    for name in names:
        for scorer, one in estimates({scorer: gains[name] for scorer, gains in by_user.items()}).items():
            found[scorer][name] = one
    counts, learned = held.learned_counts
    users = len(by_user["ranker"][names[0]])
    for scorer, judged in done.items():
        summary = list_summary(judged.top, counts, learned, _content(held.ts))  # a list for each label
        found[scorer] |= {name: Estimate(value, np.nan, np.nan, users) for name, value in summary.items()}
    return found


def _content(ts: TrainingSet) -> Values | None:
    """Vectors of all modalities side by side [I, d], of each item's last version; None where there is no modality."""
    if not ts.spaces:
        return None
    parts = [ts.items.vectors[s.space_id] * ts.items.present[s.space_id][:, None] for s in ts.spaces.values()]
    return np.asarray(np.concatenate(parts, axis=1)[ts.items.last_row_I], np.float64)


def _slices(held: HeldOut, todo: list[Task], done: Mapping[str, Judged], users: Ints) -> Any:
    ts, counts = held.ts, held.learned_counts[0]
    rows = np.asarray([task.rows[task.target] for task in todo], np.int64)
    history = np.asarray([len(history_as_of(ts.events[task.user], task.t_us)) for task in todo], np.int64)
    names = sorted({task.user for task in todo})
    before = np.asarray([len(held.learned.get(name, ())) for name in names], np.int64)
    slices = label_slices(
        users, ts.items.item_R[rows], history=history, user_counts=before, item_counts=counts, present=_present(ts)
    )
    places = {name: one.places() for name, one in done.items()}  # whose users are the numbers of the tasks

    def by_user(found: Places) -> Values:
        number = np.unique(users[found.user], return_inverse=True)[1]
        return np.bincount(number, metrics.ndcg_at_k(found.above, found.ties, K)) / np.bincount(number)

    return judge_slices(places, slices, by_user)


def _present(ts: TrainingSet) -> dict[str, NDArray[np.bool_]]:
    """Which items [I] have each modality in any version."""
    found = {}
    for modality, space in ts.spaces.items():
        there = np.zeros(len(ts.items.names), bool)
        np.logical_or.at(there, ts.items.item_R, ts.items.present[space.space_id])
        found[modality] = there
    return found


def _facts(ranker: Ranker, held: HeldOut) -> dict[str, str]:
    data = ranker.manifest["data"]
    window = " to ".join(_date(data[name]) for name in ("first_label_us", "last_label_us"))
    begins = f"; the test begins {_date(data['test_start_us'])}" if held.protocol == BY_TIME else ""
    return {
        "spaces": ", ".join(ranker.space_ids.values()),
        "labels": window + begins,
        "protocol": held.protocol,
        "seed": f"{ranker.manifest['seed']}, also of what is held out at random",
        "averages": "of each user's labels first (within a slice, of those in it), then of users",
    }


def _date(t_us: int) -> str:
    return datetime.fromtimestamp(t_us / 1e6, UTC).strftime("%Y-%m-%d")


def _curves(manifest: Mapping[str, Any]) -> list[Curve]:
    looks = manifest.get("looks") or []
    epochs = tuple(float(look["epoch"]) for look in looks)
    curves = [("loss", "training", "loss"), ("NDCG on validation", "validation", "ndcg")]
    return [Curve(panel, name, epochs, tuple(look[key] for look in looks)) for panel, name, key in curves if looks]


@torch.no_grad()
def gates_by_category(ranker: Ranker, ts: TrainingSet) -> list[Gates]:
    """Mean gate of each part of the item token, over the items of a category that have that part."""
    model = ranker.model
    if model.encoder.fusion != "gate":
        return []
    rows = ts.items.valid_rows(int(ts.labels.timestamps_us.max()))
    inputs = ranker.item_tokens(ts.items.batch(rows)).inputs
    read = replace(inputs, index_N=model.id_row[inputs.index_N] * model.config.ids)  # as `model.items` reads them
    slots, there = model.slots(inputs), model.encoder.there(read)
    weights, names = model.encoder.gate(slots * there[..., None], there).numpy(), model.encoder.slot_names
    categories = np.asarray([ts.items.category[row] or "without category" for row in rows])
    return [_gates(category, weights[categories == category], names) for category in sorted(set(categories.tolist()))]


def _gates(category: str, weights: NDArray[np.float32], names: tuple[str, ...]) -> Gates:
    has = (weights > 0).sum(0)
    means = {name: float(weights[:, at].sum() / has[at]) for at, name in enumerate(names) if has[at]}
    return Gates(category, len(weights), means)


def attention_of(ranker: Ranker, ts: TrainingSet, todo: list[Task]) -> Attention | None:
    """What of the longest history the best candidate's score is due to; None where the model gives no such reasons."""
    if not (ranker.model.config.attends or ranker.model.prior.neighbours) or not todo:
        return None
    task = max(todo, key=lambda one: len(history_as_of(ts.events[one.user], one.t_us)))
    tokens = ranker.item_tokens(ts.items.batch(np.arange(len(ts.items))))
    history = history_as_of(ts.events[task.user], task.t_us)
    rows = ts.items.rows_at(ts.items.numbers(history.item_ids), np.asarray(task.t_us))
    state = UserState(history, tokens.take(rows), ts.profile(task.user, task.t_us))
    context = Context(task.t_us)
    best = task.rows[[int(np.argmax(ranker.score(state, tokens, task.rows, context).scores))]]
    by = "attention" if ranker.model.config.attends else "prior"
    [weights] = ranker.influences(state, tokens, best, context)
    newest = range(max(0, len(history) - SHOWN_EVENTS), len(history))
    events = tuple(
        Attended(history.item_ids[at], float(weights[at]), "", _date(int(history.timestamps_us[at]))) for at in newest
    )
    return Attention(task.user, ts.items.names[ts.items.item_R[best[0]]], events, by=by)
