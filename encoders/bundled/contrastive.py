"""Fit the two projections on features of frozen towers: a closed-form start, then a contrastive loss with early stopping.

The start is ridge regression from image features to caption features (the text projection keeps MiniLM's geometry); it is
refined by the symmetric InfoNCE loss of CLIP (Radford et al. 2021), in which pictures of one group count as each other's own.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from encoders.bundled.projections import DIM, TEXT_FEATURES, UNTRAINED_SEED, Projections, orthonormal
from encoders.bundled.recall import ranks

Array = NDArray[np.float32]

_DEVIATION_FLOOR: Final = 1e-3


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters, all chosen by cross-validation that leaves the test split out (decision 011)."""

    ridge: float = 300.0
    epochs: int = 60
    patience: int = 12
    batch: int = 512
    learning_rate: float = 3e-4
    pull: float = 1e-3  # towards the closed-form start, as weight decay is towards zero
    feature_dropout: float = 0.2
    tag_share: float = 0.3  # of the captions drawn: tags and templates instead of the caption proper
    temperature: float = 0.07
    prototypes: float = 0.0  # weight of ImageNet's classes in the start


@dataclass(frozen=True)
class Pairs:
    """Pictures and what may be said of them, as features.

    Attributes:
        images: [n, views, 1280].
        texts: [captions, 384], of all captions of all pictures.
        captions: per picture its rows of `texts`; the first is the caption proper.
        groups: [n] integers; equal ones show the same thing.
    """

    images: Array
    texts: Array
    captions: tuple[NDArray[np.int64], ...]
    groups: NDArray[np.int64]

    @property
    def proper(self) -> Array:
        """Features [n, 384] of the captions proper."""
        return self.texts[[rows[0] for rows in self.captions]]


@dataclass(frozen=True)
class Fitted:
    """The projections of the best epoch, and every epoch's mean reciprocal rank on validation (epoch 0: the start)."""

    projections: Projections
    best_epoch: int
    history: tuple[float, ...]


def closed_form(train: Pairs, settings: Settings, prototypes: tuple[Array, Array] | None = None) -> Projections:
    """Ridge regression from standardised image features to centred caption features, every view a row of weight 1 / views."""
    count, views, width = train.images.shape
    rows = train.images.reshape(count * views, width).astype(np.float64)
    mean, deviation = rows.mean(0), rows.std(0) + _DEVIATION_FLOOR
    x = (rows - mean) / deviation
    y = np.repeat(train.proper - train.proper.mean(0), views, axis=0)
    gram, cross = x.T @ x / views, x.T @ y / views
    if prototypes is not None and settings.prototypes:
        p, q = prototypes[0] / deviation, prototypes[1] - prototypes[1].mean(0)
        p *= np.sqrt(width / (p**2).sum(1).mean())
        gram += settings.prototypes * p.T @ p
        cross += settings.prototypes * p.T @ q
    solved = np.linalg.solve(gram + settings.ridge * np.eye(width), cross)  # [1280, 384]
    frame = orthonormal((DIM, TEXT_FEATURES), UNTRAINED_SEED + 1)
    weight = frame @ (solved / deviation[:, None]).T
    bias = frame @ train.proper.mean(0) - weight @ mean
    return Projections(*(np.asarray(values, dtype=np.float32) for values in (weight, bias, frame)))


