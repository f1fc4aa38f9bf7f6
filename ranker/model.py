"""The fusion ranker in one file: item token, user, target attention, and the two-tower part that retrieval shares.

Score = tower + attention. The tower is a plain inner product of a user side and an item side, so that approximate search over it
agrees with ranking: tastes fitted to the history, cosines with what the user met, token, popularity. Attention lets the candidate
read single events of the history. Similarity of content is built in, because most items that must be ranked were never seen in
training; what is known of single ids is additive, regularised and often dropped.

Shapes: N items, B users (or labels), C candidates, L events of a history, M modalities, K directions of a space, D model width,
F prototypes of all spaces.
"""

# Shapes are part of names (x_BLD), as the legend says.
# ruff: noqa: N803, N806, N815

import math
from dataclasses import dataclass, replace
from typing import Final

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own idiom
from torch import Tensor, nn

from ranker.config import RankerConfig
from ranker.inputs import History, ItemInputs, Items, Shapes
from ranker.similarity import Gates, Taste

CONTEXT_FEATURES: Final = 9  # sine and cosine of the hour, seven weekdays
FIRST_GAP_SECONDS: Final = 60.0
GAP_BASE: Final = 3.0  # a bucket is three times as long as the one before: 12 buckets reach from a minute to 20 years
MASKED: Final = -1e9
FUSED_MARGIN: Final = 1.1


@dataclass(frozen=True)
class User:
    """B users, ready to score any candidates."""

    tower_BT: Tensor  # direction in each space, tastes, vector: what meets the same of an item
    vector_BD: Tensor
    hidden_BLD: Tensor
    history: History


@dataclass(frozen=True)
class Scored:
    """Scores [B, C], their two-tower part [B, C], and attention over the history [B, C, L] (sums to less than 1)."""

    score_BC: Tensor
    tower_BC: Tensor
    attention_BCL: Tensor


class SpaceProjection(nn.Module):
    """Raw vectors of one space -> K directions: centred, standardised and rotated to principal axes, all fitted on training items.

    Vectors of an untrained or mean-pooled encoder are mostly one constant direction; without this every cosine is near 1.
    """

    mean: Tensor
    scale: Tensor
    basis: Tensor

    def __init__(self, dim: int, directions: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))
        self.register_buffer("basis", torch.zeros(dim, directions))

    @torch.no_grad()
    def fit(self, vectors_Nd: Tensor, whitening: float) -> None:
        """Fit on vectors [N, d]; with fewer than 2 of them the space stays 0 (it says nothing)."""
        if len(vectors_Nd) < 2:
            return
        raw = vectors_Nd.double()
        variance = raw.var(0)
        # A tenth of the mean variance: a dimension that hardly varies is noise, and must not be blown up.
        scale = (0.9 * variance + 0.1 * variance.mean()).sqrt().clamp_min(1e-9)
        centred = (raw - raw.mean(0)) / scale
        values, axes = torch.linalg.eigh(centred.T @ centred / (len(raw) - 1))
        kept = min(self.basis.shape[1], len(raw) - 1, raw.shape[1])
        values, axes = values.flip(0)[:kept].clamp_min(0), axes.flip(1)[:, :kept]
        weight = torch.where(values > 1e-6 * values[0], values.clamp_min(1e-12) ** (-whitening / 2), 0.0)
        self.mean.copy_(raw.mean(0))
        self.scale.copy_(scale)
        self.basis.zero_()[:, :kept].copy_(axes * weight)

    def forward(self, vectors_Nd: Tensor, mean_d: Tensor | None = None) -> Tensor:
        """[N, d] -> unit vectors [N, K] (0 where nothing is left)."""
        centre = self.mean if mean_d is None else mean_d
        return F.normalize(((vectors_Nd - centre) / self.scale) @ self.basis, dim=-1, eps=1e-6)


