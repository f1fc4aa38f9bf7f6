import contextlib

import numpy as np
import pytest

from feature_store.connection import connect
from ranker import checkpoint
from ranker.data import TrainingSet
from ranker.train import train
from tests.ranker.newcomers import SETTINGS, alike, auc, newcomers, tastes
from tests.serving.world import annex, new_client, running, write_vectors
from triptych.client import make_event


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    return tastes(tmp_path_factory.mktemp("planted") / "ts")


@pytest.fixture(scope="module")
def ts(truth):
    return TrainingSet.load(truth.folder)


@pytest.fixture(scope="module")
def home(world, ts, truth, tmp_path_factory):
    """A home whose stable model was trained on planted tastes, its items in Milvus; and what a process of it needs to know."""
    home, environment = annex(world, tmp_path_factory.mktemp("unseen") / "home")
    train(ts, SETTINGS, home.models, "planted")
    checkpoint.promote(home, "planted")
    batch = ts.items.batch(np.arange(len(ts.items)))
    with contextlib.closing(connect(world.home)) as core:
        for space_id, there in batch.present.items():
            ids = [batch.item_ids[row] for row in np.flatnonzero(there)]
            write_vectors(core, f"item_{space_id}", ids, batch.vectors[space_id][there])
    return home, environment


def test_the_service_ranks_for_a_new_user_and_new_items_without_retraining(world, home, ts, truth):
    """One recorded click orders known items by likeness, and items that were stored after the server's start, each with one modality."""
    root, environment = home
    with running(root, "unseen", **environment) as server, new_client(server) as client:
        clicked, others = "i7", [name for name in ts.items.names if name != "i7"]
        likeness = alike(truth, clicked, others)
        assert client.record_events([make_event(clicked, "click", user_id="newcomer")]).recorded == 1
        known = client.rank("newcomer", others, explain=False)
        good = np.asarray([likeness[others.index(item_id)] > 0 for item_id in known.item_ids])
        assert known.history_events == 1
        assert auc(good, known.scores) > 0.8
        for modality in ("text", "image", "audio"):
            batch, kinds = newcomers(ts, truth, modality)
            [vectors] = batch.vectors.values()
            with contextlib.closing(connect(world.home)) as core:
                write_vectors(core, f"item_{truth.spaces[modality].space_id}", batch.item_ids, vectors)
            ranked = client.rank("newcomer", batch.item_ids, explain=False)
            of = dict(zip(batch.item_ids, kinds == truth.kinds[modality][7], strict=True))
            assert auc(np.asarray([of[item_id] for item_id in ranked.item_ids]), ranked.scores) > 0.8
