from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.batching.queue import BatchQueue, Lane, Policy

BUDGET = 64
POLICY = Policy(aging_seconds=1.0, calm_seconds=5.0)


@dataclass(eq=False)
class Waiting:
    """A row."""

    name: int
    length: int
    lane: Lane = Lane.INTERACTIVE
    group: str = "text"
    arrived: float = 0.0
    expires: float = float("inf")
    cancelled: bool = False

    def live(self, now):
        """Neither cancelled nor late."""
        return not self.cancelled and now < self.expires


def queue(*rows, policy=POLICY, budget=BUDGET):
    """A queue that holds these rows."""
    made = BatchQueue(lambda _: budget, policy)
    made.push(rows)
    return made


def padded(batch):
    """Padded length of a batch."""
    return len(batch) * max(row.length for row in batch)


rows = st.builds(
    Waiting,
    name=st.integers(),
    length=st.integers(1, 100),
    lane=st.sampled_from(Lane),
    group=st.sampled_from(["text", "image", "audio"]),
    expires=st.sampled_from([float("inf"), 0.5, 3.0]),
    cancelled=st.booleans(),
)
# What happens to a queue, one after the other: rows come, a batch is taken, time passes.
histories = st.lists(st.one_of(st.lists(rows, max_size=12), st.just("take"), st.floats(0.01, 2.0)), max_size=40)


def replay(history):
    """The queue's batches with their times, everything pushed, everything dropped."""
    made, now, pushed, taken = BatchQueue(lambda _: BUDGET, POLICY), 0.0, [], []
    for event in [*history, *["take"] * sum(len(e) for e in history if isinstance(e, list))]:
        if event == "take":
            taken.append((now, made.take(now)))
            made.done(taken[-1][1].batch)
        elif isinstance(event, float):
            now += event
        else:
            for row in event:
                row.arrived = now
            pushed += event
            made.push(event)
    return pushed, taken, made


@given(histories)
@settings(max_examples=150, deadline=None)
def test_every_row_leaves_exactly_once(history):
    """Each row is in one batch or is dropped, never both, never twice; nothing stays for ever."""
    pushed, taken, made = replay(history)
    left = [id(row) for _, one in taken for row in (*one.batch, *one.dropped)]
    assert len(left) == len(set(left))
    assert set(left) == {id(row) for row in pushed}
    assert len(made) == 0


@given(histories)
@settings(max_examples=150, deadline=None)
def test_batches_keep_the_rules(history):
    """A batch is of one group and one lane, within the budget (or one row), and holds nobody who is late or gone."""
    for now, one in replay(history)[1]:
        if one.batch:
            assert len({(row.group, row.lane) for row in one.batch}) == 1
            assert padded(one.batch) <= BUDGET or len(one.batch) == 1
        assert all(row.live(now) for row in one.batch)
        assert not any(row.live(now) for row in one.dropped)


@given(st.lists(st.lists(rows, min_size=1, max_size=6), min_size=1, max_size=30))
@settings(max_examples=80, deadline=None)
def test_nobody_starves(waves):
    """Whatever comes after it, a row leaves within as many batches as there were rows before it in either lane, twice over."""
    made, now, arrivals = BatchQueue(lambda _: BUDGET, POLICY), 0.0, {}
    for step in range(sum(map(len, waves)) * 3 + len(waves)):
        wave = waves[step % len(waves)] if step < len(waves) else []
        for row in wave:
            row.arrived, row.cancelled, row.expires = now, False, float("inf")
            arrivals[id(row)] = (step, len(made) + 1)
            made.push([row])
        now += 2.0  # every forward takes long: all that wait are old
        batch = made.take(now).batch
        made.done(batch)
        for row in batch:
            since, ahead = arrivals[id(row)]
            assert step - since <= 2 * ahead + 1
    assert len(made) == 0


