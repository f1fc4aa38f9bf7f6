"""Checkpoints and training sets for tests: a tiny untrained checkpoint for whoever serves one, and a catalogue with planted tastes."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from encoders.space import EmbeddingSpace
from feature_store.home import Home
from feature_store.schemas import timestamps
from feature_store.spaces import register_spaces
from feature_store.tables import Tables
from ranker import checkpoint
from ranker.config import RankerConfig
from ranker.inputs import ItemBatch, Shapes, Vocabulary
from ranker.model import FusionRanker

START_US = 1_700_000_000_000_000
EVENT_TYPES = ("click", "like", "purchase", "rating", "view")
DEVICES = ("phone", "desktop")
TINY = RankerConfig(dim=8, space_dim=6, heads=2, history_length=8)


def example_spaces(dims: Mapping[str, int] | None = None) -> dict[str, EmbeddingSpace]:
    """One space per modality, small by default."""
    dims = dims or {"text": 12, "image": 10, "audio": 8}
    return {m: EmbeddingSpace.from_recipe(m, "example", d, {"made": "for tests"}) for m, d in dims.items()}


def unit_rows(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    """Random unit vectors float32 [n, d]."""
    raw = rng.normal(size=(n, d))
    return (raw / np.linalg.norm(raw, axis=1, keepdims=True)).astype(np.float32)


def random_items(spaces: Mapping[str, EmbeddingSpace], item_ids: Sequence[str], seed: int = 0) -> ItemBatch:
    """Items with random unit vectors in every space, a category and a price."""
    rng = np.random.default_rng(seed)
    n = len(item_ids)
    vectors = {s.space_id: unit_rows(rng, n, s.dim) for s in spaces.values()}
    present = {space_id: np.ones(n, bool) for space_id in vectors}
    return ItemBatch(list(item_ids), vectors, present, [f"category {i % 3}" for i in range(n)], rng.uniform(1, 50, n))


def tiny_checkpoint(
    models: Path,
    model_id: str = "tiny",
    *,
    spaces: Mapping[str, EmbeddingSpace] | None = None,
    item_ids: Sequence[str] = tuple(f"item{i}" for i in range(20)),
    categories: Sequence[str] = ("category 0", "category 1", "category 2"),
    seed: int = 0,
    config: RankerConfig = TINY,
) -> Path:
    """Write an untrained but complete checkpoint over `spaces` (by modality) and return its folder.

    Every weight is random, so that each feature, event and context changes the score; projections are fitted on random vectors.
    """
    spaces = dict(spaces or example_spaces())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        names = len(item_ids), len(categories), len(EVENT_TYPES)
        shapes = Shapes({m: s.dim for m, s in spaces.items()}, *names, 16, devices=len(DEVICES))
        model = FusionRanker(config, shapes)
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        model.popularity[1:] = torch.randn(len(item_ids))
    batch = random_items(spaces, [f"fit{i}" for i in range(64)], seed)
    for modality, space in spaces.items():
        model.projections[modality].fit(torch.from_numpy(batch.vectors[space.space_id]), config.whitening)
    for m, (modality, space) in enumerate(spaces.items()):
        model.taste.content[:, m] = model.projections[modality](torch.from_numpy(batch.vectors[space.space_id][:16]))
    model.fused_radius.fill_(20.0)
    about = {
        "space_ids": {m: s.space_id for m, s in spaces.items()},
        "feature_service": f"ranker_{model_id}",
        "seed": seed,
        "metrics": {},
        "data": {},
    }
    vocabulary = Vocabulary(tuple(item_ids), tuple(categories), EVENT_TYPES, devices=DEVICES)
    return checkpoint.save(models, model_id, model, vocabulary, about)


# ---- a small shop in a home's tables ------------------------------------------------------------------------------------

SHOP_IDS = [f"item{i}" for i in range(12)]


def small_shop(home: Home, events_from_us: int = START_US) -> Tables:
    """Fill a home's tables with twelve items, one of them without audio, and two users with three events after an instant."""
    tables, batch = Tables(home), random_items(example_spaces(), SHOP_IDS)
    register_spaces(home, list(example_spaces().values()))
    for modality, space in example_spaces().items():
        n = 11 if modality == "audio" else 12
        times = np.full(n, START_US)
        vectors = batch.vectors[space.space_id][:n]
        tables.write_embeddings("item", space, SHOP_IDS[:n], vectors, content_sha256=["x"] * n, event_timestamp=times)
    tables.write_items(_item_table())
    tables.append_interactions(
        _interaction_table([("anna", "item1"), ("anna", "item5"), ("bert", "item3")], events_from_us)
    )
    return tables


