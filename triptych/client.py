"""The client library: a running server's API in numpy arrays and plain dataclasses.

Needs the base install only (grpcio, protobuf, numpy). One `Client` holds one channel and may be shared by threads.
"""

import time
import uuid
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, Self

import grpc
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc

from protos.triptych.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    common_pb2,
    embedding_pb2,
    embedding_pb2_grpc,
    feedback_pb2,
    feedback_pb2_grpc,
    ranking_pb2,
    ranking_pb2_grpc,
)
from triptych.calls import FULL, FULL_OR_RESTARTING, ClientError, call
from triptych.chunks import Media, Source, chunks, inputs, read_media, sources
from triptych.results import (
    Degraded,
    Embedded,
    Floats,
    Found,
    Model,
    Ranking,
    Recorded,
    Space,
    from_vector,
    read_degraded,
    read_embedded,
    read_model,
    read_ranking,
    read_space,
    read_timings,
    to_vector,
)

__all__ = [
    "DEFAULT_TARGET",
    "AdminClient",
    "Client",
    "ClientError",
    "Degraded",
    "Embedded",
    "Floats",
    "Found",
    "Model",
    "Ranking",
    "Recorded",
    "Space",
    "call",
    "from_vector",
    "make_event",
    "read_media",
    "to_vector",
]

DEFAULT_TARGET: Final = "127.0.0.1:50051"
DEFAULT_TIMEOUT_SECONDS: Final = 10.0
MAX_MESSAGE_BYTES: Final = 64 * 1024 * 1024
# Requests of one `embed` under way at once: the server has the next while it works on the first.
REQUESTS_IN_FLIGHT: Final = 2


def make_event(
    item_id: str,
    event_type: str = "click",
    *,
    user_id: str = "",
    value: float | None = None,
    at: datetime | None = None,
    event_id: str = "",
    impression_id: str = "",
    request_id: str = "",
    device: str = "",
    position: int = 0,
    propensity: float | None = None,
) -> common_pb2.Event:
    """An event that happened `at` (default: now). It gets an id at once, so that recording it may be retried.

    `impression_id`, `position` (1: shown first) and `propensity` say how the item was shown, `device` on what.
    """
    event = common_pb2.Event(
        event_id=event_id or uuid.uuid4().hex,
        impression_id=impression_id,
        request_id=request_id,
        user_id=user_id,
        item_id=item_id,
        event_type=event_type,
        value=value,
        device=device,
        position=position,
        propensity=propensity,
    )
    event.event_timestamp.FromDatetime(at or datetime.now(UTC))
    return event


