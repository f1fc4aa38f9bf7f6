"""Captioned pictures as features: each view of each picture, and each caption, once through the frozen towers."""

import zlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from encoders.bundled.captions import SIGNS, STAMPS, Captioned
from encoders.bundled.clip import BundledClip
from encoders.bundled.contrastive import DEVIATION_FLOOR, Pairs, Settings
from encoders.bundled.projections import TEXT_FEATURES, untrained_projections
from encoders.bundled.views import make_views, read_picture
from encoders.errors import MediaError

Array = NDArray[np.float32]
# Opens a progress bar of so many steps and gives what advances it.
Bars = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]

STAMP_VIEWS: Final = 4
EMOJI_VIEWS: Final = 2
_VIEWS_OF: Final = {STAMPS: STAMP_VIEWS}
_TEXT_BATCH: Final = 64


def no_bars(_description: str, _total: int) -> AbstractContextManager[Callable[[int], None]]:
    """Progress that nobody watches."""
    return nullcontext(lambda _steps: None)


class Towers:
    """The frozen towers: pictures to pooled features [n, 1280], texts to mean-pooled features [n, 384]."""

    def __init__(self) -> None:
        import torch

        self._loaded = BundledClip().load_towers()
        self._model = self._loaded.model.eval().to(memory_format=torch.channels_last)
        self._model.text.proj = torch.nn.Identity()
        self.untrained = untrained_projections(self._model.visual.trunk.bn2)

    def images(self, pictures: Sequence[Any]) -> Array:
        """Features of RGB pictures."""
        import torch

        with torch.inference_mode():
            pixels = torch.stack([self._loaded.transform(picture) for picture in pictures])
            features = self._model.visual.trunk(pixels.to(memory_format=torch.channels_last))
        return np.asarray(features.numpy(), dtype=np.float32)

    def texts(self, texts: Sequence[str]) -> Array:
        """Features of texts, which share batches with others of about their length."""
        import torch

        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        found = np.zeros((len(texts), TEXT_FEATURES), dtype=np.float32)
        for start in range(0, len(order), _TEXT_BATCH):
            chosen = order[start : start + _TEXT_BATCH]
            ids = self._loaded.tokenize([texts[index] for index in chosen])
            longest = int((ids != self._model.text.config.pad_token_id).sum(1).max())
            with torch.inference_mode():
                found[chosen] = self._model.text(ids[:, :longest]).numpy()
        return found


@dataclass(frozen=True)
class Corpus:
    """Captioned pictures and their features: `images` [n][views, 1280], and `texts` of every caption."""

    items: tuple[Captioned, ...]
    images: tuple[Array, ...]
    texts: dict[str, Array]

    def chosen(self, keep: Callable[[Captioned], bool]) -> "Corpus":
        """The part whose pictures `keep` wants."""
        pairs = [(item, image) for item, image in zip(self.items, self.images, strict=True) if keep(item)]
        return Corpus(tuple(item for item, _ in pairs), tuple(image for _, image in pairs), self.texts)

    def pairs(self, settings: Settings = Settings()) -> Pairs:  # noqa: B008  (frozen)
        """As `fit` wants it; pictures with fewer views than others repeat theirs."""
        views = max(len(image) for image in self.images)
        names = sorted({caption for item in self.items for caption in item.captions})
        row = {name: index for index, name in enumerate(names)}
        group = {name: index for index, name in enumerate(sorted({item.group for item in self.items}))}
        is_stamp = np.array([item.source == STAMPS for item in self.items])
        return Pairs(
            np.stack([image[np.arange(views) % len(image)] for image in self.images]),
            np.stack([self.texts[name] for name in names]),
            tuple(np.array([row[caption] for caption in item.captions]) for item in self.items),
            np.array([group[item.group] for item in self.items]),
            (~is_stamp).astype(np.int64),
            np.where(is_stamp, 1.0, settings.emoji_weight).astype(np.float32),
        )


def with_classes(pairs: Pairs, classifier: Array, names: Array, weight: float) -> Pairs:
    """`pairs` and ImageNet's classes: the direction in which EfficientNet's classifier looks for one stands for its picture.

    Args:
        pairs: of stamps and emoji; the classes become a source of their own.
        classifier: [1000, 1280], rows of the classifier.
        names: [1000, 384], features of the classes' names.
        weight: of a class in the closed form.
    """
    deviation = pairs.images.std((0, 1)) + DEVIATION_FLOOR
    rows = (classifier - classifier.mean(0)) / deviation
    rows *= np.sqrt(rows.shape[1] / (rows**2).sum(1).mean())  # as long as a standardised picture
    pictures = pairs.images[pairs.home].mean((0, 1)) + rows * deviation
    count, texts, groups = len(rows), len(pairs.texts), int(pairs.groups.max()) + 1
    return Pairs(
        np.concatenate([pairs.images, np.repeat(pictures[:, None], pairs.images.shape[1], axis=1)]).astype(np.float32),
        np.concatenate([pairs.texts, names]),
        (*pairs.captions, *np.arange(texts, texts + count)[:, None]),
        np.concatenate([pairs.groups, np.arange(groups, groups + count)]),
        np.concatenate([pairs.sources, np.full(count, pairs.sources.max() + 1)]),
        np.concatenate([pairs.weights, np.full(count, weight, np.float32)]),
    )


def encode_corpus(items: Sequence[Captioned], towers: Towers, bars: Bars = no_bars, *, views: bool = True) -> Corpus:
    """Every view of every picture (or the picture as it is only), and every caption; pictures that do not open are left out."""
    kept: list[Captioned] = []
    features: list[Array] = []
    with bars("encoding pictures", len(items)) as advance:
        for item in items:
            if shown := _views(item, _VIEWS_OF.get(item.source, EMOJI_VIEWS) if views else 1):
                kept.append(item)
                # Half precision, so that what differs between machines in the last digits is mostly rounded away.
                features.append(towers.images(shown).astype(np.float16).astype(np.float32))
            advance(1)
    captions = sorted({caption for item in kept for caption in item.captions})
    with bars("encoding captions", 1) as advance:
        texts = dict(zip(captions, towers.texts(captions), strict=True))
        advance(1)
    return Corpus(tuple(kept), tuple(features), texts)


def _views(item: Captioned, count: int) -> list[Any]:
    """The picture's views, seeded by its name, so that they are the same in every run; none where it does not open."""
    try:
        picture = read_picture(item.picture)
    except MediaError:
        return []
    return make_views(picture, count, np.random.default_rng(zlib.crc32(item.picture.name.encode())))


def is_object(item: Captioned) -> bool:
    """A stamp that the encoder can read (PNG) and that shows a thing, not a letter, a coin or a sign."""
    return item.source == STAMPS and item.category != SIGNS and item.picture.suffix == ".png"
