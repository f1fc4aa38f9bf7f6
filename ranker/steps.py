"""Losses over whole histories: the next item at every place of an ordered history, and the hidden part of a set.

Both compare with every item that was there, by a full softmax; of more items than `full_softmax`, places compare with a sample, corrected by how
likely each was drawn (logQ). In a share of the steps candidates are read without their ids, as if all were new, so that content learns to stand for
them; and a contrastive loss may draw each item's id and content together.
"""

# Shapes are part of names: B users, L events, E events of a batch, S places with a label, C candidates, X experts.
# ruff: noqa: N803, N806, N815

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own idiom
from numpy.typing import NDArray
from torch import Tensor

from ranker.data import Ints
from ranker.exposure import weights
from ranker.inputs import History, Items, tensor_of
from ranker.model import MASKED
from ranker.run import Run, weighed_choice
from ranker.scorer import SECOND_US, context_features
from ranker.sequences import Histories

SAMPLING_POWER = 0.75  # of an item's count, as in word2vec: between uniform and popular
ALIGNED_ITEMS = 512
TEMPERATURE = 0.1


@dataclass(frozen=True)
class Sample:
    """Candidate rows [C], ascending; `log_chance_C` of each to be drawn, -inf for those that are there only as some label's own item."""

    rows: Ints
    log_chance_C: NDArray[np.float32]


def place_loss(run: Run, histories: Histories, at: Ints) -> Tensor:
    """Cross-entropy of the tower at every label of users `at`, each read up to what lies strictly before it."""
    number_BL, there_BL = histories.padded(at)
    user_S, column_S = np.nonzero(histories.label[number_BL] & there_BL)
    number_S = number_BL[user_S, column_S]
    time_S = histories.time_us[number_S]
    sample = choose_rows(run, time_S, histories.row[number_S])
    rows_C = sample.rows
    history, items = _encode(run, histories, number_BL, there_BL, rows_C)
    read_SD = run.model.read(history)[user_S, histories.before[number_S]]
    recency_S, device_S = _recency(histories, number_BL[user_S], number_S), tensor_of(histories.device[number_S])
    vector_SD = run.model.vector(read_SD, context_features(time_S), recency_S, device_S)
    logits_SC = _tower(run, vector_SD, items)
    allowed_SC = _valid(run, rows_C, time_S)
    if allowed_SC is not None:
        logits_SC = logits_SC.masked_fill(~allowed_SC, MASKED)
    target_S = tensor_of(np.searchsorted(rows_C, histories.row[number_S]))
    logits_SC = corrected(logits_SC, sample, target_S)
    weight_S = weights(histories.propensity[number_S])
    return weighed_choice(logits_SC, target_S, weight_S, run.config.label_smoothing)


def set_loss(run: Run, histories: Histories, at: Ints) -> Tensor:
    """Cross-entropy of the items that are hidden from each user's set, given the rest of it, and the reader's divergence; the experts' mean."""
    number_BL, there_BL = histories.padded(at)
    user_E, column_E = np.nonzero(there_BL)
    row_E = histories.row[number_BL[user_E, column_E]]
    low, high = run.config.hidden_share
    trained_C = run.model.id_row[run.inputs.index_N] > 0
    hidden_E = run.rng.random(len(row_E)) < run.rng.uniform(low, high, len(at))[user_E]
    hidden_E &= trained_C.cpu().numpy()[row_E]  # what no label of training is about is no candidate
    rows_C = np.arange(len(run.ts.items))
    items, candidates = _both(run, rows_C)
    mean_XBD, spread_XBD = run.model.read_sets(bag(items.token_ND, row_E[~hidden_E], user_E[~hidden_E], len(at)))
    noise_XBD = torch.randn_like(mean_XBD) * (0.5 * spread_XBD).exp() if run.config.kl_weight else 0.0
    token_XCD = torch.stack(candidates.token_ND.chunk(len(mean_XBD), dim=1))
    logits_XBC = (mean_XBD + noise_XBD) @ token_XCD.transpose(1, 2) + run.model.bias(candidates)
    visible_BC = torch.zeros(logits_XBC.shape[1:], dtype=torch.bool)
    visible_BC[tensor_of(user_E[~hidden_E]), tensor_of(row_E[~hidden_E])] = True
    log_chance_XBC = logits_XBC.masked_fill(visible_BC | ~trained_C, MASKED).log_softmax(2)
    chances_XE = log_chance_XBC[:, tensor_of(user_E[hidden_E]), tensor_of(row_E[hidden_E])]
    per_user = max(1.0, hidden_E.sum() / len(at))
    kl = 0.5 * (mean_XBD.square() + spread_XBD.exp() - 1.0 - spread_XBD).sum(2).mean()
    loss: Tensor = (-chances_XE.sum() / chances_XE.shape[0] / len(at) + run.config.kl_weight * kl) / per_user
    return loss


def bag(token_RD: Tensor, row_E: Ints, user_E: Ints, users: int) -> Tensor:
    """Sum of the tokens [B, D] at `row_E` of each user (`user_E` ascends), by the root of their number."""
    starts = tensor_of(np.searchsorted(user_E, np.arange(users)))
    total_BD = F.embedding_bag(tensor_of(row_E), token_RD, starts, mode="sum")
    count_B = tensor_of(np.bincount(user_E, minlength=users).clip(1)).to(total_BD.dtype)
    return total_BD / count_B.sqrt()[:, None]