def _item_table():
    n, when = len(SHOP_IDS), timestamps(np.full(len(SHOP_IDS), START_US))
    text = {name: pa.array([name] * n) for name in ("title", "description", "category")}
    files = {name: pa.nulls(n, pa.string()) for name in ("image", "audio")}
    price = {"price": pa.array([1.0] * n), "updated_us": pa.array([START_US] * n)}
    dates = {"event_timestamp": when, "created": when, "deleted": pa.array([False] * n)}
    return pa.table({"item_id": SHOP_IDS, **text, **price, **files, **dates})


def _interaction_table(pairs, from_us):
    n = len(pairs)
    when = timestamps(from_us + 10**9 * np.arange(1, n + 1))
    return pa.table(
        {
            "event_id": [f"e{i}" for i in range(n)],
            "impression_id": pa.nulls(n, pa.string()),
            "user_id": [user for user, _ in pairs],
            "item_id": [item for _, item in pairs],
            "event_type": ["click"] * n,
            "value": pa.nulls(n, pa.float64()),
            "event_timestamp": when,
            "created": when,
        }
    )


# ---- a catalogue with planted tastes ------------------------------------------------------------------------------------

DAY_US = 86_400_000_000
KINDS = 8  # kinds of content in each modality
LATENT = 8  # directions in which content of one modality varies


@dataclass(frozen=True)
class Planted:
    """A training set folder, and the truth behind it: `oracle(user_id, t_us, item_ids)` gives log-probabilities of a choice."""

    folder: Path
    spaces: dict[str, EmbeddingSpace]
    log_choice: np.ndarray  # [users, items]
    kinds: dict[str, np.ndarray]  # modality -> kind of each item
    likings: dict[str, np.ndarray]  # modality -> [users, KINDS]: 1 loved, below 0 disliked

    def oracle(self, user_id: str, t_us: int, item_ids: Sequence[str]) -> np.ndarray:
        """The planted log-probability of each item, up to a constant."""
        del t_us
        return self.log_choice[int(user_id[1:]), [int(i[1:]) for i in item_ids]]


def planted(
    folder: Path,
    *,
    n_items: int = 300,
    n_users: int = 400,
    events: tuple[int, int] = (12, 20),
    late: float = 0.3,
    taste: float = 3.3,
    missing: float = 0.05,
    seed: int = 0,
    dims: Mapping[str, int] | None = None,
    drivers: Sequence[str] = (),
) -> Planted:
    """Write a training set whose users choose items by content in all three modalities, times a Zipf popularity.

    An item is of one of eight kinds in each modality, independently; a user loves one kind of each, likes one, dislikes two. Vectors are a random non-linear function of the latents, mostly one constant direction (as those of an untrained encoder are).
    `late` of the items are released in the last quarter, so that later choices fall on items that training never saw.
    With `drivers`, user u goes by one modality alone: `drivers[u % len(drivers)]`.
    """
    rng = np.random.default_rng(seed)
    spaces = example_spaces(dims or {"text": 96, "image": 64, "audio": 48})
    kinds = {m: rng.integers(0, KINDS, n_items) for m in spaces}
    released = np.where(rng.random(n_items) < late, rng.uniform(0.75, 0.95, n_items), 0.0)
    popularity = rng.permutation(1.0 / np.arange(1, n_items + 1) ** 0.5)
    log_choice = np.tile(np.log(popularity), (n_users, 1))
    likings = {m: _likings(rng, n_users) for m in spaces}
    for modality, kind in kinds.items():
        driven = np.asarray([not drivers or drivers[u % len(drivers)] == modality for u in range(n_users)])
        log_choice = log_choice + driven[:, None] * taste * likings[modality][:, kind]
    chosen = _choices(rng, log_choice, released, events)
    _write(folder, spaces, _vectors(rng, spaces, kinds, missing), released, chosen)
    return Planted(folder, spaces, log_choice, kinds, likings)


