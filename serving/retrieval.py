"""Finding items: the vector store's search, an exact search in memory where it does not answer, and queries turned into vectors."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from encoders.errors import MediaError
from feature_store.errors import StoreUnavailable, ViewNotFoundError
from feature_store.milvus_core import MilvusCore
from feature_store.spaces import view_name
from protos.triptych.v1 import common_pb2, ranking_pb2
from serving import convert
from serving.budget import Stopwatch
from serving.embedding import Embedder
from serving.errors import InvalidRequest, PreconditionFailed, Violation, WrongSpace
from serving.scoring import nearest
from serving.store import Store

FALLBACK: Final = common_pb2.DEGRADED_REASON_RETRIEVAL_FALLBACK
QUERY_IGNORED: Final = common_pb2.DEGRADED_REASON_QUERY_IGNORED

Vector = NDArray[np.float32]


@dataclass(frozen=True)
class InMemory:
    """The same vectors as a view's, in this process: `vectors` float32 [n, d] of `ids`."""

    ids: list[str]
    vectors: Vector


@dataclass(frozen=True)
class FoundItems:
    """Nearest first; `scores` are cosines [n]."""

    item_ids: list[str]
    scores: Vector
    source: ranking_pb2.CandidateSource.ValueType
    degraded: tuple[common_pb2.Degradation, ...] = ()


async def search(
    store: Store, space_id: str, query: Vector, k: int, exclude: set[str], memory: Callable[[], InMemory]
) -> FoundItems:
    """The `k` items of a space nearest to `query` [d], without `exclude`."""
    wanted = k + len(exclude)
    try:
        ids, scores = await store.read(lambda core: _search(core, space_id, query, wanted))
    except (StoreUnavailable, ViewNotFoundError) as error:
        local = memory()
        ids, scores = nearest(local.vectors, local.ids, query, wanted)
        degraded = common_pb2.Degradation(reason=FALLBACK, detail=f"exact search in memory: {error}")
        return _without(ids, scores, exclude, k, ranking_pb2.CANDIDATE_SOURCE_MEMORY, (degraded,))
    return _without(ids, scores, exclude, k, ranking_pb2.CANDIDATE_SOURCE_VECTOR_STORE)


def _search(core: MilvusCore, space_id: str, query: Vector, k: int) -> tuple[list[str], Vector]:
    found = core.search(view_name("item", space_id), query[None], k)
    return [str(item_id) for item_id in found.ids[0]], np.asarray(found.scores[0], np.float32)


def _without(
    ids: list[str],
    scores: Vector,
    exclude: set[str],
    k: int,
    source: ranking_pb2.CandidateSource.ValueType,
    degraded: tuple[common_pb2.Degradation, ...] = (),
) -> FoundItems:
    kept = [row for row, item_id in enumerate(ids) if item_id not in exclude][:k]
    return FoundItems([ids[row] for row in kept], scores[kept], source, degraded)


async def embed_query(
    embedder: Embedder, query: common_pb2.Query, space_id: str, clock: Stopwatch
) -> tuple[str, Vector]:
    """A query as a unit vector, and its space (empty `space_id`: the query's own modality's).

    Raises `InvalidRequest` where the content cannot be used, or not in that space; `PreconditionFailed` without an encoder.
    """
    kind = query.WhichOneof("content") or ""
    if kind == "vector":
        return _given_vector(query.vector, space_id)
    lane = embedder.lane(kind, space_id, [0], query=True)
    [outcome] = await embedder.embed(lane, [getattr(query, kind)], clock)
    if isinstance(outcome, MediaError):
        raise InvalidRequest([Violation(f"query.{kind}", f"{outcome.code}: {outcome}")])
    return lane.space.space_id, outcome


def _given_vector(vector: common_pb2.Vector, space_id: str) -> tuple[str, Vector]:
    if space_id not in {"", vector.space_id}:
        raise WrongSpace([Violation("query.vector.space_id", f"is {vector.space_id}, but the search is in {space_id}")])
    values = convert.unpack(vector)
    norm = float(np.linalg.norm(values))
    if not np.isfinite(norm) or norm == 0.0:
        raise InvalidRequest([Violation("query.vector.data", f"must be finite and not zero; its norm is {norm}")])
    return vector.space_id, values / np.float32(norm)


async def query_vectors(
    embedder: Embedder, query: common_pb2.Query, space_ids: Iterable[str], clock: Stopwatch
) -> tuple[dict[str, Vector], tuple[common_pb2.Degradation, ...]]:
    """A query in all of the model's spaces that take it; degraded where none does."""
    vectors: dict[str, Vector] = {}
    problems: list[str] = []
    for space_id in space_ids:
        try:
            vectors[space_id] = (await embed_query(embedder, query, space_id, clock))[1]
        except (PreconditionFailed, WrongSpace) as error:
            problems.append(str(error))
    if vectors:
        return vectors, ()
    return {}, (common_pb2.Degradation(reason=QUERY_IGNORED, detail="; ".join(problems), count=1),)


def no_memory() -> InMemory:
    """A space of which nothing is in memory."""
    return InMemory([], np.empty((0, 0), np.float32))