def fit(
    train: Pairs,
    validation: Pairs,
    settings: Settings,
    seed: int,
    prototypes: tuple[Array, Array] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Fitted:
    """Train on `train`, stop by the mean reciprocal rank on `validation`, and return the best epoch's projections."""
    start = closed_form(train, settings, prototypes)
    trainer = _Trainer(train, start, settings, seed)
    history, best, best_epoch = [reciprocal_rank(start, validation)], start, 0
    for epoch in range(1, settings.epochs + 1):
        trainer.run_epoch()
        found = trainer.projections()
        history.append(reciprocal_rank(found, validation))
        if history[-1] > history[best_epoch]:
            best, best_epoch = found, epoch
        if progress:
            progress(1)
        if epoch - best_epoch >= settings.patience:
            break
    return Fitted(best, best_epoch, tuple(history))


def reciprocal_rank(projections: Projections, pairs: Pairs) -> float:
    """Mean over pictures of 1 / rank of a picture of their group among all, by the caption proper; each picture as it is."""
    scores = projections.texts(pairs.proper) @ projections.images(pairs.images[:, 0]).T
    own = pairs.groups[:, None] == pairs.groups[None, :]
    return float((1 / (1 + ranks(scores, own))).mean())


class _Trainer:
    """Two linear layers and their optimiser; everything random comes from one generator."""

    def __init__(self, pairs: Pairs, start: Projections, settings: Settings, seed: int) -> None:
        import torch

        self._pairs, self._settings = pairs, settings
        self._random = np.random.default_rng(seed)
        torch.manual_seed(seed)
        rows = pairs.images.reshape(-1, pairs.images.shape[-1])
        self._mean, self._deviation = rows.mean(0), rows.std(0) + _DEVIATION_FLOOR
        weight = start.image_weight * self._deviation  # for standardised features, whose directions are of one size
        bias = start.image_bias + start.image_weight @ self._mean
        self._start = [torch.from_numpy(np.ascontiguousarray(a)) for a in (weight, bias, start.text_weight)]
        self._parameters = [copy.deepcopy(tensor).requires_grad_() for tensor in self._start]
        self._optimiser = torch.optim.Adam(self._parameters, lr=settings.learning_rate)

    def run_epoch(self) -> None:
        """One pass over the pictures, each with one view and one caption drawn for it."""
        order = self._random.permutation(len(self._pairs.groups))
        for first in range(0, len(order), self._settings.batch):
            chosen = order[first : first + self._settings.batch]
            if len(chosen) > 1:
                self._step(chosen)

    def _step(self, chosen: NDArray[np.int64]) -> None:
        import torch

        images, texts, own = self._draw(chosen)
        weight, bias, text_weight = self._parameters
        dropped = torch.nn.functional.dropout(images, self._settings.feature_dropout)
        z = torch.nn.functional.normalize(dropped @ weight.T + bias)
        t = torch.nn.functional.normalize(texts @ text_weight.T)
        logits = z @ t.T / self._settings.temperature
        loss = _cross_entropy(logits, own) + _cross_entropy(logits.T, own)
        pull = sum(((p - s) ** 2).sum() for p, s in zip(self._parameters, self._start, strict=True))
        self._optimiser.zero_grad()
        (loss / 2 + self._settings.pull * pull).backward()
        self._optimiser.step()

    def _draw(self, chosen: NDArray[np.int64]) -> tuple[Any, Any, Any]:
        """Standardised features of a view and features of a caption per picture, and which pairs belong together."""
        import torch

        views = self._random.integers(0, self._pairs.images.shape[1], len(chosen))
        images = (self._pairs.images[chosen, views] - self._mean) / self._deviation
        texts = self._pairs.texts[[self._caption(index) for index in chosen]]
        groups = self._pairs.groups[chosen]
        own = torch.from_numpy((groups[:, None] == groups[None, :]).astype(np.float32))
        return torch.from_numpy(images), torch.from_numpy(texts), own / own.sum(1, keepdim=True)

    def _caption(self, index: int) -> int:
        rows = self._pairs.captions[index]
        if len(rows) > 1 and self._random.random() < self._settings.tag_share:
            return int(rows[self._random.integers(1, len(rows))])
        return int(rows[0])

    def projections(self) -> Projections:
        """The layers as they are, for features that are not standardised."""
        weight, bias, text_weight = (tensor.detach().numpy() for tensor in self._parameters)
        plain = weight / self._deviation
        return Projections(plain, bias - plain @ self._mean, text_weight.copy())


def _cross_entropy(logits: Any, targets: Any) -> Any:
    import torch

    return -(targets * torch.log_softmax(logits, dim=1)).sum(1).mean()
