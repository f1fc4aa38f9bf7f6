"""Linear layers with their weights in the layout of the CPU's matrix kernels, brought into it once instead of in every forward.

In bfloat16, torch hands a product to oneDNN with the weights as they lie, and oneDNN reorders them for its kernel every time: a tenth of the
work or so (decision 013).
"""

from typing import Any, Final

from encoders.device import Compute

_ROWS: Final = 512  # the layout is chosen for products of about this many tokens; any number is multiplied right


def prepack(model: Any, compute: Compute) -> Any:
    """`model` with its linear layers prepacked in place where that helps: in bfloat16 on a CPU. It is for inference only from then on."""
    import torch

    if compute.kind == "cpu" and compute.dtype == "bfloat16" and _kernels_here():
        with torch.inference_mode():
            _replace(model)
    return model


def _kernels_here() -> bool:
    """Whether oneDNN multiplies bfloat16 on this CPU; where a profile asks for bfloat16 on an older one, torch's own products stay."""
    import torch

    return bool(torch._C._has_mkldnn and torch.ops.mkldnn._is_mkldnn_bf16_supported())  # noqa: SLF001  (no public name)


def _replace(module: Any) -> None:
    import torch

    for name, child in list(module.named_children()):
        if type(child) is torch.nn.Linear:
            setattr(module, name, _prepacked(child))
        elif not isinstance(child, torch.nn.MultiheadAttention):  # it reads the weights of its layers itself
            _replace(child)


def _prepacked(layer: Any) -> Any:
    import torch

    class Prepacked(torch.nn.Module):
        """A linear layer [..., in] -> [..., out]."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight, _ROWS)  # noqa: SLF001  (as torch's compiler does)
            self.bias = layer.bias

        def forward(self, x: Any) -> Any:
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")  # noqa: SLF001

    return Prepacked()
