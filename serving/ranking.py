"""RankingService: rank for a user with reasons, retrieve candidates, list models.

What is missing on the way (user, items, modalities, the store) is collected and said in the reply rather than raised.
"""

import asyncio
import uuid
from collections.abc import Sequence
from typing import Any, Final

import grpc
import numpy as np

from feature_store.home import Home
from feature_store.spaces import read_spaces
from protos.triptych.v1 import common_pb2, ranking_pb2, ranking_pb2_grpc
from ranker.scorer import Context, ItemBatch
from serving import convert, scoring
from serving.budget import Stopwatch
from serving.embedder import Embedder
from serving.embedding import check_expected
from serving.errors import InvalidRequest, Violation
from serving.hot_tier import read_items
from serving.manifests import model_message
from serving.models import Models, ServedModel
from serving.retrieval import FoundItems, InMemory, Vector, embed_query, no_memory, query_vectors, search
from serving.settings import ServeSettings
from serving.store import NO_ANSWER, Store
from serving.users import KnownUser, Users
from serving.validation import check_rank, check_retrieve
from serving.workers import Worker

DEFAULT_TOP_N: Final = 10
DEFAULT_K: Final = 10
MAX_LATE_ITEMS: Final = 512  # candidates beyond those in memory that one request may read from the store
RpcContext = grpc.aio.ServicerContext[Any, Any]
Degradations = list[common_pb2.Degradation]


