"""The fusion ranker in one file: item token, user, target attention, and the two-tower part that retrieval shares.

Score = tower + attention + prior. The tower is an inner product of a user side and an item side, so that approximate search over it
agrees with ranking: what the history was read as, tastes fitted to it, cosines with what the user met, token, popularity. Attention lets
the candidate read single events of the history. The prior is item-to-item regression (`prior`), mixed in late. Content is in the
token and in the cosines, so that items which nobody met yet have their place; what is known of single ids is often dropped in training.

Shapes: N items, B users (or labels), C candidates, L events of a history, M modalities, K directions of a space, S slots of a token, T tags
of an item, D width of tokens, P prototypes of a space, F = M * P, X experts (`late` fusion; else one). In `Places`, `Block` and `read` P is L + 1
places, E those of all users that are no padding, and G the width of queries, keys and values together.
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
from ranker.prior import Prior
from ranker.similarity import Gates, Taste

CONTEXT_FEATURES: Final = 9  # sine and cosine of the hour, seven weekdays
FIRST_GAP_SECONDS: Final = 60.0
GAP_BASE: Final = 3.0  # a bucket is three times as long as the one before: 12 buckets reach from a minute to 20 years
MASKED: Final = -1e9
FUSED_MARGIN: Final = 1.1
MOST_SECONDS: Final = 1e10
TOKEN_STD: Final = 0.02


@dataclass(frozen=True)
class User:
    """B users, ready to score any candidates."""

    vector_BD: Tensor  # what meets an item's token
    similar_BS: (
        Tensor | None
    )  # direction in each space and tastes: what meets an item's content; None where nothing does
    hidden_BLD: Tensor
    prior_BI: Tensor | None  # by item index, as `Prior` gives it
    prior_BR: Tensor  # what retrieval sees of that
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
    """Item token: a gate weighs whichever of (modalities..., id, category, price, tags) are there, and the token is their weighted sum.

    Where no item had a category, a price or a tag (`Shapes`), there is no slot of it.
    The gate is a softmax over what is there, of a learned query with each normalised slot: attention with one query. `fusion="concat"`
    lays the slots side by side before a linear layer in its place, `"sum"` adds them: what the gate is compared with. With `"late"` the
    token is one for each of X experts, side by side: each has a gate, a modality, and a reading of all else of its own.
    """

    factor_IK: Tensor

    def __init__(self, config: RankerConfig, shapes: Shapes) -> None:
        super().__init__()
        several = len(shapes.modalities) > 1
        self.fusion, self.dropout = (
            config.fusion if several or config.fusion != "late" else "gate",
            config.content_dropout,
        )
        self.experts = len(shapes.modalities) if self.fusion == "late" else 1
        d, hidden = self.experts * config.dim, config.content_dim
        self.width = d
        self.content = nn.ModuleList(
            _content(config.space_dim, hidden, config.dim, self.dropout) for _ in shapes.modalities
        )
        self.factors = _content(config.collaborative, hidden, d, self.dropout) if config.collaborative else None
        self.register_buffer("factor_IK", torch.zeros(shapes.items + 1, config.collaborative))
        self.fold_IK = self.factor_IK  # in training: what users other than the batch's say (`folds`)
        self.ids = nn.Embedding(shapes.items + 1, d)
        self.categories = nn.Embedding(shapes.categories + 1, d)
        self.price = nn.Linear(1, d)
        self.tags = nn.EmbeddingBag(shapes.tags + 1, hidden, mode="sum", padding_idx=0)
        self.tag_out = nn.Sequential(nn.LayerNorm(hidden), nn.GELU(), nn.Dropout(self.dropout), nn.Linear(hidden, d))
        known = {
            "category": shapes.categories,
            "price": shapes.prices,
            "tags": shapes.tags,
            "factors": config.collaborative,
        }
        self.slot_names = (
            *(("content",) if self.fusion == "late" else shapes.modalities),
            "id",
            *(name for name, count in known.items() if count),
        )
        slots = len(self.slot_names)
        self.query, self.gate_bias = nn.Parameter(torch.zeros(slots, d)), nn.Parameter(torch.zeros(slots))
        self.concat = nn.Linear(slots * d, d) if config.fusion == "concat" else None
        for layer in (*self.content, self.tag_out, *([self.factors] if self.factors else [])):
            nn.init.normal_(layer[-1].weight, std=TOKEN_STD / math.sqrt(hidden))
            nn.init.zeros_(layer[-1].bias)
        for layer in (self.ids, self.categories, self.price):
            nn.init.normal_(layer.weight, std=TOKEN_STD)
        nn.init.normal_(self.tags.weight, std=0.1)
        nn.init.zeros_(self.price.bias)

    def forward(self, inputs: ItemInputs, slots_NSD: Tensor) -> Tensor:
        """Tokens [N, D] of what is there; 0 for an item without any feature."""
        there_NS = self.there(inputs)
        slots_NSD = slots_NSD * there_NS[..., None]
        if self.concat is not None:
            return self.concat(slots_NSD.flatten(1))  # type: ignore[no-any-return]
        if self.fusion == "sum":
            return slots_NSD.sum(1)
        if self.fusion == "late":
            return self._late(inputs, slots_NSD, there_NS)
        return (self.gate(slots_NSD, there_NS)[..., None] * slots_NSD).sum(1)

    def slots(self, inputs: ItemInputs, price_N: Tensor) -> Tensor:
        """What each slot says [N, S, D], whether it is there or not."""
        space_NMK = F.dropout(inputs.spaces_NMK * math.sqrt(inputs.spaces_NMK.shape[-1]), self.dropout, self.training)
        content = [layer(space_NMK[:, m]) for m, layer in enumerate(self.content)]
        if self.fusion == "late":
            content = [torch.cat(content, dim=1)]  # N, D
        others = {"id": self.ids(inputs.index_N)}
        if "category" in self.slot_names:
            others["category"] = self.categories(inputs.category_N)
        if "price" in self.slot_names:
            others["price"] = self.price(price_N[:, None])
        if "tags" in self.slot_names:
            weight_NT = F.dropout(inputs.tag_weight_NT, self.dropout, self.training)
            others["tags"] = self.tag_out(self.tags(inputs.tag_NT, per_sample_weights=weight_NT))
        if self.factors is not None:
            others["factors"] = self.factors(F.dropout(self._factors(inputs), self.dropout, self.training))
        return torch.stack([*content, *others.values()], 1)

    def there(self, inputs: ItemInputs) -> Tensor:
        """Which slots [N, S] an item has."""
        known = {
            "id": inputs.index_N > 0,
            "category": inputs.category_N > 0,
            "price": inputs.price_N.isfinite(),
            "tags": (inputs.tag_NT > 0).any(1),
        }
        if self.factors is not None:
            known["factors"] = (self._factors(inputs) != 0).any(1)
        present = [inputs.present_NM.any(1)] if self.fusion == "late" else inputs.present_NM.unbind(1)
        return torch.stack([*present, *(has_N for name, has_N in known.items() if name in self.slot_names)], 1)

    def _late(self, inputs: ItemInputs, slots_NSD: Tensor, there_NS: Tensor) -> Tensor:
        """The experts' tokens, side by side [N, D]: each weighs its own content, and its own reading of all else."""
        tokens = []
        own = zip(slots_NSD.chunk(self.experts, dim=2), self.query.chunk(self.experts, dim=1), strict=True)
        for expert, (slots_NSd, query_Sd) in enumerate(own):
            own_NS = torch.cat([inputs.present_NM[:, expert, None], there_NS[:, 1:]], dim=1)
            tokens.append((self.gate(slots_NSd, own_NS, query_Sd)[..., None] * slots_NSd).sum(1))
        return torch.cat(tokens, dim=1)

    def _factors(self, inputs: ItemInputs) -> Tensor:
        return (self.fold_IK if self.training else self.factor_IK)[inputs.index_N]

    def gate(self, slots_NSD: Tensor, there_NS: Tensor, query_SD: Tensor | None = None) -> Tensor:
        """Weights [N, S], 1 on average over what is there and 0 elsewhere."""
        query_SD = self.query if query_SD is None else query_SD
        logits_NS = (F.layer_norm(slots_NSD, slots_NSD.shape[-1:]) * query_SD).sum(-1) + self.gate_bias
        weights_NS = logits_NS.masked_fill(~there_NS, MASKED).softmax(1) * there_NS
        return weights_NS * there_NS.sum(1, keepdim=True)


