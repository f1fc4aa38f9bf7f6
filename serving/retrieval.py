"""Finding items: the vector store's search, an exact search in memory for what it does not hold, and queries as vectors."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from encoders.errors import MediaError
from feature_store.errors import ViewNotFoundError
from feature_store.milvus_core import MilvusCore
from feature_store.spaces import view_name
from protos.triptych.v1 import common_pb2, ranking_pb2
from serving import convert
from serving.budget import Stopwatch
from serving.embedder import Embedder
from serving.errors import InvalidRequest, ItemFailedError, PreconditionFailed, Violation, WrongSpace
from serving.scoring import nearest
from serving.store import NO_ANSWER, Store

FALLBACK: Final = common_pb2.DEGRADED_REASON_RETRIEVAL_FALLBACK
QUERY_IGNORED: Final = common_pb2.DEGRADED_REASON_QUERY_IGNORED

Vector = NDArray[np.float32]


@dataclass(frozen=True)
class InMemory:
    """A space's vectors in this process: `vectors` float32 [n, d] of `ids`, and the rows [m] that the store's view lacks."""

    ids: list[str]
    vectors: Vector
    late: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))

    def nearest(self, query: Vector, k: int) -> tuple[list[str], Vector]:
        """Exact search over all."""
        return nearest(self.vectors, self.ids, query, k)

    def nearest_late(self, query: Vector, k: int) -> tuple[list[str], Vector]:
        """Exact search over what the view lacks."""
        return nearest(self.vectors[self.late], [self.ids[row] for row in self.late], query, k)


@dataclass(frozen=True)
class FoundItems:
    """Nearest first; `scores` are cosines [n]."""

    item_ids: list[str]
    scores: Vector
    source: ranking_pb2.CandidateSource.ValueType
    degraded: tuple[common_pb2.Degradation, ...] = ()


async def search(store: Store, space_id: str, query: Vector, k: int, exclude: set[str], memory: InMemory) -> FoundItems:
    """The `k` items of a space nearest to `query` [d], without `exclude`.

    Items that the store's view lacks come from memory. Said to be degraded where the store does not answer, or holds fewer
    items than it should: a view that was created and not loaded yet answers well, and with nothing.
    """
    wanted = k + len(exclude)
    try:
        stored = await store.read(lambda core: _search(core, space_id, query, wanted))
        late = memory.nearest_late(query, wanted)
        expected = min(wanted, len(memory.ids))
        short = not stored[0] or len(stored[0]) + len(late[0]) < expected
        problem = f"the view of {space_id} is not loaded: run `triptych materialize`" if short and expected else ""
    except (*NO_ANSWER, ViewNotFoundError) as error:
        stored, late, problem = _nothing(), _nothing(), str(error)
    if not problem:
        ids, scores = _merged(stored, late)
        return _without(ids, scores, exclude, k, ranking_pb2.CANDIDATE_SOURCE_VECTOR_STORE)
    ids, scores = _merged(stored, memory.nearest(query, wanted))
    degraded = common_pb2.Degradation(reason=FALLBACK, detail=f"exact search in memory: {problem}")
    return _without(ids, scores, exclude, k, ranking_pb2.CANDIDATE_SOURCE_MEMORY, (degraded,))


def _search(core: MilvusCore, space_id: str, query: Vector, k: int) -> tuple[list[str], Vector]:
    found = core.search(view_name("item", space_id), query[None], k)
    return [str(item_id) for item_id in found.ids[0]], np.asarray(found.scores[0], np.float32)


def _merged(stored: tuple[list[str], Vector], local: tuple[list[str], Vector]) -> tuple[list[str], Vector]:
    """Both lists as one, nearest first; an item of both counts as the store has it."""
    if not local[0]:
        return stored
    score_of = dict(zip(*local, strict=True)) | dict(zip(*stored, strict=True))
    best = sorted(score_of.items(), key=lambda pair: -pair[1])
    return [item_id for item_id, _ in best], np.array([score for _, score in best], np.float32)


def _nothing() -> tuple[list[str], Vector]:
    return [], np.empty(0, np.float32)


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
    embedder: Embedder, query: common_pb2.Query, space_id: str, dims: Mapping[str, int], clock: Stopwatch
) -> tuple[str, Vector]:
    """A query as a unit vector, and its space (empty `space_id`: the query's own modality's); `dims` are those of known spaces.

    Raises `InvalidRequest` where the content cannot be used, or not in that space; `PreconditionFailed` without an encoder.
    """
    kind = query.WhichOneof("content") or ""
    if kind == "vector":
        return _given_vector(query.vector, space_id, dims)
    target = embedder.target(kind, space_id, [0], query=True)
    [outcome] = await embedder.embed([(target, getattr(query, kind))], clock=clock)
    if isinstance(outcome.error, MediaError):
        raise InvalidRequest([Violation(f"query.{kind}", f"{outcome.error.code}: {outcome.error}")])
    if outcome.vector is None:
        raise outcome.error or ItemFailedError("the query could not be encoded")
    return target.space.space_id, outcome.vector


def _given_vector(vector: common_pb2.Vector, space_id: str, dims: Mapping[str, int]) -> tuple[str, Vector]:
    if space_id not in {"", vector.space_id}:
        raise WrongSpace([Violation("query.vector.space_id", f"is {vector.space_id}, but the search is in {space_id}")])
    if vector.space_id not in dims:
        there_are = ", ".join(sorted(dims)) or "none"
        raise WrongSpace([Violation("query.vector.space_id", f"no space {vector.space_id!r}; there are: {there_are}")])
    dim = dims[vector.space_id]
    if vector.dim != dim:
        raise InvalidRequest([Violation("query.vector.dim", f"space {vector.space_id} has {dim}, not {vector.dim}")])
    values = convert.unpack(vector)
    norm = float(np.linalg.norm(values))
    if not np.isfinite(norm) or norm == 0.0:
        raise InvalidRequest([Violation("query.vector.data", f"must be finite and not zero; its norm is {norm}")])
    return vector.space_id, values / np.float32(norm)


async def query_vectors(
    embedder: Embedder, query: common_pb2.Query, dims: Mapping[str, int], clock: Stopwatch
) -> tuple[dict[str, Vector], tuple[common_pb2.Degradation, ...]]:
    """A query in all of the model's spaces (`dims` by id) that take it; degraded where none does."""
    vectors: dict[str, Vector] = {}
    problems: list[str] = []
    for space_id in dims:
        try:
            vectors[space_id] = (await embed_query(embedder, query, space_id, dims, clock))[1]
        except (PreconditionFailed, WrongSpace) as error:
            problems.append(str(error))
    if vectors:
        return vectors, ()
    return {}, (common_pb2.Degradation(reason=QUERY_IGNORED, detail="; ".join(problems), count=1),)


def no_memory() -> InMemory:
    """A space of which nothing is in memory."""
    return InMemory([], np.empty((0, 0), np.float32))
