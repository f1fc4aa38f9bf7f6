"""A forward as one call into torch's runtime, with no Python between its operations.

The forward of a short text is some hundred operations of a tenth of a millisecond each. In Python they take a tenth longer, and each one ends by
waiting for the interpreter's lock, which other lanes and the server's event loop want as well (decision 010).
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any, Final

from encoders.device import Compute
from encoders.weights import quiet

Inputs = Sequence[Any]
_TOLERANCE: Final = 0.01  # of bfloat16; where a trace does not fit a shape it is wrong by far more

log = logging.getLogger(__name__)


def traced(forward: Any, compute: Compute, first: Inputs, *others: Inputs) -> Callable[..., Any]:
    """The module `forward`, on a CPU as a trace of it; itself where it cannot be traced, or the trace differs on any of the inputs.

    A trace follows the path that the tensors `first` took, and may hold their shapes fast. So `others` should differ from them, and
    from each other, in every dimension that varies.
    """
    import torch

    trace: Callable[..., Any] = forward
    if compute.kind != "cpu":
        return trace
    tracer: Any = torch.jit
    with torch.no_grad():
        try:
            with quiet():  # torch deprecates its tracer in favour of compilers, which take minutes or run in Python
                trace = tracer.trace(forward, tuple(first), check_trace=False)
            wrong = [_shapes(inputs) for inputs in (first, *others) if not _close(trace(*inputs), forward(*inputs))]
        except Exception as error:  # noqa: BLE001  (whatever a model does that no trace can follow, it works without)
            wrong = [repr(error)]
    if wrong:
        log.warning("the model runs untraced, a little slower: %s", wrong[0])
        return forward  # type: ignore[no-any-return]
    return trace


def last_hidden(model: Any) -> Any:
    """A module of a transformers model's inputs, in their order, that gives its last hidden state."""
    import torch

    class LastHidden(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *inputs: Any) -> Any:
            return self.model(*inputs).last_hidden_state

    return LastHidden().eval()


def _shapes(inputs: Inputs) -> str:
    return "the trace differs for inputs of the shapes " + ", ".join(str(list(tensor.shape)) for tensor in inputs)


def _close(one: Any, other: Any) -> bool:
    import torch

    return one.shape == other.shape and torch.allclose(one.float(), other.float(), rtol=_TOLERANCE, atol=_TOLERANCE)
