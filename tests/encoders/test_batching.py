from collections import Counter
from itertools import pairwise
from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from encoders.batching import in_windows, plan, plan_groups

LENGTHS = st.lists(st.integers(1, 300), max_size=60)
BUDGET = st.integers(1, 2000)


class Row(NamedTuple):
    """A row as planning sees it."""

    group: str
    length: int


@given(LENGTHS, BUDGET)
def test_batches_cover_all_rows_once_within_the_budget(lengths, budget):
    """Every row is in exactly one batch, and a batch of more than one row stays within the padded budget."""
    batches = plan(lengths, budget)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert all(len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= budget for batch in batches)


@given(LENGTHS, BUDGET)
def test_batches_are_of_similar_lengths(lengths, budget):
    """No row of a batch is shorter than one of a later batch: sorting leaves the least to pad."""
    batches = plan(lengths, budget)
    for before, after in pairwise(batches):
        assert min(lengths[index] for index in before) >= max(lengths[index] for index in after)


@given(st.lists(st.builds(Row, st.sampled_from("abc"), st.integers(1, 50)), max_size=40), st.integers(1, 200))
def test_groups_never_mix(rows, budget):
    """Every row is in exactly one batch, each of one group and within that group's budget."""
    budgets = {"a": budget, "b": 2 * budget, "c": 1}
    batches = list(plan_groups(rows, budgets.__getitem__))
    assert Counter(index for batch in batches for index in batch) == Counter(range(len(rows)))
    for batch in batches:
        (group,) = {rows[index].group for index in batch}
        assert len(batch) == 1 or len(batch) * max(rows[index].length for index in batch) <= budgets[group]


@given(st.lists(st.integers(0, 50), max_size=60), st.integers(1, 100), st.integers(1, 10))
def test_windows_are_bounded_and_keep_the_order(costs, limit, most):
    """Windows joined are the input; without its last item each is below the limit, and none holds more than allowed."""
    windows = list(in_windows(costs, float, limit, most))
    assert [cost for window in windows for cost in window] == costs
    assert all(len(window) <= most and sum(window[:-1]) < limit for window in windows)


def test_windows_are_taken_one_at_a_time():
    """An endless input is no trouble: a window is given as soon as it is full."""
    endless = iter(lambda: 1, None)
    assert next(in_windows(endless, float, 3, 100)) == [1, 1, 1]
