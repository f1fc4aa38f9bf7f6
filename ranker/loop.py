"""The epochs of a training: which losses a step adds up, looks at validation, and when to stop.

`mixing` adds the prior afterwards. The same seed on the same machine gives the same weights.
"""

# Shapes are part of names: B labels or users of a batch, U users, C candidates, I items.

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ranker.config import RankerConfig
from ranker.data import Ints, Labels, Split, TrainingSet
from ranker.errors import TooFewError
from ranker.examples import Examples, build_examples
from ranker.fit import build_model, build_vocabulary, set_popularity, set_references
from ranker.folds import Folds, batches
from ranker.inputs import Vocabulary
from ranker.model import FusionRanker
from ranker.resume import Look, State, Unfinished, given_of
from ranker.run import Run, label_loss, start
from ranker.scoring import Scoring
from ranker.sequences import Histories
from ranker.steps import align_loss, place_loss, set_loss
from ranker.torch_state import deterministic, give_back

MINIMUM_EXAMPLES = 20
GRADIENT_NORM = 1.0
WARM_UP = 0.1  # share of all steps
LOOK_USERS = 4_000  # users that a look at validation takes at most


@dataclass(frozen=True)
class Progress:
    """Where a training stands, after each step; `ndcg` is the newest validation NDCG (NaN before the first)."""

    epoch: int
    step: int
    steps: int
    loss: float
    ndcg: float
    elapsed_seconds: float

    @property
    def eta_seconds(self) -> float:
        """Time left at the present pace if training never stops early: an upper bound."""
        return self.elapsed_seconds / max(1, self.step) * (self.steps - self.step)


ProgressCallback = Callable[[Progress], None]
LookCallback = Callable[[Look], None]


@dataclass(frozen=True)
class Fitted:
    """A trained model in eval mode with what it was trained with; `epochs` is the best of those looked at."""

    run: Run
    model: FusionRanker
    vocabulary: Vocabulary
    epochs: int
    looks: list[Look]
    seconds: float


@deterministic()
def fit(
    ts: TrainingSet,
    split: Split,
    config: RankerConfig,
    seed: int,
    progress: ProgressCallback | None = None,
    *,
    epochs: int | None = None,
    looked: LookCallback | None = None,
    unfinished: Path | None = None,
) -> Fitted:
    """Train on `split.train`, stopping by `split.validation`; with `epochs`, for so many, without looking.

    Each look is kept in the file `unfinished`, if one is named; where it is there already, training goes on from it. `looked` is told of each look.

    Raises `TooFewError` where there is too little data, `ResumeError` where the file is of another training.
    """
    started = time.perf_counter()
    torch.manual_seed(seed)
    vocabulary = build_vocabulary(ts, split)
    model = build_model(ts, split, config, vocabulary)
    run = start(ts, split, model, vocabulary, seed)
    if not config.network:
        model.silence()
        return Fitted(run, model.eval(), vocabulary, 0, [], time.perf_counter() - started)
    set_popularity(model, ts, vocabulary, run.popularity, split.train_end_us)
    material = _Material.of(run, epochs is None)
    if material.examples is not None:
        set_references(model, run.inputs, material.examples)
    kept = Unfinished(unfinished, given_of(ts, split, config, seed, epochs)) if unfinished else None
    best, looks = _epochs(run, material, epochs, _Told(progress, looked, kept))
    return Fitted(run, model.eval(), vocabulary, best, looks, time.perf_counter() - started)


@dataclass(frozen=True)
class _Material:
    """What steps are made of: single labels, whole histories, or both; and what validation looks at (None: nothing)."""

    examples: Examples | None
    histories: Histories | None
    validation: Scoring | None
    folds: Folds | None

    @classmethod
    def of(cls, run: Run, look: bool) -> "_Material":
        ts, split, config = run.ts, run.split, run.config
        ordered = config.history == "order"
        examples = build_examples(ts, split.train, run.model, run.vocabulary) if config.similar else None
        newest = config.history_length + 1 if ordered else None
        use_histories = config.batch_users > 0 or not ordered
        histories = Histories.of(ts, split.train, run.model, run.vocabulary, newest=newest) if use_histories else None
        validation = Scoring.of(run, some_users(split.validation, LOOK_USERS)) if look else None
        count = len(examples) if examples is not None else int(histories.label.sum()) if histories else 0
        if count < MINIMUM_EXAMPLES or (validation is not None and len(validation) < MINIMUM_EXAMPLES):
            raise TooFewError(
                f"{count} training and {len(validation) if validation else 0} validation examples are too few: at least "
                f"{MINIMUM_EXAMPLES} each are needed, of users liking items that are new to them"
            )
        return cls(examples, histories, validation, Folds.of(run) if config.collaborative else None)

    def batches(self, config: RankerConfig, rng: np.random.Generator) -> Iterator[tuple[Ints | None, Ints | None]]:
        """(labels, users) of each step of an epoch."""
        if self.histories is None:
            yield from ((at, None) for at in self._labels(config, rng))
            return
        labels = self._endless_labels(config, rng)
        for users in self._batches(self.histories.users, config.batch_users, rng):
            yield next(labels), users

    def _endless_labels(self, config: RankerConfig, rng: np.random.Generator) -> Iterator[Ints | None]:
        while True:
            found: list[Ints] = self._labels(config, rng)
            yield from found or (None,)

    def _labels(self, config: RankerConfig, rng: np.random.Generator) -> list[Ints]:
        return self._batches(self.examples.labels.users, config.batch_size, rng) if self.examples is not None else []

    def _batches(self, users: list[str], size: int, rng: np.random.Generator) -> list[Ints]:
        folds = self.folds.numbers(users) if self.folds is not None else None
        return batches(np.arange(len(users)), size, rng, folds)

    def steps(self, config: RankerConfig) -> int:
        """Batches of an epoch."""
        rng = np.random.default_rng(0)
        if self.histories is None:
            return len(self._labels(config, rng))
        return len(self._batches(self.histories.users, config.batch_users, rng))

    def read_fold(self, run: Run, user: str) -> None:
        """Let tokens have the factors that a batch with this user may see."""
        if self.folds is not None:
            run.model.encoder.fold_IK = self.folds.factors[self.folds.fold_of.get(user, 0)]