def _content(inputs: int, hidden: int, outputs: int, dropout: float) -> nn.Sequential:
    layers = (nn.Linear(inputs, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Dropout(dropout))
    return nn.Sequential(*layers, nn.Linear(hidden, outputs))


@dataclass(frozen=True)
class Places:
    """Where E rows stand among the P places of B users; None: everywhere, padding too."""

    at_E: Tensor | None
    users: int
    length: int

    def pack(self, x_BPD: Tensor) -> Tensor:
        """[B, P, D] -> [E, D]."""
        rows = x_BPD.flatten(0, 1)
        return rows if self.at_E is None else rows.index_select(0, self.at_E)

    def pad(self, x_ED: Tensor) -> Tensor:
        """[E, D] -> [B, P, D], 0 where nothing stands."""
        if self.at_E is not None:
            x_ED = x_ED.new_zeros(self.users * self.length, x_ED.shape[1]).index_copy(0, self.at_E, x_ED)
        return x_ED.view(self.users, self.length, -1)


class Block(nn.Module):
    """One pre-norm Transformer block with causal attention."""

    def __init__(self, config: RankerConfig) -> None:
        super().__init__()
        d = config.dim
        self.heads, self.dropout = config.heads, config.dropout
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.mlp = nn.Sequential(nn.Linear(d, 4 * d), nn.GELU(), nn.Dropout(config.dropout), nn.Linear(4 * d, d))

    def forward(self, x_ED: Tensor, places: Places) -> Tensor:
        """[E, D] -> [E, D]; padding at the end needs no mask, since nothing before it looks there."""
        qkv_BPG = places.pad(self.qkv(self.norm1(x_ED)))
        q, k, v = qkv_BPG.view(places.users, places.length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # B H P D/H
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # with dropout here it is far slower
        x_ED = x_ED + self._drop(self.out(places.pack(mixed.transpose(1, 2).flatten(2))))
        return x_ED + self._drop(self.mlp(self.norm2(x_ED)))

    def _drop(self, x_ED: Tensor) -> Tensor:
        return F.dropout(x_ED, self.dropout, self.training)


class SetReader(nn.Module):
    """Reads a history without order: the tokens' sum by the root of their number, and two layers.

    After Liang et al., Variational autoencoders for collaborative filtering, WWW 2018, with tokens in place of one-hot inputs.
    """

    def __init__(self, config: RankerConfig) -> None:
        super().__init__()
        d, hidden = config.dim, config.set_dim
        self.first = nn.Linear(d, hidden) if d != hidden else nn.Identity()
        self.second, self.out = nn.Linear(hidden, hidden), nn.Linear(hidden, d)
        self.norm1, self.norm2 = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.spread = nn.Linear(hidden, d)
        self.dropout = config.dropout
        nn.init.normal_(self.spread.weight, std=1e-3)
        nn.init.constant_(self.spread.bias, -2.0)

    def forward(self, bag_BD: Tensor) -> tuple[Tensor, Tensor]:
        """Means [B, D] and log variances [B, D] of what the user is."""
        x_BH = self._drop(F.silu(self.norm1(self.first(bag_BD))))
        x_BH = x_BH + self._drop(F.silu(self.norm2(self.second(x_BH))))
        return self.out(x_BH), self.spread(x_BH).clamp(-8.0, 4.0)

    def _drop(self, x_BH: Tensor) -> Tensor:
        return F.dropout(x_BH, self.dropout, self.training)


class FusionRanker(nn.Module):
    """The whole model. Buffers hold what was counted or fitted rather than learned: projections, popularity, scales."""

    popularity: Tensor
    id_row: Tensor
    tag_idf: Tensor
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
        w = self.encoder.width
        self.readers = nn.ModuleList(
            SetReader(config) for _ in range(self.encoder.experts if config.history == "set" else 0)
        )
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.start = nn.Parameter(0.1 * torch.randn(d))
        self.place = nn.Embedding(config.history_length, d)
        self.event = nn.Embedding(shapes.event_types + 1, d)
        self.gap, self.recency = nn.Embedding(config.gap_buckets, d), nn.Embedding(config.gap_buckets, w)
        self.final = nn.LayerNorm(d)
        self.context_out = nn.Linear(CONTEXT_FEATURES, w, bias=False)
        self.device = nn.Embedding(
            shapes.devices + 1, w, _weight=torch.zeros(shapes.devices + 1, w)
        )  # draws no numbers
        self.taste = Taste(config, shapes)
        self.query, self.key, self.value = nn.Linear(d, d), nn.Linear(d, d), nn.Linear(d, d)
        self.rating_item, self.rating_user = nn.Linear(w, 1), nn.Linear(w, 1)
        self.rating_pair = nn.Linear(w, w, bias=False)
        self.id_bias, self.content_bias = nn.Embedding(shapes.items + 1, 1), nn.Linear(w, 1)
        self.gates = Gates(config, shapes)
        self.prior = Prior(shapes.items, shapes.prior, shapes.prior_rank)
        for layer in (self.context_out, self.value, self.id_bias, self.content_bias, self.rating_pair, self.recency):
            nn.init.zeros_(layer.weight)  # what refines a score starts at nothing, and has to earn its part
        for layer in (self.place, self.event, self.gap):
            nn.init.normal_(layer.weight, std=TOKEN_STD)
        self._register_counts(shapes)

    def _register_counts(self, shapes: Shapes) -> None:
        text_dim = shapes.modalities.get("text", 1)
        self.register_buffer("popularity", torch.zeros(shapes.items + 1))
        self.register_buffer("id_row", torch.arange(shapes.items + 1))
        self.register_buffer("tag_idf", torch.ones(shapes.tags + 1))
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

    def items(self, inputs: ItemInputs, slots_NSD: Tensor | None = None) -> Items:
        """Tokens and all else that scoring needs of N items; the same whoever asks. `slots_NSD` spares computing `slots` again."""
        row_N = self.id_row[inputs.index_N] * self.config.ids
        token_ND = self.encoder(replace(inputs, index_N=row_N), self.slots(inputs) if slots_NSD is None else slots_NSD)
        feature_NF = self.taste.features(inputs.spaces_NMK)
        bias_N = torch.where(row_N > 0, self.id_bias(row_N)[:, 0], self.content_bias(token_ND)[:, 0])
        return Items(inputs.spaces_NMK, token_ND, bias_N, inputs.index_N, feature_NF)

    def slots(self, inputs: ItemInputs) -> Tensor:
        """What each slot of the items' tokens says [N, S, D]."""
        row_N = self.id_row[inputs.index_N] * self.config.ids
        price_N = ((inputs.price_N - self.price_stats[0]) / self.price_stats[1]).nan_to_num(0.0)
        return self.encoder.slots(replace(inputs, index_N=row_N), price_N)

    # ---- user ------------------------------------------------------------------------------------------------------

    def read(self, history: History) -> Tensor:
        """What is known of each user after each event, [B, 1 + L, D]: place p has read the first p events, and nothing after them."""
        gap_BL = self._bucket(F.pad(history.age_seconds_BL, (1, 0))[:, :-1] - history.age_seconds_BL)
        gap_BL = torch.where(torch.arange(gap_BL.shape[1]) > 0, gap_BL, 0)
        place_LD = self.place(torch.arange(gap_BL.shape[1]).clamp_max(self.config.history_length - 1))
        token_BLD = history.token_BLD * math.sqrt(self.config.dim)
        events_BLD = token_BLD + place_LD + self.event(history.event_BL)
        if self.config.time_gaps:
            events_BLD = events_BLD + self.gap(gap_BL)
        start_B1D = self.start.expand(len(events_BLD), 1, -1)
        x_BPD = torch.cat([start_B1D, events_BLD], dim=1)
        # Padding is most of a batch of users with few events; in training only attention sees it.
        there_BP = F.pad(history.mask_BL, (1, 0), value=True)
        places = Places(there_BP.flatten().nonzero()[:, 0] if self.training else None, *there_BP.shape)
        x_ED = F.dropout(places.pack(x_BPD), self.config.dropout, self.training)
        for block in self.blocks:
            x_ED = block(x_ED, places)
        return places.pad(self.final(x_ED))

    def vector(self, read_SD: Tensor, context_SX: Tensor, recency_S: Tensor, device_S: Tensor | None = None) -> Tensor:
        """Users' vectors [S, D]: what was read, and when (`context_features`; seconds since the last event, inf where there is none).

        `device_S` is in the vocabulary; 0, an unknown one, changes nothing.
        """
        known_S1 = (recency_S.isfinite() & self.config.time_gaps)[:, None]
        recency_SD = self.recency(self._bucket(recency_S)) * known_S1
        device_SD = 0.0 if device_S is None else self.device(device_S) * (device_S > 0)[:, None]
        return read_SD + self.context_out(context_SX) + recency_SD + device_SD  # type: ignore[no-any-return]

    def user(
        self,
        history: History,
        context_BX: Tensor,
        profile_BK: Tensor | None = None,
        query_BMK: Tensor | None = None,
        device_B: Tensor | None = None,
    ) -> User:
        """Read histories once; `profile_BK` (0: none) is in the text space, `query_BMK` (0: none) in any."""
        hidden_BLD, last_BD = self._last(history)
        similar_BS = self._similar(history, profile_BK) if self.config.similar else None
        if query_BMK is not None:
            query_BS = self.config.query_weight * F.pad(query_BMK.flatten(1), (0, self._features))
            similar_BS = query_BS if similar_BS is None else similar_BS + query_BS
        age_BL = torch.where(history.mask_BL, history.age_seconds_BL, torch.inf)
        recency_B = F.pad(age_BL, (1, 0), value=torch.inf).min(1).values
        vector_BD = self.vector(last_BD, context_BX, recency_B, device_B)
        return User(vector_BD, similar_BS, hidden_BLD, self.prior(history), self.prior.user(history), history)

    def _last(self, history: History) -> tuple[Tensor, Tensor]:
        """What attention reads of each event [B, L, D], and of each user after the last [B, D]."""
        if self.readers:
            weight_BL = history.strength_BL.clamp_min(0.0)
            bag_BD = (weight_BL[..., None] * history.token_BLD).sum(1)
            read_XBD, _ = self.read_sets(bag_BD / weight_BL.sum(1, keepdim=True).clamp_min(1.0).sqrt())
            return history.token_BLD, self.joined(read_XBD)
        hidden_BPD = self.read(history)
        return hidden_BPD[:, 1:], hidden_BPD[torch.arange(len(hidden_BPD)), history.mask_BL.sum(1)]

    def read_sets(self, bag_BD: Tensor) -> tuple[Tensor, Tensor]:
        """Means and log variances [X, B, D / X] of what the users of whole sets are, by each expert."""
        parts = [
            reader(part) for reader, part in zip(self.readers, bag_BD.chunk(len(self.readers), dim=1), strict=True)
        ]
        return torch.stack([mean for mean, _ in parts]), torch.stack([spread for _, spread in parts])

    def joined(self, read_XBD: Tensor) -> Tensor:
        """Users' vectors [B, D] whose product with the tokens is the mean of the experts' scores."""
        return torch.cat(read_XBD.unbind(0), dim=1) / len(read_XBD)

    def _similar(self, history: History, profile_BK: Tensor | None) -> Tensor:
        """Direction in each space, and tastes fitted to the history [B, M * K + F]; the user's own text counts as one more item that has only text."""
        weight_BL = self.gates.weight(history, self._bucket(history.age_seconds_BL))
        direction_BMK = self.gates.direction(history, weight_BL, profile_BK)
        b, (m, k) = len(weight_BL), history.content_BLMK.shape[2:]
        alone_BMK = torch.zeros(b, m, k)
        if profile_BK is not None and self.gates.text is not None:
            alone_BMK[:, self.gates.text] = profile_BK
        feature_BF = self.taste.features(alone_BMK)
        taste_BF = self.taste(
            history.feature_BLF, weight_BL * history.strength_BL, feature_BF, self.gates.profile.exp()
        )
        return torch.cat([direction_BMK.flatten(1), taste_BF], dim=1)

    def _bucket(self, seconds: Tensor) -> Tensor:
        bucket = torch.log(seconds.clamp(1.0, MOST_SECONDS) / FIRST_GAP_SECONDS) / math.log(GAP_BASE)
        return bucket.ceil().clamp(0, self.config.gap_buckets - 1).long()

    # ---- score -----------------------------------------------------------------------------------------------------

    def score(self, user: User, items: Items, popularity_BC: Tensor | None = None) -> Scored:
        """Scores of C candidates for each of B users; training passes the popularity as it was at each label."""
        popularity = self.popularity[items.index_N] if popularity_BC is None else popularity_BC
        bias_BC = items.bias_N + self.gates.popularity * popularity
        tower_BC = user.vector_BD @ items.token_ND.T + bias_BC
        if user.similar_BS is not None:
            tower_BC = tower_BC + user.similar_BS @ similar_side(items).T
        extra_BC, attention_BCL = self._attend(user, items) if self.config.attends else self._ignore(user, items)
        if user.prior_BI is not None:
            extra_BC = extra_BC + user.prior_BI[:, items.index_N]
        return Scored(tower_BC + extra_BC, tower_BC, attention_BCL)

    def _attend(self, user: User, items: Items) -> tuple[Tensor, Tensor]:
        """Target attention: a candidate reads the events that are like it; one empty event lets it read nothing."""
        like_CF, theirs_BLF = self.gates.metric(items.content_NMK).flatten(1), self._metric_of(user.history)
        token_CD = _normal(items.token_ND)
        query_CD = self.query(token_CD) / math.sqrt(self.config.dim)
        # Products of [B, L, G] with [G, C] and few passes over [B, L, C]: this is where the time of training goes.
        asks_CG = torch.cat([self.gates.sharpness * like_CF, query_CD, torch.ones_like(query_CD[:, :1])], dim=1)
        hidden_mask_BL1 = torch.where(user.history.mask_BL, 0.0, MASKED)[..., None]
        keys_BLG = torch.cat([theirs_BLF, self.key(user.hidden_BLD), hidden_mask_BL1], dim=2)
        logits_BLC = F.pad(keys_BLG, (0, 0, 1, 0)) @ asks_CG.T  # the event of zeros that comes first is the empty one
        attention_BLC = logits_BLC.softmax(1)[:, 1:]
        takes_CG = torch.cat([self.gates.kernel * like_CF, token_CD], dim=1)
        told_BLG = torch.cat([theirs_BLF * user.history.strength_BL[..., None], self.value(user.hidden_BLD)], dim=2)
        return (attention_BLC * (told_BLG @ takes_CG.T)).sum(1), attention_BLC.transpose(1, 2)

    def _ignore(self, user: User, items: Items) -> tuple[Tensor, Tensor]:
        """What `_attend` gives where nothing is attended to."""
        shape_BCL = user.vector_BD.shape[0], items.index_N.shape[0], user.history.mask_BL.shape[1]
        return torch.zeros(shape_BCL[:2]), torch.zeros(1, 1, 1).expand(shape_BCL)

    def _metric_of(self, history: History) -> Tensor:
        return self.gates.metric(history.content_BLMK).flatten(2)

    def rating(self, user: User, items: Items) -> Tensor:
        """Expected ratings [B, C] in the training ratings' unit."""
        summary_BD, token_CD = user.vector_BD, _normal(items.token_ND)
        pair_BC = self.rating_pair(summary_BD) @ token_CD.T
        raw_BC = self.rating_item(token_CD)[:, 0] + self.rating_user(summary_BD) + pair_BC
        rating_BC: Tensor = self.rating_stats[0] + self.rating_stats[1] * raw_BC
        return rating_BC

    # ---- the tower as unit vectors, for approximate search ---------------------------------------------------------

    @property
    def fused_dim(self) -> int:
        """Length of a fused vector: all that the tower holds, the bias, and one number that makes the norm 1."""
        return self._similar_dim + self.encoder.width + self.prior.rank + 2

    @property
    def _similar_dim(self) -> int:
        return len(self.shapes.modalities) * self.config.space_dim + self._features

    @property
    def _features(self) -> int:
        return len(self.shapes.modalities) * self.config.prototypes

    def bias(self, items: Items) -> Tensor:
        """What every user's score of an item has [N]: its own bias, and that of its popularity when training ended."""
        return items.bias_N + self.gates.popularity * self.popularity[items.index_N]

    def _biased_side(self, items: Items) -> Tensor:
        prior_NR = self.prior.scale * self.prior.item_IR[items.index_N]
        return torch.cat([similar_side(items), items.token_ND, prior_NR, self.bias(items)[:, None]], dim=1)

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
        one_B1 = torch.ones_like(user.vector_BD[:, :1])
        similar_BS = torch.zeros(len(one_B1), self._similar_dim) if user.similar_BS is None else user.similar_BS
        return F.normalize(torch.cat([similar_BS, user.vector_BD, user.prior_BR, one_B1, 0 * one_B1], dim=1), dim=1)

    @torch.no_grad()
    def silence(self) -> None:
        """Leave every score but the prior's at 0: the model of someone who wants the prior alone."""
        for parameter in (*self.encoder.parameters(), *self.id_bias.parameters(), *self.content_bias.parameters()):
            parameter.zero_()
        self.gates.popularity.zero_()

    @torch.no_grad()
    def measure_radius(self, items: Items) -> None:
        """Remember how long item vectors get, with a margin for items to come."""
        self.fused_radius.copy_(FUSED_MARGIN * self._biased_side(items).norm(dim=1).max())


def similar_side(items: Items) -> Tensor:
    """The item side [N, M * K + F] of what a user's direction and tastes meet."""
    return torch.cat([items.content_NMK.flatten(1), items.feature_NF], dim=1)


def _normal(token_ND: Tensor) -> Tensor:
    """Tokens of mean 0 and variance 1, for layers that expect that; 0 stays 0."""
    return F.layer_norm(token_ND, token_ND.shape[-1:])
