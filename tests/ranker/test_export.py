"""Fused vectors are written to the store, and their inner product is what retrieval ranks by."""

import numpy as np
import pytest

from feature_store.history import history_as_of
from feature_store.spaces import read_entries, register_spaces
from feature_store.tables import Tables
from ranker.export import export_fused, read_histories, read_item_batch
from ranker.scorer import Context, Ranker, UserState
from tests.ranker.factories import SHOP_IDS, START_US, example_spaces, small_shop, tiny_checkpoint


@pytest.fixture
def ranker(home):
    return Ranker.load(tiny_checkpoint(home.models))


@pytest.fixture
def tables(home):
    return small_shop(home)


def test_every_item_and_user_gets_a_fused_vector(home, ranker, tables):
    """The space is registered for both entities, and all vectors are in its tables with unit norm."""
    done = export_fused(home, ranker, tables)
    assert (done.items, done.users) == (12, 2)
    fused = ranker.fused_space.space_id
    assert {entry.key for entry in read_entries(home)} >= {("item", fused), ("user", fused)}
    items, users = (tables.read_embeddings(entity, fused) for entity in ("item", "user"))
    assert items.ids == sorted(SHOP_IDS)
    assert users.ids == ["anna", "bert"]
    ranker.fused_space.check(items.vectors)
    ranker.fused_space.check(users.vectors)


def test_exported_vectors_are_what_serving_would_compute(home, ranker, tables):
    """The stored user vector is that of the same history through the scorer, and so are the items'."""
    now_us = START_US + 10**12
    export_fused(home, ranker, tables, now_us=now_us)
    batch, _ = read_item_batch(tables, ranker)
    tokens = ranker.item_tokens(batch)
    history = history_as_of(read_histories(tables)["anna"], now_us)
    assert history.item_ids == ["item1", "item5"]
    state = UserState(history, ranker.history_tokens(history, tokens, {i: r for r, i in enumerate(batch.item_ids)}))
    stored = tables.read_embeddings("user", ranker.fused_space.space_id, ["anna"]).vectors[0]
    assert np.allclose(stored, ranker.fused_user(state, Context(now_us)), atol=1e-6)
    assert np.allclose(
        tables.read_embeddings("item", ranker.fused_space.space_id).vectors, ranker.fused_items(tokens), atol=1e-6
    )


def test_an_empty_home_exports_nothing_and_does_not_fail(home, ranker):
    """Before any ingestion there is nothing to export, and that is no error."""
    register_spaces(home, list(example_spaces().values()))
    done = export_fused(home, ranker, Tables(home))
    assert (done.items, done.users) == (0, 0)
