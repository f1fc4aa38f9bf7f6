"""Models in the form that the compiler makes fast code of, on the same weights and with the same vectors.

On a CPU, torch's fused attention kernel takes up to twice as long as two matrix products around a softmax; `nn.MultiheadAttention` hides from
the compiler that its projections are plain matrix products; and a convolution whose patches do not overlap is one.
"""

import copy
from typing import Any, Final

_ATTENTION: Final = "triptych_products"


def twin_of(model: Any) -> Any:
    """A copy of the model's modules around the same weights, so that it can be rewritten and the model stays as it is."""
    return copy.deepcopy(model, {id(weight): weight for weight in (*model.parameters(), *model.buffers())})


def rewritten_text(model: Any) -> Any:
    """A twin of a transformers model with attention as matrix products; masks are boolean, [rows, 1, tokens, tokens]."""
    from transformers import AttentionInterface

    AttentionInterface.register(_ATTENTION, _attend)
    twin = twin_of(model)
    twin.set_attn_implementation(_ATTENTION)
    return twin


def rewritten_tower(tower: Any) -> Any:
    """A twin of an open_clip image tower; modules that are of another make stay as they are."""
    import torch

    twin = twin_of(tower)
    for parent in list(twin.modules()):
        for name, child in list(parent.named_children()):
            if (
                isinstance(child, torch.nn.MultiheadAttention)
                and child.batch_first
                and child.in_proj_weight is not None
            ):
                setattr(parent, name, _attention_module(child))
            elif _is_patch_projection(child):
                setattr(parent, name, _patches_module(child))
    return twin


def _attend(_: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float, **__: Any) -> tuple[Any, None]:
    """Attention [rows, tokens, heads, dim] over query, key, value [rows, heads, tokens, dim], as transformers calls it."""
    scores = query @ key.transpose(2, 3) * scaling
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return (scores.softmax(-1) @ value).transpose(1, 2).contiguous(), None


def _attention_module(theirs: Any) -> Any:
    import torch
    from torch.nn import functional

    class Attention(torch.nn.Module):
        """Self-attention over [rows, tokens, dim] with the weights of an `nn.MultiheadAttention`."""

        def __init__(self) -> None:
            super().__init__()
            self.theirs = theirs

        def forward(self, x: Any, *_: Any, attn_mask: Any = None, **__: Any) -> tuple[Any, None]:
            rows, tokens, dim = x.shape
            heads = theirs.num_heads
            joint = functional.linear(x, theirs.in_proj_weight, theirs.in_proj_bias)
            query, key, value = joint.view(rows, tokens, 3, heads, dim // heads).permute(2, 0, 3, 1, 4)
            mixed, _nothing = _attend(None, query, key, value, attn_mask, (dim // heads) ** -0.5)
            return functional.linear(mixed.view(rows, tokens, dim), theirs.out_proj.weight, theirs.out_proj.bias), None

    return Attention()


def _is_patch_projection(module: Any) -> bool:
    import torch

    return (
        isinstance(module, torch.nn.Conv2d)
        and module.kernel_size == module.stride
        and module.groups == 1
        and module.padding in {(0, 0), 0}
        and module.kernel_size[0] > 1
    )


def _patches_module(theirs: Any) -> Any:
    import torch
    from torch.nn import functional

    class Patches(torch.nn.Module):
        """A convolution [rows, channels, h, w] -> [rows, dim, h / kernel, w / kernel] over patches that do not overlap, as one product."""

        def __init__(self) -> None:
            super().__init__()
            self.theirs = theirs

        def forward(self, x: Any) -> Any:
            high, wide = theirs.kernel_size
            rows, channels = x.shape[:2]
            down, across = x.shape[2] // high, x.shape[3] // wide
            cut = x[:, :, : down * high, : across * wide].reshape(rows, channels, down, high, across, wide)
            patches = cut.permute(0, 2, 4, 1, 3, 5).reshape(rows, down * across, channels * high * wide)
            projected = functional.linear(patches, theirs.weight.reshape(theirs.out_channels, -1), theirs.bias)
            return projected.transpose(1, 2).reshape(rows, theirs.out_channels, down, across)

    return Patches()
