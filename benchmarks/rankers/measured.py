"""The fusion ranker's part of the benchmark: every seed's test, the claims, and the peers that they are held against, user by user.

Settings are chosen with the first seed, on validation; the other seeds reuse them. Intervals are over users, of the mean of all seeds.
"""

import gc
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import Record
from benchmarks.rankers.fusion import (
    COLD,
    DETERMINISTIC,
    NEXT,
    NEXT_IDS,
    VARIATIONAL,
    Known,
    Tell,
    Trained,
    described,
    gains_of_next,
    places_of_sets,
    spaces_of_set,
    tags_of,
    train_cold,
    train_next,
    train_set,
)
from benchmarks.rankers.jobs import Job, Jobs, Outcome, named
from benchmarks.rankers.sequences import LeaveOneOut
from benchmarks.rankers.serving import drops, retrieval
from benchmarks.rankers.sets import Interactions, cold_items
from benchmarks.store.usage import forget_peak, memory
from ranker import full_ranking
from ranker.bootstrap import Difference, Estimate, differences, estimates
from ranker.config import RankerConfig
from ranker.torch_state import give_back

Values = NDArray[np.float64]
K: Final = 20
SET_CLAIMS: Final[Mapping[str, tuple[tuple[str, str, float], ...]]] = {
    "lastfm-2k": (("lastfm_recall20", "recall_20", 0.430), ("lastfm_ndcg20", "ndcg_20", 0.310)),
    "movielens-1m": (("ml1m_recall20", "recall_20", 0.283), ("ml1m_ndcg20", "ndcg_20", 0.420)),
}
COLD_CLAIMS: Final = (
    ("ml1m_cold_recall20", "recall_20", 0.215),
    ("ml1m_cold_ndcg20", "ndcg_20", 0.320),
    ("ml1m_cold_gauc", "gauc", 0.790),
)
NEXT_CLAIMS: Final[Mapping[str, tuple[tuple[str, str, float], ...]]] = {
    "movielens-100k": (("ml100k_loo_ndcg10", "ndcg_10", 0.096),),
    "beauty": (("beauty_hr10", "hr_10", 0.071), ("beauty_ndcg10", "ndcg_10", 0.040)),
    "toys": (),
}
SET_CONFIGS: Final[Mapping[str, Sequence[RankerConfig]]] = {
    "lastfm-2k": (
        VARIATIONAL,
        replace(VARIATIONAL, modality_dropout=0.2),
        replace(VARIATIONAL, fusion="late"),
        DETERMINISTIC,
    ),
    # In half the epochs, and as good on validation (.2237 for .2240): the whole would take more than 25 minutes of one core.
    "movielens-1m": (replace(DETERMINISTIC, max_epochs=100, learning_rate=1e-3, hidden_share=(0.5, 0.5)),),
}
NEXT_CONFIGS: Final[Mapping[str, Sequence[RankerConfig]]] = {
    "movielens-100k": (NEXT,),
    "beauty": (NEXT_IDS,),
    "toys": (NEXT_IDS,),
}


COST: Final = "cost of"


T = TypeVar("T")


class Cost:
    """The longest training of one seed, and the most memory that a process held in one, of the part that is being measured."""

    def __init__(self) -> None:
        self.minutes = self.peak_gb = 0.0

    def add(self, outcomes: Iterable[Outcome]) -> None:
        """Remember what trainings cost."""
        for outcome in outcomes:
            self.minutes = max(self.minutes, outcome.about["minutes"])
            self.peak_gb = max(self.peak_gb, outcome.about["peak_gb"])

    def note(self, name: str, record: Record) -> None:
        """Say what the part cost, and begin anew."""
        if self.minutes:
            record.note(f"{COST} {name}", {"minutes": round(self.minutes, 2), "peak_gb": round(self.peak_gb, 2)})
        self.minutes = self.peak_gb = 0.0


