"""The demo's generator: deterministic, with planted attributes, planted tastes and exactly two broken files."""

from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from triptych.demo.catalogue import ITEMS, Catalogue, last_monday, make_catalogue, write_catalogue
from triptych.demo.truth import USERS, Truth, World, make_world, write_world
from triptych.demo.vocabulary import CATEGORIES, SOUNDS, STYLES, TOPICS

END = datetime(2026, 6, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return make_catalogue(7, end=END)


@pytest.fixture(scope="module")
def world(catalogue: Catalogue) -> World:
    return make_world(catalogue, 7)


@pytest.fixture(scope="module")
def folder(catalogue: Catalogue, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("catalogue")
    write_catalogue(catalogue, out, 7)
    return out


def test_the_catalogue_is_what_the_readme_says(catalogue: Catalogue):
    """300 items in 8 categories, every planted value used about equally, some items without a picture or a loop."""
    assert len(catalogue.items) == ITEMS == 300
    assert {item.category for item in catalogue.items} == set(CATEGORIES)
    assert len({item.item_id for item in catalogue.items}) == ITEMS
    for name, values in (("topic", TOPICS), ("style", STYLES), ("sound", SOUNDS)):
        counts = Counter(getattr(item, name) for item in catalogue.items)
        assert len(counts) == len(values)
        assert max(counts.values()) - min(counts.values()) <= 1
    assert sum(not item.image for item in catalogue.items) == 12
    assert sum(not item.audio for item in catalogue.items) == 18


def test_modalities_cannot_stand_in_for_each_other(catalogue: Catalogue):
    """Topic, style and sound are drawn independently: knowing one says next to nothing about another."""
    for one, two in (("topic", "style"), ("topic", "sound"), ("style", "sound")):
        table = np.zeros((8, 8))
        for item in catalogue.items:
            table[getattr(item, one), getattr(item, two)] += 1
        expected = table.sum(1, keepdims=True) * table.sum(0, keepdims=True) / table.sum()
        chi_square = ((table - expected) ** 2 / expected).sum()
        assert chi_square < 85.4  # the 99.9 % point of 49 degrees of freedom is 85.35


def test_more_than_a_third_of_the_items_appear_late(catalogue: Catalogue):
    """35 to 40 % of the items become available when most of the interactions are over."""
    late = sum(item.available_at > catalogue.start for item in catalogue.items)
    assert 0.35 * ITEMS <= late <= 0.40 * ITEMS
    assert all(item.available_at < catalogue.end for item in catalogue.items)


def test_exactly_two_files_are_broken(catalogue: Catalogue, folder: Path):
    """One picture is cut short, one loop is noise behind a good header, and every other file decodes."""
    broken = set()
    for path in sorted((folder / "media").iterdir()):
        try:
            if path.suffix == ".png":
                with Image.open(path) as picture:
                    picture.load()
                    assert picture.size == (224, 224)
            else:
                samples, rate = soundfile.read(path)
                assert (rate, samples.ndim) == (16_000, 1)
                assert 1.4 * rate < len(samples) < 2.1 * rate
        except (OSError, soundfile.LibsndfileError):
            broken.add(f"media/{path.name}")
    assert broken == set(catalogue.corrupt)
    assert len(broken) == 2
    assert {Path(name).suffix for name in broken} == {".png", ".flac"}


def test_one_seed_gives_one_catalogue(folder: Path, tmp_path: Path):
    """Made again from the same seed, every file is the same byte for byte; another seed gives another shop."""
    write_catalogue(make_catalogue(7, end=END), tmp_path, 7)
    names = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    assert all((folder / name).read_bytes() == (tmp_path / name).read_bytes() for name in names)
    assert make_catalogue(8, end=END).items != make_catalogue(7, end=END).items


def test_one_seed_gives_one_world(catalogue: Catalogue, world: World):
    """The same events and reviews again from the same seed."""
    again = make_world(catalogue, 7)
    assert again.events == world.events
    assert again.profiles == world.profiles


def test_the_end_is_a_monday():
    """The window ends on a Monday midnight UTC in the last seven days, so that weekdays fall alike in every run."""
    now = datetime(2026, 6, 4, 15, 30, tzinfo=UTC)
    assert last_monday(now) == datetime(2026, 6, 1, tzinfo=UTC)
    assert last_monday(datetime(2026, 6, 1, 0, 0, 1, tzinfo=UTC)) == datetime(2026, 6, 1, tzinfo=UTC)


def test_events_obey_the_calendar(catalogue: Catalogue, world: World):
    """Nobody takes an item before it exists, nor the same item twice, and all happens inside the window."""
    available = dict(zip(world.truth.item_ids, world.truth.available_us.tolist(), strict=True))
    assert all(available[event.item_id] < event.timestamp_us for event in world.events)
    assert len({(event.user_id, event.item_id) for event in world.events}) == len(world.events)
    assert len({event.event_id for event in world.events}) == len(world.events)
    first, last = world.events[0].timestamp_us, world.events[-1].timestamp_us
    assert catalogue.start.timestamp() * 1e6 < first < last < catalogue.end.timestamp() * 1e6


def test_the_world_is_sparse_and_skewed(world: World):
    """400 users with 6 to 40 events each, some ratings; the best-selling tenth sells over three times its share."""
    per_user = Counter(event.user_id for event in world.events)
    assert len(per_user) == USERS == 400
    assert min(per_user.values()) >= 6
    assert max(per_user.values()) <= 40
    ratings = [event.value for event in world.events if event.event_type == "rating"]
    assert 0.08 < len(ratings) / len(world.events) < 0.16
    assert set(ratings) <= {1.0, 2.0, 3.0, 4.0, 5.0}
    sold = sorted(Counter(event.item_id for event in world.events).values(), reverse=True)
    assert sum(sold[:30]) > 0.2 * sum(sold)


def ndcg_at_10(world: World, scorer) -> float:
    """Of the last 15 % of the events, each ranked among the items that exist and that the user has not taken."""
    cut, taken, gains = int(0.85 * len(world.events)), {}, []
    for number, event in enumerate(world.events):
        mine = taken.setdefault(event.user_id, set())
        if number >= cut:
            ready = world.truth.available_us < event.timestamp_us
            ids = [i for i, r in zip(world.truth.item_ids, ready, strict=True) if r and i not in mine]
            scores = scorer(event.user_id, event.timestamp_us, ids)
            rank = int((scores > scores[ids.index(event.item_id)]).sum())
            gains.append(1 / np.log2(rank + 2) if rank < 10 else 0.0)
        mine.add(event.item_id)
    return float(np.mean(gains))


def test_the_oracle_is_far_above_popularity(world: World):
    """Ranking by the planted probability reaches a multiple of what ranking by sales reaches: taste rules the shop."""
    sold = Counter(event.item_id for event in world.events[: int(0.85 * len(world.events))])
    oracle = ndcg_at_10(world, world.truth.probabilities)
    popularity = ndcg_at_10(world, lambda _user, _t, ids: np.array([sold[i] + 0.0 for i in ids]))
    assert oracle > 0.35
    assert popularity < oracle / 4


def test_content_is_the_only_way_to_many_test_items(world: World):
    """At least a quarter of the last events are of items that no earlier event has touched."""
    cut = int(0.85 * len(world.events))
    seen = {event.item_id for event in world.events[:cut]}
    assert sum(event.item_id not in seen for event in world.events[cut:]) > 0.25 * (len(world.events) - cut)


def test_the_truth_is_a_probability_and_survives_its_file(world: World, tmp_path: Path):
    """It sums to one over what is available, gives zero to what is not yet there, and is read back as written."""
    write_world(world, tmp_path)
    truth = Truth.load(tmp_path / "truth.npz")
    t_us = world.events[len(world.events) // 2].timestamp_us
    p = truth.probabilities("user-003", t_us, truth.item_ids)
    assert p.sum() == pytest.approx(1.0)
    assert (p[truth.available_us >= t_us] == 0).all()
    assert (p == world.truth.probabilities("user-003", t_us, world.truth.item_ids)).all()
    with pytest.raises(ValueError, match="not in tuple"):
        truth.probabilities("nobody", t_us, truth.item_ids)


def test_probability_follows_what_users_do(world: World):
    """Events fall where the probability is: the mean p of chosen items is many times the mean of all."""
    chosen, chance = [], []
    for event in world.events[::40]:
        p = world.truth.probabilities(event.user_id, event.timestamp_us, world.truth.item_ids)
        chosen.append(p[world.truth.item_ids.index(event.item_id)])
        chance.append(1 / (p > 0).sum())
    assert np.mean(chosen) > 6 * np.mean(chance)


def test_half_of_the_users_write_reviews_of_their_topic(world: World):
    """About half of the users left words, and each words' owner named things of the topic they love most."""
    assert 150 < len(world.profiles) < 250
    for user_id, words in list(world.profiles.items())[:40]:
        loved = TOPICS[int(world.tastes.likings[0][int(user_id.removeprefix("user-"))].argmax())]
        named = (*loved.things, *loved.places, *loved.moods, *loved.doings)
        assert any(name.lower() in words.lower() for name in named)
