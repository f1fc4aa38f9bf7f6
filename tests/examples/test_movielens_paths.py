from dataclasses import replace

import numpy as np
import pytest

from benchmarks.rankers.sequences import Sequences
from benchmarks.rankers.training_sets import of_sequences
from examples.movielens_paths import compared
from triptych.demo.walk import StageError


@pytest.fixture
def read(rng):
    """Forty people with eight events each, of twenty films."""
    item = np.concatenate([rng.choice(20, 8, replace=False) for _ in range(40)])
    names = tuple(sorted(f"film{n}" for n in range(20)))
    return Sequences("films", np.repeat(np.arange(40), 8), item, np.tile(np.arange(8), 40), np.full(320, np.nan), names)


@pytest.fixture
def content(rng):
    """Plots of all films, posters of some."""
    text, image = (rng.normal(size=(20, 4)).astype(np.float32) for _ in range(2))
    image[3] = 0.0
    return {"text": text, "image": image}


def test_the_same_events_and_vectors_give_the_same_figure(read, content):
    """Both figures are told."""
    silent = {**content, "audio": np.zeros((20, 3), np.float32)}
    told = compared(of_sequences(read, silent), read, content)
    first, second = (part.split()[0] for part in told.split(": ")[1].split(", ")[:2])
    assert first == second
    assert float(first) > 0


def test_a_vector_that_differs_is_refused(read, content):
    """And so is a modality that one path lacks."""
    moved, lost = ({**content, "text": content["text"] + by} for by in (0.5, 0.0))
    with pytest.raises(StageError, match=r"apart by .*text"):
        compared(of_sequences(read, content), read, moved)
    lost["text"][2] = 0.0
    with pytest.raises(StageError, match=r"apart by .*2\.0"):
        compared(of_sequences(read, content), read, lost)
    with pytest.raises(StageError, match="the files"):
        compared(of_sequences(read, content), read, {"text": content["text"]})


def test_events_in_another_order_are_refused(read, content):
    """The last event of a person is another one then."""
    swapped = read.item.reshape(40, 8)[:, ::-1].reshape(-1)
    with pytest.raises(StageError, match="through the store"):
        compared(of_sequences(replace(read, item=swapped), content), read, content)
