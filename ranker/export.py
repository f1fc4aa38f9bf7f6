"""A ranker's own vectors of items and users, written to the offline tables as the space `fused_<model_id>`.

From there they go to Milvus like all others, so that retrieval searches by the same numbers that ranking adds up.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from feature_store.history import Events, history_as_of
from feature_store.home import Home
from feature_store.spaces import register_spaces
from feature_store.tables import Tables
from ranker.data import events_by_user
from ranker.inputs import ItemBatch
from ranker.scorer import Context, ItemTokens, Ranker, UserState


@dataclass(frozen=True)
class Exported:
    """How many vectors were written."""

    items: int
    users: int


def export_fused(home: Home, ranker: Ranker, tables: Tables, *, now_us: int | None = None) -> Exported:
    """Register the model's fused space for items and users, and write a vector of every item and of every user with a history.

    Items' vectors are valid from when the items were; users' from `now_us` (default: just after the newest event).
    """
    space = ranker.fused_space
    for entity in ("item", "user"):
        register_spaces(home, [space], entity)
    batch, valid_from_us = read_item_batch(tables, ranker)
    histories = read_histories(tables)
    now_us = now_us or 1 + max((int(h.timestamps_us[-1]) for h in histories.values()), default=0)
    tokens = ranker.item_tokens(batch)
    _write(tables, ranker, "item", batch.item_ids, ranker.fused_items(tokens), valid_from_us)
    users = {user: history for user, events in histories.items() if len(history := history_as_of(events, now_us))}
    vectors = _user_vectors(tables, ranker, users, tokens, Context(now_us))
    _write(tables, ranker, "user", list(users), vectors, np.full(len(users), now_us, np.int64))
    return Exported(len(batch), len(users))


def _write(
    tables: Tables,
    ranker: Ranker,
    entity: str,
    ids: list[str],
    vectors: NDArray[np.float32],
    times_us: NDArray[np.int64],
) -> None:
    if ids:
        nothing = [None] * len(ids)
        tables.write_embeddings(
            entity, ranker.fused_space, ids, vectors, content_sha256=nothing, event_timestamp=times_us
        )


def read_item_batch(tables: Tables, ranker: Ranker) -> tuple[ItemBatch, NDArray[np.int64]]:
    """All items of the tables as the ranker reads them, and since when each is valid [n] (us)."""
    items = tables.read_items()
    ids: list[str] = items["item_id"].to_pylist()
    row_of = {item_id: row for row, item_id in enumerate(ids)}
    vectors, present = {}, {}
    for modality, space_id in ranker.space_ids.items():
        dim = ranker.model.shapes.modalities[modality]
        vectors[space_id], present[space_id] = _aligned(tables, space_id, dim, row_of)
    price = np.asarray(items["price"].cast(pa.float64()).fill_null(np.nan), np.float64)
    valid_from_us = np.asarray(items["event_timestamp"].cast(pa.int64()), np.int64)
    tags = [one or [] for one in items["tags"].to_pylist()]
    return ItemBatch(ids, vectors, present, items["category"].to_pylist(), price, tags), valid_from_us


def _aligned(
    tables: Tables, space_id: str, dim: int, row_of: dict[str, int]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    stored = tables.read_embeddings("item", space_id)
    kept = [i for i, item_id in enumerate(stored.ids) if item_id in row_of]
    rows = [row_of[stored.ids[i]] for i in kept]
    vectors, present = np.zeros((len(row_of), dim), np.float32), np.zeros(len(row_of), bool)
    if rows:
        vectors[rows], present[rows] = stored.vectors[kept], True
    return vectors, present


def read_histories(tables: Tables) -> dict[str, Events]:
    """Every user's events, oldest first."""
    table = tables.read_interactions()
    return events_by_user(table, np.asarray(table["event_timestamp"].cast(pa.int64()), np.int64))


def _user_vectors(
    tables: Tables, ranker: Ranker, users: dict[str, Events], tokens: ItemTokens, context: Context
) -> NDArray[np.float32]:
    row_of = {item_id: row for row, item_id in enumerate(tokens.item_ids)}
    profiles = _profiles(tables, ranker)
    out = np.zeros((len(users), ranker.fused_space.dim), np.float32)
    for i, (user, history) in enumerate(users.items()):
        state = UserState(history, ranker.history_tokens(history, tokens, row_of), profiles.get(user))
        out[i] = ranker.fused_user(state, context)
    return out


def _profiles(tables: Tables, ranker: Ranker) -> dict[str, NDArray[np.float32]]:
    if "text" not in ranker.space_ids:
        return {}
    stored = tables.read_embeddings("user", ranker.space_ids["text"])
    return dict(zip(stored.ids, stored.vectors, strict=True))
