"""The prior's settings and its weight beside the network, chosen on validation.

Weights are fitted on training's events alone. They come in closed form, so that several settings cost seconds; of the content, each modality
and the tags are tried for the regression's Gram matrix. The weight of the prior is counted in spreads of the network's scores, the knee at which its
scores are bent (ordered histories only) in spreads of its own.
"""

# Shapes are part of names: T tasks (labels or users), I items of the vocabulary, R item versions.
# ruff: noqa: N803, N806

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ranker.collaborative import MAX_EASE_ITEMS, EaseConfig, SvdConfig, centred, fit_ease, fit_svd
from ranker.data import NO_ROW, Ints, Labels
from ranker.errors import TrainingSetError
from ranker.folds import histories
from ranker.inputs import tensor_of
from ranker.loop import Fitted
from ranker.prior import LINEAR, Prior, bent
from ranker.run import Run
from ranker.scoring import Scoring
from ranker.torch_state import give_back

LARGE: Final = 5_000  # items from which on a fit takes minutes, and one setting has to do
MOST: Final = MAX_EASE_ITEMS  # a larger catalogue goes without a prior
MOST_LABELS: Final = 4_000
NEIGHBOURS: Final = 1_024
RANKS: Final = (8, 16, 32, 64, 128)
SETTINGS: Final = [
    EaseConfig(l2, dropout, 0.5) for l2, dropout in product((50.0, 100.0, 200.0, 300.0, 500.0), (0.0, 0.2, 0.5))
]
SETTINGS_LARGE: Final = [EaseConfig(50.0, 0.2, 0.5)]
CONTENT_WEIGHTS: Final = (20.0, 50.0, 100.0)
TOGETHER: Final = " + "
DECAYS: Final = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5)
KNEES: Final = (10.0, 3.0, 1.0)
PAST: Final = 3  # shares beyond a knee's best that are tried
SHARES: Final = (0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.5, 5.0, 10.0)
Floats = NDArray[np.float32]
Settings = EaseConfig | SvdConfig


@dataclass(frozen=True)
class Mix:
    """What was chosen: the settings of the regression or of the factors, which content is in it (`""`: none), how histories fade, and how much the prior counts.

    `knee` is from where on its scores are bent (`prior.bent`; None: nowhere), and `slope` the line nearest to the bend (least squares): retrieval, which cannot bend, counts the prior by so much.
    `alone` and `mixed` are NDCG on validation, of the prior by itself and of the sum.
    """

    settings: Settings
    source: str
    decay: float
    share: float
    alone: float
    mixed: float
    knee: float | None = None
    slope: float = 1.0

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form."""
        return asdict(self)


def mix_prior(fitted: Fitted, tell: Callable[[str], None] = lambda _: None) -> Mix | None:
    """Choose a prior for a fitted model and set it; None for catalogues that are too large for it, which is an error where there is nothing else."""
    if (items := len(fitted.vocabulary.items)) > MOST:
        if fitted.run.config.network:
            return None
        raise TrainingSetError(
            f"{items:,} items are more than the {MOST:,} that ease and svd keep weights between: train the fusion ranker, or leave items out"
        )
    scoring = Scoring.of(fitted.run, _some(fitted.run))
    chosen, scores_TR = choose(fitted, scoring, tell)
    if not fitted.run.config.network:
        set_prior(fitted, chosen, 1.0)
        return replace(chosen, share=1.0, mixed=chosen.alone)
    mix, scale = _weighed(scoring, chosen, tensor_of(scores_TR))
    del scores_TR
    set_prior(fitted, mix, scale)
    return mix


def _weighed(scoring: Scoring, chosen: Mix, scores_TR: Tensor) -> tuple[Mix, float]:
    """The bend and the share of the prior that are best beside the network, and the scale that the share comes to."""
    network, spread = list(scoring.scores()), _spread(scores_TR)
    network_spread = float(torch.cat([score_BR.std(1) for _, score_BR in network]).mean())
    knees = () if scoring.run.config.history == "set" else KNEES
    best, best_scale = replace(chosen, mixed=scoring.ndcg_of(network)), 0.0
    for knee in (None, *(spreads * spread for spreads in knees)):
        bent_TR = scores_TR if knee is None else bent(scores_TR, knee)
        scale = network_spread / _spread(bent_TR)
        slope = float((bent_TR * scores_TR).sum() / scores_TR.square().sum().clamp_min(1e-9))
        values: list[float] = []
        for share in SHARES:
            mixed = ((at, score_BR + share * scale * bent_TR[tensor_of(at)]) for at, score_BR in network)
            values.append(scoring.ndcg_of(mixed))
            if values[-1] > best.mixed:
                best, best_scale = replace(chosen, share=share, mixed=values[-1], knee=knee, slope=slope), share * scale
            if knee is not None and len(values) > PAST and max(values[-PAST:]) < max(values):
                break
    return best, best_scale


def _spread(scores_TR: Tensor) -> float:
    return max(float(scores_TR.std(1).mean()), 1e-9)


def _some(run: Run) -> Labels:
    """Validation; of many labels that are ranked one by one, evenly chosen ones, since every setting ranks them anew."""
    labels = run.split.validation
    if run.config.history == "set" or len(labels) <= MOST_LABELS:
        return labels
    return labels.take(np.linspace(0, len(labels) - 1, MOST_LABELS).round().astype(np.int64))


def set_prior(fitted: Fitted, mix: Mix, scale: float) -> None:
    """Fit the prior of `mix` on the model's training events, and store it in the model."""
    run, model = fitted.run, fitted.model
    weights, items = _weights(run, mix.settings, mix.source), _index(run)
    prior = Prior.of(weights, items, len(fitted.vocabulary.items), NEIGHBOURS)
    prior.scale.fill_(scale)
    prior.decay.fill_(mix.decay)
    prior.knee.fill_(LINEAR if mix.knee is None else mix.knee)
    prior.item_IR.mul_(mix.slope)
    model.prior, model.shapes = prior, replace(model.shapes, prior=prior.neighbours, prior_rank=prior.rank)


