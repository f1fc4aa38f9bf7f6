"""A forward as one call into torch's runtime, with no Python between its operations.

The forward of a short text is hundreds of operations, most of them far shorter than a millisecond. In Python they take a tenth longer, and each one
ends by waiting for the interpreter's lock, which other lanes and the server's event loop want as well (decision 010).
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any, Final

from encoders.device import Compute
from encoders.weights import quiet

Inputs = Sequence[Any]
# Of a row's norm, and far above bfloat16's. Where a trace does not fit a shape it is wrong by far more.
_RELATIVE_ERROR: Final = 0.02

log = logging.getLogger(__name__)


def traced(forward: Any, compute: Compute, name: str, first: Inputs, *others: Inputs) -> Callable[..., Any]:
    """The module `forward`, on a CPU as a trace of it; itself where it cannot be traced, or the trace differs on any of the inputs.

    A trace follows the path that the tensors `first` took, and may hold their shapes fast. So `others` should differ from them, and
    from each other, in every dimension that varies, and no two rows should be equal. `name` is the model's, for the log.
    """
    import torch

    trace: Callable[..., Any] = forward
    if compute.kind != "cpu":
        return trace
    tracer: Any = torch.jit
    with torch.inference_mode(mode=False), torch.no_grad():
        try:
            # One thread at a time, as torch's tracer wants it. It is deprecated in favour of compilers, which take minutes or run in Python.
            with quiet():
                trace = tracer.trace(forward, tuple(first), check_trace=False)
            wrong = [_shapes(inputs) for inputs in (first, *others) if not _close(trace(*inputs), forward(*inputs))]
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001  (whatever a model does that no trace can follow, it works without)
            wrong = [repr(error)]
    if wrong:
        log.warning("%s runs untraced, right but a little slower: %s", name, wrong[0])
        return forward  # type: ignore[no-any-return]
    return trace


def calling(model: Any, call: Callable[..., Any]) -> Any:
    """A module, as the tracer wants it, whose forward of some inputs is `call(model, *inputs)`."""
    import torch

    class Calling(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *inputs: Any) -> Any:
            return call(self.model, *inputs)

    return Calling().eval()


def _shapes(inputs: Inputs) -> str:
    return "the trace differs for inputs of the shapes " + ", ".join(str(list(tensor.shape)) for tensor in inputs)


def _close(one: Any, other: Any) -> bool:
    """Whether outputs [rows, ...] are the same but for rounding, row by row."""
    if one.shape != other.shape:
        return False
    one, other = (rows.float().reshape(len(rows), -1) for rows in (one, other))
    return bool(((one - other).norm(dim=1) <= _RELATIVE_ERROR * other.norm(dim=1)).all())
