"""What every encoder does with its model's output: put it back in order, make it float32 and of unit norm, refuse nonsense."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encoders.errors import EncoderError
from encoders.space import EmbeddingSpace
from encoders.whitening import Whitening

Progress = Callable[[int], None] | None
Vectors = NDArray[np.float32]


def to_numpy(tensor: Any) -> Vectors:
    """A torch tensor as float32 on the CPU."""
    array: Vectors = tensor.float().cpu().numpy()
    return array


def mean_rows(pooled: Sequence[NDArray[np.float32]]) -> NDArray[np.float64]:
    """The mean [n, dim] of each item's rows [k, dim]."""
    return np.stack([np.asarray(rows).mean(axis=0, dtype=np.float64) for rows in pooled])


def finished(pooled: Sequence[NDArray[np.float32]], space: EmbeddingSpace, whitening: Whitening | None) -> Vectors:
    """Unit vectors [n, dim] of n items: the mean of an item's rows [k, model's dim] at unit norm, whitened, at unit norm again.

    Raises:
        EncoderError: a vector is not finite or is zero, which no healthy model gives; its index is named.
    """
    if not len(pooled):
        return np.zeros((0, space.dim), dtype=np.float32)
    vectors = mean_rows(pooled)
    if whitening is not None:
        vectors = whitening(normalised(vectors, space)).astype(np.float64)
    return unit_vectors(vectors, space)


def unit_vectors(vectors: NDArray[np.floating[Any]], space: EmbeddingSpace) -> Vectors:
    """`vectors` [n, dim] as contiguous float32 of unit norm, checked.

    Raises:
        EncoderError: a vector is not finite or is zero, which no healthy model gives; its index is named.
    """
    return space.check(np.ascontiguousarray(normalised(vectors, space), dtype=np.float32))


def normalised(vectors: NDArray[np.floating[Any]], space: EmbeddingSpace) -> NDArray[np.float64]:
    """`vectors` [n, any dim] in float64 at unit norm; raises as `unit_vectors` does, naming `space`."""
    exact = np.asarray(vectors, dtype=np.float64)
    norms = np.linalg.norm(exact, axis=1, keepdims=True)
    bad = np.flatnonzero(~(np.isfinite(norms[:, 0]) & (norms[:, 0] > 0)))
    if bad.size:
        raise EncoderError(
            f"the encoder of space {space.space_id} gave a vector of norm {norms[bad[0], 0]} for input {bad[0]}"
        )
    return np.asarray(exact / norms)
