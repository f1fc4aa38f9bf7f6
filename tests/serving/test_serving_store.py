import asyncio
import contextlib
import time

import numpy as np
import pyarrow as pa
import pytest

from feature_store.connection import connect
from feature_store.errors import StoreRequestError, StoreUnavailable
from feature_store.milvus_schema import ViewSchema
from protos.triptych.v1 import common_pb2, ranking_pb2
from serving.budget import set_deadline
from serving.models import Models
from serving.retrieval import InMemory, search
from serving.settings import ServeSettings
from serving.store import Store
from tests.ranker.factories import tiny_checkpoint
from tests.serving.world import ITEMS, annex, stamps, write_vectors

AXES = np.eye(4, dtype=np.float32)
IDS = ["a", "b", "c", "d"]


def with_store(home, scenario, **settings):
    """Run a scenario with a store of its own."""
    settings = ServeSettings(**{"store_timeout_seconds": 2.0, "store_retry_seconds": 60.0, **settings})
    with contextlib.closing(Store(home, settings)) as store:
        return asyncio.run(scenario(store))


def test_a_caller_in_a_hurry_degrades_nobody_else(world):
    """A read that had less than the store's own time fails for its caller only; the next one is tried."""

    async def hurried(store):
        set_deadline(0.02)
        await store.read(lambda _: time.sleep(0.2))

    async def scenario(store):
        await store.read(lambda core: core.list_views())
        with pytest.raises(StoreUnavailable):
            await asyncio.create_task(hurried(store))
        return await store.read(lambda core: core.list_views())

    assert "item_profile" in with_store(world.home, scenario)


def test_a_refused_request_degrades_nobody_else(world):
    """What Milvus refuses is its caller's error, as it is; the store is not taken for dead."""
    view = f"item_{world.spaces['text'].space_id}"

    async def scenario(store):
        with pytest.raises(StoreRequestError):
            await store.read(lambda core: core.search(view, AXES[:1], 1))
        return await store.read(lambda core: core.count(view))

    assert with_store(world.home, scenario) >= len(ITEMS)


def test_a_store_that_used_its_time_is_left_alone(world):
    """After a timeout of the store's own, reads fail at once."""

    async def scenario(store):
        with pytest.raises(StoreUnavailable):
            await store.read(lambda _: time.sleep(0.3))
        start = time.monotonic()
        with pytest.raises(StoreUnavailable):
            await store.read(lambda core: core.list_views())
        assert time.monotonic() - start < 0.05

    with_store(world.home, scenario, store_timeout_seconds=0.1)


@pytest.mark.parametrize("stored", [0, 2])
def test_a_view_that_is_not_loaded_is_completed_from_memory(world, stored):
    """Between its creation and its load a view holds too few items: memory's are found instead, and the reply says so."""
    view = f"item_loading_{stored}"
    with contextlib.closing(connect(world.home)) as core:
        core.create_view(ViewSchema(view, vector_field="vector", dim=4, key="item_id"))
        if stored:
            write_vectors(core, view, IDS[:stored], AXES[:stored])

    async def scenario(store):
        return await search(store, f"loading_{stored}", AXES[3], 2, {"b"}, InMemory(IDS, AXES))

    found = with_store(world.home, scenario)
    assert found.item_ids[0] == "d"
    assert len(found.item_ids) == 2
    assert [one.reason for one in found.degraded] == [common_pb2.DEGRADED_REASON_RETRIEVAL_FALLBACK]
    assert found.source == ranking_pb2.CANDIDATE_SOURCE_MEMORY


def test_a_model_that_loads_later_does_not_hide_changes_from_the_first(world, tmp_path, monkeypatch):
    """Profiles that changed between the loads of two models reach both of them by the next poll."""
    home, environment = annex(world, tmp_path / "home")
    monkeypatch.setenv("TRIPTYCH_MILVUS_URI", environment["TRIPTYCH_MILVUS_URI"])
    tiny_checkpoint(home.models, "narrow", spaces={"text": world.spaces["text"]}, item_ids=ITEMS)

    async def scenario(store):
        with contextlib.closing(Models(home, store, ServeSettings())) as models:
            before = await models.load("narrow")
            with contextlib.closing(connect(home)) as core:
                row = {"item_id": [ITEMS[0]], "category": ["new"], "price": [7.0], "event_timestamp": stamps(1)}
                core.upsert("item_profile", pa.table(row))
            await models.load("first")
            await models.poll()
            assert models.get("narrow") is not before
            after = models.get("narrow")
            await models.poll()
            assert models.get("narrow") is after  # nothing changed: nothing is built again

    with_store(home, scenario)
