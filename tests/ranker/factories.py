"""Checkpoints and training sets for tests: a tiny untrained checkpoint for whoever serves one, and a catalogue with planted tastes."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from encoders.space import EmbeddingSpace
from ranker import checkpoint
from ranker.config import RankerConfig
from ranker.inputs import ItemBatch, Vocabulary
from ranker.model import FusionRanker, Shapes

EVENT_TYPES = ("click", "like", "purchase", "rating", "view")
TINY = RankerConfig(dim=8, space_dim=6, heads=2, history_length=8)


def example_spaces(dims: Mapping[str, int] | None = None) -> dict[str, EmbeddingSpace]:
    """One space per modality, small by default."""
    dims = dims or {"text": 12, "image": 10, "audio": 8}
    return {m: EmbeddingSpace.from_recipe(m, "example", d, {"made": "for tests"}) for m, d in dims.items()}


def unit_rows(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    """Random unit vectors float32 [n, d]."""
    raw = rng.normal(size=(n, d))
    return (raw / np.linalg.norm(raw, axis=1, keepdims=True)).astype(np.float32)


def random_items(spaces: Mapping[str, EmbeddingSpace], item_ids: Sequence[str], seed: int = 0) -> ItemBatch:
    """Items with random unit vectors in every space, a category and a price."""
    rng = np.random.default_rng(seed)
    n = len(item_ids)
    vectors = {s.space_id: unit_rows(rng, n, s.dim) for s in spaces.values()}
    present = {space_id: np.ones(n, bool) for space_id in vectors}
    return ItemBatch(list(item_ids), vectors, present, [f"category {i % 3}" for i in range(n)], rng.uniform(1, 50, n))


def tiny_checkpoint(
    models: Path,
    model_id: str = "tiny",
    *,
    spaces: Mapping[str, EmbeddingSpace] | None = None,
    item_ids: Sequence[str] = tuple(f"item{i}" for i in range(20)),
    categories: Sequence[str] = ("category 0", "category 1", "category 2"),
    seed: int = 0,
    config: RankerConfig = TINY,
) -> Path:
    """Write an untrained but complete checkpoint over `spaces` (by modality) and return its folder.

    Every weight is random, so that each feature, event and context changes the score; projections are fitted on random vectors.
    """
    spaces = dict(spaces or example_spaces())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        shapes = Shapes({m: s.dim for m, s in spaces.items()}, len(item_ids), len(categories), len(EVENT_TYPES))
        model = FusionRanker(config, shapes)
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        model.popularity[1:] = torch.randn(len(item_ids))
    batch = random_items(spaces, [f"fit{i}" for i in range(64)], seed)
    for modality, space in spaces.items():
        model.projections[modality].fit(torch.from_numpy(batch.vectors[space.space_id]), config.whitening)
    model.fused_radius.fill_(20.0)
    about = {
        "space_ids": {m: s.space_id for m, s in spaces.items()},
        "feature_service": f"ranker_{model_id}",
        "seed": seed,
        "metrics": {},
        "data": {},
    }
    return checkpoint.save(models, model_id, model, Vocabulary(tuple(item_ids), tuple(categories), EVENT_TYPES), about)
