import json

import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from feature_store.history import history_as_of
from feature_store.schemas import timestamps
from feature_store.spaces import read_entries, register_spaces
from feature_store.tables import Tables
from ranker import checkpoint
from ranker.export import export_fused, read_histories, read_item_batch
from ranker.scorer import Context, Ranker, UserState
from tests.ranker.factories import example_spaces, random_items, tiny_checkpoint
from triptych.verbs.model import app

START_US = 1_700_000_000_000_000
IDS = [f"item{i}" for i in range(12)]


@pytest.fixture
def ranker(home):
    return Ranker.load(tiny_checkpoint(home.models))


@pytest.fixture
def tables(home):
    """A home with twelve items, one of them without audio, and two users."""
    tables, batch = Tables(home), random_items(example_spaces(), IDS)
    register_spaces(home, list(example_spaces().values()))
    for modality, space in example_spaces().items():
        n = 11 if modality == "audio" else 12
        times = np.full(n, START_US)
        vectors = batch.vectors[space.space_id][:n]
        tables.write_embeddings("item", space, IDS[:n], vectors, content_sha256=["x"] * n, event_timestamp=times)
    tables.write_items(item_table())
    tables.append_interactions(interaction_table([("anna", "item1"), ("anna", "item5"), ("bert", "item3")]))
    return tables


def item_table():
    n, when = len(IDS), timestamps(np.full(len(IDS), START_US))
    text = {name: pa.array([name] * n) for name in ("title", "description", "category")}
    files = {name: pa.nulls(n, pa.string()) for name in ("image", "audio")}
    price = {"price": pa.array([1.0] * n), "updated_us": pa.array([START_US] * n)}
    dates = {"event_timestamp": when, "created": when, "deleted": pa.array([False] * n)}
    return pa.table({"item_id": IDS, **text, **price, **files, **dates})


def interaction_table(pairs):
    n = len(pairs)
    when = timestamps(START_US + 10**9 * np.arange(1, n + 1))
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


def test_every_item_and_user_gets_a_fused_vector(home, ranker, tables):
    """The space is registered for both entities, and all vectors are in its tables with unit norm."""
    done = export_fused(home, ranker, tables)
    assert (done.items, done.users) == (12, 2)
    fused = ranker.fused_space.space_id
    assert {entry.key for entry in read_entries(home)} >= {("item", fused), ("user", fused)}
    items, users = (tables.read_embeddings(entity, fused) for entity in ("item", "user"))
    assert items.ids == sorted(IDS)
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


def test_the_model_verb_lists_promotes_and_undoes(home):
    """`triptych model` prints the list as JSON, switches the stable model and goes back; errors leave with code 1."""
    run = CliRunner().invoke
    for name in ("one", "two"):
        tiny_checkpoint(home.models, name)
    assert run(app, ["promote", "one"]).exit_code == 0
    assert run(app, ["promote", "two"]).exit_code == 0
    listed = {row["model_id"]: row["stable"] for row in json.loads(run(app, ["list", "--json"]).stdout)}
    assert listed == {"one": False, "two": True}
    assert run(app, ["undo"]).exit_code == 0
    assert checkpoint.stable(home) == "one"
    assert run(app, ["promote", "missing"]).exit_code == 1
    assert "one" in run(app, ["list"]).stdout
