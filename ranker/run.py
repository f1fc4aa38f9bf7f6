"""What one training works with, and the losses of single labels, each a choice among the items that were there and new to its user.

What replies showed has a loss of its own beside them (`exposure` says which those are).
`steps` has the losses over whole histories, `loop` the epochs.
"""

# Shapes are part of names: B labels of a batch, C candidates, R item versions, G groups of features.
# ruff: noqa: N803, N806, N815

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own idiom
from numpy.typing import NDArray
from torch import Tensor

from ranker.config import RankerConfig
from ranker.data import Ints, Labels, Split, TrainingSet
from ranker.examples import Examples, examples_at
from ranker.exposure import Impressions, position_bucket, weights
from ranker.fit import ratings
from ranker.inputs import ItemInputs, Items, Vocabulary, tensor_of
from ranker.model import MASKED, FusionRanker, Scored, User
from ranker.popularity import Popularity
from ranker.scorer import context_features, encode_items, project_profile


@dataclass(frozen=True)
class Candidates:
    """What a batch's labels are compared with: item rows [C], who may be compared with what [B, C], and where the liked one is."""

    rows: Ints
    allowed_BC: Tensor
    target_B: Tensor


@dataclass
class Run:
    """All that one training works with."""

    ts: TrainingSet
    split: Split
    config: RankerConfig
    model: FusionRanker
    vocabulary: Vocabulary
    inputs: ItemInputs
    popularity: Popularity
    profiles_UK: Tensor
    profile_of: dict[str, int]
    rng: np.random.Generator
    exposures: tuple[Impressions, Examples] | None = None  # what replies showed, and to whom
    position_of_row: Ints = field(init=False)

    def __post_init__(self) -> None:
        self.position_of_row = np.zeros(len(self.ts.items), np.int64)

    @cached_property
    def label_counts(self) -> Ints:
        """Training's positive labels of each item row [R]."""
        liked = self.split.train.item_row[self.split.train.positive(self.config)]
        return np.bincount(liked, minlength=len(self.ts.items))

    def encoded(self, rows: Ints, *, without_ids: bool = False) -> Items:
        """Items of `rows`; in training each loses some of its features."""
        inputs = self.inputs.take(tensor_of(rows))
        return self.model.items(self._kept(inputs, without_ids=without_ids))

    def encoded_twice(self, rows: Ints) -> tuple[Items, Items]:
        """The same with and without ids, at little more than the cost of one."""
        inputs = self.inputs.take(tensor_of(rows))
        slots_NSD = self.model.slots(inputs)
        with_ids, without = (self._kept(inputs, without_ids=cold) for cold in (False, True))
        return self.model.items(with_ids, slots_NSD), self.model.items(without, slots_NSD)

    def _kept(self, inputs: ItemInputs, *, without_ids: bool) -> ItemInputs:
        if not (self.model.training or without_ids):
            return inputs
        kept_NG = self._kept_groups(len(inputs), without_ids=without_ids)
        if not without_ids:
            kept_NG[:, -2] |= inputs.bare()  # without its id nothing would be left to learn from
        return inputs.keep(kept_NG)

    def _kept_groups(self, n: int, *, without_ids: bool) -> Tensor:
        """Dropout of whole groups of features [n, G]: modalities, id, other. Where ids are left out, not all the others are."""
        config = self.config
        chance = [config.modality_dropout] * len(self.ts.spaces) + [config.id_dropout, config.modality_dropout]
        kept = self.rng.random((n, len(chance))) >= np.asarray(chance)
        kept[:, -2] &= not without_ids
        content = [at for at in range(len(chance)) if at != len(chance) - 2]
        if without_ids:
            kept[~kept[:, content].any(1)] = True
            kept[:, -2] = False
        return tensor_of(kept)