def with_peak(train: Callable[[], T]) -> tuple[T, float]:
    """What `train` returns, and the most memory (GiB) of this process meanwhile; what was held before and is gone does not count."""
    gc.collect()
    give_back()
    forget_peak()
    found = train()
    return found, memory("VmHWM") / 1024**3


def claim_cost(record: Record, before: Mapping[str, Any]) -> None:
    """Claims `train_minutes_max` and `train_peak_gb` over all parts: those of this run, and of the details of earlier ones."""
    costs = [cost for name, cost in {**before, **record.details}.items() if name.startswith(COST)]
    if costs:
        most = {kind: max(cost[kind] for cost in costs) for kind in ("minutes", "peak_gb")}
        record.claim("train_minutes_max", most["minutes"], "min", bar=25.0, better="lower")
        record.claim("train_peak_gb", most["peak_gb"], "GiB", bar=4.0, better="lower")


@dataclass(frozen=True)
class Session:
    """What every measurement of a run shares."""

    seeds: Sequence[int]
    record: Record
    tell: Tell
    jobs: Jobs = field(default_factory=Jobs)
    cost: Cost = field(default_factory=Cost)

    def over_seeds(
        self, what: Sequence[object], configs: Sequence[RankerConfig], job: Callable[[Sequence[RankerConfig], int], Job]
    ) -> tuple[list[Outcome], RankerConfig]:
        """An outcome for each seed, of the settings that the first one chose, and these; `job` trains one seed by the best of some settings."""

        def run(configs: Sequence[RankerConfig], seeds: Sequence[int]) -> list[Outcome]:
            wanted = {named(*what, f"seed {seed}", settings=configs): job(configs, seed) for seed in seeds}
            return self.jobs.run(wanted, self.tell)

        done: list[Outcome] = []
        if len(configs) > 1:
            done = run(configs, self.seeds[:1])
            configs = [configs[done[0].about["config"]]]
        done += run(configs, self.seeds[len(done) :])
        self.cost_of(done)
        return done, configs[0]

    def cost_of(self, outcomes: Sequence[Outcome]) -> None:
        """Remember what trainings cost, on the CPU: the claims are of two cores."""
        if self.jobs.device == "cpu":
            self.cost.add(outcomes)


def _about(trained: Trained, peak_gb: float) -> dict[str, Any]:
    """What is told of every training."""
    return {"run": trained.settings, "minutes": trained.minutes, "peak_gb": peak_gb}


# ---- sets ------------------------------------------------------------------------------------------------------------


def measure_fused_set(split: Interactions, session: Session) -> None:
    """The whole model; where there are several modalities, each alone; and how much the best of those is surpassed."""
    content = spaces_of_set(split)
    known, record = Known("fusion", content, tags_of(split)), session.record
    found, outcomes = _set_seeds(split, known, session)
    if split.name == "lastfm-2k":
        alone = {name: _set_seeds(split, Known(f"{name} alone", {name: content[name]}), session)[0] for name in content}
        best = max(float(one["ndcg_20"].mean()) for one in alone.values())
        record.claim("lastfm_fused_over_best_single", float(found["ndcg_20"].mean()) / best, "x", bar=1.0)
    lost = [one.about["lost"] for one in outcomes]
    means = {name: float(np.mean([one[name] for one in lost])) for name in lost[0]}
    record.note(f"{split.name} lost without", {name: round(value, 4) for name, value in means.items()})
    if split.name == "movielens-1m":
        record.claim("worst_modality_drop", max(means.values()), "of NDCG@20", bar=0.05, better="lower")
    for claim, metric, bar in SET_CLAIMS[split.name]:
        record.claim(claim, float(found[metric].mean()), metric, bar=bar)


