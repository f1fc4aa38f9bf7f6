"""A ranker's scoring as one `torch.export` file: for servers that run no Python of this project.

It takes what a service keeps anyway: the tokens of the history's items and of the candidates (`ItemTokens.items`), and gives the scores that
`Ranker.score` gives to users without words of their own and without a query. History length and the number of candidates are free.
"""

# Shapes are part of names, as in `model`: one user with L events, C candidates.
# ruff: noqa: N803

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ranker.errors import EvaluationError
from ranker.inputs import History, Items, encode_names
from ranker.model import CONTEXT_FEATURES, FusionRanker
from ranker.scorer import Context, Ranker, UserState, context_features

LEAST_EVENTS, LEAST_CANDIDATES = 2, 2  # torch.export takes 0 and 1 for constants
# Vectors and features are float32, indices and kinds of events int64; ages are float64 seconds before now, oldest event first.
INPUTS = (
    "history_content_LMK", "history_token_LD", "history_feature_LF", "history_index_L", "event_L", "strength_L", "age_seconds_L",
    "context_X", "device_index", "content_CMK", "token_CD", "bias_C", "index_C", "feature_CF",
)  # fmt: skip


class ScoringModule(nn.Module):
    """The model with tensors in the place of records: see `INPUTS`."""

    def __init__(self, model: FusionRanker) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        history_content_LMK: Tensor,
        history_token_LD: Tensor,
        history_feature_LF: Tensor,
        history_index_L: Tensor,
        event_L: Tensor,
        strength_L: Tensor,
        age_seconds_L: Tensor,
        context_X: Tensor,
        device_index: Tensor,
        content_CMK: Tensor,
        token_CD: Tensor,
        bias_C: Tensor,
        index_C: Tensor,
        feature_CF: Tensor,
    ) -> Tensor:
        """Scores [C]."""
        history = History(
            history_content_LMK[None],
            history_token_LD[None],
            history_feature_LF[None],
            history_index_L[None],
            torch.ones_like(event_L, dtype=torch.bool)[None],
            event_L[None],
            strength_L[None],
            age_seconds_L[None],
        )
        items = Items(content_CMK, token_CD, bias_C, index_C, feature_CF)
        user = self.model.user(history, context_X[None], device_B=device_index[None])
        return self.model.score(user, items).score_BC[0]


def arguments(ranker: Ranker, state: UserState, candidates: Items, context: Context) -> tuple[Tensor, ...]:
    """What the file takes for a user and candidates, in the order of `INPUTS`.

    Raises `EvaluationError` for a profile or a query, which the file does not read.
    """
    if state.profile is not None or state.query:
        raise EvaluationError(
            "the file reads no profile and no query: leave them out of the user's state, or score with `Ranker`"
        )
    history = ranker.history(state, context)
    read = (history.content_BLMK, history.token_BLD, history.feature_BLF, history.index_BL)
    told = (history.event_BL, history.strength_BL, history.age_seconds_BL)
    items = (candidates.content_NMK, candidates.token_ND, candidates.bias_N, candidates.index_N, candidates.feature_NF)
    asked = (
        context_features([context.now_us])[0],
        encode_names([context.device], ranker.vocabulary.device_index, 1)[0],
    )
    return (*(value[0] for value in (*read, *told)), *asked, *items)


def export(ranker: Ranker, path: Path) -> Path:
    """Write the file (usually `.pt2`); `torch.export.load(path).module()` scores with it."""
    model = ranker.model
    m, k, d = len(model.shapes.modalities), model.config.space_dim, model.encoder.width
    events, candidates = (
        torch.export.Dim("events", min=LEAST_EVENTS),
        torch.export.Dim("candidates", min=LEAST_CANDIDATES),
    )
    width = m * model.config.prototypes
    example = _example(4, 5, m, k, d, width)
    dynamic: dict[str, Any] = {name: {0: events} for name in INPUTS[:7]} | {"context_X": None, "device_index": None}
    dynamic |= {name: {0: candidates} for name in INPUTS[9:]}
    program = torch.export.export(ScoringModule(model).eval(), example, dynamic_shapes=dynamic)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.export.save(program, path)
    return path


def _example(events: int, candidates: int, m: int, k: int, d: int, width: int) -> tuple[Tensor, ...]:
    index, event = (
        torch.ones(events, dtype=torch.long) for _ in range(2)
    )  # one tensor twice would be taken for one input
    history = (torch.randn(events, m, k), torch.randn(events, d), torch.randn(events, width), index, event)
    items = (torch.randn(candidates, m, k), torch.randn(candidates, d), torch.randn(candidates))
    return (
        *history,
        torch.ones(events),
        torch.arange(events, 0, -1).double(),
        torch.randn(CONTEXT_FEATURES),
        torch.tensor(1),
        *items,
        torch.ones(candidates, dtype=torch.long),
        torch.randn(candidates, width),
    )