def choose_rows(run: Run, times: Ints, targets: Ints) -> Sample:
    """Rows that were valid at some of the times; of too many, each is drawn by its popularity in training, and the targets are added."""
    items, most = run.ts.items, run.config.full_softmax
    rows = np.flatnonzero((items.valid_from_R < times.max()) & (times.min() <= items.valid_to_R))
    chance = np.ones(len(rows))
    if len(rows) > most:
        weight = (1.0 + run.label_counts[rows]) ** SAMPLING_POWER
        chance = np.minimum(1.0, most * weight / weight.sum())
        drawn = run.rng.random(len(rows)) < chance
        rows, chance = rows[drawn], chance[drawn]
    union = np.union1d(rows, targets)
    log_chance = np.full(len(union), -np.inf, np.float32)
    log_chance[np.searchsorted(union, rows)] = np.log(chance)
    return Sample(union, log_chance)


def corrected(logits_SC: Tensor, sample: Sample, target_S: Tensor) -> Tensor:
    """Logits whose softmax is, in expectation of its denominator, the full one: less the log of each candidate's chance (logQ).

    A label's own item is always there, and stays as it is; those of other labels count only where they were drawn
    (Bengio and Senecal, 2008; Yi et al., RecSys 2019).
    """
    if not sample.log_chance_C.any():
        return logits_SC
    chance_C = tensor_of(sample.log_chance_C)
    own_S1 = logits_SC.gather(1, target_S[:, None])
    return torch.where(chance_C.isfinite(), logits_SC - chance_C.clamp_min(MASKED), MASKED).scatter(
        1, target_S[:, None], own_S1.to(chance_C.dtype)
    )


def align_loss(run: Run) -> Tensor:
    """Contrastive loss between ids and contents of random trained items: each shall find its own among those of the others (InfoNCE, both ways)."""
    trained = np.flatnonzero(run.label_counts > 0)
    rows = run.rng.choice(trained, min(ALIGNED_ITEMS, len(trained)), replace=False)
    index_N = run.inputs.index_N[tensor_of(rows)]
    content_ND = run.encoded(rows, without_ids=True).token_ND
    known_N = (content_ND != 0).any(1) & (run.model.id_row[index_N] > 0)
    ids_ND, content_ND = run.model.encoder.ids(index_N[known_N]), content_ND[known_N]
    logits_NN = F.normalize(ids_ND, dim=1) @ F.normalize(content_ND, dim=1).T / TEMPERATURE
    own_N = torch.arange(len(logits_NN))
    return (
        (F.cross_entropy(logits_NN, own_N) + F.cross_entropy(logits_NN.T, own_N)) / 2 if len(own_N) else torch.zeros(())
    )


def _tower(run: Run, vector_SD: Tensor, items: Items) -> Tensor:
    return F.linear(vector_SD, items.token_ND, run.model.bias(items))


def _both(run: Run, rows: Ints) -> tuple[Items, Items]:
    """Items as histories read them, and as candidates: in some steps without their ids."""
    if run.model.training and run.rng.random() < run.config.cold_share:
        return run.encoded_twice(rows)
    items = run.encoded(rows)
    return items, items


def _encode(
    run: Run, histories: Histories, number_BL: Ints, there_BL: NDArray[np.bool_], rows_C: Ints
) -> tuple[History, Items]:
    row_BL = histories.row[number_BL]
    touched = np.union1d(rows_C, row_BL[there_BL])
    items, candidates = _both(run, touched)
    met = items.take(tensor_of(np.searchsorted(touched, np.where(there_BL, row_BL, touched[0]))))
    mask_BL = tensor_of(there_BL)
    time_BL = histories.time_us[number_BL]
    last_B1 = np.where(there_BL, time_BL, 0).max(1, keepdims=True)
    age_BL = np.where(there_BL, last_B1 - time_BL, 0) / SECOND_US
    history = History(
        met.content_NMK,
        met.token_ND * mask_BL[..., None],
        met.feature_NF,
        met.index_N * mask_BL,
        mask_BL,
        tensor_of(histories.event[number_BL] * there_BL),
        tensor_of(histories.strength[number_BL] * there_BL),
        tensor_of(age_BL),
    )
    return history, candidates.take(tensor_of(np.searchsorted(touched, rows_C)))


def _recency(histories: Histories, number_SL: Ints, number_S: Ints) -> Tensor:
    """Seconds since the last event that each label's place has read [S]; inf where there is none."""
    before_S = histories.before[number_S]
    last_S = number_SL[np.arange(len(number_S)), np.maximum(before_S - 1, 0)]
    seconds_S = (histories.time_us[number_S] - histories.time_us[last_S]) / SECOND_US
    return tensor_of(np.where(before_S > 0, seconds_S, np.inf))


def _valid(run: Run, rows_C: Ints, time_S: Ints) -> Tensor | None:
    """Which candidates were valid at each label [S, C]; None where all were."""
    from_C, to_C = run.ts.items.valid_from_R[rows_C], run.ts.items.valid_to_R[rows_C]
    if from_C.max() < time_S.min() and time_S.max() <= to_C.min():
        return None
    return tensor_of((from_C < time_S[:, None]) & (time_S[:, None] <= to_C))