def _likings(rng, n_users):
    """Liking of each kind [users, KINDS]: one loved, one liked, two disliked."""
    degrees = np.asarray([1.0, 0.35, -0.4, -0.4] + [0.0] * (KINDS - 4))
    return np.stack([rng.permutation(degrees) for _ in range(n_users)])


def _vectors(rng, spaces, kinds, missing):
    """A list of lists or None by space: unit(constant + small non-linear function of a point near the kind's centre)."""
    out = {}
    for modality, space in spaces.items():
        latent = rng.normal(size=(KINDS, LATENT))[kinds[modality]] + 0.3 * rng.normal(
            size=(len(kinds[modality]), LATENT)
        )
        hidden = np.tanh(latent @ rng.normal(size=(LATENT, 64)) / 2)
        signal = hidden @ rng.normal(size=(64, space.dim)) / 8 + 0.3 * rng.normal(size=(len(hidden), space.dim))
        raw = 5.0 * np.sqrt(space.dim) * unit_rows(rng, 1, space.dim) + signal
        unit = (raw / np.linalg.norm(raw, axis=1, keepdims=True)).astype(np.float32)
        gone = rng.random(len(unit)) < missing
        out[space.space_id] = [None if g else v.tolist() for v, g in zip(unit, gone, strict=True)]
    return out


def _choices(rng, log_choice, released, events):
    """(user, item, time in 0..1) of every event: a choice among what is out and new to the user."""
    chosen = []
    for user, log_p in enumerate(log_choice):
        done = np.zeros(len(log_p), bool)
        for t in np.sort(rng.uniform(0.02, 1.0, rng.integers(events[0], events[1] + 1))):
            noisy = np.where((released < t) & ~done, log_p + rng.gumbel(size=len(log_p)), -np.inf)
            item = int(np.argmax(noisy))
            done[item] = True
            chosen.append((user, item, t))
    return chosen


def _write(folder, spaces, vectors, released, chosen):
    folder.mkdir(parents=True, exist_ok=True)
    n = len(released)
    span = 100 * DAY_US
    ids = [f"i{i}" for i in range(n)]
    items = {
        "item_row": pa.array(range(n), pa.int32()),
        "item_id": ids,
        "valid_from_us": [START_US + int(r * span) for r in released],
        "valid_to_us": [2**63 - 1] * n,
        "title": [f"title {i}" for i in ids],
        "category": [None] * n,
        "price": pa.array([float(1 + i % 7) for i in range(n)], pa.float64()),
    }
    items |= {f"vec_{space}": pa.array(rows, pa.list_(pa.float32())) for space, rows in vectors.items()}
    events = {
        "event_id": [f"e{k}" for k in range(len(chosen))],
        "user_id": [f"u{user}" for user, _, _ in chosen],
        "item_id": [f"i{item}" for _, item, _ in chosen],
        "event_type": ["click"] * len(chosen),
        "value": pa.array([None] * len(chosen), pa.float64()),
        "timestamp_us": [START_US + int(t * span) for _, _, t in chosen],
    }
    labels = events | {"item_row": pa.array([item for _, item, _ in chosen], pa.int32())}
    users = {"user_id": sorted({f"u{user}" for user, _, _ in chosen})}
    tables = {"items": items, "events": events, "labels": labels, "users": users}
    for name, columns in tables.items():
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    meta = {"spaces": [space.to_dict() for space in spaces.values()], "views": [], "cutoff": None, "counts": {}}
    (folder / "meta.json").write_text(json.dumps(meta))