class Client:
    """A connection to one server.

    Every call raises `ClientError` with the server's words, and takes at most `timeout` seconds; a full server is asked again when it
    says so, within that time.
    """

    def __init__(self, target: str = DEFAULT_TARGET, *, timeout: float = DEFAULT_TIMEOUT_SECONDS) -> None:
        self.target = target
        self.timeout = timeout
        options = [
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ]
        self._channel = grpc.insecure_channel(target, options=options)
        self._embedding = embedding_pb2_grpc.EmbeddingServiceStub(self._channel)
        self._ranking = ranking_pb2_grpc.RankingServiceStub(self._channel)
        self._feedback = feedback_pb2_grpc.FeedbackServiceStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()

    def embed(
        self,
        *,
        texts: Sequence[str] = (),
        images: Sequence[Media] = (),
        audio: Sequence[Media] = (),
        space: str = "",
        expected_space: str = "",
        role: str = "UNSPECIFIED",
        priority: str = "INTERACTIVE",
    ) -> list[Embedded]:
        """Embed any number of texts, then pictures, then sounds (bytes or files), in this order.

        `space` is the target space (a text query into an image space); `role` is `DOCUMENT` or `QUERY`; `priority` is `INTERACTIVE`
        (somebody waits) or `BULK` (a job, which leaves the way to the others). More than 64 go in several requests, each of which may
        take the client's `timeout`, waiting to be let in included.

        Raises:
            ClientError: the server refused the request or could not be reached; an item's own trouble is in its `Embedded`.
            ValueError: there is no such role or priority.
            TypeError: one text, picture or sound was given for a list of them.
        """
        options: dict[str, Any] = {
            "space_id": space,
            "expected_space_id": expected_space,
            "role": _choice(embedding_pb2.EmbedRole, "EMBED_ROLE_", role),
            "priority": _choice(embedding_pb2.EmbedPriority, "EMBED_PRIORITY_", priority),
        }

        def send(chunk: list[Source]) -> list[Embedded]:
            request = embedding_pb2.EmbedRequest(inputs=inputs(chunk), **options)
            reply = call(self._embedding.Embed, request, self.timeout, FULL_OR_RESTARTING)
            return [read_embedded(result) for result in reply.results]

        parts = list(chunks(sources(texts, images, audio)))
        if len(parts) <= 1:
            return send(parts[0] if parts else [])
        with ThreadPoolExecutor(REQUESTS_IN_FLIGHT) as threads:
            return [one for part in threads.map(send, parts) for one in part]

    def rank(
        self,
        user_id: str,
        item_ids: Sequence[str] = (),
        *,
        top_n: int = 0,
        model_id: str = "",
        session_events: Iterable[common_pb2.Event] = (),
        query: common_pb2.Query | str | None = None,
        at: datetime | None = None,
        device: str = "",
        retrieve_k: int = 0,
        keep_seen: bool = False,
        explain: bool = True,
        request_id: str = "",
        impression_id: str = "",
    ) -> Ranking:
        """Rank `item_ids`, or what the server retrieves where none are given, for a user."""
        request = ranking_pb2.RankRequest(
            request_id=request_id,
            impression_id=impression_id,
            user_id=user_id,
            item_ids=item_ids,
            top_n=top_n,
            model_id=model_id,
            session_events=session_events,
            query=_query(query),
            retrieve_k=retrieve_k,
            keep_seen=keep_seen,
            skip_explanations=not explain,
        )
        request.context.device = device
        if at is not None:
            request.context.time.FromDatetime(at)
        return read_ranking(self._call(self._ranking.Rank, request))

    def retrieve(
        self,
        user_id: str = "",
        *,
        query: common_pb2.Query | str | None = None,
        space: str = "",
        k: int = 10,
        model_id: str = "",
        exclude: Sequence[str] = (),
        keep_seen: bool = False,
    ) -> Found:
        """Find the `k` items nearest to a query or, without one, to the user."""
        request = ranking_pb2.RetrieveRequest(
            user_id=user_id,
            query=_query(query),
            space_id=space,
            k=k,
            model_id=model_id,
            exclude_item_ids=exclude,
            keep_seen=keep_seen,
        )
        reply = self._call(self._ranking.Retrieve, request)
        return Found(
            list(reply.item_ids),
            np.array(reply.scores, np.float32),
            reply.space_id,
            reply.model_id,
            read_degraded(reply.degraded),
            read_timings(reply.timings),
        )

    def record_events(self, events: Iterable[common_pb2.Event]) -> Recorded:
        """Record events (see `make_event`); they are on disk when this returns. Repeating the call is harmless."""
        reply = self._call(self._feedback.RecordEvents, feedback_pb2.RecordEventsRequest(events=events))
        return Recorded(reply.recorded, reply.duplicates, list(reply.event_ids))

    def list_spaces(self) -> list[Space]:
        """The spaces that the server can embed into, or holds vectors of."""
        return [
            read_space(space)
            for space in self._call(self._embedding.ListSpaces, embedding_pb2.ListSpacesRequest()).spaces
        ]

    def list_models(self) -> list[Model]:
        """The checkpoints that the server knows."""
        return [
            read_model(model) for model in self._call(self._ranking.ListModels, ranking_pb2.ListModelsRequest()).models
        ]

    def healthy(self, service: str = "") -> bool:
        """Whether `service` (default: the whole server) is SERVING; False too where nobody answers."""
        stub = health_pb2_grpc.HealthStub(self._channel)
        try:
            reply = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=self.timeout)
        except grpc.RpcError:
            return False
        return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)

    def wait_until_healthy(self, seconds: float) -> bool:
        """Whether the server became SERVING within `seconds`."""
        end = time.monotonic() + seconds
        while not self.healthy():
            if time.monotonic() > end:
                return False
            time.sleep(0.1)
        return True

    def _call(self, method: Any, request: Any) -> Any:
        return call(method, request, self.timeout, FULL)


class AdminClient:
    """A connection to a server's administration port."""

    def __init__(self, target: str, *, timeout: float = 60.0) -> None:
        self.timeout = timeout
        self._channel = grpc.insecure_channel(target)
        self._admin = admin_pb2_grpc.AdminServiceStub(self._channel)

    def load_model(self, model_id: str) -> Model:
        """Load a checkpoint beside those that are loaded."""
        request = admin_pb2.LoadModelRequest(model_id=model_id)
        return read_model(call(self._admin.LoadModel, request, self.timeout).model)

    def promote_model(self, model_id: str) -> Model:
        """Load a checkpoint and make it the stable one."""
        request = admin_pb2.PromoteModelRequest(model_id=model_id)
        return read_model(call(self._admin.PromoteModel, request, self.timeout).model)

    def refresh_vectors(self, space_ids: Sequence[str] = ()) -> dict[str, int]:
        """Read item vectors from the store again; items by space."""
        request = admin_pb2.RefreshVectorsRequest(space_ids=space_ids)
        reply = call(self._admin.RefreshVectors, request, self.timeout)
        return {space.space_id: space.items for space in reply.spaces}

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()


def _choice(kind: Any, prefix: str, name: str) -> Any:
    """The value of an enum by its name without the prefix, in capitals or not."""
    names = [one.removeprefix(prefix) for one in kind.keys()]  # noqa: SIM118  (no mapping)
    if name.upper() not in names:
        raise ValueError(f"{name!r} must be one of {', '.join(names)}")
    return kind.Value(prefix + name.upper())


def _query(query: common_pb2.Query | str | None) -> common_pb2.Query | None:
    return common_pb2.Query(text=query) if isinstance(query, str) else query
