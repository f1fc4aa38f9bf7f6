"""The planted truth: who likes what, and what they therefore did.

The probability that user u takes item i next, among the items that exist and that u has not taken, is

    p(i | u, t)  ~  popularity(i) * exp(TASTE * sum over modalities m of weight(u, m) * liking(u, m, attribute_m(i)))

with Zipf popularity. Tastes live in the content alone (`topic`, `style`, `sound`; a modality that an item lacks
counts nothing), so only a model that reads the media can rank an item that nobody has taken yet. The demo's oracle
ranks by p itself: no model can do better in expectation.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from triptych.demo.catalogue import Catalogue, Item, fill
from triptych.demo.vocabulary import CATEGORIES, REVIEWS, SOUNDS, STYLES, TOPICS

USERS: Final = 400
EVENTS_MEAN: Final = 24.0  # of a user's number of events, 6 to 40
TASTE: Final = 9.0
SECOND_LIKING: Final = 0.35
WEIGHT_EVENNESS: Final = 8.0  # of the Dirichlet from which a user draws the weights of the modalities
ZIPF_EXPONENT: Final = 0.9
OWN_APPEAL: Final = 0.7  # spread of a card's own appeal, in steps between occasions
CATEGORY_LEAN: Final = 0.35
RATED_SHARE: Final = 0.12
BOUGHT_SHARE: Final = 0.15
REVIEWER_SHARE: Final = 0.5
ATTRIBUTES: Final = (len(TOPICS), len(STYLES), len(SOUNDS))
EVENT_COLUMNS: Final = ("event_id", "user_id", "item_id", "event_type", "value", "event_timestamp")

Rng = np.random.Generator
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Tastes:
    """What users like: weights [users, 3] that sum to 1 and, by modality, likings [users, values] in -0.4 .. 1."""

    weights: Floats
    likings: tuple[Floats, Floats, Floats]
    favourite_category: NDArray[np.int64]


@dataclass(frozen=True)
class Event:
    """One interaction; `value` is a rating of 1 to 5, or None."""

    event_id: str
    user_id: str
    item_id: str
    event_type: str
    value: float | None
    timestamp_us: int


@dataclass(frozen=True)
class Truth:
    """Log-odds [users, items] of taking an item, and since when there is something to take [items] (us, UTC)."""

    user_ids: tuple[str, ...]
    item_ids: tuple[str, ...]
    log_odds: Floats
    available_us: NDArray[np.int64]

    def probabilities(self, user_id: str, t_us: int, item_ids: Sequence[str]) -> Floats:
        """p(item | user, t) over `item_ids` [n]; 0 for what is not yet available. Raises ValueError for a stranger."""
        rows = np.array([self.item_ids.index(item_id) for item_id in item_ids], dtype=np.int64)
        return self._softmax(self.user_ids.index(user_id), t_us, rows)

    def _softmax(self, user: int, t_us: int, rows: NDArray[np.int64]) -> Floats:
        odds = np.where(self.available_us[rows] < t_us, self.log_odds[user, rows], -np.inf)
        top = odds.max(initial=-np.inf)
        if not np.isfinite(top):
            return np.zeros(len(rows))
        odds = np.exp(odds - top)
        return np.asarray(odds / odds.sum())

    def save(self, path: Path) -> None:
        """Write one .npz; `load` is the inverse."""
        np.savez_compressed(path, allow_pickle=False, **vars(self))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote."""
        with np.load(path) as data:
            users, items = (tuple(str(name) for name in data[key]) for key in ("user_ids", "item_ids"))
            return cls(users, items, data["log_odds"], data["available_us"])


@dataclass(frozen=True)
class World:
    """Everything that the users did, and why."""

    truth: Truth
    tastes: Tastes
    events: tuple[Event, ...]
    profiles: dict[str, str]


def _liking(users: int, values: int, rng: Rng) -> Floats:
    """One loved value, one liked, two disliked, the rest indifferent, for each user: [users, values]."""
    liking = np.zeros((users, values))
    for row in liking:
        order = rng.permutation(values)
        row[order[:4]] = (1.0, SECOND_LIKING, -0.4, -0.4)
    return liking


def make_tastes(users: int, rng: Rng) -> Tastes:
    """Draw the tastes; weights are uneven, so that some users listen and others look."""
    topic, style, sound = (_liking(users, values, rng) for values in ATTRIBUTES)
    weights = rng.dirichlet((WEIGHT_EVENNESS,) * 3, users)
    return Tastes(weights, (topic, style, sound), rng.integers(len(CATEGORIES), size=users))


def _log_popularity(categories: NDArray[np.int64], rng: Rng) -> Floats:
    """Zipf by rank [items]: occasions differ in how well they sell, and cards of one occasion differ too."""
    appeal = rng.permutation(len(CATEGORIES))[categories] + OWN_APPEAL * rng.standard_normal(len(categories))
    return np.asarray(-ZIPF_EXPONENT * np.log(1.0 + np.argsort(np.argsort(-appeal))))


