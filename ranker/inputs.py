"""What the model reads of items: plain arrays from outside (`ItemBatch`), vocabularies, and the tensors made of them.

Training, evaluation and serving all go through `encode_items`, so that an item looks the same to the model everywhere.
"""

# Shapes are part of names (x_BLD), as the legend says.
# ruff: noqa: N802, N803, N815

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

UNKNOWN = 0  # index of everything that a vocabulary does not know
VOCABULARIES = ("items", "categories", "event_types", "tags", "devices")
TAG_SCALE = 4.0  # norm of an item's tag weights: as much as some content vector says


@dataclass(frozen=True)
class ItemBatch:
    """n items as the feature store gives them.

    Attributes:
        item_ids: their names.
        vectors: space_id -> float32 [n, d], unit norm; rows of absent modalities may hold anything finite.
        present: space_id -> bool [n]; a space that is missing here is absent for all.
        category: name or None.
        price: float [n], NaN where unknown.
        tags: `kind:value` names of each, [n] sequences.
    """

    item_ids: list[str]
    vectors: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    present: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    category: Sequence[str | None] | None = None
    price: NDArray[np.floating[Any]] | None = None
    tags: Sequence[Sequence[str]] | None = None

    def __len__(self) -> int:
        return len(self.item_ids)


@dataclass(frozen=True)
class Vocabulary:
    """Names that a checkpoint knows; the index of the first is 1, and 0 is everything else."""

    items: tuple[str, ...]
    categories: tuple[str, ...]
    event_types: tuple[str, ...]
    tags: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()

    @cached_property
    def item_index(self) -> dict[str, int]:
        """item_id -> index."""
        return {name: i for i, name in enumerate(self.items, start=1)}

    @cached_property
    def category_index(self) -> dict[str, int]:
        """Category -> index."""
        return {name: i for i, name in enumerate(self.categories, start=1)}

    @cached_property
    def tag_index(self) -> dict[str, int]:
        """Tag -> index."""
        return {name: i for i, name in enumerate(self.tags, start=1)}

    @cached_property
    def event_index(self) -> dict[str, int]:
        """Event type -> index."""
        return {name: i for i, name in enumerate(self.event_types, start=1)}

    @cached_property
    def device_index(self) -> dict[str, int]:
        """Device -> index."""
        return {name: i for i, name in enumerate(self.devices, start=1)}

    def to_dict(self) -> dict[str, list[str]]:
        """JSON-serialisable form."""
        return {name: list(words) for name, words in vars(self).items() if name in VOCABULARIES}

    @classmethod
    def from_dict(cls, data: Mapping[str, Sequence[str]]) -> Self:
        """The inverse of `to_dict`."""
        return cls(*(tuple(data[name]) for name in VOCABULARIES))


@dataclass(frozen=True)
class ItemInputs:
    """Tensors of N items, M modalities, K directions, T tags.

    Attributes:
        spaces_NMK, present_NM: directions in each space, 0 where absent.
        index_N, category_N: in the vocabulary, 0 where unknown.
        price_N: log(1 + price), NaN where unknown.
        tag_NT, tag_weight_NT: tags in the vocabulary (0: none) and how much each says.
    """

    spaces_NMK: Tensor
    present_NM: Tensor
    index_N: Tensor
    category_N: Tensor
    price_N: Tensor
    tag_NT: Tensor
    tag_weight_NT: Tensor

    def __len__(self) -> int:
        return len(self.index_N)

    def take(self, rows: Tensor) -> Self:
        """The items at `rows` (long), in that order."""
        return type(self)(*(value[rows] for value in vars(self).values()))

    @classmethod
    def concat(cls, parts: Sequence["ItemInputs"]) -> "ItemInputs":
        """All items of `parts` (at least one), in order."""
        most = max(part.tag_NT.shape[1] for part in parts)
        wide = [replace(p, tag_NT=_padded(p.tag_NT, most), tag_weight_NT=_padded(p.tag_weight_NT, most)) for p in parts]
        return cls(*(torch.cat(values) for values in zip(*(tuple(vars(p).values()) for p in wide), strict=True)))

    def bare(self) -> Tensor:
        """Which items [N] have nothing beside their id."""
        more = (self.category_N > 0) | self.price_N.isfinite() | (self.tag_NT > 0).any(1)
        return ~(self.present_NM.any(1) | more)

    def keep(self, groups_NG: Tensor) -> Self:
        """The same items with only some groups of features: bool [N, M + 2] over (modalities..., id, other)."""
        modalities = self.present_NM.shape[1]
        present = self.present_NM & groups_NG[:, :modalities]
        with_id, with_other = groups_NG[:, modalities], groups_NG[:, modalities + 1]
        return replace(
            self,
            spaces_NMK=self.spaces_NMK * present[..., None],
            present_NM=present,
            index_N=self.index_N * with_id,
            category_N=self.category_N * with_other,
            price_N=torch.where(with_other, self.price_N, torch.nan),
            tag_NT=self.tag_NT * with_other[:, None],
        )


