"""The clock that rankers are trained by, the same for all of them."""

import time

import torch


def worked_seconds() -> float:
    """Seconds of CPU that this process has had, by torch's threads: on idle cores those of the clock.

    What else the machine does takes nothing from the time that a method is given, and adds nothing to the time that it took.
    """
    return time.process_time() / torch.get_num_threads()