class RankingService(ranking_pb2_grpc.RankingServiceServicer):
    """The gRPC face of the rankers."""

    def __init__(
        self, home: Home, models: Models, users: Users, store: Store, embedder: Embedder, settings: ServeSettings
    ) -> None:
        self._home = home
        self._models = models
        self._users = users
        self._store = store
        self._embedder = embedder
        self._settings = settings
        self._ranking = Worker("rank", settings.queue_capacity)

    async def Rank(  # noqa: N802 - gRPC's name
        self, request: ranking_pb2.RankRequest, context: RpcContext
    ) -> ranking_pb2.RankResponse:
        """Rank candidates; see the proto for the errors."""
        del context
        clock, now = Stopwatch(), convert.now_us()
        check_rank(request, self._settings, now)
        at = Context(_instant(request, now), request.context.device)
        model = self._models.get(request.model_id)
        check_expected(request.expected_space_id, model.ranker.fused_space.space_id)
        user = await self._user(request, model, at.now_us, now, clock)
        degraded = list(user.degraded)
        reader = await self._read(request, model, user, at, degraded, clock)
        found = await self._candidates(request, model, reader, degraded, clock)
        candidates = await self._gather(model, found.item_ids, degraded, clock)
        top_n = request.top_n or (len(request.item_ids) or DEFAULT_TOP_N)
        with clock.stage("score"):
            ranked = await self._ranking.run(
                scoring.rank, model, reader, candidates, at, top_n, not request.skip_explanations
            )
        degraded += _item_degradations(candidates, ranked, reader)
        return _response(request, model, candidates, ranked, found, degraded, reader, at, clock)

    async def Retrieve(  # noqa: N802 - gRPC's name
        self, request: ranking_pb2.RetrieveRequest, context: RpcContext
    ) -> ranking_pb2.RetrieveResponse:
        """Find items; see the proto for the errors."""
        del context
        clock, now = Stopwatch(), convert.now_us()
        check_retrieve(request, self._settings, now)
        if request.HasField("query"):
            found, space_id, model_id, degraded = await self._near_query(request, now, clock)
        else:
            found, space_id, model_id, degraded = await self._near_user(request, now, clock)
        return ranking_pb2.RetrieveResponse(
            item_ids=found.item_ids,
            scores=found.scores.tolist(),
            space_id=space_id,
            model_id=model_id,
            candidate_source=found.source,
            degraded=[*degraded, *found.degraded],
            timings=clock.timings(),
        )

    async def ListModels(  # noqa: N802 - gRPC's name
        self, request: ranking_pb2.ListModelsRequest, context: RpcContext
    ) -> ranking_pb2.ListModelsResponse:
        """All checkpoints of this home."""
        del request, context
        manifests = await self._models.manifests()
        return ranking_pb2.ListModelsResponse(models=[model_message(manifest, self._models) for manifest in manifests])

    def close(self) -> None:
        """End the ranking thread."""
        self._ranking.close()

    # ---- Rank --------------------------------------------------------------------------------------------------------

    async def _user(self, request: Any, model: ServedModel, at_us: int, now_us: int, clock: Stopwatch) -> KnownUser:
        text_space = model.ranker.space_ids.get("text", "")
        with clock.stage("history"):
            return await self._users.read(request.user_id, request.session_events, at_us, now_us, text_space)

    async def _read(
        self,
        request: ranking_pb2.RankRequest,
        model: ServedModel,
        user: KnownUser,
        at: Context,
        degraded: Degradations,
        clock: Stopwatch,
    ) -> scoring.Reader:
        query = await self._query(request, model, degraded, clock)
        with clock.stage("user"):
            return await self._ranking.run(scoring.read_user, model, user, query, at)

    async def _query(
        self, request: ranking_pb2.RankRequest, model: ServedModel, degraded: Degradations, clock: Stopwatch
    ) -> dict[str, Vector]:
        if not request.HasField("query"):
            return {}
        vectors, ignored = await query_vectors(self._embedder, request.query, model.dims, clock)
        degraded += ignored
        return vectors

    async def _candidates(
        self,
        request: ranking_pb2.RankRequest,
        model: ServedModel,
        reader: scoring.Reader,
        degraded: Degradations,
        clock: Stopwatch,
    ) -> FoundItems:
        if request.item_ids:
            cosines = np.empty(0, np.float32)
            return FoundItems(list(request.item_ids), cosines, ranking_pb2.CANDIDATE_SOURCE_REQUEST)
        exclude = set() if request.keep_seen else set(reader.history_ids)
        k = max(request.retrieve_k or self._settings.retrieve_k, request.top_n)
        with clock.stage("retrieve"):
            found = await self._near(model, reader, k, exclude)
        degraded += found.degraded
        return found

    async def _near(self, model: ServedModel, reader: scoring.Reader, k: int, exclude: set[str]) -> FoundItems:
        space_id = model.ranker.fused_space.space_id
        return await search(self._store, space_id, reader.vector, k, exclude, _own_space(model))

    async def _gather(
        self, model: ServedModel, item_ids: Sequence[str], degraded: Degradations, clock: Stopwatch
    ) -> scoring.Candidates:
        late = [item_id for item_id in item_ids if item_id not in model.row_of]
        extra = await self._late_items(late, model, degraded, clock) if late else None
        with clock.stage("gather"):
            return await self._ranking.run(scoring.gather, model, item_ids, extra)

    async def _late_items(
        self, late: list[str], model: ServedModel, degraded: Degradations, clock: Stopwatch
    ) -> ItemBatch | None:
        if len(late) > MAX_LATE_ITEMS:
            return None
        spaces = list(model.ranker.space_ids.values())
        try:
            with clock.stage("items"):
                return await self._store.read(lambda core: read_items(core, late, spaces))
        except NO_ANSWER as error:
            if not any(one.reason == common_pb2.DEGRADED_REASON_STORE_UNAVAILABLE for one in degraded):
                degraded.append(
                    common_pb2.Degradation(reason=common_pb2.DEGRADED_REASON_STORE_UNAVAILABLE, detail=str(error))
                )
            return None

    # ---- Retrieve ----------------------------------------------------------------------------------------------------

    async def _near_query(
        self, request: ranking_pb2.RetrieveRequest, now: int, clock: Stopwatch
    ) -> tuple[FoundItems, str, str, Degradations]:
        dims = await self._dims() if request.query.HasField("vector") else {}
        space_id, vector = await embed_query(self._embedder, request.query, request.space_id, dims, clock)
        check_expected(request.expected_space_id, space_id)
        degraded: Degradations = []
        exclude = set(request.exclude_item_ids)
        if request.user_id and not request.keep_seen:
            exclude |= await self._seen(request, now, degraded)
        with clock.stage("retrieve"):
            found = await search(self._store, space_id, vector, request.k or DEFAULT_K, exclude, self._matrix(space_id))
        return found, space_id, "", degraded

    async def _seen(self, request: ranking_pb2.RetrieveRequest, now: int, degraded: Degradations) -> set[str]:
        user = await self._users.read(request.user_id, request.session_events, now, now)
        degraded += user.degraded
        return set(user.history.item_ids)

    async def _dims(self) -> dict[str, int]:
        """Lengths of the vectors that can be searched with, by space: of the home's spaces, and of loaded models' own."""
        spaces = await asyncio.to_thread(read_spaces, self._home, "item")
        fused = [self._models.get(model_id).ranker.fused_space for model_id in self._models.loaded_ids]
        return {space.space_id: space.dim for space in (*self._embedder.spaces, *spaces, *fused)}

    def _matrix(self, space_id: str) -> InMemory:
        for model_id in self._models.loaded_ids:
            model = self._models.get(model_id)
            if model.ranker.fused_space.space_id == space_id:
                return _own_space(model)
        matrix = self._models.catalogue.matrices.get(space_id)
        return InMemory(matrix.ids, matrix.vectors) if matrix else no_memory()

    async def _near_user(
        self, request: ranking_pb2.RetrieveRequest, now: int, clock: Stopwatch
    ) -> tuple[FoundItems, str, str, Degradations]:
        model = self._models.get(request.model_id)
        fused = model.ranker.fused_space.space_id
        if request.space_id not in {"", fused}:
            raise InvalidRequest([Violation("space_id", f"without a query, the search is in {fused}")])
        check_expected(request.expected_space_id, fused)
        user = await self._user(request, model, now, now, clock)
        with clock.stage("user"):
            reader = await self._ranking.run(scoring.read_user, model, user, {}, Context(now))
        seen = set() if request.keep_seen else set(reader.history_ids)
        with clock.stage("retrieve"):
            found = await self._near(model, reader, request.k or DEFAULT_K, seen | set(request.exclude_item_ids))
        return found, fused, model.ranker.model_id, list(user.degraded)


