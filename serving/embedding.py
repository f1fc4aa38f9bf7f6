"""EmbeddingService: media in, vectors out, one status per item."""

from collections.abc import Callable
from typing import Any, Final

import grpc

from encoders.errors import MediaError
from encoders.space import EmbeddingSpace
from feature_store.home import Home
from feature_store.spaces import read_spaces
from protos.triptych.v1 import common_pb2, embedding_pb2, embedding_pb2_grpc
from serving import convert
from serving.admission import Admission
from serving.batching.jobs import Outcome
from serving.batching.queue import Lane
from serving.budget import Stopwatch
from serving.embedder import Embedder, Target
from serving.errors import PreconditionFailed
from serving.metrics import Metrics
from serving.settings import ServeSettings
from serving.validation import check_embed

QUERY: Final = embedding_pb2.EMBED_ROLE_QUERY
# Which status an item's error becomes; what is not here is ours to mend.
ITEM_CODES: Final[dict[type[Exception], grpc.StatusCode]] = {MediaError: grpc.StatusCode.INVALID_ARGUMENT}


class EmbeddingService(embedding_pb2_grpc.EmbeddingServiceServicer):
    """The gRPC face of the embedder. `items_loaded` says how many item vectors of a space are in memory."""

    def __init__(
        self,
        embedder: Embedder,
        home: Home,
        settings: ServeSettings,
        metrics: Metrics,
        items_loaded: Callable[[str], int],
    ) -> None:
        self._embedder = embedder
        self._home = home
        self._settings = settings
        self._metrics = metrics
        self._items_loaded = items_loaded
        pipeline = embedder.pipeline
        self._admission = Admission(settings, metrics, lambda: pipeline.waiting, pipeline.forwarders.retry_seconds)

    async def Embed(  # noqa: N802 - gRPC's name
        self, request: embedding_pb2.EmbedRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> embedding_pb2.EmbedResponse:
        """Embed a batch; see the proto for the errors."""
        del context
        clock = Stopwatch()
        check_embed(request, self._settings)
        targets = self._targets(request)
        lane = Lane.BULK if request.priority == embedding_pb2.EMBED_PRIORITY_BULK else Lane.INTERACTIVE
        contents = [(targets[i], _content(item)[1]) for i, item in enumerate(request.inputs)]
        with self._admission.admitted(lane, request.ByteSize()):
            outcomes = await self._embedder.embed(contents, lane, clock)
        return self._reply(outcomes, targets, clock)

    def _targets(self, request: embedding_pb2.EmbedRequest) -> list[Target]:
        """Each input's target, in their order."""
        positions: dict[str, list[int]] = {}
        for i, item in enumerate(request.inputs):
            positions.setdefault(_content(item)[0], []).append(i)
        query = request.role == QUERY
        found: dict[int, Target] = {}
        for modality, rows in positions.items():
            target = self._embedder.target(modality, request.space_id, rows, query=query)
            check_expected(request.expected_space_id, target.space.space_id)
            found |= dict.fromkeys(rows, target)
        return [found[i] for i in range(len(request.inputs))]

    def _reply(self, outcomes: list[Outcome], targets: list[Target], clock: Stopwatch) -> embedding_pb2.EmbedResponse:
        results = [_result(outcome, target.space) for outcome, target in zip(outcomes, targets, strict=True)]
        for result in results:
            self._metrics.items.labels(code_name(result.status.code)).inc()
        largest = max((one.trace for one in outcomes), key=lambda trace: trace.rows * trace.length)
        return embedding_pb2.EmbedResponse(
            results=results,
            timings=clock.timings(),
            batch_rows=largest.rows,
            batch_length=largest.length,
            cached=sum(outcome.trace.shared for outcome in outcomes),
        )

    async def ListSpaces(  # noqa: N802 - gRPC's name
        self, request: embedding_pb2.ListSpacesRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> embedding_pb2.ListSpacesResponse:
        """Registered spaces and those of this process's encoders."""
        del request, context
        embeddable = {space.space_id: space for space in self._embedder.spaces}
        spaces = {space.space_id: space for space in read_spaces(self._home)} | embeddable
        return embedding_pb2.ListSpacesResponse(
            spaces=[
                convert.space_message(space, space_id in embeddable, self._items_loaded(space_id))
                for space_id, space in sorted(spaces.items())
            ]
        )


def check_expected(expected: str, actual: str) -> None:
    """Raise `PreconditionFailed` where a caller expects another space than it would get."""
    if expected and expected != actual:
        raise PreconditionFailed(
            f"expected_space_id is {expected}, but the vectors would be in {actual}",
            "SPACE_MISMATCH",
            {"expected_space_id": expected, "space_id": actual},
        )


def code_name(number: int) -> str:
    """The name of a google.rpc.Code that an item may have."""
    return next(code.name for code in grpc.StatusCode if code.value[0] == number)


def _content(item: embedding_pb2.EmbedInput) -> tuple[str, Any]:
    kind = item.WhichOneof("content") or ""
    return kind, getattr(item, kind)


def _result(outcome: Outcome, space: EmbeddingSpace) -> embedding_pb2.EmbedResult:
    if outcome.vector is not None:
        vector = convert.vector_message(outcome.vector, space.space_id)
        return embedding_pb2.EmbedResult(status=common_pb2.ItemStatus(), vector=vector)
    error = outcome.error
    code = ITEM_CODES.get(type(error), grpc.StatusCode.INTERNAL) if error else grpc.StatusCode.INTERNAL
    reason = error.code if isinstance(error, MediaError) else "encoder_failed"
    return embedding_pb2.EmbedResult(
        status=common_pb2.ItemStatus(code=code.value[0], reason=reason, message=str(error))
    )
