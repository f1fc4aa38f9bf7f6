"""Linear layers with their weights in the layout of the CPU's matrix kernels, brought into it once instead of in every forward.

In bfloat16, torch hands a product to oneDNN with the weights as they lie, and oneDNN reorders them for its kernel every time: a tenth of the
work or so (decision 013).
"""

import functools
from typing import Any, Final

from encoders.device import Compute
from encoders.weights import quiet

_ROWS: Final = 512  # the layout is chosen for products of about this many tokens; any number is multiplied right
# oneDNN makes code for every number of tokens, in 2 ms and 1 MB a layer's shape, and keeps 1,024 of them. Up to _EXACT tokens each number
# has its own; beyond, numbers are rounded up to the next multiple of _STEP, so that a server soon has all that it needs.
_EXACT: Final = 128
_STEP: Final = 8
# Linear layers of transformers and open_clip by name, and what is applied to their output.
_ACTIVATIONS: Final = {"dense": "intermediate_act_fn", "intermediate_dense": "intermediate_act_fn", "c_fc": "gelu"}
_PRODUCT: Final = f"""
def product(x: Tensor, weight: Tensor, bias: Optional[Tensor], applied: str, algorithm: str) -> Tensor:
    numbers = torch.jit.annotate(List[Optional[number]], [])
    rows = x.numel() // x.size(-1)
    missing = -rows % {_STEP} if rows > {_EXACT} else 0
    filled = torch.constant_pad_nd(x.reshape(rows, -1), [0, 0, 0, missing]) if missing > 0 else x
    y = torch.ops.mkldnn._linear_pointwise(filled, weight, bias, applied, numbers, algorithm)
    return y[:rows].view(x.shape[:-1] + y.shape[-1:]) if missing > 0 else y
"""


def prepack(model: Any, compute: Compute) -> Any:
    """`model` with its linear layers prepacked in place where that helps: in bfloat16 on a CPU. It is for inference only from then on."""
    import torch

    if compute.kind == "cpu" and compute.dtype == "bfloat16" and _kernels_here():
        with torch.no_grad():
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
            activation = _ACTIVATIONS.get(name, "")
            gelu = _is_gelu(getattr(module, activation, None))
            setattr(module, name, _prepacked(child, gelu=gelu))
            if gelu:
                setattr(module, activation, torch.nn.Identity())
        elif not isinstance(child, torch.nn.MultiheadAttention):  # it reads the weights of its layers itself
            _replace(child)


def _is_gelu(activation: Any) -> bool:
    """Whether it is the exact one, not an approximation."""
    import torch

    if isinstance(activation, torch.nn.GELU):
        return activation.approximate == "none"
    return getattr(activation, "act", None) is torch.nn.functional.gelu  # transformers' own module


def _prepacked(layer: Any, *, gelu: bool) -> Any:
    import torch

    applied, algorithm = ("gelu", "none") if gelu else ("none", "")
    product = _product()

    class Prepacked(torch.nn.Module):
        """A linear layer [..., in] -> [..., out], and what is applied to its output."""

        def __init__(self) -> None:
            super().__init__()
            packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight, _ROWS)  # noqa: SLF001  (as torch's compiler does)
            self.register_buffer("weight", packed)
            self.bias = layer.bias

        def forward(self, x: Any) -> Any:
            return product(x, self.weight, self.bias, applied, algorithm)

    return Prepacked()


@functools.cache
def _product() -> Any:
    """The product in torch's own language: its tracer cannot follow the operator's empty list of optional numbers."""
    import torch

    with quiet():
        return torch.jit.CompilationUnit(_PRODUCT).product
