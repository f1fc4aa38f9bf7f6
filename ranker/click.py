"""The click model: chance of a click (a like) and the rating, for users whose ratings say what they like.

The closed-form prior of `rating_prior` carries the score; a small network adds what it leaves: items' biases, target attention over the newest
events, whose values are the prior's surprises, and the user's context. Trained by the click's cross-entropy and the rating's squared error, stopped
by validation, and calibrated on training's out-of-fold rows and validation's. Rows come from `click_rows`.

The calibrator belongs to the very weights that are served: the network stays as it was trained, and only what is closed-form (the prior, the
histories) is refreshed with newer events. A network trained again, on validation too, would be another one, whose chances no data is left to check.
"""

# Shapes are part of names: B labels of a batch, L events of a history, H heads, G buckets.
# ruff: noqa: N803, N806

import copy
import math
import time
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own idiom
from numpy.typing import NDArray
from torch import Tensor, nn

from ranker.calibration import Calibration, Kind, fit_calibration
from ranker.click_rows import CONTEXT, ClickRows, Floats
from ranker.errors import TrainingSetError
from ranker.leakage import check_only
from ranker.protocols import Ints, Role, Roles
from ranker.rating_prior import Values
from ranker.torch_state import deterministic

BUCKETS: Final = 12
GAP_UNIT_SECONDS, GAP_BASE = 30.0, 4.0  # buckets end at 90 s, 8 min, 32 min, 2 h, 9 h, 1.5 d, 6 d, 23 d, 3 months ...
PLACE_BASE: Final = 1.5
SHARPNESS_START: Final = (0.0, 3.0, 6.0)  # of each head, by correlation: from all events alike to the like ones
LOGIT_START: Final = 1.7  # a standard deviation of the rating, in logits
# AdamW moves a number by its learning rate a step: what must move further is multiplied.
ATTENTION_GAIN: Final = 10.0
MASKED: Final = -1e9
GRADIENT_NORM: Final = 1.0
EVALUATION_ROWS: Final = 4_096


@dataclass(frozen=True)
class ClickConfig:
    """Settings of the network and its training.

    Attributes:
        hidden: width of the layer over the context.
        dropout: of that layer.
        attention, context: whether the network has these parts.
        batch_size, learning_rate, max_epochs, warm_up_steps: of AdamW, whose rate falls as a cosine over all epochs.
        item_decay: weight decay of the items' biases.
        rating_weight: of the rating's squared error beside the click's cross-entropy.
        patience: epochs without a better validation after which training ends.
        calibration: the form, fitted on training's out-of-fold rows and validation's.
    """

    hidden: int = 24
    dropout: float = 0.1
    attention: bool = True
    context: bool = True
    batch_size: int = 512
    learning_rate: float = 3e-3
    max_epochs: int = 8
    warm_up_steps: int = 30
    item_decay: float = 1.0
    rating_weight: float = 0.6
    patience: int = 2
    calibration: Kind = "logistic"


@dataclass(frozen=True)
class ClickLabels:
    """What happened at each of n events: click 0 or 1, rating in standard units, and what the event is for."""

    click: Ints
    rating: Values
    roles: Roles