class ItemEncoder(nn.Module):
    """Item token: a learned query attends to whichever of (modalities..., id, category, price) are there."""

    def __init__(self, config: RankerConfig, shapes: Shapes) -> None:
        super().__init__()
        d, slots = config.dim, len(shapes.modalities) + 4
        self.content = nn.ModuleList(nn.Linear(config.space_dim, d) for _ in shapes.modalities)
        self.ids = nn.Embedding(shapes.items + 1, d)
        self.categories = nn.Embedding(shapes.categories + 1, d)
        self.price = nn.Linear(1, d)
        self.slots = nn.Parameter(0.1 * torch.randn(slots, d))
        self.query = nn.Parameter(torch.randn(d) / math.sqrt(d))
        self.value = nn.Linear(d, d)
        self.norm = nn.LayerNorm(d)
        nn.init.normal_(self.ids.weight, std=0.02)
        nn.init.normal_(self.categories.weight, std=0.1)

    def forward(self, inputs: ItemInputs, price_N: Tensor) -> Tensor:
        """Tokens [N, D]; the last slot is always there, so that an item without any feature has a token too."""
        content = [layer(inputs.spaces_NMK[:, m]) for m, layer in enumerate(self.content)]
        known = inputs.price_N.isfinite()
        parts = [*content, self.ids(inputs.index_N), self.categories(inputs.category_N), self.price(price_N[:, None])]
        slots_NSD = torch.stack([*parts, torch.zeros_like(parts[0])], dim=1) + self.slots
        there = [*inputs.present_NM.unbind(1), inputs.index_N > 0, inputs.category_N > 0, known, torch.ones_like(known)]
        logits_NS = (slots_NSD @ self.query).masked_fill(~torch.stack(there, dim=1), -torch.inf)
        pooled_ND = (logits_NS.softmax(1)[..., None] * self.value(slots_NSD)).sum(1)
        return self.norm(pooled_ND)  # type: ignore[no-any-return]


