"""Clocks: what is compared runs in turn, and the best of the repeats counts."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final

from benchmarks.production import plain

SHARE_TO_CHOOSE_BY: Final = 8  # every eighth batch is enough to choose the best shape, if two are left for each core

Jobs = Mapping[str, Callable[[], Any]]
Shapes = Mapping[str, int]
Forward = Callable[[Any, Any], None]
# One forward on all cores, and one forward on each core.
FORWARDS: Final[Mapping[str, Forward]] = {
    "forward_wide": plain.forward_all,
    "forward_side_by_side": plain.forward_side_by_side,
}


def best_forwards(model: Any, rows: Any, shapes: Sequence[int], cut: Callable[[Any, int], Any]) -> tuple[Jobs, Shapes]:
    """The bare model over `rows` in both ways to use the cores, each in the batch shape that suits it: whichever is faster counts."""
    shapes_of = {name: best_shape(model, rows, shapes, cut, forward) for name, forward in FORWARDS.items()}
    jobs = {name: partial(FORWARDS[name], model, cut(rows, shape)) for name, shape in shapes_of.items()}
    return jobs, shapes_of


def best_shape(
    model: Any, rows: Any, shapes: Sequence[int], cut: Callable[[Any, int], Any], forward: Forward = plain.forward_all
) -> int:
    """The batch shape in which the bare model takes the least time per element, by every eighth batch, or a few."""
    batches = {shape: cut(rows, shape) for shape in shapes}
    chosen = {
        shape: every[len(every) % step // 2 :: step]
        for shape, every in batches.items()
        for step in [min(SHARE_TO_CHOOSE_BY, max(1, len(every) // (2 * cores())))]
    }
    plain.forward_all(model, chosen[shapes[0]][:2])
    seconds = {shape: timed(partial(forward, model, some))[0] for shape, some in chosen.items()}
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


def least_cpu_seconds(repeats: int, jobs: Jobs) -> tuple[dict[str, float], dict[str, float]]:
    """CPU seconds of one run of each job, the least of the repeats: with every core at it, and with one core alone at it.

    Cores that share a cache, the memory and a budget of power are slower together than one of them alone.
    """
    runs = [
        {(name, at_once): cpu_seconds(job, at_once) for name, job in jobs.items() for at_once in (cores(), 1)}
        for _ in range(repeats)
    ]
    busy, alone = ({name: min(run[name, at_once] for run in runs) for name in jobs} for at_once in (cores(), 1))
    return busy, alone


def cpu_seconds(job: Callable[[], object], at_once: int) -> float:
    """CPU seconds of one run of `job` while `at_once` of them run beside each other, each on a single thread, where none spins."""
    import torch

    threads = torch.get_num_threads()

    def alone() -> None:
        torch.set_num_threads(1)
        job()

    with ThreadPoolExecutor(at_once) as pool:
        started = time.process_time()
        running = [pool.submit(alone) for _ in range(at_once)]
        for one in running:
            one.result()
        taken = time.process_time() - started
    torch.set_num_threads(threads)
    return taken / at_once


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0))
