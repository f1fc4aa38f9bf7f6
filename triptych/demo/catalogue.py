"""The demo's catalogue: sound postcards with a text, a picture and a loop, drawn from one seed.

Each item carries a planted `topic` (its words), `style` (its picture) and `sound` (its loop), drawn independently, so that
no modality can stand in for another. Users' tastes for them are planted in `truth.py`; nobody else sees these attributes.
"""

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import numpy as np

from triptych.demo.pictures import paint
from triptych.demo.sounds import SAMPLE_RATE, play
from triptych.demo.vocabulary import CATEGORIES, DESCRIPTIONS, OCCASIONS, SOUNDS, STYLES, TITLES, TOPICS, Topic

ITEMS: Final = 300
WINDOW_DAYS: Final = 90
LATE_SHARE: Final = 0.38
LATE_DAYS: Final = (72.0, 87.0)  # late items appear in here: most of them after the training part of a split in time
NO_IMAGE_SHARE: Final = 0.04
NO_AUDIO_SHARE: Final = 0.06
CATEGORY_FOLLOWS_TOPIC: Final = 0.25
COLUMNS: Final = ("item_id", "title", "description", "category", "price", "image", "audio", "available_at")

Rng = np.random.Generator


@dataclass(frozen=True)
class Item:
    """One postcard: what its manifest row says, and the planted attributes (indices into the vocabulary)."""

    item_id: str
    title: str
    description: str
    category: str
    price: float
    image: str  # path relative to the manifest, "" where the item has none
    audio: str
    available_at: datetime
    topic: int
    style: int
    sound: int


@dataclass(frozen=True)
class Catalogue:
    """All items, and the instants between which users act."""

    items: tuple[Item, ...]
    start: datetime
    end: datetime
    corrupt: tuple[str, ...]  # the files, relative to the manifest, that are broken on purpose


def last_monday(now: datetime | None = None) -> datetime:
    """The latest Monday 00:00 UTC, where the demo's window ends: weekdays fall alike whenever the demo runs."""
    today = (now or datetime.now(UTC)).replace(hour=0, minute=0, second=0, microsecond=0)
    return today - timedelta(days=today.weekday())


def fill(template: str, topic: Topic, rng: Rng) -> str:
    """`template` with two things, a place, a mood and a doing of `topic`; capitalised keys give capitalised words."""
    thing, other = rng.choice(topic.things, 2, replace=False)
    words = {"thing": str(thing), "other": str(other)}
    for key, pool in (("place", topic.places), ("mood", topic.moods), ("doing", topic.doings)):
        words[key] = str(rng.choice(pool))
    text = template.format(**words, **{key.title(): word[:1].upper() + word[1:] for key, word in words.items()})
    return text[:1].upper() + text[1:]


def _spread(count: int, values: int, rng: Rng) -> list[int]:
    """`count` indices in which each of `values` is about equally frequent, shuffled."""
    return [int(v) for v in rng.permutation(np.arange(count) % values)]


def _available(count: int, start: datetime, rng: Rng) -> list[datetime]:
    late = rng.permutation(count) < round(LATE_SHARE * count)
    days = np.where(late, rng.uniform(*LATE_DAYS, count), -rng.uniform(1, 30, count))
    return [start + timedelta(seconds=round(float(day) * 86_400)) for day in days]


def _without(count: int, share: float, rng: Rng) -> set[int]:
    return {int(i) for i in rng.permutation(count)[: round(share * count)]}


def _items(count: int, start: datetime, rng: Rng) -> Iterator[Item]:
    topics, styles, sounds = (_spread(count, len(pool), rng) for pool in (TOPICS, STYLES, SOUNDS))
    silent, blank = _without(count, NO_AUDIO_SHARE, rng), _without(count, NO_IMAGE_SHARE, rng)
    for i, available_at in enumerate(_available(count, start, rng)):
        topic, item_id = TOPICS[topics[i]], f"card-{i:03d}"
        follows = rng.random() < CATEGORY_FOLLOWS_TOPIC
        category = CATEGORIES[topics[i] if follows else int(rng.integers(len(CATEGORIES)))]
        yield Item(
            item_id=item_id,
            title=fill(str(rng.choice(TITLES)), topic, rng),
            description=f"{fill(str(rng.choice(DESCRIPTIONS)), topic, rng)} {OCCASIONS[category]}",
            category=category,
            price=float(rng.choice((2.5, 2.9, 3.5, 3.9, 4.5))),
            image="" if i in blank else f"media/{item_id}.png",
            audio="" if i in silent else f"media/{item_id}.flac",
            available_at=available_at,
            topic=topics[i],
            style=styles[i],
            sound=sounds[i],
        )


def _to_break(items: tuple[Item, ...], rng: Rng) -> tuple[str, str]:
    """One picture and one loop, of two different items that have both."""
    whole = [item for item in items if item.image and item.audio]
    picture, loop = rng.choice(len(whole), 2, replace=False)
    return whole[int(picture)].image, whole[int(loop)].audio


def make_catalogue(seed: int, *, count: int = ITEMS, end: datetime | None = None) -> Catalogue:
    """Draw the items, without writing a file. `end` is the window's end, `last_monday()` by default."""
    rng = np.random.default_rng([seed, 1])
    end = end or last_monday()
    start = end - timedelta(days=WINDOW_DAYS)
    items = tuple(_items(count, start, rng))
    return Catalogue(items, start, end, _to_break(items, rng))


def _write_media(folder: Path, seed: int, number: int, item: Item) -> None:
    import soundfile

    rng = np.random.default_rng([seed, 2, number])
    picture, loop = paint(STYLES[item.style], rng), play(SOUNDS[item.sound], rng)
    if item.image:
        picture.save(folder / item.image)
    if item.audio:
        soundfile.write(folder / item.audio, loop, SAMPLE_RATE, format="FLAC", subtype="PCM_16")


def _truncate(path: Path) -> None:
    """Keep the first 60 %: a download that broke off."""
    whole = path.read_bytes()
    path.write_bytes(whole[: int(0.6 * len(whole))])


def _scramble(path: Path, rng: Rng) -> None:
    """Keep the first 64 bytes (an honest FLAC header) and put noise for the sound: a disk that forgot."""
    whole = path.read_bytes()
    path.write_bytes(whole[:64] + rng.bytes(len(whole) - 64))


def write_catalogue(
    catalogue: Catalogue, folder: Path, seed: int, *, progress: Callable[[int], None] | None = None
) -> Path:
    """Write manifest.csv and media/ under `folder`, the corrupt files broken; return the manifest's path."""
    (folder / "media").mkdir(parents=True, exist_ok=True)
    for number, item in enumerate(catalogue.items):
        _write_media(folder, seed, number, item)
        if progress:
            progress(1)
    picture, loop = catalogue.corrupt
    _truncate(folder / picture)
    _scramble(folder / loop, np.random.default_rng([seed, 3]))
    return _write_manifest(catalogue, folder / "manifest.csv")


def _write_manifest(catalogue: Catalogue, path: Path) -> Path:
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(COLUMNS)
        for item in catalogue.items:
            row = [getattr(item, column) for column in COLUMNS[:-1]]
            writer.writerow([*row, item.available_at.isoformat()])
    return path
