"""Train the projections of the bundled image space, and measure them on stamps that training never saw.

The towers are frozen: every picture and caption goes through them once, and what is trained reads features. The test split is looked
at once, after the last choice.
"""

import zlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from encoders.bundled.captions import (
    SIGNS,
    Captioned,
)
from encoders.bundled.clip import BundledClip
from encoders.bundled.contrastive import Pairs
from encoders.bundled.projections import TEXT_FEATURES, untrained_projections
from encoders.bundled.views import make_views, read_picture
from encoders.errors import MediaError

Array = NDArray[np.float32]
# Opens a progress bar of so many steps and gives what advances it.
Bars = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]

STAMP_VIEWS: Final = 4
EMOJI_VIEWS: Final = 2
RECIPE_FILE: Final = "recipe.json"
_VIEWS_VERSION: Final = 1  # raise it with any change to encoders/bundled/views.py that changes a pixel
_IMAGE_BATCH: Final = 16
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

    def pairs(self) -> Pairs:
        """As `fit` wants it; pictures with fewer views than others repeat theirs."""
        views = max(len(image) for image in self.images)
        names = sorted({caption for item in self.items for caption in item.captions})
        row = {name: index for index, name in enumerate(names)}
        group = {name: index for index, name in enumerate(sorted({item.group for item in self.items}))}
        return Pairs(
            np.stack([image[np.arange(views) % len(image)] for image in self.images]),
            np.stack([self.texts[name] for name in names]),
            tuple(np.array([row[caption] for caption in item.captions]) for item in self.items),
            np.array([group[item.group] for item in self.items]),
        )


def encode_corpus(items: Sequence[Captioned], towers: Towers, bars: Bars = no_bars) -> Corpus:
    """Every view of every picture, and every caption, through the frozen towers; pictures that do not open are left out."""
    kept: list[Captioned] = []
    features: list[Array] = []
    with bars("encoding pictures", len(items)) as advance:
        for item in items:
            views = _views(item)
            if views:
                kept.append(item)
                features.append(towers.images(views))
            advance(1)
    captions = sorted({caption for item in kept for caption in item.captions})
    with bars("encoding captions", 1) as advance:
        texts = dict(zip(captions, towers.texts(captions), strict=True))
        advance(1)
    return Corpus(tuple(kept), tuple(features), texts)


def _views(item: Captioned) -> list[Any]:
    """The picture's views, seeded by its name, so that they are the same in every run; none where it does not open."""
    try:
        picture = read_picture(item.picture)
    except MediaError:
        return []
    count = STAMP_VIEWS if item.source == "stamps" else EMOJI_VIEWS
    return make_views(picture, count, np.random.default_rng(zlib.crc32(item.picture.name.encode())))


def is_object(item: Captioned) -> bool:
    """A stamp that the encoder can read (PNG) and that shows a thing, not a letter, a coin or a sign."""
    return item.source == "stamps" and item.category != SIGNS and item.picture.suffix == ".png"
