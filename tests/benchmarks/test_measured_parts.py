"""Every part that is behind a claim is measured on a small set with small models: trainings over seeds, tables, claims, costs."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from benchmarks.common import Record
from benchmarks.rankers import ablations, measured
from benchmarks.rankers.fusion import COLD, DETERMINISTIC, NEXT_IDS, VARIATIONAL, Known
from benchmarks.rankers.measured import Session, measure_fused_cold, measure_fused_next, measure_fused_set
from benchmarks.rankers.sequences import LeaveOneOut, Sequences
from benchmarks.rankers.sets import Interactions, matrix
from ranker import mixing
from ranker.collaborative import EaseConfig

USERS, ITEMS, KINDS = 80, 40, 4
SMALL = {"dim": 8, "set_dim": 8, "content_dim": 8, "space_dim": 4, "batch_users": 40, "max_epochs": 2, "look_epochs": 1}


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(mixing, "SETTINGS", [EaseConfig(10.0, 0.2, 0.5)])
    monkeypatch.setattr(mixing, "CONTENT_WEIGHTS", (20.0,))
    both = (replace(VARIATIONAL, **SMALL), replace(DETERMINISTIC, **SMALL))
    monkeypatch.setattr(measured, "SET_CONFIGS", {"movielens-1m": both, "lastfm-2k": both})
    monkeypatch.setattr(measured, "NEXT_CONFIGS", {"movielens-100k": (replace(NEXT_IDS, **SMALL),)})
    monkeypatch.setattr(ablations, "FACTORS", 8)
    monkeypatch.setattr(measured, "COLD", replace(COLD, **SMALL))


@pytest.fixture
def session():
    return Session(range(2), Record(), lambda _: None)


def claims_of(session):
    return {claim.name: claim.value for claim in session.record.claims}


def split_of(rng, name):
    """Users who meet half of the items of their kind, which vectors and tags tell."""
    kind = rng.integers(0, KINDS, USERS)
    pairs = np.argwhere((rng.random((USERS, ITEMS)) < 0.7) & (np.arange(ITEMS) % KINDS == kind[:, None]))
    part = rng.choice(3, len(pairs), p=[0.6, 0.2, 0.2])
    made = [matrix(pairs[np.isin(part, kept)], (USERS, ITEMS)) for kept in ([0], [1], [0, 1], [2])]
    told = np.eye(KINDS, 6, dtype=np.float32)[np.arange(ITEMS) % KINDS]
    noisy = (told + 0.1 * rng.standard_normal(told.shape)).astype(np.float32)
    return Interactions(name, *made, {"text": noisy, "image": noisy[::-1].copy(), "tags": told})


@pytest.mark.parametrize("name", ["movielens-1m", "lastfm-2k"])
def test_sets(rng, session, name):
    """The first seed chooses, the others follow; one claim a metric, and each modality's loss."""
    measure_fused_set(split_of(rng, name), session)
    details, claims = session.record.details, claims_of(session)
    assert len(details[f"{name} fusion"]["by_seed"]) == 2
    assert set(details[f"{name} lost without"]) == {"text", "image", "tags"}
    expected = {
        "movielens-1m": ("ml1m_ndcg20", "worst_modality_drop"),
        "lastfm-2k": ("lastfm_ndcg20", "lastfm_fused_over_best_single"),
    }
    assert set(expected[name]) < set(claims)
    assert claims[expected[name][0]] == pytest.approx(details[f"{name} fusion"]["ndcg_20"], abs=1e-4)
    assert claims[expected[name][0]] > 0.3  # of a kind's items most are met: chance gives less
    assert session.cost.minutes > 0
    assert session.cost.peak_gb > 0


def test_cold_items(rng, session):
    """Content finds what ids cannot; each draw is told."""
    measure_fused_cold(split_of(rng, "movielens-1m"), session)
    claims = claims_of(session)
    assert claims["ml1m_cold_full_over_id"] > 1
    assert claims["ml1m_cold_gauc"] > 0.6
    for what in ("fusion", "without image", "ids"):
        assert len(session.record.details[f"movielens-1m cold {what}"]["by_seed"]) == 2
    assert session.record.details["movielens-1m cold ids"]["gauc"] == pytest.approx(0.5)


def going_round(rng):
    user, start = np.repeat(np.arange(USERS), 10), rng.integers(ITEMS, size=USERS)
    item = (np.repeat(start, 10) + np.tile(np.arange(10), USERS)) % ITEMS
    names = tuple(f"i{i:02d}" for i in range(ITEMS))
    return LeaveOneOut.of(
        Sequences("movielens-100k", user, item, np.arange(len(user)), np.full(len(user), np.nan), names)
    )


def test_what_comes_next(rng, session):
    """Held against the peer user by user, and behind retrieval."""
    peer = {metric: np.zeros(USERS) for metric in ("hr_10", "ndcg_10")}
    measure_fused_next("movielens-100k", going_round(rng), Known("fusion", {}), peer, session)
    claims = claims_of(session)
    assert claims["ml100k_loo_ndcg10"] > 0.3
    assert 0 < claims["ml100k_loo_diff_lower"] <= claims["ml100k_loo_ndcg10"]
    assert claims["retrieve_recall500"] == 1.0  # there are fewer items
    assert claims["two_stage_over_full"] == pytest.approx(1.0)


@pytest.mark.parametrize("is_ordered", [True, False])
def test_ablations(rng, session, is_ordered):
    """A row for each variant, the whole with the prior too, and no row of gaps where there is no order."""
    if is_ordered:
        config, measure = (
            replace(NEXT_IDS, **SMALL),
            partial(ablations.ablate_next, going_round(rng), replace(NEXT_IDS, **SMALL)),
        )
    else:
        config, measure = (
            replace(VARIATIONAL, **SMALL),
            partial(ablations.ablate_set, split_of(rng, "lastfm-2k"), replace(VARIATIONAL, **SMALL)),
        )
    content = {"text": rng.standard_normal((ITEMS, 4)).astype(np.float32)}
    table = ablations.variants(content, (), ordered=is_ordered)
    ablations.measure_ablations("small", "ndcg_10", table, config, measure, session)
    rows = {name.removeprefix("small ablation ") for name in session.record.details}
    assert rows == {*table, "gate and prior"}
    assert ("no time gaps" in rows) == is_ordered
    assert all(
        0 <= one["low"] <= one["high"] <= 1 and len(one["by_seed"]) == 2 for one in session.record.details.values()
    )
