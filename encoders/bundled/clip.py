"""The bundled open_clip model: real EfficientNet-Lite0 and MiniLM towers under projections."""

import math
from typing import Any, Final

import numpy as np

from encoders.bundled.packages import efficientnet_file, minilm_folder
from encoders.errors import WeightsError
from encoders.image import LoadedClip
from encoders.weights import files_digest, quiet, tokenizer_digest, weights_digest


class UntrainedClip:
    """An open_clip CustomTextCLIP of EfficientNet-Lite0 and MiniLM with fixed projections.

    The image projection first centres and scales the 1280 pooled features by what EfficientNet's own last batch norm says of
    them (their mean and deviation over ImageNet), then projects by a random matrix of orthonormal rows, which keeps angles
    (Johnson-Lindenstrauss). The text projection has orthonormal columns, and keeps them exactly.
    """

    name = "clip_lite0"
    kind = "untrained"
    dim = 512
    description = "EfficientNet-Lite0 with an untrained projection; its text queries mean nothing yet"
    seed = 20_240_601
    vision_cfg: Final = {
        "timm_model_name": "tf_efficientnet_lite0",
        "timm_model_pretrained": False,
        "timm_pool": "",
        "timm_proj": "linear",
        "timm_proj_bias": True,
        "image_size": 224,
    }
    text_cfg: Final = {"hf_proj_type": "linear", "hf_pooler_type": "mean_pooler", "context_length": 64}
    preprocessing: Final = {
        "size": 224, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "shortest",
    }  # fmt: skip

    def recipe(self) -> dict[str, Any]:
        """Both towers' digests and how the projections are made."""
        return {
            "library": "open_clip",
            "vision": dict(self.vision_cfg),
            "text": dict(self.text_cfg),
            "vision_weights": files_digest([efficientnet_file()]),
            "text_weights": weights_digest(minilm_folder()),
            "tokenizer": tokenizer_digest(minilm_folder()),
            "preprocessing": dict(self.preprocessing),
            "projections": {
                "seed": self.seed,
                "image": "standardised by batch norm, orthonormal rows",
                "text": "orthonormal columns",
            },
        }

    def load(self) -> LoadedClip:
        """The model with both towers and projections in place."""
        import torch
        from open_clip.model import CustomTextCLIP
        from open_clip.tokenizer import HFTokenizer
        from open_clip.transform import PreprocessCfg, image_transform_v2

        folder = str(minilm_folder())
        with quiet(), torch.random.fork_rng(devices=[]):
            text_cfg = {**self.text_cfg, "hf_model_name": folder, "hf_tokenizer_name": folder}
            model = CustomTextCLIP(self.dim, dict(self.vision_cfg), text_cfg)
            tokenizer = HFTokenizer(folder, context_length=self.text_cfg["context_length"])
        load_efficientnet(model.visual.trunk)
        self._project(model)
        return LoadedClip(model, image_transform_v2(PreprocessCfg(**self.preprocessing), is_train=False), tokenizer)

    def _project(self, model: Any) -> None:
        import torch

        mean, deviation = pooled_feature_statistics(model.visual.trunk.bn2)
        image, text = orthonormal((self.dim, len(mean)), self.seed), orthonormal((self.dim, 384), self.seed + 1)
        weight = image / deviation
        with torch.no_grad():
            model.visual.head.proj.weight.copy_(torch.from_numpy(weight))
            model.visual.head.proj.bias.copy_(torch.from_numpy(-weight @ mean))
            model.text.proj.weight.copy_(torch.from_numpy(text))


def load_efficientnet(trunk: Any) -> None:
    """Put the package's weights into timm's `tf_efficientnet_lite0`: other names, the same tensors in the same order.

    Raises:
        WeightsError: they do not match, so that the package is not the one this was written for.
    """
    import torch

    file = efficientnet_file()
    theirs = list(torch.load(file, map_location="cpu", weights_only=True).values())
    ours = trunk.state_dict()
    pairs = list(zip(ours, theirs, strict=False))  # theirs ends with the classifier, which the trunk has dropped
    if len(theirs) - len(ours) != 2 or any(ours[name].shape != tensor.shape for name, tensor in pairs):
        raise WeightsError(f"the weights in {file} are not those of EfficientNet-Lite0; reinstall the package")
    trunk.load_state_dict(dict(pairs))


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
