import numpy as np
import pyarrow as pa
import pytest

from encoders.profiles import load_profile
from encoders.space import EmbeddingSpace
from feature_store.history import Decay, interest_space
from feature_store.home import Home
from feature_store.spaces import read_entries, register_spaces
from feature_store.tables import Tables
from ingest.users import build_users, encode_profiles

DAY_US = 86_400_000_000
SPACE = EmbeddingSpace.from_recipe("text", "hand_made", 4, {"made": "by hand"}, kind="imported")
INTEREST = interest_space(SPACE)


@pytest.fixture
def place(tmp_path):
    home = Home(tmp_path / "home").create()
    register_spaces(home, [SPACE])
    Tables(home).write_embeddings(
        "item",
        SPACE,
        ["a", "b", "c"],
        np.eye(4, dtype=np.float32)[:3],
        content_sha256=["1", "2", "3"],
        event_timestamp=np.zeros(3, np.int64),
    )
    return home


def add(home, user, *events):
    rows = [
        {
            "event_id": f"{user}-{item}-{us}",
            "user_id": user,
            "item_id": item,
            "event_type": "click",
            "event_timestamp": np.datetime64(us, "us"),
        }
        for item, us in events
    ]
    Tables(home).append_interactions(pa.Table.from_pylist(rows))


def test_histories_and_interests_are_written_with_the_last_events_time(place):
    """A user's row holds their events oldest first and is dated by the last of them; the interest is the decayed mean."""
    add(place, "u", ("b", 31 * DAY_US), ("a", DAY_US))
    report = build_users(place)
    assert (report.users, report.histories, report.interests[INTEREST.space_id]) == (1, 1, 1)
    (row,) = Tables(place).read_user_history().to_pylist()
    assert row["item_ids"] == ["a", "b"]
    assert row["timestamps_us"] == [DAY_US, 31 * DAY_US]
    found = Tables(place).read_embeddings("user", INTEREST.space_id)
    assert found.event_timestamp.tolist() == [31 * DAY_US]
    # Half-life 30 days: the event 30 days older counts half.
    np.testing.assert_allclose(found.vectors[0], np.array([0.5, 1, 0, 0]) / np.sqrt(1.25), rtol=1e-6)


def test_only_events_strictly_before_the_instant_count(place):
    """An event at the very instant of the build is not history."""
    add(place, "u", ("a", DAY_US), ("b", 2 * DAY_US))
    build_users(place, at_us=2 * DAY_US)
    (row,) = Tables(place).read_user_history().to_pylist()
    assert row["item_ids"] == ["a"]


def test_a_second_build_writes_only_what_changed(place):
    """Unchanged users are not written again; a new event, or a changed item, brings its users back."""
    add(place, "u", ("a", DAY_US))
    add(place, "v", ("b", DAY_US))
    build_users(place)
    again = build_users(place)
    assert (again.histories, again.unchanged, again.interests[INTEREST.space_id]) == (0, 2, 0)
    add(place, "v", ("c", 2 * DAY_US))
    assert build_users(place).histories == 1
    moved = np.array([[0, 0, 0, 1]], np.float32)
    Tables(place).write_embeddings(
        "item", SPACE, ["a"], moved, content_sha256=["9"], event_timestamp=np.array([1], np.int64)
    )
    assert build_users(place).interests[INTEREST.space_id] == 1


def test_items_without_vectors_are_counted_and_left_out(place):
    """Events about items that no space knows stay in the history and are reported; such a user gets no interest vector."""
    add(place, "u", ("nowhere", DAY_US))
    report = build_users(place)
    assert (report.histories, report.unknown_items, report.interests[INTEREST.space_id]) == (1, 1, 0)


def test_the_decay_is_part_of_the_space(place):
    """Another half-life gives another space, beside the first."""
    add(place, "u", ("a", DAY_US))
    build_users(place)
    build_users(place, decay=Decay(half_life_days=7))
    spaces = {e.space.space_id for e in read_entries(place) if e.space.base_space_id == SPACE.space_id}
    assert len(spaces) == 2
    assert INTEREST.space_id in spaces


def test_an_interest_that_nothing_supports_any_more_is_deleted(place):
    """When a user's only item leaves the space, their interest vector goes too."""
    add(place, "u", ("a", DAY_US))
    build_users(place)
    Tables(place).delete_embeddings("item", SPACE, ["a"], np.array([2], np.int64))
    build_users(place)
    assert Tables(place).read_embeddings("user", INTEREST.space_id).ids == []


@pytest.fixture(scope="module")
def text():
    return load_profile("bundled", modalities=("text",)).text


def words(tmp_path, *lines):
    path = tmp_path / "profiles.csv"
    path.write_text("user_id,text,updated_at\n" + "".join(f"{line}\n" for line in lines))
    return path


def test_users_own_words_are_encoded_and_bad_rows_quarantined(tmp_path, place, text):
    """Reviews become vectors in the text space, dated as given; rows without user, words or a readable date are refused."""
    lines = ["u,I love fire engines,1997-01-01", ",nameless,", "v,,", "w,late,someday", "u,again,"]
    report = encode_profiles(place, words(tmp_path, *lines), [text])
    assert (report.users, report.texts, report.quarantined) == (1, {text.space.space_id: 1}, 4)
    found = Tables(place).read_embeddings("user", text.space.space_id)
    assert (found.ids, found.event_timestamp.tolist()) == (["u"], [852076800_000000])
    np.testing.assert_allclose(found.vectors, text.encode(["I love fire engines"]), atol=1e-3)
    assert Tables(place).read_users()["profile_text"].to_pylist() == ["I love fire engines"]


def test_changed_words_replace_the_old_ones(tmp_path, place, text):
    """Undated words are taken as known from the start; changed ones count from now, whatever was loaded in between."""
    encode_profiles(place, words(tmp_path, "u,first words,"), [text])
    add(place, "u", ("a", DAY_US))
    changed = words(tmp_path, "u,second words,")
    assert encode_profiles(place, changed, [text]).texts == {text.space.space_id: 1}
    assert encode_profiles(place, changed, [text]).texts == {text.space.space_id: 0}
    assert Tables(place).read_users()["profile_text"].to_pylist() == ["second words"]


def test_without_interactions_there_are_no_users(place):
    """A build before anything happened writes nothing and says so."""
    report = build_users(place)
    assert (report.users, report.histories) == (0, 0)
