"""Training that goes on where it was stopped: at every look all that the rest depends on goes into one file, whole or not at all.

The file says what it is a training of (settings, seed, data, torch), and goes on only with the same: then the weights at the end are those of a
training that never stopped. Tensors are safetensors, the rest is JSON in their header; never a pickle.
"""

import copy
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from feature_store.files import write_whole
from ranker.config import RankerConfig
from ranker.data import Labels, Split, TrainingSet
from ranker.errors import ResumeError
from ranker.model import FusionRanker

FORMAT: Final = 3
_MODEL, _MEAN, _BEST, _OPTIMIZER, _RANDOM = "model.", "mean.", "best.", "optimizer.", "random."


@dataclass(frozen=True)
class Look:
    """One look at validation: after which epoch, the epoch's mean loss, and NDCG."""

    epoch: int
    loss: float
    ndcg: float


@dataclass
class State:
    """A training between two epochs: what changes in it, the best of its looks (epoch 0: none yet) and the weights at that look.

    Where there is a running `mean` of the weights, looks and what is left at the end have that.
    """

    model: FusionRanker
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.OneCycleLR
    rng: np.random.Generator
    mean: AveragedModel | None = None
    looks: list[Look] = field(default_factory=list)
    best: Look = field(default_factory=lambda: Look(0, float("nan"), -1.0))
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.best_weights = copy.deepcopy(self.model.state_dict())

    @property
    def epoch(self) -> int:
        """The epoch of the last look."""
        return self.looks[-1].epoch if self.looks else 0

    def stepped(self) -> None:
        """Take in a step of the optimizer."""
        self.schedule.step()
        if self.mean is not None:
            self.mean.update_parameters(self.model)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Let the model have the mean of its weights for a while."""
        newest = copy.deepcopy(self.model.state_dict()) if self.mean is not None else None
        self.settle()
        try:
            yield
        finally:
            if newest is not None:
                self.model.load_state_dict(newest)

    def settle(self) -> None:
        """Give the model the mean of its weights, where there is one."""
        if self.mean is not None:
            self.model.load_state_dict(self.mean.module.state_dict())

    def look(self, look: Look, seconds: float) -> None:
        """Take in a look after so many seconds of training."""
        self.looks.append(look)
        self.seconds = seconds
        if look.ndcg > self.best.ndcg:
            self.best, self.best_weights = look, copy.deepcopy(self.model.state_dict())

    def stalled(self, config: RankerConfig) -> bool:
        """Whether the last look was the last that `patience` allows."""
        return bool(self.looks) and self.epoch - self.best.epoch >= config.patience * config.look_epochs


@dataclass(frozen=True)
class Unfinished:
    """The file of one training, and what it is a training of: names and values that must be the same when it goes on."""

    path: Path
    given: Mapping[str, Any]

    def save(self, state: State) -> None:
        """Write the state in place of the last one. Raises `ResumeError` where it cannot be written."""
        from safetensors.torch import save as to_bytes

        tensors = {name: value.detach().contiguous() for name, value in _tensors(state)}
        try:
            write_whole(self.path, to_bytes(tensors, {"state": json.dumps(self._plain(state))}))
        except OSError as error:
            raise ResumeError(
                f"the state of the training cannot be kept in {self.path} ({error.strerror}): make room there, or take a home elsewhere"
            ) from error

    def load(self, state: State) -> None:
        """Put `state` where the file left it; nothing where there is no file.

        Raises `ResumeError` where the file is damaged, or is of another training: the message names what differs.
        """
        if not self.path.exists():
            return
        tensors, plain = _read(self.path)
        self._check(plain["given"])
        state.model.load_state_dict(_part(tensors, _MODEL))
        if state.mean is not None:
            state.mean.load_state_dict(_part(tensors, _MEAN))
        state.optimizer.load_state_dict({"state": _by_parameter(tensors), "param_groups": plain["param_groups"]})
        state.schedule.load_state_dict(plain["schedule"])
        state.rng.bit_generator.state = plain["rng"]
        _set_random(tensors)
        state.looks = [Look(**look) for look in plain["looks"]]
        state.best, state.best_weights = Look(**plain["best"]), _part(tensors, _BEST)
        state.seconds = plain["seconds"]

    def _plain(self, state: State) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "given": self.given,
            "looks": [asdict(look) for look in state.looks],
            "best": asdict(state.best),
            "seconds": state.seconds,
            "param_groups": state.optimizer.state_dict()["param_groups"],
            "schedule": state.schedule.state_dict(),
            "rng": state.rng.bit_generator.state,
        }

    def _check(self, kept: Mapping[str, Any]) -> None:
        here = json.loads(json.dumps(self.given))
        differ = [
            f"{name} was {kept.get(name)!r} and is {here.get(name)!r}"
            for name in dict.fromkeys([*here, *kept])
            if kept.get(name) != here.get(name)
        ]
        if differ:
            raise ResumeError(
                f"the unfinished training in {self.path} is another one: {'; '.join(differ)}. Go on with what it began with, or delete the "
                "file to begin anew"
            )


def given_of(ts: TrainingSet, split: Split, config: RankerConfig, seed: int, epochs: int | None) -> dict[str, Any]:
    """What a training depends on, by name: settings, seed, digests of the data, the version of torch."""
    return {
        **{f"config.{name}": value for name, value in config.to_dict().items()},
        "seed": seed,
        "epochs": epochs,
        "training labels": labels_digest(ts, split.train),
        "validation labels": labels_digest(ts, split.validation),
        "events": events_digest(ts),
        "items": _items_digest(ts),
        "profiles": _digest(
            [*ts.profiles], *(part for p in ts.profiles.values() for part in (p.vector, np.asarray([p.from_us])))
        ),
        "showings": _showings_digest(split.train),
        "torch": torch.__version__,
    }


def unfinished_epoch(path: Path) -> int:
    """The epoch of the file's last look; raises `ResumeError` where it is damaged."""
    return int(_read(path)[1]["looks"][-1]["epoch"])


