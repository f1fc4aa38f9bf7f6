"""Training of a checkpoint: split by a protocol, fit, report on the test, write the folder.

The same seed on the same machine gives the same checkpoint, and the caller's random state is left alone.
"""

import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from encoders.space import check_model_id
from ranker import checkpoint
from ranker.config import RankerConfig
from ranker.data import Split, TrainingSet, too_few
from ranker.errors import ResumeError, TooFewError
from ranker.evaluate import evaluate
from ranker.fit import set_popularity
from ranker.inputs import Vocabulary
from ranker.leakage import check_training_set
from ranker.loop import Fitted, LookCallback, Progress, ProgressCallback, fit
from ranker.mixing import mix_prior
from ranker.model import FusionRanker
from ranker.resume import unfinished_epoch
from ranker.scorer import Ranker
from ranker.splits import BY_TIME, describe, plan_split
from ranker.torch_state import torch_threads

__all__ = [
    "Progress",
    "ProgressCallback",
    "TrainResult",
    "check_unfinished",
    "finish",
    "in_memory",
    "train",
    "unfinished_file",
]


@dataclass(frozen=True)
class TrainResult:
    """A finished training: its checkpoint's folder, the test report of `evaluate`, epochs run, and seconds it took (since it was resumed, if it was)."""

    folder: Path
    metrics: dict[str, Any]
    epochs: int
    seconds: float


def train(
    ts: TrainingSet,
    config: RankerConfig,
    models_dir: Path,
    model_id: str,
    *,
    seed: int = 0,
    protocol: str = BY_TIME,
    progress: ProgressCallback | None = None,
    looked: LookCallback | None = None,
    resume: bool = False,
    feature_service: str | None = None,
    folder: Path | None = None,
) -> TrainResult:
    """Train on what the protocol gives training, stop by validation, report on the test, and write the checkpoint.

    By `time` the first 70 % of labels train, the next 10 % decide when to stop, the last 20 % are the test; `splits.PROTOCOLS` has the others.
    Each look at validation is kept in `unfinished_file`, so that a training that was stopped goes on with `resume`. `folder` goes into the manifest
    where the set is not that of the model's name.

    Raises `CheckpointError` where `model_id` is taken, `ResumeError` where there is an unfinished training and no `resume`, or the other way round,
    `LeakageError` where the set or its split leaks, and `TooFewError` where there is too little data.
    """
    started = time.perf_counter()
    checkpoint.refuse_overwrite(models_dir / check_model_id(model_id))
    unfinished = check_unfinished(models_dir, model_id, resume=resume)
    check_training_set(ts)
    with _counted(ts, folder), torch.random.fork_rng(devices=[]), torch_threads(config.threads):
        plan = plan_split(ts, protocol, config, seed)
        about = _about(ts, plan.split, seed, feature_service or f"ranker_{model_id}")
        what = "fusion ranker" if config.network else f"baseline {config.prior}"
        about |= {"protocol": describe(ts, protocol, seed), "description": f"{what} {model_id}"}
        about["data"] |= {"folder": str(folder.resolve())} if folder else {}
        models_dir.mkdir(parents=True, exist_ok=True)
        fitted = fit(plan.training, plan.split, config, seed, progress, looked=looked, unfinished=unfinished)
        mix = mix_prior(fitted) if config.prior else None
        model, vocabulary = finish(fitted), fitted.vocabulary
        report = evaluate(in_memory(model, vocabulary, model_id, about), ts)
    seconds = time.perf_counter() - started
    about |= {"looks": [asdict(look) for look in fitted.looks]}
    if mix is not None:
        about |= {"prior": mix.to_dict()}
    about |= {"metrics": report["scorers"], "epochs": fitted.epochs, "train_seconds": round(seconds, 1)}
    made = checkpoint.save(models_dir, model_id, model, vocabulary, about)
    unfinished.unlink(missing_ok=True)
    return TrainResult(made, report, fitted.looks[-1].epoch if fitted.looks else 0, seconds)


def unfinished_file(models_dir: Path, model_id: str) -> Path:
    """Where the state of a training is kept until its checkpoint is written."""
    return models_dir / f".{check_model_id(model_id)}.unfinished"


def check_unfinished(models_dir: Path, model_id: str, *, resume: bool) -> Path:
    """The file of a training's state; raises `ResumeError` where it is there and must not be lost, or is not there and is to be gone on with."""
    path = unfinished_file(models_dir, model_id)
    if resume and not path.exists():
        raise ResumeError(f"there is no unfinished training of {model_id} in {models_dir}: leave out --resume")
    if path.exists() and not resume:
        raise ResumeError(
            f"there is an unfinished training of {model_id}, {unfinished_epoch(path)} epochs long: the same command with --resume goes on with it; "
            f"to begin anew, delete {path}"
        )
    return path


@torch.no_grad()
def finish(fitted: Fitted) -> FusionRanker:
    """What is set after the last epoch: popularity as it is when the test begins, and how long item vectors get."""
    run, model = fitted.run, fitted.model
    set_popularity(model, run.ts, fitted.vocabulary, run.popularity, run.split.test_start_us)
    model.eval().measure_radius(model.items(run.inputs))
    return model


@contextmanager
def _counted(ts: TrainingSet, folder: Path | None) -> Iterator[None]:
    """Add to an error about too little data how much there is, and what to do: a folder of one's own is not filled by our commands."""
    try:
        yield
    except TooFewError as error:
        if folder is not None:
            raise TooFewError(f"{error}. The set in {folder} has {len(ts.labels):,} labels: add more to it") from None
        raise too_few(ts, str(error)) from None


# ---- what the manifest says --------------------------------------------------------------------------------------------


def _about(ts: TrainingSet, split: Split, seed: int, feature_service: str) -> dict[str, Any]:
    times = ts.labels.timestamps_us
    return {
        "space_ids": {modality: space.space_id for modality, space in ts.spaces.items()},
        "spaces": [space.to_dict() for space in ts.spaces.values()],
        "feature_service": feature_service,
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


def in_memory(model: FusionRanker, vocabulary: Vocabulary, model_id: str, about: Mapping[str, Any]) -> Ranker:
    """The model as serving has it, before there is a folder; `about` has its `space_ids`."""
    manifest = {
        **about,
        "model_id": model_id,
        "dims": {"fused": model.fused_dim},
        "files": {checkpoint.WEIGHTS: ""},
    }
    return Ranker(checkpoint.Checkpoint(model.eval(), vocabulary, manifest))
