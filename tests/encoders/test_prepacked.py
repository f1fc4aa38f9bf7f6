"""Prepacked linear layers: the same products, whatever their shape."""

import copy
import os
import subprocess
import sys

import pytest
import torch

from encoders.device import Compute
from encoders.prepacked import _kernels_here, prepack

BF16 = Compute("cpu", "bfloat16")
needs_kernels = pytest.mark.skipif(
    not _kernels_here(), reason="this CPU has no kernels for bfloat16: nothing is prepacked"
)


class Layers(torch.nn.Module):
    """Linear layers of three kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.odd = torch.nn.Linear(64, 96), torch.nn.Sequential(torch.nn.Linear(96, 7, bias=False))
        self.attention = torch.nn.MultiheadAttention(64, 4, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., 64] -> [..., 7]."""
        return self.odd(self.wide(self.attention(x, x, x, need_weights=False)[0]))


@pytest.fixture
def layers() -> Layers:
    torch.manual_seed(5)
    return Layers().to(torch.bfloat16).eval().requires_grad_(requires_grad=False)


@pytest.mark.parametrize("shape", [(1, 1), (1, 30), (7, 3), (4, 512), (33, 129)])
def test_prepacked_layers_give_the_same_rows(layers, shape):
    """For one token and for many, and for rows that do not lie side by side in memory."""
    packed, x = prepack(copy.deepcopy(layers), BF16), torch.randn(*shape, 64).to(torch.bfloat16)
    with torch.inference_mode():
        torch.testing.assert_close(packed(x), layers(x), rtol=0.02, atol=0.02)
        apart = torch.randn(*shape, 128).to(torch.bfloat16)[..., ::2]
        torch.testing.assert_close(packed.wide(apart), layers.wide(apart), rtol=0.02, atol=0.02)


@needs_kernels
def test_what_is_packed(layers):
    """Linear layers are; those of a `MultiheadAttention`, which reads their weights itself, are not."""
    packed = prepack(copy.deepcopy(layers), BF16)
    assert not isinstance(packed.wide, torch.nn.Linear)
    assert not isinstance(packed.odd[0], torch.nn.Linear)
    assert isinstance(packed.attention.out_proj, torch.nn.Linear)


@pytest.mark.parametrize("compute", [Compute("cpu", "float32"), Compute("cuda", "bfloat16")])
def test_other_precisions_and_devices_stay_as_they_are(layers, compute):
    """The layout is the CPU's, for bfloat16."""
    assert isinstance(prepack(layers, compute).wide, torch.nn.Linear)


def test_a_cpu_without_the_kernels_keeps_its_layers(layers, monkeypatch):
    """Bfloat16 that a profile asks for on an older CPU works as before."""
    monkeypatch.setattr("encoders.prepacked._kernels_here", lambda: False)
    assert isinstance(prepack(layers, BF16).wide, torch.nn.Linear)


class Mlp(torch.nn.Module):
    """A block's second half under the names that open_clip uses."""

    def __init__(self, gelu: torch.nn.Module) -> None:
        super().__init__()
        self.c_fc, self.gelu, self.c_proj = torch.nn.Linear(64, 128), gelu, torch.nn.Linear(128, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., 64] -> [..., 64]."""
        return self.c_proj(self.gelu(self.c_fc(x)))


@needs_kernels
@pytest.mark.parametrize(("approximate", "fused"), [("none", True), ("tanh", False)])
def test_an_exact_gelu_is_applied_by_the_product(approximate, fused):
    """An approximate one stays a step of its own."""
    torch.manual_seed(6)
    plain = Mlp(torch.nn.GELU(approximate)).to(torch.bfloat16).eval().requires_grad_(requires_grad=False)
    packed, x = prepack(copy.deepcopy(plain), BF16), torch.randn(3, 50, 64).to(torch.bfloat16)
    assert isinstance(packed.gelu, torch.nn.Identity) == fused
    with torch.inference_mode():
        torch.testing.assert_close(packed(x), plain(x), rtol=0.02, atol=0.02)
        exact = copy.deepcopy(plain).float()(x.float())
        assert (packed(x) - exact).abs().mean() <= 1.05 * (plain(x) - exact).abs().mean()


MANY_LENGTHS = """
import torch
from encoders.device import Compute
from encoders.prepacked import prepack
from tests.encoders.test_prepacked import Mlp
model = prepack(Mlp(torch.nn.GELU()).to(torch.bfloat16).eval(), Compute("cpu", "bfloat16"))
with torch.inference_mode():
    for tokens in range(129, 385):
        model(torch.zeros(1, tokens, 64, dtype=torch.bfloat16))
"""


@needs_kernels
def test_long_inputs_of_all_lengths_share_code():
    """Code is made, and kept, for every number of rows that oneDNN meets: here for 32 of them and two layers, not for 256 and a GELU."""
    told = subprocess.run(
        [sys.executable, "-c", MANY_LENGTHS],
        env={**os.environ, "ONEDNN_VERBOSE": "profile_create"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    made = [line for line in told.splitlines() if ",create:cache_miss," in line and ",reorder," not in line]
    assert len(made) == 2 * 32
