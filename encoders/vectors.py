"""What every encoder does with its model's output: put it back in order, make it float32 and of unit norm, refuse nonsense."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encoders.errors import EncoderError
from encoders.space import EmbeddingSpace

Progress = Callable[[int], None] | None
Vectors = NDArray[np.float32]


def to_numpy(tensor: Any) -> Vectors:
    """A torch tensor as float32 on the CPU."""
    array: Vectors = tensor.float().cpu().numpy()
    return array


def mean_rows(pooled: Sequence[NDArray[np.float32]], dim: int) -> NDArray[np.float64]:
    """The mean [n, dim] of each item's rows [k, dim]."""
    if not pooled:
        return np.zeros((0, dim))
    return np.stack([rows.mean(axis=0, dtype=np.float64) for rows in pooled])


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
