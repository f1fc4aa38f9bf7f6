import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from encoders.space import EmbeddingSpace
from feature_store.history import DAY_US, Decay, Events, history_as_of, interest, interest_space, merge_events


def events_at(*times, kinds=None, values=None):
    n = len(times)
    return Events(
        [f"e{i}" for i in range(n)],
        [f"i{i}" for i in range(n)],
        list(kinds or ["click"] * n),
        np.asarray(values if values is not None else [np.nan] * n, float),
        np.asarray(times, np.int64),
    )


@given(times=st.lists(st.integers(0, 8), max_size=20), at=st.integers(-1, 9), limit=st.none() | st.integers(0, 5))
def test_history_is_what_lies_strictly_before_oldest_first(times, at, limit):
    """Whatever the order of arrival and however many events share an instant, none at or after t is in a history."""
    got = history_as_of(events_at(*times), at, limit=limit)
    wanted = sorted((t, f"e{i}") for i, t in enumerate(times) if t < at)
    wanted = wanted if limit is None else wanted[max(0, len(wanted) - limit) :]
    assert list(zip(got.timestamps_us.tolist(), got.event_ids, strict=True)) == wanted


@given(st.permutations(range(8)))
def test_order_of_arrival_does_not_change_a_history(order):
    """The same events in another order give the same history, ties included."""
    events = events_at(5, 5, 5, 1, 2, 2, 9, 5)
    assert history_as_of(events.take(list(order)), 9).event_ids == history_as_of(events, 9).event_ids


def test_a_label_is_left_out_by_name_whatever_its_time():
    """`exclude_event_id` removes that event and no other."""
    events = events_at(1, 2, 3)
    assert history_as_of(events, 10, exclude_event_id="e1").event_ids == ["e0", "e2"]


def test_merging_counts_an_event_once_where_it_comes_first():
    """An event known from two sources is one event, with the first source's content."""
    stored, logged = events_at(1, 2), events_at(1, 2, 3, kinds=["view", "view", "view"])
    merged = merge_events(stored, logged, Events())
    assert merged.event_ids == ["e0", "e1", "e2"]
    assert merged.event_types == ["click", "click", "view"]


def test_events_refuse_arrays_of_different_length():
    """Parallel arrays that are not parallel are refused at once."""
    with pytest.raises(ValueError, match="one length"):
        Events(["a"], [], [], np.empty(0), np.empty(0, np.int64))


def test_interest_halves_with_every_half_life():
    """An event one half life older pulls half as strongly."""
    vectors = np.eye(2, dtype=np.float32)
    got = interest(vectors, np.array([0, 30 * DAY_US]), np.ones(2), Decay(half_life_days=30))
    assert got is not None
    assert got[1] / got[0] == pytest.approx(0.5, abs=1e-6)
    assert np.linalg.norm(got) == pytest.approx(1.0, abs=1e-6)


def test_interest_of_a_very_old_history_is_not_lost():
    """Only relative age matters: events of 1997 alone still say what the user likes."""
    got = interest(np.eye(2, dtype=np.float32)[:1], np.array([11_000 * DAY_US]), np.ones(1))
    assert got is not None
    assert got.tolist() == [1.0, 0.0]


@pytest.mark.parametrize("weights", [[0.0, 0.0], [1.0, 1.0]])
def test_interest_is_none_where_nothing_counts(weights):
    """No positive weight, or vectors that cancel out, give no interest rather than NaN."""
    vectors = np.array([[1.0, 0.0], [-1.0, 0.0]], np.float32)
    assert interest(vectors, np.zeros(2, np.int64), np.asarray(weights)) is None
    assert interest(vectors[:0], np.zeros(0, np.int64), np.zeros(0)) is None


def test_ratings_weigh_by_their_value():
    """Five stars weigh whole, two or fewer nothing; events without a value weigh by their type."""
    weights = Decay().weights(
        ["rating", "rating", "rating", "dislike", "unheard_of"], np.array([5, 2, 3.5, np.nan, np.nan])
    )
    assert weights.tolist() == [2.0, 0.0, 1.0, 0.0, 1.0]


def test_an_interest_space_is_named_by_the_decay_and_knows_its_base():
    """Other parameters make another space; the base says what the vectors can be compared with."""
    base = EmbeddingSpace.from_recipe("image", "clip", 4, {"x": 1}, kind="untrained")
    one, other = interest_space(base), interest_space(base, Decay(half_life_days=7))
    assert one.space_id != other.space_id
    assert one.space_id.startswith("image_clip_interest_")
    assert (one.base_space_id, one.dim, one.kind) == (base.space_id, 4, "untrained")


@pytest.mark.parametrize("kind", ["impression", "skip", "dislike", "hide"])
def test_what_was_only_shown_or_refused_is_no_interest(kind):
    """An event type that the ranker takes for a negative pulls no interest towards its item."""
    assert Decay().weights([kind], np.array([np.nan])).tolist() == [0.0]
