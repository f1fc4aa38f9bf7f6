"""What runs on the ranking thread: reading a user, scoring candidates, explaining the best. Pure functions over one `ServedModel`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ranker.scorer import Context, EncodedUser, ItemBatch, ItemTokens, UserState
from serving.hot_tier import is_known
from serving.models import ServedModel
from serving.users import KnownUser

INFLUENCES: Final = 5


@dataclass(frozen=True)
class Reader:
    """A user whose history the model has read: `vector` [d] is the user in the fused space."""

    encoded: EncodedUser
    vector: NDArray[np.float32]
    history_ids: list[str]
    unknown_history: int


@dataclass(frozen=True)
class Candidates:
    """Items to score.

    Attributes:
        present: modality -> bool [n].
        known: bool [n], False where nothing is known of the item.
    """

    item_ids: list[str]
    tokens: ItemTokens
    present: dict[str, NDArray[np.bool_]]
    known: NDArray[np.bool_]


@dataclass(frozen=True)
class Ranked:
    """The best candidates, best first: `rows` [n] of the candidates, `shares` [n, groups], `influences` per result.

    Shares sum to the score minus `base_score`.
    """

    rows: NDArray[np.int64]
    scores: NDArray[np.float32]
    shares: NDArray[np.float32]
    influences: list[list[tuple[str, float]]]
    base_score: float


def read_user(model: ServedModel, user: KnownUser, query: dict[str, NDArray[np.float32]], context: Context) -> Reader:
    """Encode a user once, for retrieval and scoring alike."""
    ranker = model.ranker
    tokens = ranker.history_tokens(user.history, model.tokens, model.row_of)
    encoded = ranker.encode_user(UserState(user.history, tokens, user.profile, query or None), context)
    unknown = int(len(user.history) - tokens.known.sum())
    return Reader(encoded, ranker.fused_user(encoded, context), user.history.item_ids, unknown)


def gather(model: ServedModel, item_ids: Sequence[str], extra: ItemBatch | None) -> Candidates:
    """Tokens of candidates, in order: those in memory, those of `extra` (read from the store), and cold ones."""
    rows = np.array([model.row_of.get(item_id, -1) for item_id in item_ids], np.int64)
    late = [item_id for item_id, row in zip(item_ids, rows, strict=True) if row < 0]
    if not late:
        present = {modality: there[rows] for modality, there in model.present.items()}
        return Candidates(list(item_ids), model.tokens.take(rows), present, np.ones(len(rows), bool))
    batch = extra if extra is not None else ItemBatch(late)
    return _joined(model, item_ids, rows, batch)


def _joined(model: ServedModel, item_ids: Sequence[str], rows: NDArray[np.int64], batch: ItemBatch) -> Candidates:
    """Candidates of which some (`rows` -1) are in `batch`, in the order of their appearance."""
    here = np.flatnonzero(rows >= 0)
    parts = [model.tokens.take(rows[here])] if len(here) else []
    tokens = ItemTokens.concat([*parts, model.ranker.item_tokens(batch)])
    order = np.argsort(np.concatenate([here, np.flatnonzero(rows < 0)]))
    present = {
        modality: np.concatenate([there[rows[here]], _presence(model, batch, modality)])[order]
        for modality, there in model.present.items()
    }
    known = np.concatenate([np.ones(len(here), bool), is_known(batch)])[order]
    return Candidates(list(item_ids), tokens.take(order), present, known)


def _presence(model: ServedModel, batch: ItemBatch, modality: str) -> NDArray[np.bool_]:
    return batch.present.get(model.ranker.space_ids[modality], np.zeros(len(batch), bool))


def rank(
    model: ServedModel, reader: Reader, candidates: Candidates, context: Context, top_n: int, explain: bool
) -> Ranked:
    """Score all candidates; return the best `top_n`, explained if wanted. Ties are broken by item_id."""
    everything = np.arange(len(candidates.item_ids))
    scored = model.ranker.score(reader.encoded, candidates.tokens, everything, context)
    best = np.lexsort((np.array(candidates.item_ids), -scored.scores))[:top_n]
    groups = len(model.ranker.groups)
    shares = np.empty((0, groups), np.float32)
    influences: list[list[tuple[str, float]]] = []
    base = 0.0
    if explain:
        shares = model.ranker.shares(reader.encoded, candidates.tokens, best, context)
        weights = model.ranker.influences(reader.encoded, candidates.tokens, best, context)
        influences = [_influences(reader.history_ids, row) for row in weights]
        base = model.ranker.base_score(reader.encoded, context)
    return Ranked(best, scored.scores[best], shares, influences, base)


def _influences(history_ids: Sequence[str], weights: NDArray[np.float32]) -> list[tuple[str, float]]:
    """The items that weigh most, most first; an item met several times counts once, with all of it."""
    total: dict[str, float] = {}
    for item_id, weight in zip(history_ids, weights.tolist(), strict=True):
        total[item_id] = total.get(item_id, 0.0) + weight
    top = sorted(total.items(), key=lambda pair: (-pair[1], pair[0]))[:INFLUENCES]
    return [(item_id, weight) for item_id, weight in top if weight > 0]


def nearest(
    vectors: NDArray[np.float32], ids: Sequence[str], query: NDArray[np.float32], k: int
) -> tuple[list[str], NDArray[np.float32]]:
    """Exact search: ids of the `k` unit vectors [n, d] nearest to `query` [d], and their cosines."""
    if not len(ids):
        return [], np.empty(0, np.float32)
    cosines = vectors @ query
    k = min(k, len(ids))
    some = np.argpartition(-cosines, k - 1)[:k]
    best = some[np.argsort(-cosines[some], kind="stable")]
    return [ids[row] for row in best], cosines[best].astype(np.float32)