class ClickNetwork(nn.Module):
    """Logit of a click and the rating in standard units."""

    popularity: Tensor

    def __init__(self, popularity: Floats, config: ClickConfig) -> None:
        super().__init__()
        self.config = config
        heads = len(SHARPNESS_START)
        self.register_buffer("popularity", torch.from_numpy(popularity))
        self.item_bias = nn.Parameter(torch.zeros(len(popularity)))
        self.sharpness = nn.Parameter(torch.tensor(SHARPNESS_START))
        self.gap = nn.Parameter(torch.zeros(BUCKETS, heads))
        self.place = nn.Parameter(torch.zeros(BUCKETS, heads))
        self.nothing = nn.Parameter(torch.zeros(heads))  # attention that goes to no event
        self.value = nn.Parameter(torch.full((heads,), 1.0 / ATTENTION_GAIN))
        self.scale, self.shift = nn.Parameter(torch.tensor(LOGIT_START)), nn.Parameter(torch.tensor(0.0))
        last = nn.Linear(config.hidden, 2)
        nn.init.zeros_(last.weight)  # at first the prior speaks alone
        nn.init.zeros_(last.bias)
        self.mlp = nn.Sequential(
            nn.Linear(len(CONTEXT) + 2, config.hidden), nn.GELU(), nn.Dropout(config.dropout), last
        )

    def forward(
        self,
        item_B: Tensor,
        context: Tensor,
        gap_BL: Tensor,
        surprise_BL: Tensor,
        similarity_BL: Tensor,
        there_BL: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """(logits of a click [B], ratings [B])."""
        score_B = context[:, 0] + self.item_bias[item_B]
        if self.config.attention:
            weight_BLH = self.attention(gap_BL, similarity_BL, there_BL)
            score_B = score_B + ATTENTION_GAIN * torch.einsum("blh,bl,h->b", weight_BLH, surprise_BL, self.value)
        if not self.config.context:
            return self.scale * score_B + self.shift, score_B
        more = self.mlp(torch.cat([context, score_B[:, None], self.popularity[item_B][:, None]], 1))  # [B, 2]
        return self.scale * score_B + self.shift + more[:, 0], score_B + more[:, 1]

    def attention(self, gap_BL: Tensor, similarity_BL: Tensor, there_BL: Tensor) -> Tensor:
        """How much each event counts for the label [B, L, H]; what is left of 1 goes to no event."""
        place_L = _bucket(torch.arange(gap_BL.shape[1]), 1.0, PLACE_BASE)
        logit_BLH = (
            similarity_BL[..., None] * self.sharpness
            + self.gap[_bucket(gap_BL, GAP_UNIT_SECONDS, GAP_BASE)]
            + self.place[place_L]
        ).masked_fill(there_BL[..., None] == 0, MASKED)
        nothing = self.nothing.expand(len(gap_BL), 1, -1)
        return torch.cat([logit_BLH, nothing], 1).softmax(1)[:, :-1]


def _bucket(value: Tensor, unit: float, base: float) -> Tensor:
    """Buckets that widen by `base` each."""
    return (torch.log1p(value.clamp_min(0) / unit) / math.log(base)).long().clamp_max(BUCKETS - 1)


@dataclass(frozen=True)
class ClickModel:
    """A trained network in eval mode, its calibration, and how it was trained: log loss on validation after each epoch, and seconds."""

    network: ClickNetwork
    calibration: Calibration
    looks: tuple[float, ...]
    seconds: float

    def logits(self, rows: ClickRows) -> Values:
        """Scores [N] before calibration."""
        return _predicted(self.network, rows)[0]

    def chances(self, rows: ClickRows) -> Values:
        """Calibrated chances of a click [N]."""
        return self.calibration(self.logits(rows))

    def ratings(self, rows: ClickRows) -> Values:
        """Expected ratings [N] in the prior's standard units."""
        return _predicted(self.network, rows)[1]


@deterministic()
def fit_click(
    train: ClickRows,
    validation: ClickRows,
    labels: ClickLabels,
    popularity: Ints,
    config: ClickConfig | None = None,
    *,
    seed: int = 0,
    seconds: float = math.inf,
) -> ClickModel:
    """Train, stop by validation, calibrate on both: in training's rows the priors are out of fold, though the network has seen the labels. The same seed gives the same weights, unless the time was up.

    Args:
        train: rows of training events alone, by priors that have not seen their labels.
        validation: rows of validation events alone.
        labels: of all events, to which the rows refer.
        popularity: how many training events each item has [I].
        config: the settings.
        seed: of dropout and of the batches.
        seconds: after the epoch in which these are over, training ends.

    Raises:
        LeakageError: a row's event is of another role.
        TrainingSetError: there is less than one batch.
    """
    config, started = config or ClickConfig(), time.perf_counter()
    check_only(labels.roles[train.event], Role.TRAIN, "the click model")
    check_only(labels.roles[validation.event], Role.VALIDATION, "the click model's stop")
    if len(train) < config.batch_size:
        raise TrainingSetError(
            f"{len(train)} training rows are less than one batch of {config.batch_size}: set batch_size"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = ClickNetwork(_standard(np.log1p(popularity)), config)
        looks = _epochs(network, train, validation, labels, seconds)
    logits = np.concatenate([_predicted(network, rows)[0] for rows in (train, validation)])
    events = np.concatenate([train.event, validation.event])
    calibration = fit_calibration(
        config.calibration, logits, labels.click[events], labels.roles[events], with_training=True
    )
    return ClickModel(network, calibration, tuple(looks), time.perf_counter() - started)


def _epochs(
    network: ClickNetwork, train: ClickRows, validation: ClickRows, labels: ClickLabels, seconds: float
) -> list[float]:
    """Train until validation has not improved for `patience` epochs; the best weights stay. Returns the looks."""
    config, started = network.config, time.perf_counter()
    inputs, click = _tensors(train), torch.from_numpy(labels.click[train.event]).float()
    rating = torch.from_numpy(labels.rating[train.event]).float()
    batches = len(train) // config.batch_size
    optimizer, schedule = _optimizer(network, batches * config.max_epochs)
    best, looks = copy.deepcopy(network.state_dict()), list[float]()
    for _ in range(config.max_epochs):
        network.train()
        for at in torch.randperm(len(train))[: batches * config.batch_size].view(batches, -1):
            logit, expected = network(*(part[at] for part in inputs))
            loss = F.binary_cross_entropy_with_logits(logit, click[at])
            loss = loss + config.rating_weight * F.mse_loss(expected, rating[at])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(network.parameters(), GRADIENT_NORM)
            optimizer.step()
            schedule.step()
        looks.append(_log_loss(network, validation, labels))
        if looks[-1] == min(looks):
            best = copy.deepcopy(network.state_dict())
        if len(looks) - 1 - int(np.argmin(looks)) >= config.patience or time.perf_counter() - started > seconds:
            break
    network.load_state_dict(best)
    network.eval()
    return looks


def _optimizer(network: ClickNetwork, steps: int) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    """AdamW, where only the items' biases decay; the rate rises over the warm-up and falls as a cosine to a fiftieth."""
    config = network.config
    rest = [parameter for name, parameter in network.named_parameters() if name != "item_bias"]
    groups: list[dict[str, Any]] = [
        {"params": [network.item_bias], "weight_decay": config.item_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, config.learning_rate)

    def rate(step: int) -> float:
        return min(1.0, (step + 1) / config.warm_up_steps) * (0.02 + 0.49 * (1 + math.cos(math.pi * step / steps)))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, rate)


@torch.no_grad()
def _predicted(network: ClickNetwork, rows: ClickRows) -> tuple[Values, Values]:
    """(logits [N], ratings [N]) in eval mode."""
    network.eval()
    found = [
        network(*_tensors(rows.take(np.arange(first, min(first + EVALUATION_ROWS, len(rows))))))
        for first in range(0, len(rows), EVALUATION_ROWS)
    ]
    logits, ratings = (torch.cat(parts).double().numpy() for parts in zip(*found, strict=True))
    return logits, ratings


def _log_loss(network: ClickNetwork, rows: ClickRows, labels: ClickLabels) -> float:
    logits = _predicted(network, rows)[0]
    signed = np.where(labels.click[rows.event] > 0, logits, -logits)
    return float(np.logaddexp(0.0, -signed).mean())


def _tensors(rows: ClickRows) -> tuple[Tensor, ...]:
    parts = (rows.item, rows.context, rows.gap_s, rows.surprise, rows.similarity, rows.there)
    return tuple(torch.from_numpy(part) for part in parts)


def _standard(values: NDArray[Any]) -> Floats:
    """About their mean, in standard deviations."""
    return np.asarray((values - values.mean()) / max(float(values.std()), 1e-6), np.float32)
