"""Models in the form that the compiler makes fast code of, on the same weights and with the same vectors.

On a CPU, torch's fused attention kernel takes up to twice as long as two matrix products around a softmax; `nn.MultiheadAttention` hides from
the compiler that its projections are plain matrix products; a convolution whose patches do not overlap is one; and of a CLIP tower's last block
nothing but the first token is used.
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
    last = twin.transformer.resblocks[-1] if _pools_first_token(twin) else None
    for parent in [module for module in twin.modules() if module is not last]:
        for name, child in list(parent.named_children()):
            if isinstance(child, torch.nn.MultiheadAttention) and _is_plain(child):
                setattr(parent, name, _attention_module(child))
            elif _is_patch_projection(child):
                setattr(parent, name, _patches_module(child))
    if last is not None:
        twin.transformer.resblocks[-1] = _last_block_module(last)
    return twin


def _pools_first_token(tower: Any) -> bool:
    """Whether nothing but the first token of the last block's output is used, and that block is open_clip's common one."""
    from open_clip.transformer import ResidualAttentionBlock, VisionTransformer

    if not isinstance(tower, VisionTransformer):
        return False
    pools_it = tower.pool_type == "tok" and tower.attn_pool is None and not tower.output_tokens
    last = tower.transformer.resblocks[-1]
    return pools_it and tower.transformer.batch_first and type(last) is ResidualAttentionBlock and _is_plain(last.attn)


def _is_plain(attention: Any) -> bool:
    """Whether an `nn.MultiheadAttention` is over [rows, tokens, dim] and its three projections are of one width."""
    return attention.batch_first and attention.in_proj_weight is not None and attention.bias_k is None


def _attend(_: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float, **__: Any) -> tuple[Any, None]:
    """Attention [rows, tokens, heads, dim] over query, key, value [rows, heads, tokens, dim], as transformers calls it."""
    scores = query @ key.transpose(2, 3) * scaling
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return (scores.softmax(-1) @ value).transpose(1, 2).contiguous(), None


def _attention_module(theirs: Any) -> Any:
    import torch

    class Attention(torch.nn.Module):
        """Self-attention without a mask over [rows, tokens, dim], with the weights of an `nn.MultiheadAttention`."""

        def __init__(self) -> None:
            super().__init__()
            self.theirs = theirs

        def forward(self, x: Any, *_: Any, **__: Any) -> tuple[Any, None]:
            joint = torch.nn.functional.linear(x, theirs.in_proj_weight, theirs.in_proj_bias)
            return _mixed(theirs, *joint.chunk(3, -1)), None

    return Attention()


def _last_block_module(block: Any) -> Any:
    import torch
    from torch.nn import functional

    class LastBlock(torch.nn.Module):
        """A Transformer block [rows, tokens, dim] -> [rows, 1, dim]: all tokens are attended to, only the first is worked out."""

        def __init__(self) -> None:
            super().__init__()
            self.block = block

        def forward(self, x: Any, **_: Any) -> Any:
            theirs, dim, normed = block.attn, x.shape[-1], block.ln_1(x)
            weights, biases = theirs.in_proj_weight, theirs.in_proj_bias
            query = functional.linear(normed[:, :1], weights[:dim], biases[:dim])
            key, value = functional.linear(normed, weights[dim:], biases[dim:]).chunk(2, -1)
            first = x[:, :1] + block.ls_1(_mixed(theirs, query, key, value))
            return first + block.ls_2(block.mlp(block.ln_2(first)))

    return LastBlock()


def _mixed(theirs: Any, query: Any, key: Any, value: Any) -> Any:
    """An `nn.MultiheadAttention`'s output [rows, queries, dim] for what it has projected, [rows, tokens, dim] each."""
    import torch

    query, key, value = (part.unflatten(-1, (theirs.num_heads, -1)).transpose(1, 2) for part in (query, key, value))
    mixed, _nothing = _attend(None, query, key, value, None, theirs.head_dim**-0.5)
    return torch.nn.functional.linear(mixed.flatten(2), theirs.out_proj.weight, theirs.out_proj.bias)


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
