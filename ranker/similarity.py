"""Similarity of content, as the model weighs it: gated interests for the tower, kernel densities for the lift.

These few numbers learn fast and carry over to items never seen. Shapes as in `model`; P reference items.
"""

# Shapes are part of names (x_BLD), as the legend in `model` says.
# ruff: noqa: N803, N806

import math
from typing import Final

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own idiom
from torch import Tensor, nn

from ranker.config import RankerConfig
from ranker.inputs import History, ItemInputs, Items, Shapes

GATE_START: Final = 6.0
SHRINKAGE_START: Final = 3.0  # a history of three events is believed by half
WIDTH_START: Final = 4.0  # of the kernel around an item: at cosine 0 it is exp(-4)
MINIMUM_DENSITY: Final = 1e-4


class Gates(nn.Module):
    """The few numbers that weigh content similarity: they learn fast, and carry over to items never seen."""

    def __init__(self, config: RankerConfig, shapes: Shapes) -> None:
        super().__init__()
        m, k = len(shapes.modalities), config.space_dim
        self.text = list(shapes.modalities).index("text") if "text" in shapes.modalities else None
        self.log_gate = nn.Parameter(torch.full((m, k), math.log(GATE_START)))
        self.shrinkage = nn.Parameter(torch.full((m,), math.log(SHRINKAGE_START)))
        self.centre = nn.Parameter(torch.zeros(m, k))
        self.event = nn.Parameter(torch.zeros(shapes.event_types + 1))
        self.gap = nn.Parameter(torch.zeros(config.gap_buckets))
        self.profile = nn.Parameter(torch.tensor(0.0))
        self.popularity = nn.Parameter(torch.tensor(0.7))
        self.sharpness = nn.Parameter(torch.tensor(2.0))
        self.kernel = nn.Parameter(torch.tensor(0.5))
        self.tower = nn.Parameter(torch.tensor(0.3))
        self.lift_weight = nn.Parameter(torch.ones(m))
        self.log_width = nn.Parameter(torch.full((m,), math.log(WIDTH_START)))
        self.prior = nn.Parameter(torch.full((m,), math.log(SHRINKAGE_START)))

    def weight(self, history: History, gap_BL: Tensor) -> Tensor:
        """How much each event counts [B, L], by its type and age; 0 for padding."""
        return (self.event[history.event_BL] + self.gap[gap_BL]).exp() * history.mask_BL

    def direction(self, history: History, weight_BL: Tensor, profile_BK: Tensor | None) -> Tensor:
        """What each user likes in each space [B, M, K]: a weighted mean of the history, shrunk towards nothing while it is short."""
        there_BLM = history.there_BLM
        signed_BLM = (weight_BL * history.strength_BL)[..., None] * there_BLM
        total_BMK = torch.einsum("blm,blmk->bmk", signed_BLM, history.content_BLMK - self.centre)
        mass_BM = (weight_BL[..., None] * there_BLM).sum(1) + self.shrinkage.exp()
        if profile_BK is not None and self.text is not None:
            total_BMK, mass_BM = self._with_profile(total_BMK, mass_BM, profile_BK)
        return self.log_gate.exp() * total_BMK / mass_BM[..., None]

    def _with_profile(self, total_BMK: Tensor, mass_BM: Tensor, profile_BK: Tensor) -> tuple[Tensor, Tensor]:
        weight = self.profile.exp()
        only_text_M = F.one_hot(torch.tensor(self.text), len(mass_BM[0])).to(mass_BM)
        has_B1 = (profile_BK != 0).any(-1, keepdim=True)
        return total_BMK + weight * only_text_M[:, None] * profile_BK[:, None], mass_BM + weight * only_text_M * has_B1

    def metric(self, content: Tensor) -> Tensor:
        """Unit vectors [..., M, K] whose dot product is the gated cosine in each space; 0 stays 0."""
        return F.normalize(content * (self.log_gate / 2).exp(), dim=-1, eps=1e-6)

    def similarity(self, history: History, items: Items) -> Tensor:
        """Gated cosines [B, M, C, L] of candidates and events in each space; 0 where either lacks it."""
        mine_MCK = self.metric(items.content_NMK).transpose(0, 1)
        theirs_BMKL = self.metric(history.content_BLMK).permute(0, 2, 3, 1)
        return mine_MCK @ theirs_BMKL

    def density(self, similarity: Tensor) -> Tensor:
        """Kernel exp(width * (cosine - 1)), with M at the third place from the end."""
        return (self.log_width.exp()[:, None, None] * (similarity - 1.0)).exp()

    def lift(self, history: History, weight_BL: Tensor, similarity_BMCL: Tensor, items: Items) -> Tensor:
        """Sum over spaces of log(density of this user's likes / density of everybody's) around each candidate [B, C].

        A kernel density estimate of P(content | user) / P(content), with everybody's density as the prior: 0 without a history,
        and in a space that the candidate lacks.
        """
        liked_BLM = (weight_BL * history.strength_BL.clamp_min(0.0))[..., None] * history.there_BLM
        own_BMC = (self.density(similarity_BMCL) @ liked_BLM.permute(0, 2, 1)[..., None])[..., 0]
        prior_M1, usual_MC = self.prior.exp()[:, None], items.usual_NM.T
        mass_BM1 = liked_BLM.sum(1)[..., None]
        ratio_BMC = (own_BMC + prior_M1 * usual_MC) / ((mass_BM1 + prior_M1) * usual_MC)
        there_MC = (items.content_NMK != 0).any(-1).T
        return torch.einsum("m,bmc->bc", self.lift_weight, ratio_BMC.log() * there_MC)


class Background(nn.Module):
    """Reference items, weighted by how often they were liked: what everybody's likes look like in each space."""

    content: Tensor
    share: Tensor

    def __init__(self, shapes: Shapes, directions: int) -> None:
        super().__init__()
        self.register_buffer("content", torch.zeros(shapes.background, len(shapes.modalities), directions))
        self.register_buffer("share", torch.ones(shapes.background))

    def forward(self, gates: Gates, inputs: ItemInputs) -> Tensor:
        """Density [N, M] of everybody's likes around each item, itself left out: no history holds the item that is ranked."""
        mine_MNK = gates.metric(inputs.spaces_NMK).transpose(0, 1)
        theirs_MKP = gates.metric(self.content).permute(1, 2, 0)
        share_NP = self.share.expand(len(inputs), -1) * (torch.arange(len(self.share)) != inputs.bank_N[:, None])
        share_MNP = share_NP * (self.content != 0).any(-1).T[:, None]
        near_MN = (gates.density(mine_MNK @ theirs_MKP) * share_MNP).sum(2)
        return (near_MN / share_MNP.sum(2).clamp_min(1e-6)).clamp_min(MINIMUM_DENSITY).T
