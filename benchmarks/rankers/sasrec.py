"""The sequential peer: SASRec (Kang and McAuley, ICDM 2018) with cross-entropy over all items (Klenitskiy and Vasilev, RecSys 2023).

A causal Transformer over item embeddings, tied to the output; every place of a history predicts the item that follows. It is stopped by NDCG@10 on
validation, and its best state then scores the test with validation's event as the newest of the history.
"""

# Shapes are part of names: B users, L events, D width, I items.
# ruff: noqa: N803, N806

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own idiom
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.rankers.clock import worked_seconds
from benchmarks.rankers.jobs import Outcome, Tell
from benchmarks.rankers.sequences import LeaveOneOut, gains_of_last
from ranker.full_ranking import ndcg, places
from ranker.inputs import tensor_of
from ranker.loop import LOOK_USERS

K: Final = 10
CLIP_NORM: Final = 5.0
EVALUATION_USERS: Final = 512
READ_USERS: Final = 64
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class SasrecConfig:
    """Size and training; `patience` is in looks at validation, one after every `look_epochs` epochs."""

    dim: int = 64
    layers: int = 2
    heads: int = 2
    dropout: float = 0.3
    length: int = 200
    batch_users: int = 128
    learning_rate: float = 1e-3
    label_smoothing: float = 0.0
    look_epochs: int = 5
    patience: int = 5
    max_epochs: int = 400


