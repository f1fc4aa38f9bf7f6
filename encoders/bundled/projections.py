"""The two linear layers that join frozen towers into one space, and the file that holds them.

`image = W x + b` of EfficientNet's 1280 pooled features, `text = U t` of MiniLM's 384 mean-pooled ones; both [512], compared by cosine.
"""

import math
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from encoders.errors import WeightsError

Array = NDArray[np.float32]

DIM: Final = 512
IMAGE_FEATURES: Final = 1280
TEXT_FEATURES: Final = 384
UNTRAINED_SEED: Final = 20_240_601
_SHAPES: Final = {
    "visual.head.proj.weight": (DIM, IMAGE_FEATURES),
    "visual.head.proj.bias": (DIM,),
    "text.proj.weight": (DIM, TEXT_FEATURES),
}


@dataclass(frozen=True)
class Projections:
    """`image_weight` [512, 1280], `image_bias` [512] and `text_weight` [512, 384], float32."""

    image_weight: Array
    image_bias: Array
    text_weight: Array

    def images(self, features: NDArray[Any]) -> Array:
        """Unit vectors [n, 512] of pooled image features [n, 1280]."""
        return unit(features @ self.image_weight.T + self.image_bias)

    def texts(self, features: NDArray[Any]) -> Array:
        """Unit vectors [n, 512] of mean-pooled text features [n, 384]."""
        return unit(features @ self.text_weight.T)

    def put_into(self, model: Any) -> None:
        """Copy them into an open_clip CustomTextCLIP of those towers."""
        import torch

        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for name, values in zip(_SHAPES, astuple(self), strict=True):
                parameters[name].copy_(torch.from_numpy(values))

    def save(self, path: Path) -> None:
        """Write them as fp16 safetensors, under the names that they have in the model."""
        from safetensors.numpy import save_file

        half = (np.ascontiguousarray(values, dtype=np.float16) for values in astuple(self))
        save_file(dict(zip(_SHAPES, half, strict=True)), path)

    @classmethod
    def read(cls, path: Path) -> Self:
        """The inverse of `save`.

        Raises:
            WeightsError: the file is missing, damaged, or holds other tensors.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise WeightsError(f"{path} cannot be read as safetensors: {error}") from error
        found = {name: tensor.shape for name, tensor in tensors.items()}
        if found != _SHAPES:
            raise WeightsError(f"{path} holds {found}, not the projections {_SHAPES}")
        return cls(*(tensors[name].astype(np.float32) for name in _SHAPES))


def unit(vectors: NDArray[Any]) -> Array:
    """Rows [n, dim] brought to unit norm."""
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)


def untrained_projections(norm: Any) -> Projections:
    """What training is measured against: fixed projections that keep each tower's geometry and know nothing of the other.

    The image features are centred and scaled by what EfficientNet's own last batch norm `norm` says of them, then projected by a random
    matrix of orthonormal rows (Johnson-Lindenstrauss); the text projection has orthonormal columns.
    """
    mean, deviation = pooled_feature_statistics(norm)
    weight = orthonormal((DIM, IMAGE_FEATURES), UNTRAINED_SEED) / deviation
    text = orthonormal((DIM, TEXT_FEATURES), UNTRAINED_SEED + 1)
    return Projections(*(np.asarray(values, dtype=np.float32) for values in (weight, -weight @ mean, text)))


def pooled_feature_statistics(norm: Any) -> tuple[Any, Any]:
    """Mean and deviation [channels] of ReLU6 features after the batch norm `norm`, over what it was trained on.

    A batch norm's output has mean beta and deviation |gamma| per channel; taken as normal, its clipping to [0, 6] has
    closed-form moments (a doubly censored normal).
    """
    beta, gamma = (tensor.detach().double().numpy() for tensor in (norm.bias, norm.weight))
    scale = np.abs(gamma) + 1e-6
    erf = np.vectorize(math.erf)
    low, high = (0 - beta) / scale, (6 - beta) / scale
    density = [np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi) for z in (low, high)]
    below, above = (0.5 * (1 + erf(z / math.sqrt(2))) for z in (low, high))
    inside = above - below
    first = beta * inside + scale * (density[0] - density[1])
    second = (beta**2 + scale**2) * inside + 2 * beta * scale * (density[0] - density[1])
    second += scale**2 * (low * density[0] - high * density[1])
    mean = first + 6 * (1 - above)
    variance = second + 36 * (1 - above) - mean**2
    return mean, np.sqrt(np.maximum(variance, 1e-4))


def orthonormal(shape: tuple[int, int], seed: int) -> Any:
    """A random matrix [rows, columns] whose shorter side is orthonormal, the same on every machine."""
    # numpy freezes the stream of RandomState, and of no other generator, for good.
    normal = np.random.RandomState(seed).standard_normal((max(shape), min(shape)))
    q, r = np.linalg.qr(normal)
    q *= np.sign(np.diag(r))
    return q if shape[0] >= shape[1] else q.T