def start(ts: TrainingSet, split: Split, model: FusionRanker, vocabulary: Vocabulary, seed: int) -> Run:
    """Encode what does not change in training."""
    space_ids = {modality: space.space_id for modality, space in ts.spaces.items()}
    batch = ts.items.batch(np.arange(len(ts.items)))
    inputs = encode_items(model, space_ids, batch, vocabulary)
    users = sorted(ts.profiles) if "text" in ts.spaces else []
    profiles_UK = torch.zeros(len(users) + 1, model.config.space_dim)  # the last row is that of users without a profile
    if users:
        profiles_UK[:-1] = project_profile(model, tensor_of(np.stack([ts.profiles[u].vector for u in users])))
    profile_of = {user: i for i, user in enumerate(users)}
    rng = np.random.default_rng(seed)
    popularity = count_popularity(ts, split, model.config)
    exposures = _exposures(ts, split, model, vocabulary) if model.config.exposure_weight else None
    return Run(ts, split, model.config, model, vocabulary, inputs, popularity, profiles_UK, profile_of, rng, exposures)


def _exposures(
    ts: TrainingSet, split: Split, model: FusionRanker, vocabulary: Vocabulary
) -> tuple[Impressions, Examples] | None:
    impressions = Impressions.of(split.train, model.config)
    if not len(impressions):
        return None
    return impressions, examples_at(ts, split.train, impressions.label, model, vocabulary)


def count_popularity(ts: TrainingSet, split: Split, config: RankerConfig) -> Popularity:
    """Likes over time: of all events where the split is by time (what comes later is not counted), else of training's labels alone."""
    if split.by_time:
        return Popularity.of(ts, config)
    liked = split.train.take(np.flatnonzero(split.train.positive(config)))
    return Popularity(ts.items.item_R[liked.item_row], liked.timestamps_us, ts.items.released_I)


# ---- the loss of single labels ------------------------------------------------------------------------------------------


def label_loss(run: Run, examples: Examples, at: Ints) -> Tensor:
    """Softmax over candidates for the full score and for the tower alone, and the squared error of standardised ratings."""
    candidates = choose_candidates(run, examples, at)
    times_B = examples.labels.timestamps_us[at]
    popularity_BC = tensor_of(run.popularity.log_share(run.ts.items.item_R[candidates.rows], times_B))
    scored, user, items = forward(run, examples, at, candidates.rows, popularity_BC)
    propensities = examples.labels.propensities
    weight_B = None if propensities is None else weights(propensities[at])
    loss = _choice_loss(scored.score_BC, candidates, weight_B)
    loss = loss + run.config.tower_weight * _choice_loss(scored.tower_BC, candidates, weight_B)
    if run.exposures is not None:
        loss = loss + run.config.exposure_weight * shown_loss(run, *run.exposures)
    return loss + run.config.rating_weight * _rating_loss(run, examples, at, user, items, candidates, weight_B)


def shown_loss(run: Run, impressions: Impressions, examples: Examples) -> Tensor:
    """Binary cross-entropy of whether each shown item was liked, given its score and a bias by its position; of some replies."""
    at = run.rng.choice(len(impressions), min(len(impressions), run.config.batch_size), replace=False)
    reply_S, number_S = impressions.shown(at)
    rows, column_S = np.unique(impressions.row[number_S], return_inverse=True)
    popularity = run.popularity.log_share(run.ts.items.item_R[rows], examples.labels.timestamps_us[at])
    scored, _, _ = forward(run, examples, at, rows, tensor_of(popularity))
    bias_S = run.model.gates.position[tensor_of(position_bucket(impressions.position[number_S]))]
    logit_S = scored.score_BC[tensor_of(reply_S), tensor_of(column_S)] + bias_S
    return F.binary_cross_entropy_with_logits(logit_S, tensor_of(impressions.clicked[number_S]).to(logit_S.dtype))


def _choice_loss(score_BC: Tensor, candidates: Candidates, weight_B: NDArray[np.float32] | None) -> Tensor:
    return weighed_choice(score_BC.masked_fill(~candidates.allowed_BC, MASKED), candidates.target_B, weight_B)


