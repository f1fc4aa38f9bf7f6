"""Small training sets in memory for tests of the trainer: items that were always there, and users with a kind that they like."""

from dataclasses import replace

import numpy as np

from encoders.space import EmbeddingSpace
from feature_store.history import Events
from ranker.config import RankerConfig
from ranker.data import Items, Labels, Split, TrainingSet

FOREVER_US = 2**62
SMALL = RankerConfig(
    dim=16,
    space_dim=6,
    prototypes=2,
    taste_steps=0,
    content_dim=16,
    heads=2,
    history_length=12,
    batch_users=32,
    batch_size=0,
    max_epochs=12,
    patience=4,
    id_dropout=0.1,
    learning_rate=5e-3,
    weight_decay=0.0,
    id_decay=0.0,
    popularity=False,
    attention=False,
)


def ordered(rng: np.random.Generator, users: int = 120, items: int = 60, events: int = 10) -> tuple[TrainingSet, Split]:
    """Users who go round the items of their kind in order: what comes next is known from what came last. The last two events are held out."""
    kinds = 4
    chosen = [
        [(start + kinds * step) % items for step in range(events)] for start in rng.integers(0, items, users).tolist()
    ]
    noisy = [
        [
            int(rng.integers(items)) if step < events - 2 and rng.random() < 0.1 else item
            for step, item in enumerate(row)
        ]
        for row in chosen
    ]
    ts = training_set(rng, noisy, items, kinds)
    number = np.arange(len(ts.labels)) % events
    parts = [
        ts.labels.take(np.flatnonzero(at)) for at in (number < events - 2, number == events - 2, number == events - 1)
    ]
    return ts, Split(parts[0], parts[1], parts[2], FOREVER_US, FOREVER_US, by_time=False)


def training_set(rng: np.random.Generator, chosen: list[list[int]], items: int, kinds: int) -> TrainingSet:
    """Users' items in order, a second apart; an item's text says its kind, and so does a tag."""
    names = [f"i{i}" for i in range(items)]
    space = EmbeddingSpace.from_recipe("text", "example", 8, {"made": "for tests"})
    vectors = (np.eye(8)[np.arange(items) % kinds] + 0.1 * rng.normal(size=(items, 8))).astype(np.float32)
    always = np.full(items, -1, np.int64)
    tags = [[f"kind:{i % kinds}", f"only:{i}"] for i in range(items)]
    held = Items(
        names, np.arange(items), always, np.full(items, FOREVER_US), [None] * items, np.full(items, np.nan),
        {space.space_id: vectors}, {space.space_id: np.ones(items, bool)}, tags,
    )  # fmt: skip
    flat = [(user, item, step) for user, row in enumerate(chosen) for step, item in enumerate(row)]
    ids, users = [f"e{n}" for n in range(len(flat))], [f"u{user:04d}" for user, _, _ in flat]
    times = np.asarray([1_000_000 * (1 + step) for _, _, step in flat], np.int64)
    nothing = np.full(len(flat), np.nan)
    labels = Labels(
        ids, users, np.asarray([item for _, item, _ in flat], np.int64), ["view"] * len(flat), nothing, times
    )
    events = {}
    for user in dict.fromkeys(users):
        at = [n for n, name in enumerate(users) if name == user]
        events[user] = Events(
            [ids[n] for n in at], [names[flat[n][1]] for n in at], ["view"] * len(at), nothing[at], times[at]
        )
    return TrainingSet(held, labels, events, {}, {"text": space}, {})


def with_image(ts: TrainingSet) -> TrainingSet:
    """The same with an image of every second item, whose vector is that of its text."""
    [text] = ts.spaces.values()
    image = EmbeddingSpace.from_recipe("image", "example", text.dim, {"made": "for tests"})
    vectors = {**ts.items.vectors, image.space_id: ts.items.vectors[text.space_id]}
    present = {**ts.items.present, image.space_id: np.arange(len(ts.items)) % 2 == 0}
    items = replace(ts.items, vectors=vectors, present=present)
    return replace(ts, items=items, spaces={**ts.spaces, "image": image})


def unordered(rng: np.random.Generator, users: int = 160, items: int = 60) -> tuple[TrainingSet, Split]:
    """Users who met items of one kind; two of each are held out, for validation and for the test."""
    kinds = 4
    chosen = [
        (rng.permutation(items // kinds)[:10] * kinds + kind).tolist()
        for kind in rng.integers(0, kinds, users).tolist()
    ]
    ts = training_set(rng, chosen, items, kinds)
    number = np.arange(len(ts.labels)) % 10
    parts = [ts.labels.take(np.flatnonzero(at)) for at in (number < 8, number == 8, number == 9)]
    return ts, Split(parts[0], parts[1], parts[2], FOREVER_US, FOREVER_US, by_time=False)


def with_version(ts: TrainingSet, item: int, from_us: int) -> TrainingSet:
    """The same, where an item has other content and tags from an instant on."""
    items, row = ts.items, len(ts.items)
    until = np.where(np.arange(row) == item, from_us, items.valid_to_R)
    vectors = {name: np.concatenate([v, -v[item : item + 1]]) for name, v in items.vectors.items()}
    present = {name: np.append(there, True) for name, there in items.present.items()}
    held = Items(
        items.names, np.append(items.item_R, item), np.append(items.valid_from_R, from_us), np.append(until, FOREVER_US), [None] * (row + 1),
        np.full(row + 1, np.nan), vectors, present, [*items.tags, items.tags[item]],
    )  # fmt: skip
    return replace(ts, items=held)
