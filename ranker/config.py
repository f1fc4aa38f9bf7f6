"""Settings of the fusion ranker: its size, how it is trained, and what counts as liking something.

A frozen dataclass that goes into the checkpoint's manifest, so that a model can be rebuilt and its training repeated.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Final, Self

from ranker.errors import RankerError

GROUPS_BESIDE_MODALITIES: Final = ("id", "other")


@dataclass(frozen=True)
class RankerConfig:
    """Everything that training depends on beside the data and the seed.

    Attributes:
        dim: width of item tokens and of the Transformer.
        space_dim: directions kept of each embedding space (principal axes of the training items).
        whitening: 0 keeps the spread of the principal axes, 1 makes all of them equally wide.
        prototypes, taste_steps: kinds of content told apart in each space; gradient steps that fit a user's taste for them.
        layers, heads, dropout: of the causal Transformer over the history.
        history_length: newest events that are read.
        gap_buckets: logarithmic buckets of event age, from a minute up.
        modality_dropout, id_dropout: chance that an item loses a modality, or its id and popularity, in a training step.
        max_candidates: items that a label is compared with in one step; a larger catalogue is sampled.
        batch_size, max_epochs, patience: labels per step; epochs at most; epochs without a better validation NDCG@10.
        learning_rate, gate_learning_rate: of the network, and of the few gates that weigh content similarity.
        weight_decay: AdamW's, on matrices; `id_decay` on what is known of single ids.
        tower_weight, rating_weight: weights of the retrieval loss and of the rating loss beside the ranking loss.
        min_positive_rating: a `rating` below it is no positive label.
        negative_events: event types that are no positive label.
        threads: of torch while training, 0 for as many as it has; more than one only wait for each other on small batches.
        query_weight: how strongly an optional query vector pulls (per unit of cosine).
    """

    dim: int = 32
    space_dim: int = 32
    whitening: float = 0.25
    prototypes: int = 16
    taste_steps: int = 6
    layers: int = 1
    heads: int = 2
    dropout: float = 0.2
    history_length: int = 32
    gap_buckets: int = 12
    modality_dropout: float = 0.1
    id_dropout: float = 0.5
    max_candidates: int = 512
    batch_size: int = 128
    max_epochs: int = 4
    patience: int = 2
    learning_rate: float = 2e-3
    gate_learning_rate: float = 2e-2
    weight_decay: float = 0.05
    id_decay: float = 1.0
    tower_weight: float = 0.5
    rating_weight: float = 0.1
    min_positive_rating: float = 3.5
    negative_events: tuple[str, ...] = ("impression", "skip", "dislike", "hide")
    query_weight: float = 4.0
    threads: int = 1

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form, as the manifest stores it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`; a field that this version does not know is an error."""
        unknown = set(data) - {f.name for f in fields(cls)}
        if unknown:
            raise RankerError(f"ranker config has unknown fields {sorted(unknown)}: it was written by another version")
        return cls(**{**data, "negative_events": tuple(data.get("negative_events", cls.negative_events))})


PRESETS: Final[Mapping[str, RankerConfig]] = {
    "tiny": RankerConfig(),
    "small": replace(
        RankerConfig(),
        dim=64,
        space_dim=96,
        layers=2,
        heads=4,
        history_length=50,
        prototypes=32,
        max_candidates=1024,
        max_epochs=12,
        threads=0,
    ),
}


def preset(name: str) -> RankerConfig:
    """The settings called `name`: `tiny` (hundreds to thousands of items) or `small` (more)."""
    if name not in PRESETS:
        raise RankerError(f"there is no preset {name!r}; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]
