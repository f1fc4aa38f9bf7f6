"""Embedding spaces: what makes two vectors comparable, and the identifier that says so.

A `space_id` carries a digest of everything that changes a vector (weights, tokenizer, preprocessing, pooling, dim ...), so
that vectors of two spaces can never be mixed by accident. This module costs no torch: the feature store uses it too.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

MODALITIES: Final = ("text", "image", "audio")
KINDS: Final = ("encoder", "fused", "imported", "untrained")
UNIT_NORM_TOLERANCE: Final = 1e-3
MODEL_ID_PATTERN: Final = re.compile(r"[a-z0-9_]{1,40}")
_FEAST_VERSION_SUFFIX: Final = re.compile(r"_v\d+$")
_SLUG_PATTERN: Final = re.compile(r"[a-z0-9]+(_[a-z0-9]+)*")


class SpaceError(ValueError):
    """A space, or a vector that claims to be of one, is not what it must be."""


def digest_recipe(recipe: Mapping[str, Any]) -> str:
    """First 8 hex digits of the sha256 of the recipe's canonical JSON."""
    canonical = json.dumps(recipe, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:8]


def slugify(name: str) -> str:
    """Lower-case letters, digits and single underscores, as a space's slug or a view's name wants them."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") or "model"


def check_model_id(model_id: str) -> str:
    """Return `model_id`, or raise `SpaceError` where it cannot name a checkpoint and its Feast view."""
    if not MODEL_ID_PATTERN.fullmatch(model_id):
        raise SpaceError(f"model_id {model_id!r} must be 1 to 40 of a-z, 0-9 and '_'")
    if _FEAST_VERSION_SUFFIX.search(model_id):
        raise SpaceError(
            f"model_id {model_id!r} must not end in '_v<digits>': Feast reads that as a version; try {model_id}a"
        )
    return model_id


@dataclass(frozen=True)
class EmbeddingSpace:
    """One embedding space.

    Attributes:
        space_id: `<modality>_<slug>_<8 hex>`, or `fused_<model_id>`.
        modality: `text`, `image`, `audio` or `fused`.
        kind: `encoder`, `fused`, `imported` or `untrained` (a fixed-seed initialisation: its vectors mean little).
        dim: length of a vector.
        recipe: all that the digest covers, JSON-serialisable.
        description: one line for people.
        query_modality: modality whose queries can be embedded into this space beside its own (`text` for CLIP), if any.
        base_space_id: for user interests, the item space in which they are weighted means, so that both compare.
    """

    space_id: str
    modality: str
    kind: str
    dim: int
    recipe: Mapping[str, Any] = field(default_factory=dict, hash=False)
    description: str = ""
    query_modality: str | None = None
    base_space_id: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise SpaceError(f"kind {self.kind!r} of space {self.space_id!r} must be one of {', '.join(KINDS)}")
        if self.dim < 1:
            raise SpaceError(f"dim {self.dim} of space {self.space_id!r} must be positive")

    @classmethod
    def from_recipe(
        cls,
        modality: str,
        slug: str,
        dim: int,
        recipe: Mapping[str, Any],
        *,
        kind: str = "encoder",
        description: str = "",
        query_modality: str | None = None,
        base_space_id: str | None = None,
    ) -> Self:
        """Name a space by the digest of its recipe; `dim` and `modality` are made part of it."""
        if modality not in MODALITIES:
            raise SpaceError(f"modality {modality!r} must be one of {', '.join(MODALITIES)}")
        if not _SLUG_PATTERN.fullmatch(slug):
            raise SpaceError(
                f"slug {slug!r} must be lower-case words of a-z and 0-9 joined by '_'; try {slugify(slug)!r}"
            )
        full = {**recipe, "dim": dim, "modality": modality}
        space_id = f"{modality}_{slug}_{digest_recipe(full)}"
        return cls(space_id, modality, kind, dim, full, description, query_modality, base_space_id)

    @classmethod
    def fused(cls, model_id: str, dim: int, recipe: Mapping[str, Any]) -> Self:
        """The space of a ranker's own item and user vectors."""
        return cls(
            f"fused_{check_model_id(model_id)}", "fused", "fused", dim, dict(recipe), f"vectors of ranker {model_id}"
        )

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary, as `spaces.yaml` stores it; empty fields are left out."""
        return {name: value for name, value in vars(self).items() if value not in (None, "", {})}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`."""
        unknown = set(data) - set(cls.__dataclass_fields__)
        if unknown:
            raise SpaceError(f"space {data.get('space_id')!r} has unknown fields {sorted(unknown)}")
        return cls(**data)

    def check(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return `vectors` [n, dim] if they are float32, finite and of unit norm; else raise `SpaceError`."""
        if vectors.ndim != 2 or vectors.shape[1] != self.dim:
            raise SpaceError(f"vectors of space {self.space_id} must be [n, {self.dim}], not {list(vectors.shape)}")
        if vectors.dtype != np.float32:
            raise SpaceError(f"vectors of space {self.space_id} must be float32, not {vectors.dtype}")
        norms = np.linalg.norm(vectors, axis=1)
        bad = np.flatnonzero(~(np.abs(norms - 1.0) <= UNIT_NORM_TOLERANCE))
        if bad.size:
            raise SpaceError(
                f"vector {bad[0]} of space {self.space_id} has norm {norms[bad[0]]}, not 1; {bad.size} such"
            )
        return vectors
