"""What trainings cost is remembered and claimed."""

import numpy as np

from benchmarks.common import Record
from benchmarks.rankers.jobs import Outcome
from benchmarks.rankers.measured import Cost, claim_cost, with_peak
from benchmarks.store.usage import memory


def test_costs_are_the_most_of_all_parts_whenever_they_were_run():
    """A part that is measured again counts as it is now; the others as they were."""
    record, cost = Record(), Cost()
    cost.add([Outcome({}, {"minutes": minutes, "peak_gb": 1.0}) for minutes in (3.0, 2.0)])
    cost.note("lastfm-2k", record)
    before = {
        "cost of movielens-1m": {"minutes": 9.0, "peak_gb": 2.0},
        "cost of lastfm-2k": {"minutes": 30.0, "peak_gb": 99.0},
    }
    claim_cost(record, before)
    claims = {claim.name: claim.value for claim in record.claims}
    assert claims["train_minutes_max"] == 9.0
    assert claims["train_peak_gb"] == 2.0
    assert cost.minutes == 0.0


def test_memory_counts_while_a_model_is_trained(rng):
    """What was held before and is gone, as a peer's scores are, does not."""
    before = np.ones(60_000_000)
    del before
    small, first = with_peak(lambda: rng.normal(size=1_000_000))
    large, second = with_peak(lambda: np.ones(100_000_000))
    assert second - first > 0.6
    assert memory("VmHWM") / 1024**3 >= second
    assert len(small) < len(large)


def test_where_nothing_was_trained_nothing_is_claimed():
    """No claim of no cost."""
    record = Record()
    claim_cost(record, {"movielens-1m fusion": {"ndcg_20": 0.4}})
    assert not record.claims
