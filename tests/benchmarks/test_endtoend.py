"""What the end-to-end benchmark claims: only numbers with a target of the whole or a peer in the same run."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.common import Record
from benchmarks.endtoend import (
    BARE,
    RANK_CALLS,
    RANK_WARM_UP_CALLS,
    claim_quality,
    claim_stages,
    median_ms,
    record_batches,
)
from encoders.profiles import load_profile
from triptych.demo.catalogue import make_catalogue
from triptych.demo.run import Shop
from triptych.demo.truth import make_world


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    catalogue = make_catalogue(7, count=120, end=datetime(2026, 6, 1, tzinfo=UTC))
    return Shop(catalogue, make_world(catalogue, 7, users=20), Path(tmp_path_factory.mktemp("shop")))


def test_stages_are_held_to_the_whole_demos_time(shop: Shop):
    """The demo's seconds are claimed; the rates of stages are details."""
    record = Record()
    claim_stages({"ingest": 10.0, "users": 5.0, "materialize": 7.0, "train": 2.0}, shop, record)
    assert [(c.name, c.value, c.bar) for c in record.claims] == [("demo_seconds", 24.0, 240.0)]
    assert record.details["ingest_items_per_second"] == 12.0
    assert record.details["users_built_per_second"] == 4.0
    assert record.details["materialize_entities_per_second"] == 20.0


def test_shuffled_content_may_keep_a_third_of_the_lift():
    """Half of what can be known is the bar, and a third of what was learned for shuffled content."""
    record = Record()
    metrics = {"ndcg_at_10": 0.4, "ndcg_at_10_popularity": 0.1, "ndcg_at_10_oracle": 0.6}
    claim_quality({**metrics, "ndcg_at_10_shuffled_content": 0.3}, record)
    learned, shuffled = record.claims
    assert (learned.value, learned.bar, learned.holds) == (0.6, 0.5, True)
    assert (shuffled.value, shuffled.bar, shuffled.holds) == (0.4, 0.2, False)


def test_calls_to_compare_are_taken_in_turn():
    """Each call meets the same users, in turn with the others, and each has its own median."""
    seen: list[tuple[str, str]] = []
    medians = median_ms(["a", "b"], lambda u: seen.append(("empty", u)), lambda u: seen.append(("rank", u)))
    assert seen[:4] == [("empty", "a"), ("rank", "a"), ("empty", "b"), ("rank", "b")]
    assert len(seen) == 2 * (RANK_CALLS + RANK_WARM_UP_CALLS)
    assert len(medians) == 2
    assert min(medians) > 0


@pytest.mark.parametrize("modality", ["text", "image", "audio"])
def test_the_bare_model_does_all_the_work_that_the_encoder_does(modality: str):
    """Every item is in the recorded batches, each of which the model alone forwards as many rows of."""
    encoder = load_profile("bundled").by_modality(modality)
    items = {
        "text": ["a", "red bird", "a"],
        "image": [Image.new("RGB", (30, 20))] * 3,
        "audio": [np.ones(4000, np.float32)] * 3,
    }
    for _ in range(2):  # loading the model is no part of the work
        batches = record_batches(encoder, lambda: encoder.encode(items[modality]))
        with torch.inference_mode():
            outputs = [BARE[modality](encoder, batch) for batch in batches]
        rows = [len(getattr(output, "last_hidden_state", output)) for output in outputs]
        assert sum(rows) == 3
    assert "launch" not in vars(encoder)
