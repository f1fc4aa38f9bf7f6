"""What a trained ranker keeps and costs once it serves: with a modality missing from every item, behind retrieval, and in time on one core."""

# Shapes are part of names: B labels of a batch, R item versions, T numbers of a fused vector.
# ruff: noqa: N803, N806, N815

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.rankers.fusion import Tell, Trained, places_of_sets
from benchmarks.rankers.sequences import Sequences
from benchmarks.rankers.training_sets import Content, of_sequences
from feature_store.history import history_as_of
from ranker import full_ranking, metrics
from ranker.config import preset
from ranker.data import Ints, Labels, time_split
from ranker.examples import build_examples
from ranker.inputs import tensor_of
from ranker.loop import Fitted, fit
from ranker.mixing import mix_prior
from ranker.run import Run, allowed_candidates, choose_candidates, forward
from ranker.scorer import Context, Ranker, UserState
from ranker.scoring import above_and_beside
from ranker.sequences import Histories
from ranker.train import finish, in_memory

RETRIEVED: Final = 500
K, K_SETS = 10, 20
BATCH: Final = 256
CALLS: Final = 200
ROUNDS: Final = 5
Values = NDArray[np.float64]


# ---- without a modality ------------------------------------------------------------------------------------------------


def drops(trained: Trained, test: Labels) -> dict[str, float]:
    """The share of NDCG@20 that is lost where no item has a modality (`tags`: nothing but modalities and the id), of models that read sets."""
    run = trained.fitted.run
    whole = _ndcg_of(trained, run, test)
    names = [*run.ts.spaces, *(["tags"] if run.vocabulary.tags else [])]
    return {name: 1.0 - _ndcg_of(trained, without(run, name), test) / whole for name in names}


def without(run: Run, modality: str) -> Run:
    """The same run, where no item has the modality."""
    groups = [*run.ts.spaces, "id", "tags"]
    kept = torch.tensor([group != modality for group in groups]).expand(len(run.inputs), -1)
    return replace(run, inputs=run.inputs.keep(kept))


def _ndcg_of(trained: Trained, run: Run, test: Labels) -> float:
    found = places_of_sets(replace(trained, fitted=replace(trained.fitted, run=run)), test)
    return float(full_ranking.ndcg(found, K_SETS).mean())


# ---- behind retrieval --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stages:
    """Scores [B, R] of one batch, -inf for what must not be ranked: of the fused vectors, of the whole model, and of popularity."""

    fused_BR: Tensor
    score_BR: Tensor
    popular_BR: Tensor
    target_B: Tensor

    def recall(self, score_BR: Tensor) -> Values:
        """Whether the label's item is among the first 500."""
        return metrics.recall_at_k(*above_and_beside(score_BR, self.target_B), RETRIEVED)

    def full(self) -> Values:
        """NDCG@10 of ranking everything."""
        return metrics.ndcg_at_k(*above_and_beside(self.score_BR, self.target_B), K)

    def two_stage(self) -> Values:
        """NDCG@10 of ranking the 500 that are nearest by their fused vectors; 0 where the label's item is not among them."""
        nearest = self.fused_BR.topk(min(RETRIEVED, self.fused_BR.shape[1])).indices
        kept_BR = torch.full_like(self.score_BR, -torch.inf).scatter(1, nearest, self.score_BR.gather(1, nearest))
        there = kept_BR.gather(1, self.target_B[:, None])[:, 0].isfinite().cpu().numpy()
        return metrics.ndcg_at_k(*above_and_beside(kept_BR, self.target_B), K) * there


def retrieval(fitted: Fitted) -> dict[str, float]:
    """Next-item Recall@500 of the fused vectors' exact cosines, beside that of the whole score and of popularity; and NDCG@10 of retrieve-then-rank over that of ranking everything.

    What a user has met is left out before the 500 are taken.
    """
    finish(fitted)
    parts = [
        {
            "recall_500": stages.recall(stages.fused_BR),
            "recall_500_of_the_score": stages.recall(stages.score_BR),
            "recall_500_of_popularity": stages.recall(stages.popular_BR),
            "full": stages.full(),
            "two_stage": stages.two_stage(),
        }
        for stages in _stages(fitted.run)
    ]
    means = {name: float(np.concatenate([part[name] for part in parts]).mean()) for name in parts[0]}
    return means | {"two_stage_over_full": means["two_stage"] / means["full"]}