def _set_seeds(split: Interactions, known: Known, session: Session) -> tuple[dict[str, Values], list[Outcome]]:
    """Recall@20 and NDCG@20 by user, the mean over seeds, and each seed's outcome."""
    configs: Sequence[RankerConfig] = SET_CONFIGS[split.name]
    configs = [config for config in configs if config.fusion != "late" or len(known.content) > 1]
    outcomes, config = session.over_seeds(
        (split.name, known.what), configs, lambda configs, seed: partial(train_set_seed, split, known, configs, seed)
    )
    return _noted(session.record, f"{split.name} {known.what}", outcomes, config), outcomes


def train_set_seed(
    split: Interactions, known: Known, configs: Sequence[RankerConfig], seed: int, tell: Tell
) -> Outcome:
    """One seed: Recall@20 and NDCG@20 by user of the test, and what is lost without each modality."""
    (config, trained, test), peak_gb = with_peak(lambda: train_set(split, known, configs, seed, tell))
    found = places_of_sets(trained, test)
    gains = {"recall_20": full_ranking.recall(found, K), "ndcg_20": full_ranking.ndcg(found, K)}
    about = {"config": configs.index(config), "lost": drops(trained, test)}
    return Outcome(gains, about | _about(trained, peak_gb))


def measure_fused_cold(split: Interactions, session: Session) -> None:
    """Items that nobody met: with everything, without the image, and by ids alone, which know nothing of them."""
    variants = (
        Known("fusion", spaces_of_set(split), tags_of(split)),
        Known("without image", spaces_of_set(split, without=("image",)), tags_of(split)),
        Known("ids", {}),
    )
    record = session.record
    wanted: dict[str, Job] = {
        named(split.name, "cold", known.what, f"seed {seed}", settings=[COLD]): partial(train_cold_seed, split, known, seed)
        for known in variants
        for seed in session.seeds
    }  # fmt: skip
    outcomes, seeds = session.jobs.run(wanted, session.tell), len(session.seeds)
    session.cost_of(outcomes)
    by_what = {known.what: outcomes[at * seeds : (at + 1) * seeds] for at, known in enumerate(variants)}
    found = {what: _cold_means(f"{split.name} cold {what}", ones, record) for what, ones in by_what.items()}
    for claim, metric, bar in COLD_CLAIMS:
        record.claim(claim, found["fusion"][metric], metric, bar=bar)
    gain = min(found["fusion"][metric] - found["without image"][metric] for _, metric, _ in COLD_CLAIMS)
    record.claim("ml1m_cold_image_gain", gain, "worst metric's gain", bar=0.0)
    record.claim("ml1m_cold_full_over_id", found["fusion"]["ndcg_20"] / found["ids"]["ndcg_20"], "x", bar=3.0)


def train_cold_seed(split: Interactions, known: Known, seed: int, tell: Tell) -> Outcome:
    """One draw of held-out items: Recall@20, NDCG@20 and GAUC among them."""
    everything, held = cold_items(split, seed)
    (trained, test), peak_gb = with_peak(lambda: train_cold(everything, held, known, COLD, seed, tell))
    found = places_of_sets(trained, test, held)
    means = {
        "recall_20": float(full_ranking.recall(found, K).mean()),
        "ndcg_20": float(full_ranking.ndcg(found, K).mean()),
        "gauc": float(full_ranking.gauc(found)),
    }
    return Outcome({}, {"means": means} | _about(trained, peak_gb))


def _cold_means(name: str, outcomes: Sequence[Outcome], record: Record) -> dict[str, float]:
    """The mean over the draws."""
    by_seed = [one.about["means"] for one in outcomes]
    means = {metric: float(np.mean([one[metric] for one in by_seed])) for metric in by_seed[0]}
    about = {
        "by_seed": [{metric: round(value, 4) for metric, value in one.items()} for one in by_seed],
        "settings": described(COLD),
        "runs": [one.about["run"] for one in outcomes],
    }
    record.note(name, {**{metric: round(value, 4) for metric, value in means.items()}, **about})
    return means


# ---- what comes next -------------------------------------------------------------------------------------------------


