"""Training of the fusion ranker: every label is a choice among the items that were there, before anything that came after it.

Early stopping on validation NDCG@10; the same seed on the same machine gives the same checkpoint, and the caller's random state is
left alone.
"""

# Shapes are part of names: B labels of a batch, C candidates, R item versions, G groups of features.
# ruff: noqa: N803, N806, N815

import copy
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own idiom
from numpy.typing import NDArray
from torch import Tensor

from encoders.space import check_model_id
from ranker import checkpoint, metrics
from ranker.config import RankerConfig
from ranker.data import Ints, Labels, Split, TrainingSet, time_split, too_few
from ranker.errors import TrainingSetError
from ranker.evaluate import evaluate, torch_threads
from ranker.examples import Examples, build_examples
from ranker.fit import build_model, build_vocabulary, ratings, set_popularity, set_references
from ranker.inputs import ItemInputs, Items, Vocabulary
from ranker.model import FusionRanker, Scored, User
from ranker.popularity import Popularity
from ranker.scorer import Ranker, context_features, encode_items, project_profile

MINIMUM_EXAMPLES = 20
GRADIENT_NORM = 1.0


@dataclass(frozen=True)
class Progress:
    """Where a training stands, after each step; `ndcg` is the newest validation NDCG@10 (NaN before the first)."""

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


@dataclass(frozen=True)
class TrainResult:
    """A finished training: its checkpoint's folder, the test report of `evaluate`, epochs run, and seconds it took."""

    folder: Path
    metrics: dict[str, Any]
    epochs: int
    seconds: float


@dataclass(frozen=True)
class Candidates:
    """What a batch's labels are compared with: item rows [C], who may be compared with what [B, C], and where the liked one is."""

    rows: Ints
    allowed_BC: Tensor
    target_B: Tensor


@dataclass
class _Run:
    """All that one training works with."""

    ts: TrainingSet
    config: RankerConfig
    model: FusionRanker
    inputs: ItemInputs
    popularity: Popularity
    profiles_UK: Tensor
    profile_of: dict[str, int]
    rng: np.random.Generator
    position_of_row: Ints = field(init=False)

    def __post_init__(self) -> None:
        self.position_of_row = np.zeros(len(self.ts.items), np.int64)


def train(
    ts: TrainingSet,
    config: RankerConfig,
    models_dir: Path,
    model_id: str,
    *,
    seed: int = 0,
    progress: ProgressCallback | None = None,
    feature_service: str | None = None,
) -> TrainResult:
    """Train on the first 70 % of labels, stop by the next 10 %, report on the last 20 %, and write the checkpoint.

    Raises `CheckpointError` where `model_id` is taken and `TrainingSetError` where there is too little data.
    """
    started = time.perf_counter()
    checkpoint.refuse_overwrite(models_dir / check_model_id(model_id))
    with _counted(ts), torch.random.fork_rng(devices=[]), torch_threads(config.threads):
        split = time_split(ts.labels)
        vocabulary = build_vocabulary(ts, split)
        about = _about(ts, split, model_id, seed, feature_service or f"ranker_{model_id}")
        torch.manual_seed(seed)
        model, epochs = _fit(ts, split, config, vocabulary, seed, progress)
        report = evaluate(_in_memory(model, vocabulary, model_id, about), ts, split.test)
    seconds = time.perf_counter() - started
    about |= {"metrics": report["scorers"], "epochs": epochs, "train_seconds": round(seconds, 1)}
    return TrainResult(checkpoint.save(models_dir, model_id, model, vocabulary, about), report, epochs, seconds)


@contextmanager
def _counted(ts: TrainingSet) -> Iterator[None]:
    """Add to an error about too little data how much there is, and what to do."""
    try:
        yield
    except TrainingSetError as error:
        raise too_few(ts, str(error)) from None


def _fit(
    ts: TrainingSet,
    split: Split,
    config: RankerConfig,
    vocabulary: Vocabulary,
    seed: int,
    progress: ProgressCallback | None,
) -> tuple[FusionRanker, int]:
    model = build_model(ts, split, config, vocabulary)
    examples = build_examples(ts, split.train, model, vocabulary)
    validation = build_examples(ts, split.validation, model, vocabulary)
    if min(len(examples), len(validation)) < MINIMUM_EXAMPLES:
        raise TrainingSetError(
            f"{len(examples)} training and {len(validation)} validation examples are too few: at least {MINIMUM_EXAMPLES} each "
            "are needed, of users liking items that are new to them"
        )
    run = _start(ts, model, vocabulary, seed)
    set_references(model, run.inputs, examples)
    epochs = _epochs(run, examples, validation, progress)
    set_popularity(model, ts, vocabulary, run.popularity, split.test_start_us)
    with torch.no_grad():
        model.eval().measure_radius(model.items(run.inputs))
    return model, epochs