@torch.no_grad()
def _stages(run: Run) -> Iterator[Stages]:
    model, rows = run.model.eval(), np.arange(len(run.ts.items))
    fused_RT = model.fused_items(model.items(run.inputs))
    popular_R = tensor_of(run.label_counts.astype(np.float32))
    examples = build_examples(run.ts, run.split.test, model, run.vocabulary)
    for first in range(0, len(examples), BATCH):
        at = np.arange(first, min(first + BATCH, len(examples)))
        scored, user, _ = forward(run, examples, at, rows, None)
        closed_BR = ~tensor_of(allowed_candidates(run.ts, examples, at, rows))
        scores = (model.fused_user(user) @ fused_RT.T, scored.score_BC, popular_R.expand(len(at), -1))
        open_scores = [score_BR.masked_fill(closed_BR, -torch.inf) for score_BR in scores]
        yield Stages(*open_scores, tensor_of(examples.labels.item_row[at]))


# ---- time --------------------------------------------------------------------------------------------------------------


def cost(sequences: Sequences, content: Content, tags: list[list[str]], tell: Tell) -> dict[str, float]:
    """Preset `small` on one core: milliseconds to score 500 candidates, history and all, and the share of an epoch that goes into reading what batches are made of.

    Times do not depend on how good the weights are, so one epoch is trained.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        ts = of_sequences(sequences, content, tags)
        config = replace(preset("small"), max_epochs=1)
        fitted = fit(ts, time_split(ts.labels), config, 0)
        if config.prior:
            mix_prior(fitted, tell)
        return {**_score_times(fitted), "loading_share": _loading_seconds(fitted.run) / fitted.seconds}
    finally:
        torch.set_num_threads(before)


def _score_times(fitted: Fitted) -> dict[str, float]:
    """Medians over users of the test, in the fastest of some rounds: what else the machine does only adds to them."""
    run = fitted.run
    space_ids = {modality: space.space_id for modality, space in run.ts.spaces.items()}
    ranker = in_memory(finish(fitted), fitted.vocabulary, "small", {"space_ids": space_ids})
    tokens = ranker.item_tokens(run.ts.items.batch(np.arange(len(run.ts.items))))
    row_of = {name: row for row, name in enumerate(run.ts.items.names)}
    rng, seconds = np.random.default_rng(0), []
    for number in np.tile(rng.permutation(len(run.split.test))[:CALLS], ROUNDS):
        user, now_us = run.split.test.users[number], int(run.split.test.timestamps_us[number])
        history = history_as_of(run.ts.events[user], now_us)
        state = UserState(history, ranker.history_tokens(history, tokens, row_of))
        rows, context = rng.choice(len(row_of), RETRIEVED, replace=False), Context(now_us)
        seconds.append(_timed(ranker, state, tokens, rows, context))
    rounds = np.median(np.reshape(seconds, (ROUNDS, -1, 2)), axis=1)
    encode, score = rounds[rounds.sum(1).argmin()]
    return {"score500_ms": 1e3 * (encode + score), "read_ms": 1e3 * encode, "rank_ms": 1e3 * score}


def _timed(ranker: Ranker, state: UserState, tokens: Any, rows: Ints, context: Context) -> tuple[float, float]:
    """Seconds to read the history, and to score."""
    times = [time.perf_counter()]
    encoded = ranker.encode_user(state, context)
    times.append(time.perf_counter())
    ranker.score(encoded, tokens, rows, context)
    times.append(time.perf_counter())
    return times[1] - times[0], times[2] - times[1]


def _loading_seconds(run: Run) -> float:
    """Seconds to read what all batches of an epoch are made of: padded histories, labels with their candidates, or both."""
    config, seconds = run.config, 0.0
    if config.batch_users:
        histories = Histories.of(run.ts, run.split.train, run.model, run.vocabulary, newest=config.history_length + 1)
        seconds += _seconds_of(lambda at: _read(histories, at), len(histories), config.batch_users)
    if config.batch_size:
        examples = build_examples(run.ts, run.split.train, run.model, run.vocabulary)
        seconds += _seconds_of(lambda at: choose_candidates(run, examples, at), len(examples), config.batch_size)
    return seconds


def _seconds_of(make: Callable[[Ints], object], count: int, size: int) -> float:
    started = time.perf_counter()
    for first in range(0, count, size):
        make(np.arange(first, min(first + size, count)))
    return time.perf_counter() - started


def _read(histories: Histories, at: Ints) -> None:
    number_BL, there_BL = histories.padded(at)
    for column in (histories.row, histories.event, histories.strength, histories.time_us, histories.label):
        column[number_BL] * there_BL
