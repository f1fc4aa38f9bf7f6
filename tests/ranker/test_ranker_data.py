"""Training sets are read as they were written, strictly before each label."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from feature_store.history import Events
from ranker.config import RankerConfig
from ranker.data import NO_ROW, Items, Profile, TrainingSet, spaces_by_modality, time_split, vector_column
from ranker.errors import TrainingSetError
from ranker.evaluate import popularity_scorer, tasks
from ranker.examples import build_examples
from ranker.fit import build_model, build_vocabulary
from ranker.popularity import Popularity
from tests.ranker.factories import EmbeddingSpace, planted

CONFIG = RankerConfig()


@pytest.fixture(scope="module")
def ts(tmp_path_factory):
    return TrainingSet.load(planted(tmp_path_factory.mktemp("set") / "ts", n_items=60, n_users=40, seed=3).folder)


def items_of(versions):
    """Items from (item, valid_from, valid_to)."""
    item, start, end = (np.asarray(column, np.int64) for column in zip(*versions, strict=True))
    names = [f"i{i}" for i in range(item.max() + 1)]
    return Items(names, item, start, end, [None] * len(item), np.full(len(item), np.nan), {}, {})


def test_labels_know_how_they_came_about_where_the_folder_says(tmp_path):
    """Device, impression, position and propensity are read and follow their labels; a folder without the columns knows none."""
    folder = planted(tmp_path / "ts", n_items=20, n_users=6, seed=3).folder
    plain = TrainingSet.load(folder).labels
    assert (plain.devices, plain.impressions, plain.positions, plain.propensities) == ((), (), None, None)
    table = pq.read_table(folder / "labels.parquet")
    first = pc.equal(table["event_id"], plain.event_ids[0])
    for name, value in (("device", "phone"), ("impression_id", "p"), ("position", 2), ("propensity", 0.5)):
        table = table.append_column(name, pc.if_else(first, pa.scalar(value), None))
    pq.write_table(table, folder / "labels.parquet")
    told = TrainingSet.load(folder).labels.take(np.array([3, 0]))
    assert (told.devices, told.impressions) == (["", "phone"], ["", "p"])
    assert np.array_equal(told.positions, [np.nan, 2], equal_nan=True)
    assert np.array_equal(told.propensities, [np.nan, 0.5], equal_nan=True)


def test_a_version_is_valid_strictly_after_its_start_and_up_to_its_end():
    """An item version that begins at t is not seen by a label at t."""
    items = items_of([(0, 10, 20), (0, 20, 2**63 - 1), (1, 15, 2**63 - 1)])
    times = np.asarray([10, 11, 20, 21, 15, 16])
    rows = items.rows_at(np.asarray([0, 0, 0, 0, 1, 1]), times)
    assert rows.tolist() == [NO_ROW, 0, 0, 1, NO_ROW, 2]
    assert items.rows_at(np.full(6, NO_ROW), times).tolist() == [NO_ROW] * 6
    assert [items.valid_rows(t).tolist() for t in (10, 16, 30)] == [[], [0, 2], [1, 2]]


def test_rows_at_agrees_with_looking_at_every_version(rng):
    """The search by sorted keys finds what a plain scan finds."""
    versions = [(i, int(s), int(s) + 5) for i in range(20) for s in np.cumsum(rng.integers(5, 9, 4))]
    items = items_of(versions)
    for t in range(45):
        valid = set(items.valid_rows(t).tolist())
        found = items.rows_at(np.arange(20), np.asarray(t))
        assert {r for r in found.tolist() if r != NO_ROW} == valid


def test_the_split_is_by_time_and_instants_are_not_torn(ts):
    """Every training label is before every validation label, and those before every test label."""
    tied = replace(ts.labels, timestamps_us=ts.labels.timestamps_us // 10**12 * 10**12)
    split = time_split(tied)
    assert split.train.timestamps_us.max() < split.train_end_us <= split.validation.timestamps_us.min()
    assert split.validation.timestamps_us.max() < split.test_start_us <= split.test.timestamps_us.min()
    assert len(split.train) + len(split.validation) + len(split.test) == len(tied)


def test_too_few_labels_say_so(ts):
    """A training set that cannot be split is refused with a reason."""
    with pytest.raises(TrainingSetError, match="too few"):
        time_split(ts.labels.take(np.arange(1)))
    with pytest.raises(TrainingSetError, match="no labels"):
        time_split(ts.labels.take(np.arange(0)))


def test_a_missing_folder_says_so(tmp_path):
    """A training set that is not there is an error of this room, with its path."""
    with pytest.raises(TrainingSetError, match="nowhere"):
        TrainingSet.load(tmp_path / "nowhere")


def test_two_spaces_of_one_modality_are_refused():
    """A ranker reads one space per modality; which one is not guessed."""
    spaces = [EmbeddingSpace.from_recipe("text", slug, 4, {}) for slug in ("one", "two")]
    with pytest.raises(TrainingSetError, match="one space per modality"):
        spaces_by_modality(spaces)


def examples(ts):
    split = time_split(ts.labels)
    vocabulary = build_vocabulary(ts, split)
    return build_examples(ts, split.test, build_model(ts, split, CONFIG, vocabulary), vocabulary)


def test_histories_lie_strictly_before_their_label(ts):
    """No event at or after the label's instant is among its inputs, and the label's own item never is."""
    made = examples(ts)
    before = made.time_nL < made.labels.timestamps_us[:, None]
    assert len(made) > 50
    assert (before | (made.row_nL == NO_ROW)).all()
    assert not any(np.isin(row, made.row_nL[i]) for i, row in enumerate(made.labels.item_row))


def leaked(ts, shift_us):
    """Each user's test labels tell their item in an event `shift_us` after themselves."""
    split, told = time_split(ts.labels), {}
    for i, user in enumerate(split.test.users):
        item = ts.items.names[ts.items.item_R[split.test.item_row[i]]]
        told.setdefault(user, []).append((item, int(split.test.timestamps_us[i]) + shift_us))
    return replace(ts, events={user: with_events(events, told.get(user, [])) for user, events in ts.events.items()})