@given(st.lists(st.integers(1, 60), min_size=1, max_size=40))
@settings(max_examples=100, deadline=None)
def test_the_oldest_leads_and_likes_follow(lengths):
    """The oldest row is in the next batch, with the rows nearest to it in length, in an unbroken range, and little padding."""
    all_rows = [Waiting(i, length) for i, length in enumerate(lengths)]
    batch = queue(*all_rows).take(0.0).batch
    assert all_rows[0] in batch
    inside = {row.name for row in batch}
    low, high = min(row.length for row in batch), max(row.length for row in batch)
    assert not [row for row in all_rows if row.name not in inside and low < row.length < high]
    waste = padded(batch) - sum(row.length for row in batch)
    assert waste <= max(POLICY.waste_share * padded(batch), POLICY.forward_share * BUDGET)


def test_of_equal_lengths_the_oldest_go_first():
    """Rows that differ in nothing leave in the order in which they came."""
    made = queue(*(Waiting(i, 16) for i in range(10)))
    assert [[row.name for row in made.take(0.0).batch] for _ in range(3)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_interactive_goes_before_bulk():
    """An interactive row that came last is in the first batch."""
    made = queue(Waiting(0, 5, Lane.BULK), Waiting(1, 5, Lane.BULK), Waiting(2, 5))
    assert [row.name for row in made.take(0.1).batch] == [2]


def test_bulk_batches_are_small_while_interactive_traffic_is_about():
    """Right after an interactive row a bulk batch has an eighth of the budget; when all is calm, the whole."""
    made = queue(Waiting(0, 4), *(Waiting(i, 4, Lane.BULK) for i in range(1, 40)))
    assert [row.name for row in made.take(0.0).batch] == [0]
    small = made.take(0.1).batch
    made.done(small)
    assert padded(small) == BUDGET // 8
    assert padded(made.take(0.1 + POLICY.calm_seconds).batch) == BUDGET


def test_the_bulk_lane_never_starves():
    """Under endless interactive rows a batch of bulk goes whenever the lane had none for a second, and never two in a row."""
    made = queue(*(Waiting(i, 60, Lane.BULK) for i in range(9)))
    order = []
    for tenth in range(30):
        now = tenth / 10
        made.push([Waiting(100 + tenth, 60, arrived=now)])
        batch = made.take(now).batch
        made.done(batch)
        order.append(batch[0].lane)
    assert [i for i, lane in enumerate(order) if lane is Lane.BULK] == [10, 20]
    slow = queue(*(Waiting(i, 60, Lane.BULK) for i in range(3)), *(Waiting(i, 60) for i in range(10, 13)))
    lanes = []
    for second in range(2, 8):
        batch = slow.take(second).batch
        slow.done(batch)
        lanes.append(batch[0].lane)
    assert lanes == [1, 0, 1, 0, 1, 0]


def test_bulk_leaves_one_taker_free_while_interactive_traffic_is_about():
    """Of two takers only one may hold a bulk batch, until it is done or all is calm; a single taker is never held back."""
    made = queue(Waiting(0, 60), *(Waiting(i, 60, Lane.BULK) for i in range(1, 6)))
    made.takers = 2
    assert made.take(0.0).batch[0].name == 0
    first = made.take(0.1).batch
    assert first[0].lane is Lane.BULK
    assert made.take(0.2).batch == []
    made.done(first)
    assert made.take(0.3).batch[0].lane is Lane.BULK
    assert made.take(POLICY.calm_seconds).batch[0].lane is Lane.BULK


def test_a_row_may_become_urgent():
    """A bulk row that an interactive call joins goes with the interactive ones."""
    row = Waiting(0, 5, Lane.BULK)
    made = queue(row, Waiting(1, 5, Lane.BULK), Waiting(2, 5))
    row.lane = Lane.INTERACTIVE
    assert {one.name for one in made.take(0.0).batch} == {0, 2}


@pytest.mark.parametrize("count", [1, 2000])
def test_a_row_beyond_the_budget_goes_alone(count):
    """One row always may go, however long; depth and drain count what is left."""
    made = queue(*(Waiting(i, 1000) for i in range(count)))
    assert len(made.take(0.0).batch) == 1
    assert made.depth(Lane.INTERACTIVE) == len(made) == count - 1
    assert len(made.drain()) == count - 1
    assert made.take(0.0).batch == []
