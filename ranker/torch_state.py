"""What torch is told for a while, and is as it was afterwards: how many threads, and whether sums may come in any order; and memory given back."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch use `count` threads for a while; 0 leaves them as they are.

    On small matrices several threads mostly wait for each other, and on a busy machine they wait for long.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def deterministic() -> Iterator[None]:
    """Let every sum come in one order for a while.

    On several cores the gradient of a gather (`index_put_`) is else added up in the order in which threads come. A GPU has sums for which there is no
    other way: there torch warns, and goes on.
    """
    before, warned = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    settings: Any = torch.utils.deterministic
    filled = settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(mode=True, warn_only=torch.get_default_device().type != "cpu")
    settings.fill_uninitialized_memory = False  # a pass over memory for each new tensor
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(mode=before, warn_only=warned)
        settings.fill_uninitialized_memory = filled


def give_back() -> None:
    """Give freed memory back to the system, where its C library is glibc.

    Steps have tensors of many sizes, between which the freed ones stay in pieces: over a training of hours a process would grow to twice what it needs.
    """
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)