def _own_space(model: ServedModel) -> InMemory:
    return InMemory(model.tokens.item_ids, model.fused, model.late)


def _instant(request: ranking_pb2.RankRequest, now: int) -> int:
    return request.context.time.ToMicroseconds() if request.context.HasField("time") else now


def _item_degradations(candidates: scoring.Candidates, ranked: scoring.Ranked, reader: scoring.Reader) -> Degradations:
    degraded = []
    unknown = [item_id for item_id, known in zip(candidates.item_ids, candidates.known, strict=True) if not known]
    if unknown:
        detail = f"nothing is known of {unknown[0]!r}{' and others' if len(unknown) > 1 else ''}"
        degraded.append(_degradation("UNKNOWN_ITEMS", detail, len(unknown)))
    if reader.unknown_history:
        detail = "items of the history that are not in the catalogue"
        degraded.append(_degradation("UNKNOWN_HISTORY", detail, reader.unknown_history))
    rows = ranked.rows[candidates.known[ranked.rows]]
    for modality, present in candidates.present.items():
        absent = int((~present[rows]).sum())
        if absent:
            degraded.append(_degradation("MISSING_MODALITY", f"items without {modality}", absent, modality))
    return degraded


def _degradation(reason: str, detail: str, count: int, modality: str | None = None) -> common_pb2.Degradation:
    return common_pb2.Degradation(
        reason=common_pb2.DegradedReason.Value(f"DEGRADED_REASON_{reason}"),
        detail=detail,
        count=count,
        modality=convert.modality(modality),
    )


def _response(
    request: ranking_pb2.RankRequest,
    model: ServedModel,
    candidates: scoring.Candidates,
    ranked: scoring.Ranked,
    found: FoundItems,
    degraded: Degradations,
    reader: scoring.Reader,
    at: Context,
    clock: Stopwatch,
) -> ranking_pb2.RankResponse:
    explained = not request.skip_explanations
    return ranking_pb2.RankResponse(
        impression_id=request.impression_id or uuid.uuid4().hex,
        model_id=model.ranker.model_id,
        item_ids=[candidates.item_ids[row] for row in ranked.rows],
        scores=ranked.scores.tolist(),
        share_groups=model.ranker.groups if explained else (),
        shares=convert.pack(ranked.shares) if explained else b"",
        influences=[
            ranking_pb2.Influences(item_ids=[i for i, _ in row], weights=[w for _, w in row])
            for row in ranked.influences
        ],
        degraded=degraded,
        timings=clock.timings(),
        candidate_source=found.source,
        candidates=len(candidates.item_ids),
        history_events=len(reader.encoded.positions),
        space_ids=list(model.ranker.space_ids.values()),
        time=convert.timestamp(at.now_us),
        base_score=ranked.base_score,
    )
