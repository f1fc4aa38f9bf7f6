"""Whitening: a linear map, fitted on a corpus, after which its vectors have mean zero and spread alike in every direction.

Mean-pooled BERT and wav2vec 2.0 are anisotropic: all vectors share a few large directions, so that all cosines are high and near
each other. Whitened, cosines tell more apart (Su et al. 2021, "Whitening Sentence Representations"). Fitted in float64, applied in
float32, part of the space.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from encoders.errors import WeightsError

METHODS: Final = ("zca", "pca")
COVARIANCES: Final = ("full", "shrinkage")
# Directions of less than this share of the largest variance are noise of the estimate: they are not blown up to unit variance.
VARIANCE_FLOOR: Final = 1e-6


@dataclass(frozen=True, eq=False)
class Whitening:
    """The map x -> (x - mean) @ matrix.

    Attributes:
        mean: [dim] float32.
        matrix: [dim, out] float32.
    """

    mean: NDArray[np.float32]
    matrix: NDArray[np.float32]

    def __post_init__(self) -> None:
        if self.mean.ndim != 1 or self.matrix.ndim != 2 or len(self.mean) != len(self.matrix):
            raise WeightsError(
                f"a whitening maps [dim] by a matrix [dim, out], not {list(self.mean.shape)} by {list(self.matrix.shape)}"
            )
        if not (np.isfinite(self.mean).all() and np.isfinite(self.matrix).all()):
            raise WeightsError("a whitening must hold finite numbers")

    @classmethod
    def fit(
        cls,
        vectors: NDArray[np.floating[Any]],
        *,
        method: str = "zca",
        covariance: str = "shrinkage",
        dim: int | None = None,
    ) -> Self:
        """Fit on pooled vectors [n, dim] of a corpus, such as an encoder's `encode` gives.

        Args:
            vectors: at least 2, of unit norm; many times `dim` of them for the `full` covariance.
            method: `zca` stays as near to the input as whitening can; `pca` sorts the directions by their variance.
            covariance: `full`, or `shrinkage` towards a multiple of the identity (Ledoit and Wolf 2004), for small corpora.
            dim: keep this many directions, those of the largest variance; `pca` only.

        Raises:
            ValueError: an option is unknown, or there are fewer than 2 vectors.
        """
        data = np.asarray(vectors, dtype=np.float64)
        if method not in METHODS or covariance not in COVARIANCES or (dim is not None and method != "pca"):
            raise ValueError(f"whitening takes method {METHODS}, covariance {COVARIANCES}, and dim with pca alone")
        if data.ndim != 2 or len(data) < 2 or not np.isfinite(data).all():
            raise ValueError(f"whitening is fitted on 2 or more finite vectors [n, dim], not {list(data.shape)}")
        mean = data.mean(0)
        spread = _covariance(data - mean, shrink=covariance == "shrinkage")
        variances, directions = np.linalg.eigh(spread)
        variances, directions = variances[::-1], directions[:, ::-1]
        variances = np.maximum(variances, VARIANCE_FLOOR * variances[0])
        matrix = directions / np.sqrt(variances)  # [dim, directions]
        matrix = matrix @ directions.T if method == "zca" else matrix[:, :dim]
        return cls(mean.astype(np.float32), np.ascontiguousarray(matrix, dtype=np.float32))

    @property
    def out_dim(self) -> int:
        """Length of a whitened vector."""
        return int(self.matrix.shape[1])

    @property
    def digest(self) -> str:
        """First 16 hex digits of the sha256 of its numbers."""
        digest = hashlib.sha256(json.dumps([list(self.mean.shape), list(self.matrix.shape)]).encode())
        digest.update(self.mean.astype("<f4").tobytes())
        digest.update(self.matrix.astype("<f4").tobytes())
        return digest.hexdigest()[:16]

    def __call__(self, vectors: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """Whitened vectors [n, out], not normalised."""
        centred = np.asarray(vectors, dtype=np.float32) - self.mean
        return np.asarray(centred @ self.matrix, dtype=np.float32)

    def save(self, path: Path) -> None:
        """Write it as safetensors."""
        from safetensors.numpy import save_file

        save_file({"mean": self.mean, "matrix": self.matrix}, path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            WeightsError: the file is missing or is no whitening.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            tensors = load_file(path)
            return cls(tensors["mean"].astype(np.float32), tensors["matrix"].astype(np.float32))
        except (OSError, KeyError, SafetensorError) as error:
            raise WeightsError(
                f"{path} cannot be read as a whitening (safetensors of mean and matrix): {error}"
            ) from error


def whitened(recipe: dict[str, Any], dim: int, whitening: Whitening | None) -> tuple[dict[str, Any], int]:
    """A space's recipe and length of vectors, with the whitening; without one both stay as they were before there was any."""
    return (recipe, dim) if whitening is None else ({**recipe, "whitening": whitening.digest}, whitening.out_dim)


def load_for(path: str | Path | None, dim: int | None) -> Whitening | None:
    """The whitening in a file, for vectors of `dim`; None for none.

    Raises:
        WeightsError: the file cannot be read, or was fitted on vectors of another length.
    """
    if path is None:
        return None
    whitening = Whitening.load(Path(path).expanduser())
    if len(whitening.mean) != dim:
        raise WeightsError(f"whitening {path} was fitted on {len(whitening.mean)} dimensions; this encoder gives {dim}")
    return whitening


def _covariance(centred: NDArray[np.float64], *, shrink: bool) -> NDArray[np.float64]:
    """Covariance [dim, dim]; with `shrink`, mixed with the identity by Ledoit and Wolf's (2004) estimate of the best share."""
    count, dim = centred.shape
    sample = centred.T @ centred / count
    if not shrink:
        return np.asarray(sample)
    target = np.trace(sample) / dim
    distance = np.square(sample).sum() - dim * target**2  # squared distance from target * identity
    squares = np.square(centred)
    error = (squares.T @ squares / count - np.square(sample)).sum() / count
    share = min(1.0, error / distance) if distance > 0 else 1.0
    return np.asarray((1 - share) * sample + share * target * np.eye(dim))
