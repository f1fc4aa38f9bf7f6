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

DEVIATION_FLOOR: Final = 1e-3


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters, all chosen by cross-validation that leaves the test split out (decision 011)."""

    ridge: float = 3000.0
    emoji_weight: float = 0.3  # of an emoji beside a stamp, in the start
    class_weight: float = 1.0  # of a class of ImageNet, in the start
    epochs: int = 40
    patience: int = 8
    batch: int = 512
    learning_rate: float = 5e-5
    pull: float = 1e-2  # towards the closed-form start, as weight decay is towards zero
    feature_dropout: float = 0.5
    tag_share: float = 0.3  # of the captions drawn: tags instead of the caption proper
    temperature: float = 0.07


@dataclass(frozen=True)
class Pairs:
    """Pictures and what may be said of them, as features.

    Attributes:
        images: [n, views, 1280].
        texts: [captions, 384], of all captions of all pictures.
        captions: per picture its rows of `texts`; the first is the caption proper.
        groups: [n] integers; equal ones show the same thing.
        sources: [n] integers; the closed form centres each source by itself, so that their styles do not count.
        weights: [n], in the closed form.
    """

    images: Array
    texts: Array
    captions: tuple[NDArray[np.int64], ...]
    groups: NDArray[np.int64]
    sources: NDArray[np.int64]
    weights: Array

    @property
    def proper(self) -> Array:
        """Features [n, 384] of the captions proper."""
        return self.texts[[rows[0] for rows in self.captions]]

    @property
    def home(self) -> NDArray[np.bool_]:
        """Which pictures [n] are of the first source, whose mean picture and mean caption are the origin of the space."""
        return np.asarray(self.sources == self.sources.min())


@dataclass(frozen=True)
class Fitted:
    """The projections of the best epoch, and every epoch's mean reciprocal rank on validation (epoch 0: the start)."""

    projections: Projections
    best_epoch: int
    history: tuple[float, ...]


def closed_form(train: Pairs, ridge: float) -> Projections:
    """Ridge regression from standardised image features to caption features, both centred per source.

    The text projection is MiniLM's own geometry without the direction of the mean caption: what all captions share says nothing of
    any, and would make some pictures the neighbours of every text.
    """
    _, deviation = _statistics(train)
    x, y = train.images.astype(np.float64), train.proper.astype(np.float64)
    gram, cross = np.zeros((x.shape[2], x.shape[2])), np.zeros((x.shape[2], y.shape[1]))
    for source in np.unique(train.sources):
        own = train.sources == source
        views = (x[own] - x[own].mean((0, 1))) / deviation
        weighted = views * train.weights[own, None, None] / views.shape[1]
        gram += np.einsum("nvi,nvj->ij", weighted, views, optimize=True)
        cross += weighted.sum(1).T @ (y[own] - y[own].mean(0))
    solved = np.linalg.solve(gram + ridge * np.eye(len(gram)), cross)  # [1280, 384]
    common = y[train.home].mean(0)
    common /= np.linalg.norm(common)
    frame = orthonormal((DIM, TEXT_FEATURES), UNTRAINED_SEED + 1)
    weight = frame @ (solved / deviation[:, None]).T
    bias = -weight @ x[train.home].mean((0, 1))
    text = frame - np.outer(frame @ common, common)
    return Projections(*(np.asarray(values, dtype=np.float32) for values in (weight, bias, text)))


def _statistics(pairs: Pairs) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean [1280] of the first source's image features, and deviation [1280] of them all."""
    deviation = pairs.images.std((0, 1), dtype=np.float64) + DEVIATION_FLOOR
    return pairs.images[pairs.home].mean((0, 1), dtype=np.float64), deviation


def fit(
    train: Pairs,
    validation: Pairs,
    settings: Settings,
    seed: int,
    progress: Callable[[int], None] | None = None,
) -> Fitted:
    """Train on `train`, stop by the mean reciprocal rank on `validation`, and return the best epoch's projections."""
    start = closed_form(train, settings.ridge)
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


def refit(pairs: Pairs, settings: Settings, seed: int, epochs: int) -> Projections:
    """Train on all of `pairs` for as many epochs as early stopping found best."""
    trainer = _Trainer(pairs, closed_form(pairs, settings.ridge), settings, seed)
    for _ in range(epochs):
        trainer.run_epoch()
    return trainer.projections()


def reciprocal_rank(projections: Projections, pairs: Pairs) -> float:
    """Mean over pictures of 1 / rank of a picture of their group among their source's, by the caption proper; then over sources."""
    scores = projections.texts(pairs.proper) @ projections.images(pairs.images[:, 0]).T
    own = pairs.groups[:, None] == pairs.groups[None, :]
    parts = [np.flatnonzero(pairs.sources == source) for source in np.unique(pairs.sources)]
    return float(np.mean([(1 / (1 + ranks(scores[np.ix_(p, p)], own[np.ix_(p, p)]))).mean() for p in parts]))


class _Trainer:
    """Two linear layers and their optimiser; everything random comes from one generator."""

    def __init__(self, pairs: Pairs, start: Projections, settings: Settings, seed: int) -> None:
        import torch

        self._pairs, self._settings = pairs, settings
        self._random = np.random.default_rng(seed)
        torch.manual_seed(seed)
        self._mean, self._deviation = (values.astype(np.float32) for values in _statistics(pairs))
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
        values = (plain, bias - plain @ self._mean, text_weight.copy())
        return Projections(*(np.asarray(value, dtype=np.float32) for value in values))


def _cross_entropy(logits: Any, targets: Any) -> Any:
    import torch

    return -(targets * torch.log_softmax(logits, dim=1)).sum(1).mean()
