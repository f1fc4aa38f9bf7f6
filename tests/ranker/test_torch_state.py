"""Threads and determinism are set for a while only, and sums come in one order meanwhile."""

import platform

import pytest
import torch

from benchmarks.store.usage import memory
from ranker.torch_state import deterministic, give_back, torch_threads


def test_threads_are_as_before_afterwards():
    """Also after an error; 0 leaves them as they are."""
    before = torch.get_num_threads()
    with torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
        with torch_threads(0):
            assert torch.get_num_threads() == before + 1
    with pytest.raises(KeyError), torch_threads(before + 1):
        raise KeyError
    assert torch.get_num_threads() == before


def test_gradients_of_a_gather_are_added_in_one_order():
    """Many threads that add to few rows: the sum is the same each time, bit for bit. Without it, it hardly ever is."""
    generator = torch.Generator().manual_seed(3)
    picked = torch.randint(0, 4, (20_000,), generator=generator)
    weight = torch.randn(20_000, 64, generator=generator)

    def gradient() -> torch.Tensor:
        rows = torch.ones(4, 64, requires_grad=True)
        (rows[picked] * weight).sum().backward()
        return rows.grad

    with torch_threads(4), deterministic():
        first = gradient()
        assert all(torch.equal(first, gradient()) for _ in range(10))
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory
    torch.testing.assert_close(
        first, torch.stack([weight[picked == row].sum(0) for row in range(4)]), rtol=0, atol=1e-2
    )


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="memory is given back where the C library is glibc")
def test_freed_memory_is_given_back():
    """Of 200 MB in small pieces, between which some stay, most is the system's again."""
    pieces = [torch.zeros(2_500) for _ in range(20_000)]
    full = memory("VmRSS")
    pieces = pieces[::100]
    give_back()
    assert memory("VmRSS") < full - 100 * 1024**2
    assert len(pieces) == 200
