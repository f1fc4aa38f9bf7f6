"""What TensorBoard is given can be read back, and is what training told."""

import sys
from dataclasses import replace

import pytest

from ranker.curves import LOSS, NDCG, Curves
from ranker.errors import RankerError
from ranker.loop import fit
from tests.ranker.sets import SMALL, ordered
from tests.ranker.test_resume import BOTH, StoppedError


def read(folder):
    """Tag -> list of (step, value)."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {tag: [(one.step, one.value) for one in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_losses_and_looks_are_written(rng, tmp_path):
    """The loss of each step, and NDCG of each look at the last step of its epoch."""
    ts, split = ordered(rng, users=40)
    told = []
    with Curves(tmp_path / "runs") as curves:

        def progress(step):
            told.append(step)
            curves.step(step)

        fitted = fit(ts, split, replace(SMALL, max_epochs=3), 0, progress, looked=curves.look)
    found = read(tmp_path / "runs")
    assert [step for step, _ in found[LOSS]] == [one.step for one in told]
    assert [value for _, value in found[LOSS]] == pytest.approx([one.loss for one in told])
    last = {one.epoch: one.step for one in told}
    assert [step for step, _ in found[NDCG]] == [last[look.epoch] for look in fitted.looks]
    assert [value for _, value in found[NDCG]] == pytest.approx([look.ndcg for look in fitted.looks])


def test_curves_of_a_resumed_training_have_each_step_once(rng, tmp_path):
    """Steps after the last look, which are done again, replace those from before the stop."""
    ts, split = ordered(rng, users=40)
    path, folder = tmp_path / "unfinished", tmp_path / "runs"

    def progress(told):
        curves.step(told)
        if told.step == told.steps * 4 // 5 - 1:
            raise StoppedError

    with Curves(folder) as curves, pytest.raises(StoppedError):
        fit(ts, split, BOTH, 5, progress, looked=curves.look, unfinished=path)
    with Curves(folder) as curves:
        fit(ts, split, BOTH, 5, curves.step, looked=curves.look, unfinished=path)
    steps = [step for step, _ in read(folder)[LOSS]]
    assert steps == list(range(1, len(steps) + 1))


def test_without_the_package_the_remedy_is_named(tmp_path, monkeypatch):
    """Before anything is trained or written."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(RankerError, match=r"pip install 'triptych\[tensorboard\]'"):
        Curves(tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
