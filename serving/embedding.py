"""EmbeddingService: media in, vectors out, one status per item.

Decoding runs on its own threads, encoding on one, since the encoders serve one caller at a time.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import grpc
import numpy as np
import structlog
from numpy.typing import NDArray

from encoders.errors import MediaError
from encoders.profiles import Encoders
from encoders.space import EmbeddingSpace
from feature_store.home import Home
from feature_store.spaces import read_spaces
from protos.triptych.v1 import common_pb2, embedding_pb2, embedding_pb2_grpc
from serving import convert
from serving.budget import Stopwatch
from serving.decoding import decode
from serving.errors import PreconditionFailed, Unavailable, Violation, WrongSpace
from serving.settings import ServeSettings
from serving.validation import check_embed
from serving.workers import Worker

DECODE_THREADS: Final = 2
QUERY: Final = embedding_pb2.EMBED_ROLE_QUERY

Vectors = NDArray[np.float32]
log = structlog.get_logger("serving.embedding")


@dataclass(frozen=True)
class Lane:
    """What one request sends through one encoder: contents of one modality, into one space."""

    space: EmbeddingSpace
    modality: str
    encode: Callable[[Sequence[Any]], Vectors]
    positions: list[int]


class Embedder:
    """The encoders of this process and the threads that run them; empty until `load` is done."""

    def __init__(self, settings: ServeSettings) -> None:
        self._settings = settings
        self._encoders: Encoders | None = None
        self._decoding = Worker("decode", settings.queue_capacity, DECODE_THREADS)
        self._encoding = Worker("encode", settings.queue_capacity)

    async def load(self) -> None:
        """Load the profile's encoders and run each once."""
        self._encoders = await self._encoding.run(_load_encoders, self._settings.encoders)

    @property
    def encoders(self) -> Encoders:
        """The encoders; raises `Unavailable` while they are being loaded."""
        if self._encoders is None:
            raise Unavailable("the encoders are being loaded", retry_seconds=2.0)
        return self._encoders

    @property
    def spaces(self) -> list[EmbeddingSpace]:
        """Spaces that this process can embed into; none while it starts."""
        return self._encoders.spaces if self._encoders else []

    async def embed(self, lane: Lane, contents: Sequence[Any], clock: Stopwatch) -> list[Vectors | MediaError]:
        """A vector [dim] or the reason for its absence, for each of the lane's contents."""
        start = time.perf_counter()
        decoded = await self._decoding.run(_decode_all, lane.modality, contents)
        clock.add("decode", time.perf_counter() - start)
        good = [item for item in decoded if not isinstance(item, MediaError)]
        start = time.perf_counter()
        vectors = iter(await self._encoding.run(lane.encode, good) if good else ())
        clock.add("encode", time.perf_counter() - start)
        return [item if isinstance(item, MediaError) else next(vectors) for item in decoded]

    def lane(self, modality: str, space_id: str, positions: list[int], *, query: bool) -> Lane:
        """How contents of `modality` get into `space_id` (empty: the modality's own space).

        Raises `PreconditionFailed` where this process has no such encoder, `WrongSpace` where the space takes no such input.
        """
        encoder: Any = self._by_space(space_id) if space_id else self.encoders.by_modality(modality)
        if encoder is None:
            served = ", ".join(space.space_id for space in self.spaces) or "none"
            wanted = f"space {space_id}" if space_id else f"modality {modality}"
            raise PreconditionFailed(f"no encoder here for {wanted}; there is: {served}", "SPACE_NOT_SERVED")
        space = encoder.space
        if space.modality == modality:
            as_query = query and modality == "text"
            return Lane(space, modality, encoder.encode_query if as_query else encoder.encode, positions)
        if space.query_modality == modality:
            return Lane(space, modality, encoder.encode_query, positions)
        takes = " and ".join(filter(None, (space.modality, space.query_modality)))
        fields = [Violation(f"inputs[{i}]", f"is {modality}, but space {space_id} takes {takes}") for i in positions]
        raise WrongSpace(fields)

    def _by_space(self, space_id: str) -> Any:
        known = any(space.space_id == space_id for space in self.encoders.spaces)
        return self.encoders.by_space(space_id) if known else None

    def close(self) -> None:
        """Wait for running jobs and end the threads."""
        self._decoding.close()
        self._encoding.close()


def _load_encoders(profile: str | None) -> Encoders:
    from encoders.profiles import load_profile
    from serving.decoding import samples

    encoders = load_profile(profile)
    for modality, sample in samples().items():
        encoder = encoders.by_modality(modality)
        if encoder is not None:
            encoder.encode([sample])
    return encoders


def _decode_all(modality: str, contents: Sequence[Any]) -> list[Any]:
    return [decode(modality, content) for content in contents]


class EmbeddingService(embedding_pb2_grpc.EmbeddingServiceServicer):
    """The gRPC face of the embedder. `items_loaded` says how many item vectors of a space are in memory."""

    def __init__(
        self, embedder: Embedder, home: Home, settings: ServeSettings, items_loaded: Callable[[str], int]
    ) -> None:
        self._embedder = embedder
        self._home = home
        self._settings = settings
        self._items_loaded = items_loaded

    async def Embed(  # noqa: N802 - gRPC's name
        self, request: embedding_pb2.EmbedRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> embedding_pb2.EmbedResponse:
        """Embed a batch; see the proto for the errors."""
        del context
        clock = Stopwatch()
        check_embed(request, self._settings)
        results = [embedding_pb2.EmbedResult() for _ in request.inputs]
        for lane in self._lanes(request):
            contents = [_content(request.inputs[i])[1] for i in lane.positions]
            outcomes = await self._embedder.embed(lane, contents, clock)
            for position, outcome in zip(lane.positions, outcomes, strict=True):
                results[position].MergeFrom(_result(outcome, lane.space))
        return embedding_pb2.EmbedResponse(results=results, timings=clock.timings())

    def _lanes(self, request: embedding_pb2.EmbedRequest) -> list[Lane]:
        positions: dict[str, list[int]] = {}
        for i, item in enumerate(request.inputs):
            positions.setdefault(_content(item)[0], []).append(i)
        query = request.role == QUERY
        lanes = [self._embedder.lane(kind, request.space_id, rows, query=query) for kind, rows in positions.items()]
        for lane in lanes:
            check_expected(request.expected_space_id, lane.space.space_id)
        return lanes

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


def _content(item: embedding_pb2.EmbedInput) -> tuple[str, Any]:
    kind = item.WhichOneof("content") or ""
    return kind, getattr(item, kind)


def _result(outcome: Vectors | MediaError, space: EmbeddingSpace) -> embedding_pb2.EmbedResult:
    if isinstance(outcome, MediaError):
        status = common_pb2.ItemStatus(
            code=grpc.StatusCode.INVALID_ARGUMENT.value[0], reason=outcome.code, message=str(outcome)
        )
        return embedding_pb2.EmbedResult(status=status)
    return embedding_pb2.EmbedResult(
        status=common_pb2.ItemStatus(), vector=convert.vector_message(outcome, space.space_id)
    )