def _start(ts: TrainingSet, model: FusionRanker, vocabulary: Vocabulary, seed: int) -> _Run:
    space_ids = {modality: space.space_id for modality, space in ts.spaces.items()}
    batch = ts.items.batch(np.arange(len(ts.items)))
    inputs = encode_items(model, space_ids, batch, vocabulary.item_index, vocabulary.category_index)
    users = sorted(ts.profiles) if "text" in ts.spaces else []
    profiles_UK = torch.zeros(len(users) + 1, model.config.space_dim)  # the last row is that of users without a profile
    if users:
        profiles_UK[:-1] = project_profile(model, torch.from_numpy(np.stack([ts.profiles[u].vector for u in users])))
    profile_of = {user: i for i, user in enumerate(users)}
    popularity = Popularity.of(ts, model.config)
    return _Run(ts, model.config, model, inputs, popularity, profiles_UK, profile_of, np.random.default_rng(seed))


# ---- the loop ----------------------------------------------------------------------------------------------------------


def _epochs(run: _Run, examples: Examples, validation: Examples, progress: ProgressCallback | None) -> int:
    """Train until validation NDCG@10 has not improved for `patience` epochs; the best weights stay. Returns epochs run."""
    config, model, started = run.config, run.model, time.perf_counter()
    steps_per_epoch = -(-len(examples) // config.batch_size)
    steps = steps_per_epoch * config.max_epochs
    optimizer = _optimizer(model, config)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [group["lr"] for group in optimizer.param_groups], total_steps=steps, pct_start=0.1
    )
    best, best_weights, ndcg, since, epoch = -1.0, copy.deepcopy(model.state_dict()), float("nan"), 0, 0
    for epoch in range(1, config.max_epochs + 1):
        for at in examples.batches(config.batch_size, run.rng):
            loss = _step(run, examples, at, optimizer)
            schedule.step()
            if progress:
                progress(Progress(epoch, schedule.last_epoch, steps, loss, ndcg, time.perf_counter() - started))
        ndcg = validation_ndcg(run, validation)
        since += 1
        if ndcg > best:
            best, best_weights, since = ndcg, copy.deepcopy(model.state_dict()), 0
        if since >= config.patience:
            break
    model.load_state_dict(best_weights)
    return epoch


def _optimizer(model: FusionRanker, config: RankerConfig) -> torch.optim.Optimizer:
    """AdamW: fast gates without decay, ids with much of it, the rest in between."""
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


def _step(run: _Run, examples: Examples, at: Ints, optimizer: torch.optim.Optimizer) -> float:
    run.model.train()
    loss = batch_loss(run, examples, at)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(run.model.parameters(), GRADIENT_NORM)
    optimizer.step()
    return float(loss.detach())


def batch_loss(run: _Run, examples: Examples, at: Ints) -> Tensor:
    """Softmax over candidates for the full score and for the tower alone, and the squared error of standardised ratings."""
    candidates = choose_candidates(run, examples, at)
    times_B = examples.labels.timestamps_us[at]
    popularity_BC = torch.from_numpy(run.popularity.log_share(run.ts.items.item_R[candidates.rows], times_B))
    scored, user, items = _forward(run, examples, at, candidates.rows, popularity_BC)
    loss = _choice_loss(scored.score_BC, candidates)
    loss = loss + run.config.tower_weight * _choice_loss(scored.tower_BC, candidates)
    return loss + run.config.rating_weight * _rating_loss(run, examples, at, user, items, candidates)


def _choice_loss(score_BC: Tensor, candidates: Candidates) -> Tensor:
    return F.cross_entropy(score_BC.masked_fill(~candidates.allowed_BC, -1e9), candidates.target_B)


def _rating_loss(run: _Run, examples: Examples, at: Ints, user: User, items: Items, candidates: Candidates) -> Tensor:
    rated_B = torch.from_numpy(ratings(examples.labels.take(at)).astype(np.float32))
    known_B = rated_B.isfinite()
    if not known_B.any():
        return torch.zeros(())
    predicted_B = run.model.rating(user, items).gather(1, candidates.target_B[:, None])[:, 0]
    return F.mse_loss(predicted_B[known_B], rated_B[known_B]) / run.model.rating_stats[1] ** 2


def _forward(
    run: _Run, examples: Examples, at: Ints, rows: Ints, popularity_BC: Tensor | None
) -> tuple[Scored, User, Items]:
    """Encode each item that the batch touches once, then users, then scores of `rows`."""
    history_rows = examples.row_nL[at]
    touched, where = np.unique(np.concatenate([rows, history_rows[history_rows >= 0]]), return_inverse=True)
    run.position_of_row[touched] = np.arange(len(touched))
    inputs = run.inputs.take(torch.from_numpy(touched))
    if run.model.training:
        inputs = inputs.keep(_kept_groups(run, len(touched)))
    encoded = run.model.items(inputs)
    history = examples.history(at, encoded, run.position_of_row)
    labels = examples.labels
    context_BX = context_features(labels.timestamps_us[at])
    user = run.model.user(history, context_BX, _profiles(run, labels, at))
    items = encoded.take(torch.from_numpy(where[: len(rows)]))
    return run.model.score(user, items, popularity_BC), user, items


