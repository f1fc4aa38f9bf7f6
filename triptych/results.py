"""What the client library returns, and how it is read off the wire: numpy arrays and plain dataclasses, no protobuf."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

import numpy as np
from numpy.typing import NDArray

from protos.triptych.v1 import common_pb2, embedding_pb2, ranking_pb2

PACKED_FLOAT: Final = np.dtype("<f4")

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Embedded:
    """One embedded input: `vector` float32 [dim] of unit norm in `space_id`, or None and why."""

    vector: Floats | None
    space_id: str
    reason: str = ""
    message: str = ""


@dataclass(frozen=True)
class Degraded:
    """Why a reply was made without something that it wanted: `UNKNOWN_USER`, `STORE_UNAVAILABLE` ..."""

    reason: str
    detail: str
    count: int = 0
    modality: str = ""


@dataclass(frozen=True)
class Ranking:
    """A ranking, best first.

    Attributes:
        scores: float32 [n].
        shares: float32 [n, len(share_groups)], exact Shapley values of each group's part in the score; they sum to the score
            minus `base_score`, which is that of an item of which nothing is known.
        influences: per result, the (history item, weight) that mattered most.
        timings_ms: the server's milliseconds by stage.
    """

    item_ids: list[str]
    scores: Floats
    model_id: str
    request_id: str
    impression_id: str
    share_groups: list[str]
    shares: Floats
    influences: list[list[tuple[str, float]]]
    degraded: list[Degraded]
    timings_ms: dict[str, float]
    candidate_source: str
    candidates: int
    history_events: int
    space_ids: list[str]
    base_score: float


@dataclass(frozen=True)
class Found:
    """Items found, nearest first, with cosine similarities `scores` float32 [n]."""

    item_ids: list[str]
    scores: Floats
    space_id: str
    model_id: str
    degraded: list[Degraded]
    timings_ms: dict[str, float]


@dataclass(frozen=True)
class Recorded:
    """What became of recorded events: new ones, known ones, and the ids of all."""

    recorded: int
    duplicates: int
    event_ids: list[str]


@dataclass(frozen=True)
class Space:
    """An embedding space that the server knows."""

    space_id: str
    modality: str
    kind: str
    dim: int
    description: str = ""
    query_modality: str = ""
    base_space_id: str = ""
    embeddable: bool = False
    items_loaded: int = 0


@dataclass(frozen=True)
class Model:
    """A ranker checkpoint that the server knows."""

    model_id: str
    loaded: bool
    stable: bool
    previous: bool
    space_ids: list[str]
    fused_space_id: str
    feature_service: str
    created: datetime | None
    metrics: dict[str, float] = field(default_factory=dict)


def to_vector(values: Floats, space_id: str = "") -> common_pb2.Vector:
    """Pack a vector [dim] for the wire."""
    packed = np.ascontiguousarray(values, PACKED_FLOAT)
    return common_pb2.Vector(space_id=space_id, dim=packed.shape[0], data=packed.tobytes())


def from_vector(vector: common_pb2.Vector) -> Floats:
    """Unpack a vector [dim] from the wire; a copy that may be written to."""
    return np.frombuffer(vector.data, PACKED_FLOAT).astype(np.float32)


def read_embedded(result: embedding_pb2.EmbedResult) -> Embedded:
    """One result of an Embed reply."""
    if result.status.code:
        return Embedded(None, "", result.status.reason, result.status.message)
    return Embedded(from_vector(result.vector), result.vector.space_id)


def read_ranking(reply: ranking_pb2.RankResponse) -> Ranking:
    """A Rank reply."""
    groups = list(reply.share_groups)
    return Ranking(
        item_ids=list(reply.item_ids),
        scores=np.array(reply.scores, np.float32),
        model_id=reply.model_id,
        request_id=reply.request_id,
        impression_id=reply.impression_id,
        share_groups=groups,
        shares=np.frombuffer(reply.shares, PACKED_FLOAT).astype(np.float32).reshape(-1, max(1, len(groups))),
        influences=[list(zip(row.item_ids, row.weights, strict=True)) for row in reply.influences],
        degraded=read_degraded(reply.degraded),
        timings_ms=read_timings(reply.timings),
        candidate_source=_short(ranking_pb2.CandidateSource.Name(reply.candidate_source), "CANDIDATE_SOURCE_"),
        candidates=reply.candidates,
        history_events=reply.history_events,
        space_ids=list(reply.space_ids),
        base_score=reply.base_score,
    )


def read_degraded(reasons: Iterable[common_pb2.Degradation]) -> list[Degraded]:
    """The reasons of a degraded reply."""
    return [
        Degraded(
            _short(common_pb2.DegradedReason.Name(one.reason), "DEGRADED_REASON_"),
            one.detail,
            one.count,
            _modality(one.modality),
        )
        for one in reasons
    ]


def read_timings(timings: Iterable[common_pb2.StageTiming]) -> dict[str, float]:
    """Milliseconds by stage."""
    return {timing.stage: timing.milliseconds for timing in timings}


def read_space(space: embedding_pb2.Space) -> Space:
    """One space of a ListSpaces reply."""
    return Space(
        space.space_id,
        _modality(space.modality),
        _short(common_pb2.SpaceKind.Name(space.kind), "SPACE_KIND_").lower(),
        space.dim,
        space.description,
        _modality(space.query_modality),
        space.base_space_id,
        space.embeddable,
        space.items_loaded,
    )


def read_model(model: ranking_pb2.Model) -> Model:
    """One model of a ListModels reply."""
    metrics: Mapping[str, float] = model.metrics
    return Model(
        model.model_id,
        model.loaded,
        model.stable,
        model.previous,
        list(model.space_ids),
        model.fused_space_id,
        model.feature_service,
        model.created.ToDatetime(UTC) if model.HasField("created") else None,
        dict(metrics),
    )


def _modality(value: common_pb2.Modality.ValueType) -> str:
    return _short(common_pb2.Modality.Name(value), "MODALITY_").lower() if value else ""


def _short(name: str, prefix: str) -> str:
    return name.removeprefix(prefix)
