"""Traced forwards: the same numbers whatever the shape, or no trace."""

import logging

import pytest
import torch

from encoders import AudioEncoder, ImageEncoder, TextEncoder
from encoders.device import Compute
from encoders.traced import calling, traced

CPU = Compute("cpu", "float32")


class Means(torch.nn.Module):
    """Of any shape."""

    def forward(self, x):
        """[rows, n, ...] -> [rows, ...]."""
        return x.mean(1) / x.shape[1]


class Mixing(torch.nn.Module):
    """Holds the number of rows fast, so that others would be mixed."""

    def forward(self, x):
        """[rows, n] -> [rows, n]."""
        held = int(x.shape[0])
        return x.reshape(held, -1).flip(0).reshape(x.shape)


class Unrolled(torch.nn.Module):
    """A loop in Python, which a trace holds fast."""

    def forward(self, x):
        """[rows, n] -> [rows]."""
        return sum(x[:, i] for i in range(x.shape[1]))


class Untraceable(torch.nn.Module):
    """Ends where a tracer is at work."""

    def forward(self, x):
        """Nothing."""
        if torch.jit.is_tracing():
            raise NotImplementedError("no traces here")
        return x


def test_a_trace_gives_the_same_for_shapes_that_it_never_saw():
    """Neither rows nor lengths are held fast."""
    trace = traced(Means(), CPU, "means", [torch.ones(2, 3)], [torch.ones(1, 5)])
    assert isinstance(trace, torch.jit.ScriptModule)
    x = torch.randn(7, 11)
    torch.testing.assert_close(trace(x), Means()(x))


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (Unrolled(), "the trace differs for inputs of the shapes [2, 4]"),
        (Mixing(), "the trace differs for inputs of the shapes [4, 3]"),
        (Untraceable(), "no traces here"),
    ],
)
def test_what_no_trace_can_follow_runs_as_it_is(module, reason, caplog):
    """And the log says why."""
    with caplog.at_level(logging.WARNING, "encoders.traced"):
        inputs = ([torch.randn(shape)] for shape in ((2, 3), (4, 3), (2, 4)))
        assert traced(module, CPU, "text_one_1", *inputs) is module
    assert len(caplog.records) == 1
    assert caplog.records[0].getMessage().startswith("text_one_1 runs untraced")
    assert reason in caplog.text


def test_on_a_gpu_nothing_is_traced():
    """Its forwards are launched, not run, by Python."""
    module = Means()
    assert traced(module, Compute("cuda", "bfloat16"), "means", [torch.ones(2, 3)]) is module


def test_the_bundled_encoders_run_traced():
    """All three modalities, and queries into the pictures' space, so that lanes do not wait for each other."""
    text, image, audio = (kind("bundled", device="cpu") for kind in (TextEncoder, ImageEncoder, AudioEncoder))
    for encoder in (text, image, audio):
        encoder.warm_up()
    forwards = [text._hidden, image._encode_image, image._encode_text, audio._hidden]
    assert all(isinstance(forward, torch.jit.ScriptModule) for forward in forwards)


def test_a_call_becomes_a_module_of_its_models_weights():
    """Which a trace holds as parameters, not as constants."""
    model = torch.nn.Linear(3, 2)
    module = calling(model, lambda model, x, scale: model(x) * scale)
    assert set(module.parameters()) == set(model.parameters())
    x = torch.randn(4, 3)
    torch.testing.assert_close(module(x, 2), model(x) * 2)
