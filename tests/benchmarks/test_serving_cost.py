"""What serving costs is measured whatever steps of training are made of."""

from dataclasses import replace

import pytest

from benchmarks.rankers.serving import _loading_seconds
from ranker.loop import fit
from tests.ranker.sets import SMALL, ordered


@pytest.mark.parametrize(("batch_users", "batch_size"), [(32, 0), (0, 16)], ids=["whole histories", "single labels"])
def test_making_batches_takes_time_of_its_own(rng, batch_users, batch_size):
    """A model that trains on single labels alone is measured as one that reads whole histories is."""
    ts, split = ordered(rng, users=40)
    config = replace(SMALL, batch_users=batch_users, batch_size=batch_size, max_epochs=1)
    fitted = fit(ts, split, config, 0)
    assert _loading_seconds(fitted.run) > 0
