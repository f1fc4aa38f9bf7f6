"""Clocks: what is compared runs in turn, and the best of the repeats counts."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from benchmarks.production import plain

SHARE_TO_CHOOSE_BY: Final = 8  # every eighth batch is enough to choose the best shape

Jobs = Mapping[str, Callable[[], Any]]


def best_shape(model: Any, rows: Any, shapes: Sequence[int], cut: Callable[[Any, int], Any]) -> int:
    """The batch shape in which the bare model takes the least time per element, by every eighth batch of all."""
    batches = {shape: list(cut(rows, shape)) for shape in shapes}
    chosen = {
        shape: every[len(every) % SHARE_TO_CHOOSE_BY // 2 :: SHARE_TO_CHOOSE_BY] for shape, every in batches.items()
    }
    plain.forward_all(model, chosen[shapes[0]][:2])
    seconds = {shape: timed(partial(plain.forward_all, model, some))[0] for shape, some in chosen.items()}
    return min(shapes, key=lambda shape: seconds[shape] / sum(map(plain.elements, chosen[shape])))


def in_turn(repeats: int, jobs: Jobs) -> tuple[dict[str, float], dict[str, Any]]:
    """Seconds of the fastest run of each job, taken in turn, and what each returned last."""
    taken = [{name: timed(job) for name, job in jobs.items()} for _ in range(repeats)]
    return {name: min(once[name][0] for once in taken) for name in jobs}, {name: taken[-1][name][1] for name in jobs}


def timed(job: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of one run, and what it returned."""
    started = time.perf_counter()
    result = job()
    return time.perf_counter() - started, result


def cpu_seconds(job: Callable[[], object]) -> float:
    """CPU seconds of one run on a single thread, where none spins while it waits for another."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    started = time.process_time()
    job()
    taken = time.process_time() - started
    torch.set_num_threads(threads)
    return taken


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0))