def _showings_digest(labels: Labels) -> str:
    """On what, in which reply, where and how likely labels were shown."""
    numbers = [np.asarray(known, np.float64) for known in (labels.positions, labels.propensities) if known is not None]
    return _digest(labels.devices, labels.impressions, *numbers)


def labels_digest(ts: TrainingSet, labels: Labels) -> str:
    """16 hex digits over who, what (by item id), how, how much, when."""
    items = [ts.items.names[i] for i in ts.items.item_R[labels.item_row]]
    return _digest(labels.event_ids, labels.users, items, labels.event_types, labels.values, labels.timestamps_us)


def events_digest(ts: TrainingSet) -> str:
    """16 hex digits over everybody's events."""
    return _digest(
        *(
            part
            for user, events in ts.events.items()
            for part in ([user], events.event_ids, events.item_ids, events.event_types, events.values, events.timestamps_us)
        )
    )  # fmt: skip


def names_digest(ts: TrainingSet) -> str:
    """16 hex digits over which items there are, in their order."""
    return _digest(ts.items.names)


def _items_digest(ts: TrainingSet) -> str:
    items = ts.items
    vectors = [part for space_id in items.vectors for part in (items.vectors[space_id], items.present[space_id])]
    texts = [[str(category) for category in items.category], ["\t".join(tags) for tags in items.tags]]
    return _digest(items.names, items.item_R, items.valid_from_R, items.valid_to_R, items.price, *texts, *vectors)


def _digest(*parts: "Iterable[str] | np.ndarray[Any, Any]") -> str:
    found = hashlib.sha256()
    for part in parts:
        data = np.ascontiguousarray(part).tobytes() if isinstance(part, np.ndarray) else "\n".join(part).encode()
        found.update(len(data).to_bytes(8, "little") + data)
    return found.hexdigest()[:16]


# ---- tensors of the file -------------------------------------------------------------------------------------------------


def _tensors(state: State) -> Iterable[tuple[str, Tensor]]:
    """Everything that is a tensor, by its name in the file. The sets of weights are copies: no tensor comes twice."""
    yield from ((_MODEL + name, value) for name, value in state.model.state_dict().items())
    if state.mean is not None:
        yield from ((_MEAN + name, value) for name, value in state.mean.state_dict().items())
    yield from ((_BEST + name, value) for name, value in state.best_weights.items())
    for number, values in state.optimizer.state_dict()["state"].items():
        yield from ((f"{_OPTIMIZER}{number}.{name}", value) for name, value in values.items())
    yield _RANDOM + "cpu", torch.get_rng_state()
    if _on_cuda():
        yield _RANDOM + "cuda", torch.cuda.get_rng_state()


def _set_random(tensors: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(tensors[_RANDOM + "cpu"])
    if _on_cuda():
        torch.cuda.set_rng_state(tensors[_RANDOM + "cuda"])


def _on_cuda() -> bool:
    return torch.get_default_device().type == "cuda"


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _by_parameter(tensors: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    found: dict[int, dict[str, Tensor]] = {}
    for name, value in _part(tensors, _OPTIMIZER).items():
        number, key = name.split(".", 1)
        found.setdefault(int(number), {})[key] = value
    return found


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            plain = json.loads(file.metadata()["state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ResumeError(
            f"the unfinished training in {path} cannot be read ({error}): delete the file to begin anew"
        ) from error
    if plain.get("format") != FORMAT:
        raise ResumeError(
            f"the unfinished training in {path} has format {plain.get('format')}, and this version reads {FORMAT}: delete the file to begin anew"
        )
    return tensors, plain