def _profiles(run: _Run, labels: Labels, at: Ints) -> Tensor | None:
    """Projected profiles [B, K] of the labels' users, 0 where none was written before the label; None where nobody has one."""
    none = len(run.profiles_UK) - 1
    if not none:
        return None
    known = [run.ts.profile(labels.users[i], int(labels.timestamps_us[i])) is not None for i in at]
    rows = [run.profile_of[labels.users[i]] if there else none for i, there in zip(at, known, strict=True)]
    return run.profiles_UK[rows]


def _kept_groups(run: _Run, n: int) -> Tensor:
    """Dropout of whole groups of features [n, G]: modalities, id, other."""
    chance = [run.config.modality_dropout] * len(run.ts.spaces) + [run.config.id_dropout, run.config.modality_dropout]
    return torch.from_numpy(run.rng.random((n, len(chance))) >= np.asarray(chance))


def choose_candidates(run: _Run, examples: Examples, at: Ints) -> Candidates:
    """All items that were there at a label and new to its user; of a large catalogue, a sample that the batch shares.

    The liked items of other labels are no negatives where the catalogue is sampled: being in the batch they are popular, and
    would be punished for it.
    """
    items, times_B = run.ts.items, examples.labels.timestamps_us[at]
    target_rows = examples.labels.item_row[at]
    pool = np.flatnonzero((items.valid_from_R < times_B.max()) & (times_B.min() <= items.valid_to_R))
    if len(pool) > run.config.max_candidates:
        pool = np.sort(run.rng.choice(pool, run.config.max_candidates, replace=False))
    rows = np.union1d(pool, target_rows)
    target_B = np.searchsorted(rows, target_rows)
    allowed = allowed_candidates(run.ts, examples, at, rows) & np.isin(rows, pool)
    allowed[np.arange(len(at)), target_B] = True
    return Candidates(rows, torch.from_numpy(allowed), torch.from_numpy(target_B))


def allowed_candidates(ts: TrainingSet, examples: Examples, at: Ints, rows: Ints) -> NDArray[np.bool_]:
    """Which of `rows` were valid at each label and new to its user, bool [B, C]."""
    items, times_B1 = ts.items, examples.labels.timestamps_us[at][:, None]
    valid_BC = (items.valid_from_R[rows] < times_B1) & (times_B1 <= items.valid_to_R[rows])
    return np.asarray(valid_BC & ~examples.seen_mask(at, items.item_R[rows], len(items.names)))


@torch.no_grad()
def validation_ndcg(run: _Run, validation: Examples) -> float:
    """Mean NDCG@10 over full candidate sets, with popularity frozen at the end of training, as in service."""
    run.model.eval()
    gains = [_batch_ndcg(run, validation, at) for at in validation.batches(run.config.batch_size)]
    return float(np.concatenate(gains).mean())


def _batch_ndcg(run: _Run, validation: Examples, at: Ints) -> NDArray[np.float64]:
    rows = np.arange(len(run.ts.items))
    allowed_BC = torch.from_numpy(allowed_candidates(run.ts, validation, at, rows))
    scored, _, _ = _forward(run, validation, at, rows, None)
    score_BC = scored.score_BC.masked_fill(~allowed_BC, -torch.inf)
    own_B1 = score_BC.gather(1, torch.from_numpy(validation.labels.item_row[at])[:, None])
    above, ties = (score_BC > own_B1).sum(1).numpy(), (score_BC == own_B1).sum(1).numpy()
    return metrics.ndcg_at_k(above, ties)


# ---- what the manifest says --------------------------------------------------------------------------------------------


def _about(ts: TrainingSet, split: Split, model_id: str, seed: int, feature_service: str) -> dict[str, Any]:
    times = ts.labels.timestamps_us
    return {
        "space_ids": {modality: space.space_id for modality, space in ts.spaces.items()},
        "spaces": [space.to_dict() for space in ts.spaces.values()],
        "feature_service": feature_service,
        "description": f"fusion ranker {model_id}",
        "seed": seed,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "data": {
            "first_label_us": int(times.min()),
            "train_end_us": split.train_end_us,
            "test_start_us": split.test_start_us,
            "last_label_us": int(times.max()),
            "labels": len(ts.labels),
            "items": len(ts.items.names),
            "users": len(ts.events),
        },
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in ("torch", "numpy", "triptych")},
        },
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def _in_memory(model: FusionRanker, vocabulary: Vocabulary, model_id: str, about: dict[str, Any]) -> Ranker:
    manifest = {
        **about,
        "model_id": model_id,
        "dims": {"fused": model.fused_dim},
        "files": {checkpoint.WEIGHTS: ""},
    }
    return Ranker(checkpoint.Checkpoint(model.eval(), vocabulary, manifest))