def _log_odds(items: Sequence[Item], tastes: Tastes, rng: Rng) -> Floats:
    categories = np.array([CATEGORIES.index(item.category) for item in items])
    odds = np.tile(_log_popularity(categories, rng), (len(tastes.weights), 1))
    attributes = ([item.topic for item in items], [item.style for item in items], [item.sound for item in items])
    present = (np.ones(len(items)), np.array([bool(i.image) for i in items]), np.array([bool(i.audio) for i in items]))
    for m, liking in enumerate(tastes.likings):
        odds += TASTE * tastes.weights[:, m, None] * liking[:, attributes[m]] * present[m]
    return np.asarray(odds + CATEGORY_LEAN * (tastes.favourite_category[:, None] == categories))


def _instants(catalogue: Catalogue, rng: Rng) -> list[int]:
    """When a user acts (us, UTC, increasing): sittings of one to four events, minutes apart, in waking hours."""
    days = (catalogue.end - catalogue.start).days
    wanted = int(np.clip(rng.lognormal(np.log(EVENTS_MEAN) - 0.18, 0.6), 6, 40))
    joined = rng.uniform(0, 0.6 * days) if rng.random() < 0.4 else 0.0
    instants: set[int] = set()
    while len(instants) < wanted:
        day, hour = int(rng.uniform(joined, days)), float(np.clip(rng.normal(18, 3.5), 6, 23))
        at = catalogue.start + timedelta(days=day, hours=hour)
        for gap in rng.exponential(240, int(rng.integers(1, 5))):  # seconds
            at += timedelta(seconds=1 + round(float(gap)))
            instants.add(int(at.timestamp()) * 1_000_000)
    return sorted(rng.permutation(sorted(instants))[:wanted].tolist())


def _outcome(odds: float, best: float, rng: Rng) -> tuple[str, float | None]:
    """What kind of event it was: most are clicks, some purchases, some ratings (higher where the taste is met)."""
    kind = rng.random()
    if kind < RATED_SHARE:
        stars = 4.6 - 0.22 * (best - odds) + rng.normal(0, 0.5)
        return "rating", float(np.clip(round(stars), 1, 5))
    return ("purchase" if kind < RATED_SHARE + BOUGHT_SHARE else "click"), None


def _live(truth: Truth, user: int, instants: Sequence[int], rng: Rng) -> list[Event]:
    """One user's events: each the next draw from p over what is available and not yet taken."""
    rows, events = np.arange(len(truth.item_ids)), list[Event]()
    for t_us in instants:
        p = truth._softmax(user, t_us, rows)  # noqa: SLF001 - the hot path of the same module
        pick = int(rng.choice(len(rows), p=p))
        item = int(rows[pick])
        rows = np.delete(rows, pick)
        event_type, value = _outcome(truth.log_odds[user, item], truth.log_odds[user].max(), rng)
        event_id = f"{truth.user_ids[user]}-{len(events):03d}"
        events.append(Event(event_id, truth.user_ids[user], truth.item_ids[item], event_type, value, t_us))
    return events


def _review(user: int, tastes: Tastes, rng: Rng) -> str:
    """What a user writes about the loved topic, and sometimes about the liked one."""
    order = np.argsort(-tastes.likings[0][user])
    said = [fill(str(rng.choice(REVIEWS)), TOPICS[int(order[0])], rng)]
    if rng.random() < 0.5:
        said.append(fill(str(rng.choice(REVIEWS)), TOPICS[int(order[1])], rng))
    return " ".join(said)


def make_world(catalogue: Catalogue, seed: int, *, users: int = USERS) -> World:
    """Plant tastes in `users` and let them act through the catalogue's window."""
    rng = np.random.default_rng([seed, 10])
    tastes = make_tastes(users, rng)
    user_ids = tuple(f"user-{i:03d}" for i in range(users))
    available_us = np.array([int(item.available_at.timestamp()) * 1_000_000 for item in catalogue.items])
    item_ids = tuple(item.item_id for item in catalogue.items)
    truth = Truth(user_ids, item_ids, _log_odds(catalogue.items, tastes, rng), available_us)
    lives = [_live(truth, user, _instants(catalogue, rng), rng) for user in range(users)]
    writers = np.flatnonzero(rng.random(users) < REVIEWER_SHARE)
    profiles = {user_ids[int(u)]: _review(int(u), tastes, rng) for u in writers}
    events = sorted((event for life in lives for event in life), key=lambda e: (e.timestamp_us, e.event_id))
    return World(truth, tastes, tuple(events), profiles)


def write_world(world: World, folder: Path) -> None:
    """Write interactions.csv and profiles.csv, as the real commands read them, and truth.npz for the oracle alone."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "interactions.csv").open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(EVENT_COLUMNS)
        for e in world.events:
            when = np.datetime_as_string(np.datetime64(e.timestamp_us, "us"), unit="s") + "Z"
            writer.writerow((e.event_id, e.user_id, e.item_id, e.event_type, "" if e.value is None else e.value, when))
    with (folder / "profiles.csv").open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(("user_id", "text"))
        writer.writerows(world.profiles.items())
    world.truth.save(folder / "truth.npz")