def choose(fitted: Fitted, scoring: Scoring, tell: Callable[[str], None]) -> tuple[Mix, Floats]:
    """The best prior by itself, and its scores [T, R]."""
    run = fitted.run
    best, found = Mix(EaseConfig(), "", 0.0, 0.0, -1.0, -1.0), np.zeros((0, 0), np.float32)
    decays = (0.0,) if run.config.history == "set" else DECAYS
    events = {decay: scoring.events(decay) for decay in decays}
    for stage in (_plain_settings, _content_settings):
        for config, source in stage(run, best):
            weights = expand(_weights(run, config, source), _index(run), run)
            for decay, events_TR in events.items():
                scores_TR = np.asarray(events_TR @ weights, np.float32)
                value = scoring.ndcg_of(_batches(scores_TR))
                if value > best.alone:
                    best, found = Mix(config, source, decay, 0.0, value, -1.0), scores_TR
            tell(f"prior {config} {source}: NDCG {best.alone:.4f}")
    return best, found


def _plain_settings(run: Run, _: Mix) -> list[tuple[Settings, str]]:
    """What is tried first: no content."""
    items = len(run.vocabulary.items)
    if run.config.prior == "svd":
        users = histories(run)[1].shape[0]
        ranks = [rank for rank in RANKS if rank < min(items, users)]
        if not ranks:
            raise TrainingSetError(
                f"svd needs more than {RANKS[0]} items and users with likes, and there are {items} and {users}: load more, or train `ease`"
            )
        return [(SvdConfig(rank), "") for rank in ranks]
    return [(config, "") for config in (SETTINGS_LARGE if items > LARGE else SETTINGS)]


def _content_settings(run: Run, best: Mix) -> list[tuple[Settings, str]]:
    """The best of those with content in the regression, which large catalogues have no time for."""
    ease = best.settings
    if not isinstance(ease, EaseConfig) or len(run.vocabulary.items) > LARGE:
        return []
    return [(replace(ease, content=weight), source) for source in _sources(run) for weight in CONTENT_WEIGHTS]


def expand(weights: Floats, index: Ints, run: Run) -> Floats:
    """Weights [I, I] of the vocabulary's items as those of item versions [R, R]; rows of unknown items are 0."""
    place = np.full(len(run.vocabulary.items) + 1, -1)
    place[index] = np.arange(len(index))
    at = place[run.inputs.index_N.cpu().numpy()]
    if len(at) == len(index) and (at == np.arange(len(index))).all():
        return weights
    wide = np.zeros((len(at), len(at)), np.float32)
    known = np.flatnonzero(at >= 0)
    wide[np.ix_(known, known)] = weights[np.ix_(at[known], at[known])]
    return wide


def _index(run: Run) -> Ints:
    """Indices in the vocabulary, of the items that the regression is over: all of them."""
    return np.arange(1, len(run.vocabulary.items) + 1)


def _weights(run: Run, config: Settings, source: str) -> Floats:
    if isinstance(config, SvdConfig):
        factors = fit_svd(histories(run)[1], config.rank)
        weights = factors @ factors.T
        np.fill_diagonal(weights, 0.0)
        return weights
    give_back()  # matrices of items x items are to lie where training lay
    return fit_ease(histories(run)[1], config, _content(run, source) if source else None)


def _sources(run: Run) -> list[str]:
    """Each modality, the tags, and where there are several, all together."""
    single = [*run.ts.spaces, *(["tags"] if run.vocabulary.tags else [])]
    return [*single, *([TOGETHER.join(single)] if len(single) > 1 else [])]


def _content(run: Run, source: str) -> Floats:
    """Content [I, d] of the vocabulary's items, in their last version before training ended; 0 where there is none.

    Of several sources, each about its mean and of unit length.
    """
    if TOGETHER in source:
        return np.concatenate([centred(_content(run, one)) for one in source.split(TOGETHER)], axis=1)
    began = run.ts.items.valid_from_R
    known = np.flatnonzero(began < run.split.train_end_us)
    known = known[np.argsort(began[known], kind="stable")]
    last = np.full(len(run.vocabulary.items) + 1, NO_ROW)
    last[run.inputs.index_N.cpu().numpy()[known]] = known
    rows = last[1:]
    there = (rows != NO_ROW).astype(np.float32)[:, None]
    if source != "tags":
        space_id = run.ts.spaces[source].space_id
        vectors, present = run.ts.items.vectors[space_id], run.ts.items.present[space_id]
        return np.asarray(vectors[rows] * present[rows, None] * there, np.float32)
    tags, weights = run.inputs.tag_NT[rows].cpu().numpy(), run.inputs.tag_weight_NT[rows].cpu().numpy()
    found = np.zeros((len(rows), len(run.vocabulary.tags) + 1), np.float32)
    np.add.at(found, (np.arange(len(rows))[:, None], tags), weights)
    return np.asarray(found[:, 1:] * there, np.float32)


def _batches(scores_TR: Floats, size: int = 512) -> Iterator[tuple[Ints, Tensor]]:
    for first in range(0, len(scores_TR), size):
        at = np.arange(first, min(first + size, len(scores_TR)))
        yield at, tensor_of(scores_TR[at])