@dataclass(frozen=True)
class Shapes:
    """Sizes that come from data: raw dim by modality (in order), how many names, reference items, neighbours in the prior, its rank, devices, and whether items have prices."""

    modalities: Mapping[str, int]
    items: int
    categories: int
    event_types: int
    references: int = 1
    tags: int = 0
    prior: int = 0
    prior_rank: int = 0
    devices: int = 0
    prices: bool = True


@dataclass(frozen=True)
class Items:
    """N items as the score needs them: content, token, what is known of the id, its index, prototypes. There is no user in it."""

    content_NMK: Tensor
    token_ND: Tensor
    bias_N: Tensor
    index_N: Tensor
    feature_NF: Tensor

    def take(self, rows: Tensor) -> Self:
        """The items at `rows` (any shape), in that order."""
        flat = rows.flatten()  # rows of a matrix by index_select: half the time of indexing
        return type(self)(
            *(value.index_select(0, flat).view(*rows.shape, *value.shape[1:]) for value in vars(self).values())
        )


@dataclass(frozen=True)
class History:
    """Histories of B users, oldest first, padded at the end: what was met (`content`, `token`), how, and how long ago.

    Ages are float64: the time between two events is their difference, and in float32 an age of 30 years has steps of a minute.
    """

    content_BLMK: Tensor
    token_BLD: Tensor
    feature_BLF: Tensor
    index_BL: Tensor
    mask_BL: Tensor
    event_BL: Tensor
    strength_BL: Tensor
    age_seconds_BL: Tensor

    @property
    def there_BLM(self) -> Tensor:
        """Which modalities each event's item has."""
        return (self.content_BLMK != 0).any(-1)


def _padded(values_NT: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(values_NT, (0, width - values_NT.shape[1]))


def usable(batch: ItemBatch, space_id: str, dim: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Vectors [n, dim] and presence [n] of one space; a vector that is not finite counts as absent, and absent rows are 0."""
    vectors = batch.vectors.get(space_id)
    if vectors is None:
        return np.zeros((len(batch), dim), np.float32), np.zeros(len(batch), bool)
    if vectors.shape != (len(batch), dim):
        raise ValueError(f"vectors of space {space_id} must be [{len(batch)}, {dim}], not {list(vectors.shape)}")
    present = np.asarray(np.isfinite(vectors).all(axis=1))
    if (given := batch.present.get(space_id)) is not None:
        present = present & np.asarray(given, bool)
    return np.where(present[:, None], vectors, 0.0).astype(np.float32), present


def encode_names(names: Sequence[str | None] | None, index: Mapping[str, int], n: int) -> Tensor:
    """Indices [n] of `names`; 0 for None, for unknown names, and for all where `names` is None."""
    return torch.tensor(
        [index.get(name, UNKNOWN) if name else UNKNOWN for name in names or [None] * n], dtype=torch.long
    )


def encode_price(price: NDArray[np.floating[Any]] | None, n: int) -> Tensor:
    """log(1 + price) as float32 [n]; NaN where it is unknown or negative."""
    values = np.full(n, np.nan) if price is None else np.asarray(price, np.float64)
    return tensor_of(np.log1p(np.where(values >= 0, values, np.nan)).astype(np.float32))


def encode_tags(tags: Sequence[Sequence[str]] | None, index: Mapping[str, int], n: int) -> Tensor:
    """Indices [n, T] of each item's known tags, padded by 0; T is at least 1."""
    known = [[index[tag] for tag in one if tag in index] for one in tags or [()] * n]
    found = torch.zeros(n, max([1, *map(len, known)]), dtype=torch.long)
    for row, one in enumerate(known):
        found[row, : len(one)] = torch.tensor(one, dtype=torch.long)
    return found


def tag_weights(tags: Tensor, idf: Tensor) -> Tensor:
    """Weights [N, T] of `tags` [N, T] by rarity, `TAG_SCALE` long for each item that has any."""
    raw: Tensor = idf[tags] * (tags > 0)
    scaled: Tensor = TAG_SCALE * raw / raw.norm(dim=1, keepdim=True).clamp_min(1e-6)
    return scaled


def tensor_of(values: NDArray[Any]) -> Tensor:
    """An array as a tensor on torch's default device; on the CPU without a copy."""
    return torch.as_tensor(values, device=torch.get_default_device())
