"""What users ask on is learned."""

from dataclasses import replace

import numpy as np
import pytest

from feature_store.history import Events
from ranker.scorer import Context, Ranker, UserState
from ranker.train import train
from tests.ranker.newcomers import auc
from tests.ranker.sets import SMALL, training_set

KINDS, ITEMS, USERS, EVENTS = 4, 60, 120, 12


@pytest.fixture(scope="module")
def ts():
    """Users without any taste of their own: on a phone all choose items of kinds 0 and 1, on a desktop of kinds 2 and 3."""
    rng = np.random.default_rng(0)
    phone = rng.random((USERS, EVENTS)) < 0.5
    kind = rng.integers(0, 2, (USERS, EVENTS)) + np.where(phone, 0, 2)
    chosen = (rng.integers(0, ITEMS // KINDS, kind.shape) * KINDS + kind).tolist()
    made = training_set(rng, chosen, ITEMS, KINDS)
    devices = ["phone" if on else "desktop" for on in phone.flatten().tolist()]
    return replace(made, labels=replace(made.labels, devices=devices))


LONG = replace(SMALL, max_epochs=40, patience=40, learning_rate=1e-2)
SINGLE = replace(SMALL, batch_users=0, batch_size=64, attention=True, max_epochs=10, patience=10, learning_rate=1e-2)


@pytest.mark.parametrize("config", [LONG, SINGLE], ids=["whole histories", "single labels"])
def test_what_a_device_decides_is_learned(ts, tmp_path, config):
    """Training reads each label's device: asked for on a phone, what is liked on phones comes first; and the other way round."""
    result = train(ts, config, tmp_path, "devices")
    assert result.metrics["scorers"]["ranker"]["all"]["auc"] > 0.65  # the test's labels are asked for on their devices
    ranker = Ranker.load(result.folder)
    assert ranker.vocabulary.devices == ("desktop", "phone")
    tokens = ranker.item_tokens(ts.items.batch(np.arange(ITEMS)))
    nobody, on_phones = UserState(Events(), ranker.no_items()), np.arange(ITEMS) % KINDS < 2
    scores = {
        device: ranker.score(nobody, tokens, range(ITEMS), Context(20_000_000, device)).scores
        for device in ("phone", "desktop", "fridge", "")
    }
    assert auc(on_phones, scores["phone"]) > 0.9
    assert auc(on_phones, scores["desktop"]) < 0.1
    assert (scores["fridge"] == scores[""]).all()