def with_events(events, more):
    joined = Events(
        events.event_ids + [f"leak{i}" for i in range(len(more))],
        events.item_ids + [item for item, _ in more],
        events.event_types + ["click"] * len(more),
        np.r_[events.values, np.full(len(more), np.nan)],
        np.r_[events.timestamps_us, np.asarray([t for _, t in more], np.int64)],
    )
    return joined.take(np.argsort(joined.timestamps_us, kind="stable"))


@pytest.mark.parametrize("shift_us", [0, 1])
def test_the_future_does_not_leak_into_a_label(ts, shift_us):
    """An event at the label's very instant, or after it, changes none of that label's inputs."""
    clean, spoilt = examples(ts), examples(leaked(ts, shift_us))
    kept = {e: i for i, e in enumerate(spoilt.labels.event_ids)}
    checked = 0
    for i, event_id in enumerate(clean.labels.event_ids):
        first_of_user = clean.labels.users.index(clean.labels.users[i]) == i
        if first_of_user:  # later labels rightly see what was told after earlier ones
            assert np.array_equal(clean.row_nL[i], spoilt.row_nL[kept[event_id]])
            checked += 1
    assert checked > 20


def test_the_leak_test_would_see_a_leak(ts):
    """The same event one microsecond BEFORE the label is seen: the item counts as met, and the label goes."""
    assert len(examples(leaked(ts, -1))) < len(examples(ts)) / 2


def test_candidates_are_what_was_there_and_new_to_the_user(ts):
    """Ranked are all versions valid at the label that the user had not met; the liked one is among them."""
    made = tasks(ts, time_split(ts.labels).test, CONFIG)
    assert made
    for task in made:
        events = ts.events[task.user]
        met = {events.item_ids[i] for i in np.flatnonzero(events.timestamps_us < task.t_us)}
        names = [ts.items.names[i] for i in ts.items.item_R[task.rows]]
        assert not met & set(names)
        assert len(names) == len(ts.items.valid_rows(task.t_us)) - len(met)


def test_popularity_counts_strictly_before(ts):
    """The baseline knows every like before the instant and none at it."""
    events = [(i, int(t)) for e in ts.events.values() for i, t in zip(e.item_ids, e.timestamps_us, strict=True)]
    t_us = events[100][1]
    score = popularity_scorer(ts)("u0", t_us, ts.items.names)
    expected = [sum(item == name and t < t_us for item, t in events) for name in ts.items.names]
    assert score.tolist() == expected


def test_popularity_of_a_new_item_is_average(ts):
    """An item that nobody could have liked yet starts at 0, between the liked and the neglected."""
    counted = Popularity.of(ts, CONFIG)
    start = np.asarray([ts.labels.timestamps_us[0]])
    assert np.allclose(counted.log_share(np.arange(len(ts.items.names)), start), 0.0)
    late = counted.log_share(np.arange(len(ts.items.names)), np.asarray([ts.labels.timestamps_us[-1]]))
    assert late.min() < 0 < late.max()


def test_shuffled_content_moves_all_of_an_items_content_together(ts):
    """After the shuffle every item has another's vectors, and ids, times, labels and events are the same."""
    shuffled = ts.shuffled_content(1)
    (space_id, vectors), *_ = shuffled.items.vectors.items()
    original = {v.tobytes(): i for i, v in enumerate(ts.items.vectors[space_id])}
    source = [original[v.tobytes()] for v in vectors if v.any()]
    assert len(set(source)) == len(source)
    assert sum(a == b for a, b in enumerate(source)) < len(source) / 4
    assert shuffled.items.names == ts.items.names
    assert shuffled.labels is ts.labels
    assert shuffled.events is ts.events


def test_a_profile_is_seen_only_after_it_was_written(ts):
    """A label at or before the instant of a user's words does not see them; a later one does; a stranger has none."""
    vector = np.zeros(4, np.float32)
    with_words = replace(ts, profiles={"u": Profile(vector, 1_000)})
    assert with_words.profile("u", 999) is None
    assert with_words.profile("u", 1_000) is None
    assert with_words.profile("u", 1_001) is vector
    assert with_words.profile("nobody", 1_001) is None


def test_vectors_of_other_lengths_are_refused():
    """Also where their lengths add up; the message has the length that was found."""
    space = EmbeddingSpace.from_recipe("text", "words", 4, {"made": "for tests"})
    column = pa.array([[1.0, 0.0, 0.0], None, [1.0, 0.0, 0.0, 0.0, 0.0]], pa.list_(pa.float32()))
    with pytest.raises(
        TrainingSetError,
        match=r"users\.parquet: 2 of 2 vectors of vec_.* are not of length 4, which meta\.json says: that of row 0 has 3",
    ):
        vector_column(pa.table({f"vec_{space.space_id}": column}), space, "users.parquet")


def test_the_last_version_is_the_one_that_begins_last():
    """In whatever order a folder has them."""
    assert items_of([(0, 20, 99), (0, 0, 20), (1, 0, 99)]).last_row_I.tolist() == [0, 2]
