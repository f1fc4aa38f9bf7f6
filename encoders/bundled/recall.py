"""How well words find pictures, and pictures words, among held-out ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Retrieval:
    """Ranks are counted among all pictures (words) given: 0 is the best, ties count against the model."""

    pictures: int
    queries: int
    recall_at_1: float
    recall_at_5: float
    recall_at_10: float
    median_rank: float
    image_to_text_at_5: float


def retrieval(images: NDArray[np.float32], texts: NDArray[np.float32], captions: Sequence[str]) -> Retrieval:
    """Score unit vectors of pictures [n, dim] against unit vectors [q, dim] of the distinct captions, sorted.

    A query has found its picture if any picture of that caption is among the first k; a picture, if its own caption is.
    """
    distinct = sorted(set(captions))
    similar = texts @ images.T  # [queries, pictures]
    own = np.array([[caption == query for caption in captions] for query in distinct])
    to_images, to_texts = ranks(similar, own), ranks(similar.T, own.T)
    within = {k: float((to_images < k).mean()) for k in (1, 5, 10)}
    median = float(np.median(to_images)) + 1
    return Retrieval(
        len(captions), len(distinct), within[1], within[5], within[10], median, float((to_texts < 5).mean())
    )


def ranks(scores: NDArray[np.float32], own: NDArray[np.bool_]) -> NDArray[np.int64]:
    """For each row of `scores` [queries, items], how many items that are not its `own` reach its best own one."""
    best = np.where(own, scores, -np.inf).max(axis=1, keepdims=True)
    return np.asarray(((scores >= best) & ~own).sum(axis=1))


def chance(captions: Sequence[str]) -> Retrieval:
    """What a random order gives on average: hypergeometric, exact (the median rank: of one picture among n)."""
    distinct = sorted(set(captions))
    items, counts = len(captions), [captions.count(query) for query in distinct]
    within = {k: float(np.mean([_hit(items, count, k) for count in counts])) for k in (1, 5, 10)}
    return Retrieval(items, len(distinct), within[1], within[5], within[10], (items + 1) / 2, _hit(len(distinct), 1, 5))


def _hit(items: int, own: int, k: int) -> float:
    """Probability that at least one of `own` among `items` comes within the first k of a random order."""
    return 1 - comb(items - own, min(k, items)) / comb(items, min(k, items))