class Block(nn.Module):
    """One pre-norm Transformer block with causal attention."""

    def __init__(self, config: RankerConfig) -> None:
        super().__init__()
        d = config.dim
        self.heads, self.dropout = config.heads, config.dropout
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.mlp = nn.Sequential(nn.Linear(d, 2 * d), nn.GELU(), nn.Dropout(config.dropout), nn.Linear(2 * d, d))

    def forward(self, x_BLD: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, D]; padding at the end needs no mask, since nothing before it looks there."""
        b, n, d = x_BLD.shape
        qkv = (
            self.qkv(self.norm1(x_BLD)).view(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        )  # 3 B H L D/H
        mixed = F.scaled_dot_product_attention(
            qkv[0], qkv[1], qkv[2], is_causal=True, dropout_p=self.dropout if self.training else 0.0
        )
        x_BLD = x_BLD + self.out(mixed.transpose(1, 2).reshape(b, n, d))
        return x_BLD + self.mlp(self.norm2(x_BLD))  # type: ignore[no-any-return]


class FusionRanker(nn.Module):
    """The whole model. Buffers hold what was counted or fitted rather than learned: projections, popularity, scales."""

    popularity: Tensor
    id_row: Tensor
    price_stats: Tensor
    rating_stats: Tensor
    profile_mean: Tensor
    fused_radius: Tensor

    def __init__(self, config: RankerConfig, shapes: Shapes) -> None:
        super().__init__()
        self.config, self.shapes = config, shapes
        d, k = config.dim, config.space_dim
        self.projections = nn.ModuleDict({name: SpaceProjection(dim, k) for name, dim in shapes.modalities.items()})
        self.encoder = ItemEncoder(config, shapes)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.start = nn.Parameter(0.1 * torch.randn(d))
        self.event = nn.Embedding(shapes.event_types + 1, d)
        self.gap = nn.Embedding(config.gap_buckets, d)
        self.final = nn.LayerNorm(d)
        self.user_out, self.context_out = nn.Linear(d, d), nn.Linear(CONTEXT_FEATURES, d, bias=False)
        self.taste = Taste(config, shapes)
        self.query, self.key, self.value = nn.Linear(d, d), nn.Linear(d, d), nn.Linear(d, d)
        self.rating_item, self.rating_user, self.rating_pair = (
            nn.Linear(d, 1),
            nn.Linear(d, 1),
            nn.Linear(d, d, bias=False),
        )
        self.id_bias = nn.Embedding(shapes.items + 1, 1)
        self.gates = Gates(config, shapes)
        for layer in (self.user_out, self.context_out, self.value, self.id_bias, self.rating_pair):
            nn.init.zeros_(layer.weight)  # what is not content similarity starts at nothing, and has to earn its part
        nn.init.normal_(self.event.weight, std=0.1)
        nn.init.normal_(self.gap.weight, std=0.1)
        self._register_counts(shapes)

    def _register_counts(self, shapes: Shapes) -> None:
        text_dim = shapes.modalities.get("text", 1)
        self.register_buffer("popularity", torch.zeros(shapes.items + 1))
        self.register_buffer("id_row", torch.arange(shapes.items + 1))
        self.register_buffer("price_stats", torch.tensor([0.0, 1.0]))
        self.register_buffer("rating_stats", torch.tensor([0.0, 1.0]))
        self.register_buffer("profile_mean", torch.zeros(text_dim))
        self.register_buffer("fused_radius", torch.tensor(1.0))

    def projection(self, modality: str) -> SpaceProjection:
        """The fitted projection of one modality's space."""
        layer = self.projections[modality]
        assert isinstance(layer, SpaceProjection)  # noqa: S101 - narrows ModuleDict's type
        return layer

    # ---- items -----------------------------------------------------------------------------------------------------

    def items(self, inputs: ItemInputs) -> Items:
        """Tokens and all else that scoring needs of N items; the same whoever asks."""
        row_N = self.id_row[inputs.index_N]
        price_N = ((inputs.price_N - self.price_stats[0]) / self.price_stats[1]).nan_to_num(0.0)
        token_ND = self.encoder(replace(inputs, index_N=row_N), price_N)
        feature_NF = self.taste.features(inputs.spaces_NMK)
        return Items(inputs.spaces_NMK, token_ND, self.id_bias(row_N)[:, 0], inputs.index_N, feature_NF)

    # ---- user ------------------------------------------------------------------------------------------------------

    def user(
        self, history: History, context_BX: Tensor, profile_BK: Tensor | None = None, query_BMK: Tensor | None = None
    ) -> User:
        """Read histories once; `profile_BK` (0: none) is in the text space, `query_BMK` (0: none) in any."""
        gap_BL = self._gap_bucket(history.age_seconds_BL)
        events_BLD = history.token_BLD + self.event(history.event_BL) + self.gap(gap_BL)
        start_B1D = self.start.expand(len(events_BLD), 1, -1)
        x_BLD = torch.cat([start_B1D, F.dropout(events_BLD, self.config.dropout, self.training)], dim=1)
        for block in self.blocks:
            x_BLD = block(x_BLD)
        hidden_BLD = self.final(x_BLD)
        last_BD = hidden_BLD[torch.arange(len(x_BLD)), history.mask_BL.sum(1)]
        weight_BL = self.gates.weight(history, gap_BL)
        direction_BMK = self.gates.direction(history, weight_BL, profile_BK)
        if query_BMK is not None:
            direction_BMK = direction_BMK + self.config.query_weight * query_BMK
        taste_BF = self._taste(history, weight_BL, profile_BK)
        vector_BD = self.user_out(last_BD) + self.context_out(context_BX)
        tower_BT = torch.cat([direction_BMK.flatten(1), taste_BF, vector_BD], dim=1)
        return User(tower_BT, vector_BD, hidden_BLD[:, 1:], history)

    def _taste(self, history: History, weight_BL: Tensor, profile_BK: Tensor | None) -> Tensor:
        """Tastes [B, F] fitted to the history; the user's own text counts as one more item that has only text."""
        b, (m, k) = len(weight_BL), history.content_BLMK.shape[2:]
        alone_BMK = torch.zeros(b, m, k)
        if profile_BK is not None and self.gates.text is not None:
            alone_BMK[:, self.gates.text] = profile_BK
        feature_BF = self.taste.features(alone_BMK)
        return self.taste(history.feature_BLF, weight_BL * history.strength_BL, feature_BF, self.gates.profile.exp())  # type: ignore[no-any-return]

    def _gap_bucket(self, age_seconds: Tensor) -> Tensor:
        bucket = torch.log(age_seconds.clamp_min(1.0) / FIRST_GAP_SECONDS) / math.log(GAP_BASE)
        return bucket.ceil().clamp(0, self.config.gap_buckets - 1).long()

    # ---- score -----------------------------------------------------------------------------------------------------

    def score(self, user: User, items: Items, popularity_BC: Tensor | None = None) -> Scored:
        """Scores of C candidates for each of B users; training passes the popularity as it was at each label."""
        popularity = self.popularity[items.index_N] if popularity_BC is None else popularity_BC
        bias_BC = items.bias_N + self.gates.popularity * popularity
        tower_BC = user.tower_BT @ tower_side(items).T + bias_BC
        extra_BC, attention_BCL = self._attend(user, items)
        return Scored(tower_BC + extra_BC, tower_BC, attention_BCL)

    def _attend(self, user: User, items: Items) -> tuple[Tensor, Tensor]:
        """Target attention: a candidate reads the events that are like it; one empty event lets it read nothing."""
        like_CF, theirs_BLF = self.gates.metric(items.content_NMK).flatten(1), self._metric_of(user.history)
        query_CD = self.query(items.token_ND) / math.sqrt(self.config.dim)
        # Products of [B, L, G] with [G, C] and few passes over [B, L, C]: this is where the time of training goes.
        asks_CG = torch.cat([self.gates.sharpness * like_CF, query_CD, torch.ones_like(query_CD[:, :1])], dim=1)
        hidden_mask_BL1 = torch.where(user.history.mask_BL, 0.0, MASKED)[..., None]
        keys_BLG = torch.cat([theirs_BLF, self.key(user.hidden_BLD), hidden_mask_BL1], dim=2)
        logits_BLC = F.pad(keys_BLG, (0, 0, 1, 0)) @ asks_CG.T  # the event of zeros that comes first is the empty one
        attention_BLC = logits_BLC.softmax(1)[:, 1:]
        takes_CG = torch.cat([self.gates.kernel * like_CF, items.token_ND], dim=1)
        told_BLG = torch.cat([theirs_BLF * user.history.strength_BL[..., None], self.value(user.hidden_BLD)], dim=2)
        return (attention_BLC * (told_BLG @ takes_CG.T)).sum(1), attention_BLC.transpose(1, 2)

    def _metric_of(self, history: History) -> Tensor:
        return self.gates.metric(history.content_BLMK).flatten(2)

    def rating(self, user: User, items: Items) -> Tensor:
        """Expected ratings [B, C] in the training ratings' unit."""
        summary_BD = user.vector_BD
        pair_BC = self.rating_pair(summary_BD) @ items.token_ND.T
        raw_BC = self.rating_item(items.token_ND)[:, 0] + self.rating_user(summary_BD) + pair_BC
        rating_BC: Tensor = self.rating_stats[0] + self.rating_stats[1] * raw_BC
        return rating_BC

    # ---- the tower as unit vectors, for approximate search ---------------------------------------------------------

    @property
    def fused_dim(self) -> int:
        """Length of a fused vector: all that the tower holds, the bias, and one number that makes the norm 1."""
        return len(self.shapes.modalities) * (self.config.space_dim + self.config.prototypes) + self.config.dim + 2

    def _biased_side(self, items: Items) -> Tensor:
        bias_N = items.bias_N + self.gates.popularity * self.popularity[items.index_N]
        return torch.cat([tower_side(items), bias_N[:, None]], dim=1)

    def fused_items(self, items: Items) -> Tensor:
        """Unit vectors [N, fused_dim] whose cosine with a user's vector orders items as the tower's score does.

        Inner product to cosine by one more coordinate (Bachrach et al., RecSys 2014, section 3). Items longer than the radius
        measured at training's end are shortened to it.
        """
        raw_NT = self._biased_side(items) / self.fused_radius
        raw_NT = raw_NT / raw_NT.norm(dim=1, keepdim=True).clamp_min(1.0)
        rest_N1 = (1.0 - raw_NT.square().sum(1, keepdim=True)).clamp_min(0.0).sqrt()
        return F.normalize(torch.cat([raw_NT, rest_N1], dim=1), dim=1)

    def fused_user(self, user: User) -> Tensor:
        """Unit vectors [B, fused_dim]."""
        one_B1 = torch.ones_like(user.tower_BT[:, :1])
        return F.normalize(torch.cat([user.tower_BT, one_B1, 0 * one_B1], dim=1), dim=1)

    @torch.no_grad()
    def measure_radius(self, items: Items) -> None:
        """Remember how long item vectors get, with a margin for items to come."""
        self.fused_radius.copy_(FUSED_MARGIN * self._biased_side(items).norm(dim=1).max())


def tower_side(items: Items) -> Tensor:
    """The item side [N, M * K + F + D] of the tower's inner product."""
    return torch.cat([items.content_NMK.flatten(1), items.feature_NF, items.token_ND], dim=1)
