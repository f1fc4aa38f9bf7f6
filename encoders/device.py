"""Where and in which precision an encoder computes.

`auto` means CUDA in bfloat16 if there is a GPU, else bfloat16 on CPUs that multiply it in hardware (AMX, AVX512-BF16; 2 to 5
times as fast as float32 there), else float32. Neither device nor precision is part of an embedding space: vectors agree to a
cosine of about .9999.
"""

import functools
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self, TypeVar, overload

from encoders.errors import EncoderError

T = TypeVar("T")
DTYPES: Final = ("float32", "bfloat16", "float16")
_DEVICE: Final = re.compile(r"auto|cpu|cuda(:\d+)?")
_CPU_FLAGS_WITH_BF16: Final = frozenset({"amx_bf16", "avx512_bf16"})


class once(functools.cached_property[T]):  # noqa: N801  (a decorator)
    """A property computed on first use, by one thread while others wait (`functools.cached_property` may compute it twice)."""

    def __init__(self, make: Callable[[Any], T]) -> None:
        super().__init__(make)
        self._once = threading.RLock()

    @overload
    def __get__(self, instance: None, owner: type | None = None) -> Self: ...
    @overload
    def __get__(self, instance: object, owner: type | None = None) -> T: ...
    def __get__(self, instance: object, owner: type | None = None) -> Self | T:
        if instance is None:
            return self
        with self._once:
            return super().__get__(instance, owner)


@dataclass(frozen=True)
class Compute:
    """A torch device (`cpu`, `cuda`, `cuda:1`) and a precision (`float32`, `bfloat16`)."""

    device: str
    dtype: str

    @property
    def torch_dtype(self) -> Any:
        """The precision as torch names it."""
        import torch

        return getattr(torch, self.dtype)

    @property
    def kind(self) -> str:
        """`cpu` or `cuda`, without the GPU's number."""
        return self.device.partition(":")[0]

    def prepare(self, model: Any) -> Any:
        """`model` moved, cast, and set to inference."""
        return model.to(device=self.device, dtype=self.torch_dtype).eval().requires_grad_(requires_grad=False)

    def send(self, tensor: Any) -> Any:
        """`tensor` on the device; to a GPU from pinned memory, so that the copy runs beside what the GPU is doing."""
        if self.kind == "cpu":
            return tensor
        return tensor.pin_memory().to(self.device, non_blocking=True)


def check_compute(device: str, dtype: str | None) -> tuple[str, str | None]:
    """Return a device and a precision that there are, whether this machine has them or not.

    Raises:
        EncoderError: an unknown device or precision.
    """
    if not _DEVICE.fullmatch(str(device)):
        raise EncoderError(f"device {device!r} must be auto, cpu, cuda, or cuda:N for the GPU of number N")
    if dtype is not None and dtype not in DTYPES:
        raise EncoderError(f"dtype {dtype!r} must be one of {', '.join(DTYPES)}")
    return device, dtype


def choose_compute(device: str = "auto", dtype: str | None = None) -> Compute:
    """Resolve `auto`; `dtype=None` means the fastest precision of the device that keeps vectors the same.

    Raises:
        EncoderError: an unknown device or precision, or CUDA asked for where there is none.
    """
    check_compute(device, dtype)
    if device == "auto":
        device = "cuda" if _cuda_available() else "cpu"
    elif device.startswith("cuda") and not _cuda_available():
        raise EncoderError(f"device {device!r} was asked for, but torch finds no CUDA GPU here; use 'auto' or 'cpu'")
    fast = device.startswith("cuda") or cpu_multiplies_bf16()
    return Compute(device, dtype or ("bfloat16" if fast else "float32"))


@functools.cache
def cpu_multiplies_bf16() -> bool:
    """Whether this CPU has bfloat16 matrix instructions."""
    try:
        cpuinfo = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    flags = next((line for line in cpuinfo.splitlines() if line.startswith("flags")), "")
    return not _CPU_FLAGS_WITH_BF16.isdisjoint(flags.split())


def _cuda_available() -> bool:
    import torch

    return bool(torch.cuda.is_available())
