"""A checkpoint as serving uses it: numpy in, numpy out, one user at a time, nothing ever raised for what is merely unknown.

Item tokens are computed once and kept; a request encodes the user's history once and scores any rows of them. Evaluation goes
through the same code, so that what is measured is what is served. A `Ranker` may be used by several threads.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from feature_store.history import Events
from ranker import checkpoint, shapley
from ranker.config import GROUPS_BESIDE_MODALITIES
from ranker.inputs import (
    UNKNOWN,
    History,
    ItemBatch,
    ItemInputs,
    Items,
    Vocabulary,
    encode_names,
    encode_price,
    encode_tags,
    tag_weights,
    tensor_of,
    usable,
)
from ranker.model import CONTEXT_FEATURES, FusionRanker, User

__all__ = ["Context", "EncodedUser", "ItemBatch", "ItemTokens", "Ranker", "Scores", "UserState"]

Rows = Sequence[int] | NDArray[np.integer[Any]]
SECOND_US: Final = 1_000_000
SHARE_ROWS_AT_ONCE: Final = 256
NO_WORDS: Final = Vocabulary((), (), ())


@dataclass(frozen=True)
class Context:
    """When, and on what, the user asks; a `device` that was not met in training changes nothing."""

    now_us: int
    device: str = ""


@dataclass(frozen=True)
class ItemTokens:
    """n items ready to be scored or to stand in a history; independent of any user. `known` is False for rows that are no item."""

    item_ids: list[str]
    inputs: ItemInputs
    items: Items
    known: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.item_ids)

    def take(self, rows: Rows) -> Self:
        """The items at `rows`, in that order; row -1 is an unknown item."""
        at = np.asarray(rows, np.int64)
        if len(self) == 0:
            raise IndexError("there are no items to take rows of; use Ranker.no_items")
        known = (at >= 0) & self.known[at]
        index = tensor_of(np.maximum(at, 0))
        ids = [self.item_ids[i] if i >= 0 else "" for i in at]
        return type(self)(ids, self.inputs.take(index), self.items.take(index), known)

    @classmethod
    def concat(cls, parts: Sequence["ItemTokens"]) -> "ItemTokens":
        """All items of `parts` (at least one), in order."""
        inputs = ItemInputs.concat([part.inputs for part in parts])
        items = Items(*(torch.cat(v) for v in zip(*(tuple(vars(p.items).values()) for p in parts), strict=True)))
        return ItemTokens(
            [i for p in parts for i in p.item_ids], inputs, items, np.concatenate([p.known for p in parts])
        )


@dataclass(frozen=True)
class UserState:
    """All that is known of a user at an instant.

    Attributes:
        history: events strictly before now, oldest first (`history_as_of` gives them).
        history_tokens: their items, aligned with `history` (`Ranker.history_tokens` gives them); unknown ones have `known` False.
        profile: vector [d] of the user's own text in the ranker's text space, if any.
        query: space_id -> vector [d] of what the user asks for right now, if anything.
    """

    history: Events
    history_tokens: ItemTokens
    profile: NDArray[np.float32] | None = None
    query: Mapping[str, NDArray[np.float32]] | None = None


@dataclass(frozen=True)
class EncodedUser:
    """A user after their history was read: give it in place of a `UserState` to read it only once."""

    user: User
    positions: NDArray[np.int64]
    length: int


@dataclass(frozen=True)
class Scores:
    """Scores float32 [n] (higher is better), and attention float32 [n, h] over the history; unknown events get 0."""

    scores: NDArray[np.float32]
    attention: NDArray[np.float32]


class Ranker:
    """One checkpoint, ready to score."""

    def __init__(self, loaded: checkpoint.Checkpoint) -> None:
        self.model: FusionRanker = loaded.model
        self.vocabulary, self.manifest = loaded.vocabulary, loaded.manifest
        self.model_id: str = self.manifest["model_id"]
        self.space_ids: dict[str, str] = dict(self.manifest["space_ids"])
        self.fused_space = checkpoint.fused_space(self.manifest)
        self.groups: tuple[str, ...] = (*self.model.shapes.modalities, *GROUPS_BESIDE_MODALITIES)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a checkpoint folder; raises `CheckpointError` where it is missing or damaged."""
        return cls(checkpoint.load(folder))

    @property
    def history_length(self) -> int:
        """The newest events that the model reads; older ones change nothing."""
        return self.model.config.history_length

    # ---- items -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def item_tokens(self, batch: ItemBatch) -> ItemTokens:
        """Encode items [n]; missing modalities, unknown ids and categories are fine. Raises ValueError for wrong dims."""
        inputs = encode_items(self.model, self.space_ids, batch, self.vocabulary)
        return ItemTokens(list(batch.item_ids), inputs, self.model.items(inputs), np.ones(len(batch), bool))

    def no_items(self, n: int = 0) -> ItemTokens:
        """Tokens of `n` unknown items: a stand-in where nothing is loaded."""
        return _unknown(self.item_tokens(ItemBatch([""] * n)))

    def history_tokens(self, history: Events, tokens: ItemTokens, row_of: Mapping[str, int]) -> ItemTokens:
        """Tokens aligned with `history`, found by item_id in `row_of` (item_id -> row of `tokens`)."""
        rows = [row_of.get(item_id, -1) for item_id in history.item_ids]
        return tokens.take(rows) if rows and len(tokens) else self.no_items(len(rows))

    # ---- score -----------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def encode_user(self, state: UserState, context: Context) -> EncodedUser:
        """Read a user's history; `score`, `shares` and `fused_user` take the result in place of the state."""
        known = self._known(state)
        history = self.history(state, context)
        profile, query = self._profile(state), self._query(state)
        device = encode_names([context.device], self.vocabulary.device_index, 1)
        user = self.model.user(history, context_features([context.now_us]), profile, query, device)
        return EncodedUser(user, known, len(state.history))

    @torch.inference_mode()
    def score(self, user: UserState | EncodedUser, tokens: ItemTokens, rows: Rows, context: Context) -> Scores:
        """Score the items at `rows` of `tokens`; always finite."""
        encoded = self._encoded(user, context)
        scored = self.model.score(encoded.user, tokens.items.take(tensor_of(np.asarray(rows, np.int64))))
        attention = np.zeros((len(rows), encoded.length), np.float32)
        attention[:, encoded.positions] = scored.attention_BCL[0].cpu().numpy()
        return Scores(scored.score_BC[0].cpu().numpy(), attention)

    @torch.no_grad()
    def influences(
        self, user: UserState | EncodedUser, tokens: ItemTokens, rows: Rows, context: Context
    ) -> NDArray[np.float32]:
        """How much of each score is due to which event of the history, float32 [n, h] of at least 0; a row sums to at most 1.

        Attention weights; where the model attends to nothing, each event's share of what the prior's neighbours add to the score (0 where there
        is no prior, or it has nothing in favour).
        """
        if self.model.config.attends:
            return self.score(user, tokens, rows, context).attention
        encoded = self._encoded(user, context)
        found = np.zeros((len(rows), encoded.length), np.float32)
        if self.model.prior.neighbours and len(encoded.positions):
            index = tokens.items.index_N[tensor_of(np.asarray(rows, np.int64))]
            told = (self.model.prior.scale * self.model.prior.by_event(encoded.user.history, index)[0]).clamp_min(0.0)
            total = told.sum(1, keepdim=True)
            found[:, encoded.positions] = torch.where(total > 0, told / total, 0.0).cpu().numpy()
        return found

    @torch.no_grad()
    def ratings(
        self, user: UserState | EncodedUser, tokens: ItemTokens, rows: Rows, context: Context
    ) -> NDArray[np.float32]:
        """Expected ratings float32 [n], in the unit of the training ratings (0 mean, unit spread where it saw none)."""
        encoded = self._encoded(user, context)
        items = tokens.items.take(tensor_of(np.asarray(rows, np.int64)))
        return self.model.rating(encoded.user, items)[0].cpu().numpy()

    @torch.no_grad()
    def shares(
        self, user: UserState | EncodedUser, tokens: ItemTokens, rows: Rows, context: Context
    ) -> NDArray[np.float32]:
        """Exact Shapley values float32 [n, len(groups)] of each group of item features.

        They sum to score - `base_score`. Costs 2**len(groups) scores an item: meant for the few items that are returned.
        """
        encoded = self._encoded(user, context)
        at = np.asarray(rows, np.int64)
        parts = [at[i : i + SHARE_ROWS_AT_ONCE] for i in range(0, len(at), SHARE_ROWS_AT_ONCE)]
        values = [self._subset_scores(encoded, tokens, part) for part in parts]
        return shapley.values(np.concatenate([np.zeros((0, 2 ** len(self.groups))), *values])).astype(np.float32)

    def base_score(self, user: UserState | EncodedUser, context: Context) -> float:
        """Score of an item of which nothing is known: what shares are counted from."""
        return float(self.score(user, self.no_items(1), [0], context).scores[0])

    def _subset_scores(self, encoded: EncodedUser, tokens: ItemTokens, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Scores [n, 2**groups] of each item with every subset of its feature groups."""
        subsets = tensor_of(shapley.subsets(len(self.groups)))  # 2**G, G
        repeated = tensor_of(np.repeat(rows, len(subsets)))
        inputs = tokens.inputs.take(repeated).keep(subsets.repeat(len(rows), 1))
        scored = self.model.score(encoded.user, self.model.items(inputs))
        return scored.score_BC[0].view(len(rows), len(subsets)).double().cpu().numpy()

    # ---- retrieval -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def fused_items(self, tokens: ItemTokens) -> NDArray[np.float32]:
        """Unit vectors [n, d] in `fused_space`."""
        return self.model.fused_items(tokens.items).cpu().numpy()

    @torch.no_grad()
    def fused_user(self, user: UserState | EncodedUser, context: Context) -> NDArray[np.float32]:
        """Unit vector [d] in `fused_space`: its nearest items are those that the two-tower part ranks first."""
        return self.model.fused_user(self._encoded(user, context).user)[0].cpu().numpy()

    # ---- parts -----------------------------------------------------------------------------------------------------

    def _encoded(self, user: UserState | EncodedUser, context: Context) -> EncodedUser:
        return user if isinstance(user, EncodedUser) else self.encode_user(user, context)

    def _known(self, state: UserState) -> NDArray[np.int64]:
        """The newest events of known items: those that are read."""
        return np.flatnonzero(state.history_tokens.known)[-self.history_length :]

    def history(self, state: UserState, context: Context) -> History:
        """The history [1, L] as the model reads it."""
        known = self._known(state)
        events, items = state.history.take(known), state.history_tokens.items.take(tensor_of(known))
        index = encode_names(events.event_types, self.vocabulary.event_index, len(events))
        ages = np.maximum(context.now_us - events.timestamps_us, 0) / SECOND_US
        return History(
            items.content_NMK[None],
            items.token_ND[None],
            items.feature_NF[None],
            items.index_N[None],
            torch.ones(1, len(events), dtype=torch.bool),
            index[None],
            event_strength(self.model, events.event_types, events.values)[None],
            tensor_of(ages)[None],
        )

    def _profile(self, state: UserState) -> Tensor | None:
        if state.profile is None or "text" not in self.space_ids:
            return None
        return project_profile(self.model, tensor_of(np.asarray(state.profile, np.float32))[None])

    def _query(self, state: UserState) -> Tensor | None:
        if not state.query:
            return None
        if unread := set(state.query).difference(self.space_ids.values()):
            raise ValueError(
                f"query vectors of spaces {sorted(unread)}, but {self.model_id} reads {sorted(self.space_ids.values())}"
            )
        batch = ItemBatch([""], {space: np.asarray(v, np.float32)[None] for space, v in state.query.items()})
        return encode_items(self.model, self.space_ids, batch, NO_WORDS).spaces_NMK


def _unknown(tokens: ItemTokens) -> ItemTokens:
    return ItemTokens(tokens.item_ids, tokens.inputs, tokens.items, np.zeros(len(tokens), bool))


@torch.no_grad()
def encode_items(
    model: FusionRanker,
    space_ids: Mapping[str, str],
    batch: ItemBatch,
    vocabulary: Vocabulary,
) -> ItemInputs:
    """`ItemBatch` -> the model's input tensors; the one way in, for training, evaluation and serving alike."""
    n = len(batch)
    spaces = torch.zeros(n, len(space_ids), model.config.space_dim)
    present = torch.zeros(n, len(space_ids), dtype=torch.bool)
    for m, (modality, dim) in enumerate(model.shapes.modalities.items()):
        vectors, there = usable(batch, space_ids[modality], dim)
        present[:, m] = tensor_of(there)
        spaces[:, m] = model.projections[modality](tensor_of(vectors)) * present[:, m, None]
    index = [vocabulary.item_index.get(item_id, UNKNOWN) for item_id in batch.item_ids]
    categories, prices = encode_names(batch.category, vocabulary.category_index, n), encode_price(batch.price, n)
    tags = encode_tags(batch.tags, vocabulary.tag_index, n)
    weights = tag_weights(tags, model.tag_idf)
    return ItemInputs(spaces, present, torch.tensor(index, dtype=torch.long), categories, prices, tags, weights)


def project_profile(model: FusionRanker, vectors: Tensor) -> Tensor:
    """Users' text vectors [B, d] -> [B, K] in the text space, centred on users rather than on items; rows of 0 stay 0."""
    there = (vectors != 0).any(-1, keepdim=True) & vectors.isfinite().all(-1, keepdim=True)
    projected: Tensor = model.projections["text"](vectors.nan_to_num(0.0), model.profile_mean)
    return projected * there


def event_strength(model: FusionRanker, event_types: Sequence[str], values: NDArray[np.float64]) -> Tensor:
    """How much each event [n] speaks for its item, -1 to 1: ratings by their value, dislikes -1, all else 1."""
    mean, spread = model.rating_stats.tolist()
    rated = np.asarray([kind == "rating" for kind in event_types], bool) & np.isfinite(values)
    against = np.asarray([kind in model.config.negative_events for kind in event_types], bool)
    liking = np.tanh((np.where(rated, values, mean) - mean) / spread)
    return tensor_of(np.where(rated, liking, np.where(against, -1.0, 1.0)).astype(np.float32))


def context_features(times_us: Sequence[int] | NDArray[np.int64]) -> Tensor:
    """[B] instants -> [B, 9]: sine and cosine of the UTC hour, one-hot weekday."""
    out = np.zeros((len(times_us), CONTEXT_FEATURES), np.float32)
    seconds = np.asarray(times_us, np.int64) // SECOND_US
    angle = 2 * np.pi * (seconds % 86_400) / 86_400
    out[:, 0], out[:, 1] = np.sin(angle), np.cos(angle)
    epoch_weekday = datetime(1970, 1, 1, tzinfo=UTC).weekday()
    out[np.arange(len(out)), 2 + (seconds // 86_400 + epoch_weekday) % 7] = 1.0
    return tensor_of(out)