def some_users(labels: Labels, most: int) -> Labels:
    """The labels of at most so many users, evenly taken from all by name."""
    users = sorted(set(labels.users))
    if len(users) <= most:
        return labels
    chosen = {users[i] for i in np.linspace(0, len(users) - 1, most).round().astype(int)}
    return labels.take(np.flatnonzero([user in chosen for user in labels.users]))


@dataclass(frozen=True)
class _Told:
    """Who is told of each step and of each look, and the file that keeps the state at each look."""

    progress: ProgressCallback | None
    looked: LookCallback | None
    unfinished: Unfinished | None

    def step(self, state: State, epoch: int, loss: float, started: float) -> None:
        if self.progress:
            ndcg = state.looks[-1].ndcg if state.looks else float("nan")
            elapsed = time.perf_counter() - started
            self.progress(Progress(epoch, state.schedule.last_epoch, state.schedule.total_steps, loss, ndcg, elapsed))

    def look(self, state: State) -> None:
        if self.unfinished:
            self.unfinished.save(state)
        if self.looked:
            self.looked(state.looks[-1])


def _epochs(run: Run, material: _Material, fixed: int | None, told: _Told) -> tuple[int, list[Look]]:
    """Train until validation has not improved for `patience` looks; the best weights stay. Returns the best epoch and the looks."""
    config = run.config
    state = _begin(run, material.steps(config) * config.max_epochs)
    if told.unfinished:
        told.unfinished.load(state)
    started = time.perf_counter() - state.seconds
    for epoch in range(state.epoch + 1, min(fixed or config.max_epochs, config.max_epochs) + 1):
        if state.stalled(config):
            break
        losses = []
        for labels, users in material.batches(config, run.rng):
            losses.append(_step(run, material, labels, users, state.optimizer))
            state.stepped()
            told.step(state, epoch, losses[-1], started)
        give_back()
        if material.validation is None or (epoch % config.look_epochs and epoch < config.max_epochs):
            continue
        with state.averaged():
            look = Look(epoch, float(np.mean(losses)), material.validation.ndcg())
            state.look(look, time.perf_counter() - started)
        told.look(state)
    if fixed:
        state.settle()
        return fixed, state.looks
    run.model.load_state_dict(state.best_weights)
    return state.best.epoch, state.looks


def _begin(run: Run, steps: int) -> State:
    """The state before the first of so many steps."""
    optimizer = _optimizer(run.model, run.config)
    warm_up = WARM_UP if WARM_UP * steps != 1 else 2 * WARM_UP  # OneCycleLR divides by the steps of warm-up less one
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [group["lr"] for group in optimizer.param_groups], total_steps=steps, pct_start=warm_up
    )
    keep = run.config.mean_keeps

    mean = AveragedModel(run.model, multi_avg_fn=get_ema_multi_avg_fn(keep)) if keep else None  # type: ignore[no-untyped-call]
    return State(run.model, optimizer, schedule, run.rng, mean)


def _optimizer(model: FusionRanker, config: RankerConfig) -> torch.optim.Optimizer:
    """AdamW: fast gates without decay, ids with their own, the rest in between."""
    groups: dict[str, list[Tensor]] = {"gates": [], "ids": [], "rest": []}
    for name, parameter in model.named_parameters():
        kind = (
            "gates" if name.startswith("gates.") else "ids" if name.startswith(("encoder.ids", "id_bias")) else "rest"
        )
        groups[kind].append(parameter)
    return torch.optim.AdamW(
        [
            {"params": groups["gates"], "lr": config.gate_learning_rate, "weight_decay": 0.0},
            {"params": groups["ids"], "lr": config.learning_rate, "weight_decay": config.id_decay},
            {"params": groups["rest"], "lr": config.learning_rate, "weight_decay": config.weight_decay},
        ]
    )


def _step(
    run: Run, material: _Material, labels: Ints | None, users: Ints | None, optimizer: torch.optim.Optimizer
) -> float:
    run.model.train()
    with _precision(run.config):
        loss = _loss(run, material, labels, users)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(run.model.parameters(), GRADIENT_NORM)
    optimizer.step()
    return float(loss.detach())


def _loss(run: Run, material: _Material, labels: Ints | None, users: Ints | None) -> Tensor:
    loss = torch.zeros(())
    if labels is not None and material.examples is not None:
        material.read_fold(run, material.examples.labels.users[labels[0]])
        loss = loss + label_loss(run, material.examples, labels)
    if users is not None and material.histories is not None:
        material.read_fold(run, material.histories.users[users[0]])
        history_loss = set_loss if run.config.history == "set" else place_loss
        loss = loss + history_loss(run, material.histories, users)
    if run.config.align_weight:
        loss = loss + run.config.align_weight * align_loss(run)
    return loss


def _precision(config: RankerConfig) -> torch.autocast:
    """Products in bfloat16 where the device has it in hardware (float32 weights), else as they are."""
    device = torch.get_default_device().type
    has = device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    wanted = config.precision == "bfloat16" or (config.precision == "auto" and has)
    return torch.autocast(device, dtype=torch.bfloat16, enabled=wanted)
