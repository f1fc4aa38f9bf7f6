"""The sequential peer learns an order that popularity cannot know, and reads only what came before."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own idiom

from benchmarks.rankers import sasrec
from benchmarks.rankers.sasrec import Sasrec, SasrecConfig, fit_sasrec
from benchmarks.rankers.sequences import LeaveOneOut, Sequences
from ranker.full_ranking import ndcg, places

TINY = SasrecConfig(
    dim=16, layers=1, dropout=0.1, length=12, batch_users=32, learning_rate=1e-2, look_epochs=3, max_epochs=30
)


@pytest.fixture
def cycles(rng):
    """Users who go round twenty items in one order, each from another start: all items are equally popular."""
    starts, lengths = rng.integers(20, size=150), rng.integers(6, 11, size=150)
    user = np.repeat(np.arange(150), lengths)
    item = np.concatenate([(start + np.arange(length)) % 20 for start, length in zip(starts, lengths, strict=True)])
    return LeaveOneOut.of(
        Sequences("cycles", user, item, np.arange(len(user)), np.full(len(user), np.nan), tuple("abcdefghijklmnopqrst"))
    )


def test_an_order_is_learned(cycles, seed):
    """The item that comes next is the first of those not met, for nearly every user, at validation and at the test."""
    fitted = fit_sasrec(cycles, TINY, seed, seconds=60)
    found = places(fitted.test, cycles.relevant(cycles.test), cycles.met_before(cycles.test))
    assert fitted.ndcg > 0.9
    assert ndcg(found, 10).mean() > 0.9


def test_a_place_does_not_see_what_follows(seed):
    """Other later events, or none, leave the states before them as they are."""
    torch.manual_seed(seed)
    model = Sasrec(9, TINY).eval()
    long, other, short = torch.tensor([[1, 2, 3, 4, 5]]), torch.tensor([[1, 2, 3, 9, 8]]), torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        states = [model(rows)[0, :3] for rows in (long, other, short)]
    torch.testing.assert_close(states[0], states[1])
    torch.testing.assert_close(states[0], states[2], atol=1e-5, rtol=1e-4)


def test_histories_read_by_length_have_the_loss_of_all_at_once(rng, monkeypatch):
    """In parts of 3, and by hand in one padded batch."""
    monkeypatch.setattr(sasrec, "READ_USERS", 3)
    model = Sasrec(9, replace(TINY, dropout=0.0, label_smoothing=0.1))
    histories = [rng.integers(1, 10, size) for size in (2, 9, 4, 2, 13, 5, 7)]
    rows = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(one) for one in histories], batch_first=True)
    there = rows[:, 1:] > 0
    whole = F.cross_entropy(model.logits(model(rows[:, :-1])[there]), rows[:, 1:][there], label_smoothing=0.1)
    torch.testing.assert_close(sasrec._loss(model, histories), whole)


def test_one_seed_gives_one_model(cycles):
    """Scores are the same to the bit."""
    config = SasrecConfig(dim=8, layers=1, length=8, max_epochs=2, look_epochs=1)
    first, second = (fit_sasrec(cycles, config, 5, seconds=60) for _ in range(2))
    np.testing.assert_array_equal(first.test, second.test)
