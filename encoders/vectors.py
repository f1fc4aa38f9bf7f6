"""What every encoder does with its model's output: put it back in order, make it float32 and of unit norm, refuse nonsense."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encoders.errors import EncoderError
from encoders.space import EmbeddingSpace

Progress = Callable[[int], None] | None
Vectors = NDArray[np.float32]


def token_batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Indices in batches of similar length, at most `budget` padded tokens each (and at least one row)."""
    order = sorted(range(len(lengths)), key=lambda index: lengths[index])
    batch: list[int] = []
    for index in order:
        if batch and (len(batch) + 1) * lengths[index] > budget:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def equal_length_batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Indices in batches of exactly one length, at most `budget` samples each (and at least one row)."""
    by_length: dict[int, list[int]] = {}
    for index, length in enumerate(lengths):
        by_length.setdefault(length, []).append(index)
    for length, indices in sorted(by_length.items()):
        rows = max(1, budget // max(1, length))
        yield from (indices[start : start + rows] for start in range(0, len(indices), rows))


def to_numpy(tensor: Any) -> Vectors:
    """A torch tensor as float32 on the CPU."""
    array: Vectors = tensor.float().cpu().numpy()
    return array


def unit_vectors(vectors: NDArray[np.floating[Any]], space: EmbeddingSpace) -> Vectors:
    """`vectors` [n, dim] as contiguous float32 of unit norm.

    Raises:
        EncoderError: a vector is not finite or is zero, which no healthy model gives; its index is named.
    """
    exact = np.asarray(vectors, dtype=np.float64).reshape(len(vectors), space.dim)
    norms = np.linalg.norm(exact, axis=1, keepdims=True)
    bad = np.flatnonzero(~(np.isfinite(norms[:, 0]) & (norms[:, 0] > 0)))
    if bad.size:
        raise EncoderError(
            f"the encoder of space {space.space_id} gave a vector of norm {norms[bad[0], 0]} for input {bad[0]}"
        )
    return space.check(np.ascontiguousarray(exact / norms, dtype=np.float32))
