"""The clock that SASRec and the fusion ranker are trained by; the click models have that on the wall."""

import time

import torch


def worked_seconds() -> float:
    """Seconds of CPU that this process has had, by torch's threads: with one thread on an idle core those on the wall, with more at most those.

    What else the machine does takes nothing from the time that a method is given, and adds nothing to the time that it took.
    """
    return time.process_time() / torch.get_num_threads()