def weighed_choice(
    score_BC: Tensor, target_B: Tensor, weight_B: NDArray[np.float32] | None, smoothing: float = 0.0
) -> Tensor:
    """Mean cross-entropy of the choices, each weighed (`exposure.weights`); smoothing is over what may be chosen, not over what is masked."""
    if smoothing and not (allowed_BC := score_BC > MASKED / 2).all():
        log_chance_BC = score_BC.log_softmax(1).masked_fill(~allowed_BC, 0.0)
        even_B = log_chance_BC.sum(1) / allowed_BC.sum(1)
        loss_B = (1.0 - smoothing) * F.cross_entropy(score_BC, target_B, reduction="none") - smoothing * even_B
    else:
        loss_B = F.cross_entropy(score_BC, target_B, label_smoothing=smoothing, reduction="none")
    return (loss_B if weight_B is None else loss_B * tensor_of(weight_B)).mean()


def _rating_loss(
    run: Run,
    examples: Examples,
    at: Ints,
    user: User,
    items: Items,
    candidates: Candidates,
    weight_B: NDArray[np.float32] | None,
) -> Tensor:
    rated_B = tensor_of(ratings(examples.labels.take(at)).astype(np.float32))
    known_B = rated_B.isfinite()
    if not known_B.any():
        return torch.zeros(())
    predicted_B = run.model.rating(user, items).gather(1, candidates.target_B[:, None])[:, 0]
    squared_B = F.mse_loss(predicted_B[known_B], rated_B[known_B], reduction="none")
    weighed_B = squared_B if weight_B is None else squared_B * tensor_of(weight_B)[known_B]
    return weighed_B.mean() / run.model.rating_stats[1] ** 2


def forward(
    run: Run, examples: Examples, at: Ints, rows: Ints, popularity_BC: Tensor | None
) -> tuple[Scored, User, Items]:
    """Encode each item that the batch touches once, then users, then scores of `rows`."""
    history_rows = examples.row_nL[at]
    touched, where = np.unique(np.concatenate([rows, history_rows[history_rows >= 0]]), return_inverse=True)
    run.position_of_row[touched] = np.arange(len(touched))
    encoded = run.encoded(touched)
    history = examples.history(at, encoded, run.position_of_row)
    labels = examples.labels
    context_BX = context_features(labels.timestamps_us[at])
    user = run.model.user(history, context_BX, _profiles(run, labels, at), device_B=examples.device_n[at])
    items = encoded.take(tensor_of(where[: len(rows)]))
    return run.model.score(user, items, popularity_BC), user, items


def _profiles(run: Run, labels: Labels, at: Ints) -> Tensor | None:
    """Projected profiles [B, K] of the labels' users, 0 where none was written before the label; None where nobody has one."""
    none = len(run.profiles_UK) - 1
    if not none:
        return None
    known = [run.ts.profile(labels.users[i], int(labels.timestamps_us[i])) is not None for i in at]
    rows = [run.profile_of[labels.users[i]] if there else none for i, there in zip(at, known, strict=True)]
    return run.profiles_UK[rows]


def choose_candidates(run: Run, examples: Examples, at: Ints) -> Candidates:
    """All items that were there at a label and new to its user; of a large catalogue, a sample that the batch shares.

    The liked items of other labels are no negatives where the catalogue is sampled: being in the batch they are popular, and
    would be punished for it.
    """
    items, times_B = run.ts.items, examples.labels.timestamps_us[at]
    target_rows = examples.labels.item_row[at]
    pool = np.flatnonzero((items.valid_from_R < times_B.max()) & (times_B.min() <= items.valid_to_R))
    if len(pool) > run.config.max_candidates:
        pool = np.sort(run.rng.choice(pool, run.config.max_candidates, replace=False))
    rows = np.union1d(pool, target_rows)
    target_B = np.searchsorted(rows, target_rows)
    allowed = allowed_candidates(run.ts, examples, at, rows) & np.isin(rows, pool)
    allowed[np.arange(len(at)), target_B] = True
    return Candidates(rows, tensor_of(allowed), tensor_of(target_B))


def allowed_candidates(ts: TrainingSet, examples: Examples, at: Ints, rows: Ints) -> NDArray[np.bool_]:
    """Which of `rows` were valid at each label and new to its user, bool [B, C]."""
    items, times_B1 = ts.items, examples.labels.timestamps_us[at][:, None]
    valid_BC = (items.valid_from_R[rows] < times_B1) & (times_B1 <= items.valid_to_R[rows])
    return np.asarray(valid_BC & ~examples.seen_mask(at, items.item_R[rows], len(items.names)))
