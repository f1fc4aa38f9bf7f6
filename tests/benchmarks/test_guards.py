"""Nothing that is held out is where models learn from."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.rankers.fusion import check_cold, columns
from benchmarks.rankers.sequences import LeaveOneOut, Sequences
from benchmarks.rankers.sets import matrix
from ranker.errors import LeakageError


def test_events_out_of_order_are_no_split():
    """A last event that is older than what comes before it would be a look at the future."""
    events = Sequences("s", np.repeat([0, 1], 3), np.arange(6), np.arange(6), np.full(6, np.nan), tuple("abcdef"))
    assert LeaveOneOut.of(events).test.tolist() == [2, 5]
    with pytest.raises(LeakageError, match="user 1"):
        LeaveOneOut.of(replace(events, timestamp=np.asarray([0, 1, 2, 5, 4, 3])))


def test_a_held_out_item_in_training_is_refused(rng):
    """Of cold items nobody may have learned."""
    pairs = np.argwhere(rng.random((10, 6)) < 0.8)
    everything = matrix(pairs, (10, 6))
    warm, held = columns(everything, np.arange(4)), columns(everything, np.arange(4, 6))
    check_cold(warm, columns(everything, np.asarray([], np.int64)), held)
    with pytest.raises(LeakageError, match="item"):
        check_cold(everything, columns(everything, np.asarray([], np.int64)), held)
