"""What a piece of work costs its process: seconds on the clock, CPU seconds (user and system, all threads), and memory at its peak."""

import gc
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Usage:
    """Seconds, CPU seconds, and bytes above what was resident before."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_bytes: int = 0


@contextmanager
def used() -> Iterator[Usage]:
    """Measure the work within; a process should do so once if its peak memory counts."""
    usage = Usage()
    gc.collect()
    forget_peak()
    resident, cpu, started = memory("VmRSS"), cpu_seconds(), time.perf_counter()
    yield usage
    usage.seconds = time.perf_counter() - started
    usage.cpu_seconds = cpu_seconds() - cpu
    usage.peak_bytes = memory("VmHWM") - resident


@contextmanager
def clocked() -> Iterator[Usage]:
    """Measure a call of milliseconds: the clock and the CPU alone, without touching the process."""
    usage = Usage()
    cpu, started = time.process_time(), time.perf_counter()
    yield usage
    usage.seconds = time.perf_counter() - started
    usage.cpu_seconds = time.process_time() - cpu


def forget_peak() -> None:
    """Let this process's `VmHWM` be the peak from now on."""
    Path("/proc/self/clear_refs").write_text("5")


def cpu_seconds() -> float:
    """User and system seconds of this process so far."""
    now = resource.getrusage(resource.RUSAGE_SELF)
    return now.ru_utime + now.ru_stime


def memory(key: str, pid: int | str = "self") -> int:
    """Bytes that `/proc/PID/status` gives: `VmRSS` is resident now, `VmHWM` at its peak."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)
