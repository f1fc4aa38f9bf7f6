"""Trainings are done once, in order, in processes of their own where there are several, and are not done again where they are kept."""

import os
from functools import partial

import numpy as np
import pytest
import torch

from benchmarks.rankers.jobs import Jobs, JobsError, Outcome, named


def square(number, tell):
    """A training of a millisecond, which says where it ran."""
    tell(f"squaring {number}")
    return Outcome({"ndcg_10": np.full(3, float(number**2))}, {"pid": os.getpid(), "settings": {"number": number}})


def squares(numbers):
    return {named("set", "fusion", f"seed {number}", settings=["dim 3"]): partial(square, number) for number in numbers}


@pytest.mark.parametrize("processes", [1, 2])
def test_outcomes_come_in_the_order_of_the_jobs(processes):
    """Several at a time are in processes of their own."""
    told = []
    found = Jobs(processes).run(squares([3, 1, 2]), told.append)
    assert [one.gains["ndcg_10"].tolist() for one in found] == [[9.0] * 3, [1.0] * 3, [4.0] * 3]
    pids = {one.about["pid"] for one in found}
    assert (pids == {os.getpid()}) == (processes == 1)
    assert len(told) == 3
    assert processes > 1 or told[0] == "set, fusion, seed 3: squaring 3"


def test_what_was_kept_is_not_done_again(tmp_path):
    """A run that was cut off goes on; other settings are another job."""
    jobs = Jobs(folder=tmp_path / "kept")

    def never(tell):
        raise AssertionError("this was done before")

    (before,) = jobs.run(squares([3]), print)
    found = jobs.run({**dict.fromkeys(squares([3]), never), **squares([4])}, print)
    assert found[0].about == before.about
    assert found[0].gains["ndcg_10"].tolist() == [9.0] * 3
    assert found[1].gains["ndcg_10"].tolist() == [16.0] * 3
    (other,) = jobs.run({named("set", "fusion", "seed 3", settings=["dim 4"]): partial(square, 5)}, print)
    assert other.about["settings"] == {"number": 5}


def fails(tell):
    """A training without data."""
    raise ValueError("seed 7 has no data")


@pytest.mark.parametrize("processes", [1, 2])
def test_a_job_that_fails_loses_no_other(tmp_path, processes):
    """What was done, or is being done, is kept; what waits is left; and the error is the job's own."""
    jobs = Jobs(processes, tmp_path)
    with pytest.raises(ValueError, match="seed 7"):
        jobs.run({**squares([3]), "fails": fails, **squares(range(10, 30))}, print)
    kept = len(list(tmp_path.glob("*.npz")))
    assert 1 <= kept <= 10


def test_what_cannot_be_is_told_by_its_option(tmp_path):
    """Before anything is trained."""
    with pytest.raises(JobsError, match="--processes is 0: set it to 1 or more"):
        Jobs(0)
    (tmp_path / "file").touch()
    with pytest.raises(JobsError, match=r"--kept .* is no folder"):
        Jobs(folder=tmp_path / "file")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_asked_for_only_by_work(tmp_path):
    """What was trained on the CPU does not stand for it; where nothing is left to do, none is needed."""
    kept = Jobs(folder=tmp_path)
    kept.run(squares([3]), print)
    on_gpu = Jobs(folder=tmp_path, device="cuda")
    with pytest.raises(JobsError, match="--device is cuda, and this machine has no CUDA GPU"):
        on_gpu.run(squares([3]), print)
    assert on_gpu.run({}, print) == []
    with pytest.raises(JobsError, match="--device is cuda"):
        Jobs(device="cuda")
