"""Content, as the model weighs it: gated cosines, and tastes fitted to each history over prototypes of content.

These few numbers learn fast and carry over to items never seen. Shapes as in `model`; P prototypes of a space, F = M * P, R
reference items.
"""

# Shapes are part of names (x_BLD), as the legend in `model` says.
# ruff: noqa: N803, N806

import math
from typing import Final

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own idiom
from torch import Tensor, nn

from ranker.config import RankerConfig
from ranker.exposure import POSITION_BUCKETS
from ranker.inputs import History, Shapes

GATE_START: Final = 2.0
SHRINKAGE_START: Final = 3.0  # a history of three events is believed by half
SHARPNESS_START: Final = 10.0  # of the choice among prototypes: a cosine .3 higher is twenty times as likely
RIDGE_START: Final = 0.7
POPULARITY_START: Final = 0.7
# Curvature of a choice's log-likelihood along one prototype, and momentum: with these, six steps reach the optimum.
CURVATURE: Final = 0.2
MOMENTUM: Final = 0.5


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
        start = POPULARITY_START if config.popularity else 0.0
        self.popularity = nn.Parameter(torch.tensor(start), requires_grad=config.popularity)
        self.sharpness = nn.Parameter(torch.tensor(2.0))
        self.kernel = nn.Parameter(torch.tensor(0.5))
        self.position = nn.Parameter(torch.zeros(POSITION_BUCKETS))  # of shown items, in training alone

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


class Taste(nn.Module):
    """What a user likes, fitted to their history when asked: a softmax regression of their choices on prototypes of content.

    A history is a series of choices among what there was, for which the reference items (liked items of training, by how often)
    stand. Gradient steps on its penalised likelihood give weights over prototypes; unlike a mean of the history they explain
    away: an item taken for its text says little in favour of its picture. The steps are unrolled, so that prototypes, penalty and
    metric are trained through them (as in Lee et al., Meta-learning with differentiable convex optimization, CVPR 2019).
    """

    content: Tensor
    share: Tensor

    def __init__(self, config: RankerConfig, shapes: Shapes) -> None:
        super().__init__()
        m, k = len(shapes.modalities), config.space_dim
        self.steps = config.taste_steps
        self.prototypes = nn.Parameter(F.normalize(torch.randn(m, config.prototypes, k), dim=-1))
        self.sharpness = nn.Parameter(torch.full((m,), math.log(SHARPNESS_START)))
        self.ridge = nn.Parameter(torch.full((m,), math.log(RIDGE_START)))
        self.reference = nn.Parameter(torch.tensor(0.5))
        self.scale = nn.Parameter(torch.ones(m))
        self.register_buffer("content", torch.zeros(shapes.references, m, k))
        self.register_buffer("share", torch.full((shapes.references,), 1.0 / shapes.references))

    def features(self, content: Tensor) -> Tensor:
        """Content [..., M, K] -> soft memberships of prototypes [..., F], 0 on average; all 0 in a space that is lacking."""
        cosine = torch.einsum("...mk,mpk->...mp", content, F.normalize(self.prototypes, dim=-1))
        member = (self.sharpness.exp()[:, None] * cosine).softmax(-1) - 1.0 / self.prototypes.shape[1]
        there = (content != 0).any(-1, keepdim=True)
        return (member * there).flatten(-2)

    def forward(self, feature_BLF: Tensor, weight_BL: Tensor, profile_BF: Tensor, profile_weight: Tensor) -> Tensor:
        """Fitted tastes [B, F]: add their inner product with an item's features to its score."""
        reference_RF, log_share_R = self.features(self.content), self.reference * (self.share + 1e-6).log()
        observed_BF = torch.einsum("bl,blf->bf", weight_BL, feature_BLF) + profile_weight * profile_BF
        mass_B1 = weight_BL.clamp_min(0.0).sum(1, keepdim=True)
        ridge_F = self.ridge.exp().repeat_interleave(self.prototypes.shape[1])
        taste_BF = before_BF = torch.zeros_like(observed_BF)
        for _ in range(self.steps):
            ahead_BF = taste_BF + MOMENTUM * (taste_BF - before_BF)
            expected_BF = (log_share_R + ahead_BF @ reference_RF.T).softmax(1) @ reference_RF
            gradient_BF = observed_BF - mass_B1 * expected_BF - ridge_F * ahead_BF
            before_BF, taste_BF = taste_BF, ahead_BF + gradient_BF / (CURVATURE * mass_B1 + ridge_F)
        return taste_BF * self.scale.repeat_interleave(self.prototypes.shape[1])