def measure_fused_next(
    name: str, split: LeaveOneOut, known: Known, sasrec: Mapping[str, Values], session: Session
) -> None:
    """The whole model against SASRec of the same run: `sasrec` has its metrics by user, the mean over seeds."""
    outcomes, config = session.over_seeds(
        (name, known.what),
        NEXT_CONFIGS[name],
        lambda configs, seed: partial(train_next_seed, split, known, configs, seed),
    )
    found = _noted(session.record, f"{name} {known.what}", outcomes, config)
    for claim, metric, bar in NEXT_CLAIMS[name]:
        session.record.claim(claim, float(found[metric].mean()), metric, bar=bar)
    _against_sasrec(name, found, sasrec, session.record)
    _retrieved(name, [one.about["retrieval"] for one in outcomes], session.record)


def train_next_seed(
    split: LeaveOneOut, known: Known, configs: Sequence[RankerConfig], seed: int, tell: Tell
) -> Outcome:
    """One seed: HR@10 and NDCG@10 by user of the test, and how well its fused vectors retrieve."""
    (config, trained), peak_gb = with_peak(lambda: train_next(split, known, configs, seed, tell))
    gains = gains_of_next(trained)
    about = {"config": configs.index(config), "retrieval": retrieval(trained.fitted)}
    return Outcome(gains, about | _about(trained, peak_gb))


def _retrieved(name: str, found: Sequence[Mapping[str, float]], record: Record) -> None:
    """The mean over seeds."""
    means = {metric: float(np.mean([one[metric] for one in found])) for metric in found[0]}
    record.note(f"{name} retrieval", {metric: round(value, 4) for metric, value in means.items()})
    if name == "movielens-100k":
        peer = means["recall_500_of_popularity"]
        record.claim("retrieve_recall500", means["recall_500"], "recall_500, popularity's the bar", bar=round(peer, 4))
        record.claim("two_stage_over_full", means["two_stage_over_full"], "x", bar=0.97)


def _against_sasrec(name: str, found: Mapping[str, Values], sasrec: Mapping[str, Values], record: Record) -> None:
    compared = {
        metric: differences({"fusion": found[metric], "sasrec": sasrec[metric]}, "fusion")["sasrec"] for metric in found
    }
    record.note(f"{name} fusion less sasrec", {metric: _rounded(one) for metric, one in compared.items()})
    if name == "movielens-100k":
        record.claim("ml100k_loo_ndcg10_sasrec", float(sasrec["ndcg_10"].mean()), "ndcg_10", bar=0.0894)
        record.claim("ml100k_loo_diff_lower", compared["ndcg_10"].low, "ndcg_10", bar=-0.003)
    if name == "beauty":
        worse = compared["ndcg_10"].mean <= 0
        record.claim("beauty_p_vs_sasrec", 1.0 if worse else compared["ndcg_10"].p, "p", bar=0.05, better="lower")


# ---- shared ----------------------------------------------------------------------------------------------------------


def _noted(record: Record, name: str, outcomes: Sequence[Outcome], config: RankerConfig) -> dict[str, Values]:
    """Means over seeds by user; the record gets their mean and interval, each seed's mean, and the settings."""
    gains = [one.gains for one in outcomes]
    means = {metric: np.mean([one[metric] for one in gains], axis=0) for metric in gains[0]}
    record.note(
        name,
        {
            **{metric: round(float(values.mean()), 4) for metric, values in means.items()},
            "intervals": {metric: _rounded(one) for metric, one in estimates(means).items()},
            "by_seed": [{metric: round(float(values.mean()), 4) for metric, values in one.items()} for one in gains],
            "settings": described(config),
            "runs": [one.about["run"] for one in outcomes],
        },
    )
    return means


def _rounded(found: Estimate | Difference) -> dict[str, float]:
    return {name: round(float(value), 5) for name, value in asdict(found).items()}
