"""Trainings as jobs: each in a process of its own where several may run at once, and kept in a folder, so that a run that was cut off goes on."""

import hashlib
import json
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

Values = NDArray[np.float64]
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """What is left of a training: metrics by user, and what a table tells of it (JSON-serialisable)."""

    gains: Mapping[str, Values]
    about: Mapping[str, Any] = field(default_factory=dict)


Job = Callable[[Tell], Outcome]


class JobsError(Exception):
    """Trainings cannot be done as asked; the message says what to change."""


@dataclass(frozen=True)
class Jobs:
    """How jobs are done: at most so many at once, where their outcomes are kept (None: nowhere), and on which of torch's devices.

    The name of a job says all that its outcome depends on but the code and the data: delete the folder when those change.
    """

    processes: int = 1
    folder: Path | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Raises `JobsError` where nothing could run."""
        if self.processes < 1:
            raise JobsError(f"--processes is {self.processes}: set it to 1 or more")
        if self.folder is not None and self.folder.exists() and not self.folder.is_dir():
            raise JobsError(f"--kept {self.folder} is no folder: name one, or what is not there yet")
        if self.folder is None:
            self._check_device()

    def run(self, jobs: Mapping[str, Job], tell: Tell) -> list[Outcome]:
        """The outcomes in the order of `jobs`, those kept before among them. Jobs have to be picklable where several run at once."""
        found = {name: kept for name in jobs if (kept := self._kept(name)) is not None}
        for name, outcome in self._done({name: job for name, job in jobs.items() if name not in found}, tell):
            found[name] = outcome
            self._keep(name, outcome)
        return [found[name] for name in jobs]

    def _done(self, jobs: Mapping[str, Job], tell: Tell) -> Iterator[tuple[str, Outcome]]:
        if jobs:
            self._check_device()
        if self.processes == 1 or len(jobs) < 2:
            for name, job in jobs.items():
                yield name, _on(self.device, job, _prefixed(name, tell))
            return
        threads = max(1, torch.get_num_threads() // self.processes)
        context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
        with ProcessPoolExecutor(
            self.processes, context, torch.set_num_threads, (threads,), max_tasks_per_child=1
        ) as pool:
            futures = {pool.submit(_alone, self.device, job): name for name, job in jobs.items()}
            failed: BaseException | None = None
            for number, future in enumerate(as_completed(futures), start=1):
                if future.cancelled():
                    continue
                if error := future.exception():  # what is under way is still kept, the rest is left
                    failed = failed or error
                    for other in futures:
                        other.cancel()
                    continue
                tell(f"{number} of {len(futures)} trainings done, the last: {_short(futures[future])}")
                yield futures[future], future.result()
            if failed:
                raise failed

    def _check_device(self) -> None:
        """Before the first training: what was kept on a GPU is read without one."""
        if torch.device(self.device).type == "cuda" and not torch.cuda.is_available():
            raise JobsError(f"--device is {self.device}, and this machine has no CUDA GPU: leave it out")

    def _path(self, name: str) -> Path | None:
        key = hashlib.sha256(f"{name} on {self.device}".encode()).hexdigest()[:16]
        return self.folder / f"{key}.npz" if self.folder else None

    def _kept(self, name: str) -> Outcome | None:
        path = self._path(name)
        if path is None or not path.exists():
            return None
        with np.load(path) as held:
            about = json.loads(str(held["about"]))
            gains = {key.removeprefix("gain "): held[key] for key in held if key.startswith("gain ")}
        Console(stderr=True).print(f"kept before: {_short(name)}", markup=False)
        return Outcome(gains, about["about"])

    def _keep(self, name: str, outcome: Outcome) -> None:
        path = self._path(name)
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        about = json.dumps({"name": name, "about": outcome.about})
        temporary = path.with_name(f".{path.stem}.tmp.npz")
        np.savez(temporary, about=np.array(about), **{f"gain {key}": values for key, values in outcome.gains.items()})
        temporary.replace(path)


def _prefixed(name: str, tell: Tell) -> Tell:
    """Tells lines that begin with what is being done."""
    return lambda line: tell(f"{_short(name)}: {line}")


def named(*what: object, settings: Iterable[object] = ()) -> str:
    """A job's name: what people call it, and after a semicolon the settings that it chooses among."""
    return f"{', '.join(map(str, what))}; {' | '.join(map(str, settings))}"


def _short(name: str) -> str:
    return name.partition(";")[0]


def _alone(device: str, job: Job) -> Outcome:
    return _on(device, job, lambda _: None)


def _on(device: str, job: Job, tell: Tell) -> Outcome:
    with nullcontext() if device == "cpu" else torch.device(device):
        return job(tell)
