"""The bundled open_clip model: real EfficientNet-Lite0 and MiniLM towers, joined by projections that this project trained."""

from pathlib import Path
from typing import Any, Final

from encoders.bundled.packages import efficientnet_file, minilm_folder
from encoders.bundled.projections import DIM, Projections
from encoders.errors import WeightsError
from encoders.image import LoadedClip
from encoders.weights import files_digest, quiet, tokenizer_digest, weights_digest

CHECKPOINT: Final = Path(__file__).parent / "checkpoints" / "clip_lite0"
PROJECTIONS_FILE: Final = "projections.safetensors"


class BundledClip:
    """An open_clip CustomTextCLIP of EfficientNet-Lite0 and MiniLM with trained projections (see the checkpoint's CARD.md).

    Args:
        checkpoint: folder of `projections.safetensors`; by default the one that comes with the project.
    """

    name = "clip_lite0"
    kind = "encoder"
    dim = DIM
    description = (
        "EfficientNet-Lite0 and MiniLM joined by projections trained on captioned drawings; English words find pictures"
    )
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

    def __init__(self, checkpoint: Path = CHECKPOINT) -> None:
        self._checkpoint = checkpoint

    def recipe(self) -> dict[str, Any]:
        """The digests of both towers, the tokenizer and the projections, and the preprocessing."""
        return {**self.towers_recipe(), "projections": weights_digest(self._checkpoint)}

    def towers_recipe(self) -> dict[str, Any]:
        """What names the frozen part."""
        return {
            "library": "open_clip",
            "vision": dict(self.vision_cfg),
            "text": dict(self.text_cfg),
            "vision_weights": files_digest([efficientnet_file()]),
            "text_weights": weights_digest(minilm_folder()),
            "tokenizer": tokenizer_digest(minilm_folder()),
            "preprocessing": dict(self.preprocessing),
        }

    def load(self) -> LoadedClip:
        """The model with both towers and the trained projections in place."""
        projections = Projections.read(self._checkpoint / PROJECTIONS_FILE)
        loaded = self.load_towers()
        projections.put_into(loaded.model)
        return loaded

    def load_towers(self) -> LoadedClip:
        """The model with both towers; its projections mean nothing yet."""
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
        return LoadedClip(model, image_transform_v2(PreprocessCfg(**self.preprocessing), is_train=False), tokenizer)


def load_efficientnet(trunk: Any) -> None:
    """Put the package's weights into timm's `tf_efficientnet_lite0`: other names, the same tensors in the same order.

    Raises:
        WeightsError: they do not match, so that the package is not the one this was written for.
    """
    file, ours = efficientnet_file(), trunk.state_dict()
    theirs = list(_efficientnet_tensors().values())
    pairs = list(zip(ours, theirs, strict=False))  # theirs ends with the classifier, which the trunk has dropped
    if len(theirs) - len(ours) != 2 or any(ours[name].shape != tensor.shape for name, tensor in pairs):
        raise WeightsError(f"the weights in {file} are not those of EfficientNet-Lite0; reinstall the package")
    trunk.load_state_dict(dict(pairs))


def imagenet_classifier() -> Any:
    """EfficientNet's own classifier: weights [1000, 1280] over the pooled features, one row per class of ImageNet."""
    return list(_efficientnet_tensors().values())[-2].numpy()


def _efficientnet_tensors() -> dict[str, Any]:
    import torch

    tensors: dict[str, Any] = torch.load(efficientnet_file(), map_location="cpu", weights_only=True)
    return tensors