class Sasrec(nn.Module):
    """Scores the next item after each event."""

    def __init__(self, items: int, config: SasrecConfig) -> None:
        super().__init__()
        self.config = config
        self.items = nn.Embedding(items + 1, config.dim, padding_idx=0)
        self.places = nn.Embedding(config.length, config.dim)
        layer = nn.TransformerEncoderLayer(
            config.dim, config.heads, 4 * config.dim, config.dropout, "gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, config.layers, nn.LayerNorm(config.dim), enable_nested_tensor=False)
        self.dropout = nn.Dropout(config.dropout)
        self.bias = nn.Parameter(torch.zeros(items + 1))
        nn.init.normal_(self.items.weight, std=0.02)
        nn.init.normal_(self.places.weight, std=0.02)

    def forward(self, item_BL: Tensor) -> Tensor:
        """Items from 1, padded at the end by 0 -> states [B, L, D]; padding at the end needs no mask, since nothing before it looks there."""
        length = item_BL.shape[1]
        x_BLD = self.items(item_BL) * math.sqrt(self.config.dim) + self.places.weight[:length]
        causal = nn.Transformer.generate_square_subsequent_mask(length)
        return self.blocks(self.dropout(x_BLD), mask=causal, is_causal=True)  # type: ignore[no-any-return]

    def logits(self, state_ND: Tensor) -> Tensor:
        """Scores [N, 1 + I] of all items; the first is padding's."""
        return state_ND @ self.items.weight.T + self.bias


@dataclass(frozen=True)
class Fitted:
    """Scores [U, I] at the test, NDCG@10 on validation, epochs and seconds."""

    test: Floats
    ndcg: float
    epochs: int
    seconds: float


def fit_sasrec(
    split: LeaveOneOut, config: SasrecConfig, seed: int, seconds: float, tell: Callable[[str], None] = lambda _: None
) -> Fitted:
    """Train until validation no longer improves, or until the time is up (`seconds` on as many cores as torch has threads)."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    histories = _histories(split, split.train)
    model = Sasrec(len(split.sequences.item_names), config)
    optimizer = torch.optim.AdamW(model.parameters(), config.learning_rate, weight_decay=0.0)
    looked = _some(len(histories))
    relevant, met = (found[looked] for found in (split.relevant(split.validation), split.met_before(split.validation)))
    best, looks, started = Fitted(np.empty(0, np.float32), -1.0, 0, 0.0), 0, worked_seconds()
    state = model.state_dict()
    for epoch in range(1, config.max_epochs + 1):
        _epoch(model, optimizer, histories, rng)
        is_last = epoch == config.max_epochs or worked_seconds() - started > seconds
        if epoch % config.look_epochs and not is_last:
            continue
        scores = score(model, [histories[user] for user in looked])
        value = float(ndcg(places(scores, relevant, met), K).mean())
        tell(f"epoch {epoch}: NDCG@{K} {value:.4f}")
        looks = 0 if value > best.ndcg else looks + 1
        if value > best.ndcg:
            best = Fitted(best.test, value, epoch, worked_seconds() - started)
            state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        if is_last or looks >= config.patience:
            break
    model.load_state_dict(state)
    longer = _histories(split, split.sequences.from_last >= 1)
    return Fitted(score(model, longer), best.ndcg, best.epochs, worked_seconds() - started)


def train_sasrec(split: LeaveOneOut, config: SasrecConfig, seed: int, seconds: float, tell: Tell) -> Outcome:
    """One seed's HR@10 and NDCG@10 of the test by user, and what it took."""
    fitted = fit_sasrec(split, config, seed, seconds, tell)
    about = {"validation": fitted.ndcg, "epochs": fitted.epochs, "minutes": round(fitted.seconds / 60, 1)}
    return Outcome(gains_of_last(split, fitted.test, split.test), about)


def _some(users: int) -> NDArray[np.int64]:
    """All users, or evenly chosen ones of many: as many as the fusion ranker looks at."""
    return np.linspace(0, users - 1, min(users, LOOK_USERS)).round().astype(np.int64)


def _histories(split: LeaveOneOut, events: NDArray[np.bool_]) -> list[NDArray[np.int64]]:
    """Items from 1 of the chosen events, oldest first, by user."""
    user, item = split.sequences.user[events], split.sequences.item[events] + 1
    return np.split(item, np.searchsorted(user, np.arange(1, split.sequences.users)))


def _epoch(
    model: Sasrec, optimizer: torch.optim.Optimizer, histories: list[NDArray[np.int64]], rng: np.random.Generator
) -> None:
    model.train()
    for batch in _batches(histories, model.config.batch_users, rng):
        loss = _loss(model, [histories[user][-model.config.length - 1 :] for user in batch])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()


def _loss(model: Sasrec, histories: list[NDArray[np.int64]]) -> Tensor:
    """Mean cross-entropy of every item but each history's first; histories of like lengths are read together, which spares padding and changes nothing else."""
    ordered = sorted(histories, key=len)
    states, targets = [], []
    for first in range(0, len(ordered), READ_USERS):
        rows = _padded(ordered[first : first + READ_USERS])
        there = rows[:, 1:] > 0
        states.append(model(rows[:, :-1])[there])
        targets.append(rows[:, 1:][there])
    logits = model.logits(torch.cat(states))
    return F.cross_entropy(logits, torch.cat(targets), label_smoothing=model.config.label_smoothing)


def _batches(histories: list[NDArray[np.int64]], size: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Users with at least two events in random batches.

    Batches of like lengths would hold less padding, and cost a tenth of the NDCG: each of their steps is made of one kind of user.
    """
    users = rng.permutation(np.flatnonzero([len(history) > 1 for history in histories]))
    return iter(np.array_split(users, max(1, round(len(users) / size))))


def _padded(histories: list[NDArray[np.int64]]) -> Tensor:
    return nn.utils.rnn.pad_sequence([tensor_of(history) for history in histories], batch_first=True)


@torch.no_grad()
def score(model: Sasrec, histories: list[NDArray[np.int64]]) -> Floats:
    """Scores [U, I] of what comes next after each history."""
    model.eval()
    found = np.zeros((len(histories), model.items.num_embeddings - 1), np.float32)
    for first in range(0, len(histories), EVALUATION_USERS):
        part = [history[-model.config.length :] for history in histories[first : first + EVALUATION_USERS]]
        rows = _padded(part)
        last = torch.tensor([len(history) - 1 for history in part])
        state = model(rows)[torch.arange(len(part)), last]
        found[first : first + len(part)] = model.logits(state)[:, 1:].cpu().numpy()
    return found
