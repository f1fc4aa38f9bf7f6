"""A training that was stopped goes on as if it had never stopped, and only with what it began with."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ranker.data import Profile
from ranker.errors import ResumeError
from ranker.loop import fit
from ranker.resume import given_of, unfinished_epoch
from tests.ranker.sets import SMALL, ordered

BOTH = replace(SMALL, batch_size=16, attention=True, popularity=True, max_epochs=5, patience=5)


class StoppedError(Exception):
    """What a test stops a training with."""


def stop_in(epoch):
    def progress(told):
        if told.epoch == epoch:
            raise StoppedError

    return progress


def stopped(ts, split, config, path, epoch=3, seed=5):
    """The file of a training that was stopped in an epoch, after the looks before it."""
    with pytest.raises(StoppedError):
        fit(ts, split, config, seed, stop_in(epoch), unfinished=path)
    return path


@pytest.mark.parametrize("config", [BOTH, replace(BOTH, look_epochs=2, max_epochs=6), replace(BOTH, mean_keeps=0.9)])
def test_a_resumed_training_ends_with_the_same_weights(rng, tmp_path, config):
    """Bit for bit, with the same looks and the same best epoch, however often it was stopped."""
    ts, split = ordered(rng, users=40)
    whole = fit(ts, split, config, 5)
    path = stopped(ts, split, config, tmp_path / "unfinished", 3)
    assert unfinished_epoch(path) == 2
    stopped(ts, split, config, path, 5)
    torch.manual_seed(99)  # another process has another random state
    resumed = fit(ts, split, config, 5, unfinished=path)
    one, other = whole.model.state_dict(), resumed.model.state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert resumed.looks == whole.looks
    assert resumed.epochs == whole.epochs


def test_steps_are_counted_on_after_a_stop(rng, tmp_path):
    """The first step after it has the number that it would have had, and the time before counts."""
    ts, split = ordered(rng, users=40)
    path, seen = stopped(ts, split, BOTH, tmp_path / "unfinished", 3), []
    fit(ts, split, BOTH, 5, seen.append, unfinished=path)
    assert seen[0].epoch == 3
    assert [told.step for told in seen] == list(range(seen[0].step, seen[0].steps + 1))
    assert seen[0].step == seen[0].steps * 2 // 5 + 1
    assert np.isfinite(seen[0].ndcg)


def test_a_finished_training_has_nothing_left_to_do(rng, tmp_path):
    """Stopped after the last look that patience allows: no step follows, and the best weights are there."""
    ts, split = ordered(rng, users=40)
    config = replace(BOTH, patience=1, max_epochs=40)
    path = tmp_path / "unfinished"
    whole = fit(ts, split, config, 5, unfinished=path)
    assert whole.looks[-1].epoch < config.max_epochs
    again = fit(ts, split, config, 5, lambda _: pytest.fail("it trained"), unfinished=path)
    assert all(torch.equal(value, again.model.state_dict()[name]) for name, value in whole.model.state_dict().items())


def test_another_training_is_refused_with_what_differs(rng, tmp_path):
    """Settings, the seed, labels and items: each is named, and the file stays as it is."""
    ts, split = ordered(rng, users=40)
    path = stopped(ts, split, BOTH, tmp_path / "unfinished")
    before = path.read_bytes()
    fewer = replace(split, train=split.train.take(np.arange(len(split.train) - 1)))
    dearer = replace(ts, items=replace(ts.items, price=np.full(len(ts.items), 2.0)))
    for others, message in (
        ((ts, split, replace(BOTH, dropout=0.5), 5), "config.dropout was 0.2 and is 0.5"),
        ((ts, split, BOTH, 6), "seed was 5 and is 6"),
        ((ts, fewer, BOTH, 5), "training labels was '[0-9a-f]+' and is '[0-9a-f]+'"),
        ((dearer, split, BOTH, 5), "items was '[0-9a-f]+'"),
    ):
        with pytest.raises(ResumeError, match=message + r".*delete the\s+file to begin anew"):
            fit(*others, unfinished=path)
    assert path.read_bytes() == before


def test_a_damaged_file_is_refused(rng, tmp_path):
    """Half of it, or something else under its name: a clear error, and no traceback of the format's."""
    ts, split = ordered(rng, users=40)
    path = stopped(ts, split, BOTH, tmp_path / "unfinished")
    for data in (path.read_bytes()[: path.stat().st_size // 2], b"", b"x" * 100):
        path.write_bytes(data)
        with pytest.raises(ResumeError, match="cannot be read"):
            fit(ts, split, BOTH, 5, unfinished=path)


def test_nothing_is_left_beside_the_file(rng, tmp_path):
    """What each look was first written to has taken its place."""
    ts, split = ordered(rng, users=40)
    stopped(ts, split, BOTH, tmp_path / "unfinished")
    assert [path.name for path in tmp_path.iterdir()] == ["unfinished"]


def test_what_was_shown_is_a_part_of_what_training_depends_on(rng):
    """Places, replies, devices and users' own words too."""
    ts, split = ordered(rng, users=40)
    given = given_of(ts, split, SMALL, 0, None)
    placed = replace(split, train=replace(split.train, positions=np.ones(len(split.train))))
    on_phones = replace(split, train=replace(split.train, devices=["phone"] * len(split.train)))
    told = replace(ts, profiles={"u0000": Profile(np.ones(8, np.float32), 0)})
    for other in (
        given_of(ts, placed, SMALL, 0, None),
        given_of(ts, on_phones, SMALL, 0, None),
        given_of(told, split, SMALL, 0, None),
    ):
        assert sum(given[name] != other[name] for name in given) == 1
