"""The API's rules for requests. Every violation of a request is collected, so that a caller can mend all of them at once."""

import math
from collections.abc import Iterable
from typing import Any, Final, Self

from protos.triptych.v1 import common_pb2, embedding_pb2, feedback_pb2, ranking_pb2
from serving.errors import InvalidRequest, Violation
from serving.settings import ServeSettings

MAX_ID_BYTES: Final = 128
MAX_TYPE_BYTES: Final = 32
MAX_DEVICE_BYTES: Final = 32
MAX_POSITION: Final = 2**31 - 1
# A caller's clock may be this much ahead of ours; such an event counts as of now.
MAX_CLOCK_SKEW_US: Final = 5 * 60 * 1_000_000
MIN_TIMESTAMP_SECONDS: Final = -62_135_596_800  # 0001-01-01, protobuf's own bound
MAX_TIMESTAMP_SECONDS: Final = 253_402_300_799


class Checks:
    """Collects violations; `done` raises them together."""

    def __init__(self) -> None:
        self._violations: list[Violation] = []

    def require(self, holds: bool, field: str, description: str) -> bool:
        """Note a violation of `field` unless it `holds`."""
        if not holds:
            self._violations.append(Violation(field, description))
        return holds

    def identifier(self, value: str, field: str, *, optional: bool = False) -> Self:
        """An id: not empty unless optional, at most 128 bytes."""
        if self.require(optional or bool(value), field, "must not be empty"):
            size = len(value.encode())
            self.require(size <= MAX_ID_BYTES, field, f"must be at most {MAX_ID_BYTES} bytes, not {size}")
        return self

    def identifiers(self, values: Iterable[str], field: str) -> Self:
        """Distinct ids."""
        seen: dict[str, int] = {}
        for i, value in enumerate(values):
            self.identifier(value, f"{field}[{i}]")
            first = seen.setdefault(value, i)
            self.require(first == i, f"{field}[{i}]", f"{value!r} is {field}[{first}] already")
        return self

    def done(self) -> None:
        """Raise `InvalidRequest` if there were violations."""
        if self._violations:
            raise InvalidRequest(self._violations)


def check_embed(request: embedding_pb2.EmbedRequest, settings: ServeSettings) -> None:
    """Between 1 and max_batch inputs, each with content. What is wrong inside an input becomes that item's status."""
    checks = _started(request)
    count = len(request.inputs)
    checks.require(
        0 < count <= settings.max_batch, "inputs", f"must hold 1 to {settings.max_batch} inputs, not {count}"
    )
    for i, item in enumerate(request.inputs):
        checks.require(
            item.WhichOneof("content") is not None, f"inputs[{i}].content", "must be a text, an image or a sound"
        )
    known = request.role in embedding_pb2.EmbedRole.values()
    checks.require(known, "role", f"unknown role {request.role}")
    known = request.priority in embedding_pb2.EmbedPriority.values()
    checks.require(known, "priority", f"unknown priority {request.priority}")
    checks.done()


def check_rank(request: ranking_pb2.RankRequest, settings: ServeSettings, now_us: int) -> None:
    """A user, distinct candidates, sound session events and query."""
    checks = _started(request).identifier(request.user_id, "user_id").identifiers(request.item_ids, "item_ids")
    checks.identifier(request.model_id, "model_id", optional=True)
    checks.identifier(request.impression_id, "impression_id", optional=True)
    most = settings.max_candidates
    checks.require(len(request.item_ids) <= most, "item_ids", f"must be at most {most}, not {len(request.item_ids)}")
    checks.require(request.retrieve_k <= most, "retrieve_k", f"must be at most {most}, not {request.retrieve_k}")
    checks.require(request.top_n <= most, "top_n", f"must be at most {most}, not {request.top_n}")
    if request.context.HasField("time"):
        _timestamp(checks, request.context.time, "context.time")
    _device(checks, request.context.device, "context.device")
    _session(checks, request, settings, now_us)
    _query(checks, request)
    checks.done()


def check_retrieve(request: ranking_pb2.RetrieveRequest, settings: ServeSettings, now_us: int) -> None:
    """A query or a user."""
    checks = _started(request).identifiers(request.exclude_item_ids, "exclude_item_ids")
    checks.identifier(request.user_id, "user_id", optional=True)
    checks.identifier(request.model_id, "model_id", optional=True)
    checks.require(
        bool(request.user_id) or request.HasField("query"), "user_id", "must not be empty where there is no query"
    )
    excluded, most = len(request.exclude_item_ids), settings.max_excluded
    checks.require(excluded <= most, "exclude_item_ids", f"must be at most {most}, not {excluded}")
    checks.require(
        request.k <= settings.max_candidates, "k", f"must be at most {settings.max_candidates}, not {request.k}"
    )
    _session(checks, request, settings, now_us)
    _query(checks, request)
    checks.done()


def check_record(request: feedback_pb2.RecordEventsRequest, settings: ServeSettings, now_us: int) -> None:
    """Between 1 and max_events complete events."""
    checks = _started(request)
    count = len(request.events)
    checks.require(
        0 < count <= settings.max_events, "events", f"must hold 1 to {settings.max_events} events, not {count}"
    )
    for i, event in enumerate(request.events):
        _event(checks, event, f"events[{i}]", now_us)
        checks.identifier(event.user_id, f"events[{i}].user_id")
    checks.done()


def check_model_id(request: Any) -> None:
    """An administrator's request that names a model."""
    _started(request).identifier(request.model_id, "model_id").done()


def _started(request: Any) -> Checks:
    return Checks().identifier(request.request_id, "request_id", optional=True)


def _session(checks: Checks, request: Any, settings: ServeSettings, now_us: int) -> None:
    count, most = len(request.session_events), settings.max_session_events
    checks.require(count <= most, "session_events", f"must be at most {most}, not {count}")
    for i, event in enumerate(request.session_events):
        field = f"session_events[{i}]"
        _event(checks, event, field, now_us)
        same = event.user_id in {"", request.user_id}
        checks.require(same, f"{field}.user_id", f"is {event.user_id!r}, but the request is for {request.user_id!r}")


def _event(checks: Checks, event: common_pb2.Event, field: str, now_us: int) -> None:
    checks.identifier(event.item_id, f"{field}.item_id")
    for name in ("event_id", "impression_id", "request_id"):
        checks.identifier(getattr(event, name), f"{field}.{name}", optional=True)
    size = len(event.event_type.encode())
    checks.require(
        0 < size <= MAX_TYPE_BYTES, f"{field}.event_type", f"must be 1 to {MAX_TYPE_BYTES} bytes, not {size}"
    )
    checks.require(math.isfinite(event.value), f"{field}.value", f"must be finite, not {event.value}")
    _device(checks, event.device, f"{field}.device")
    checks.require(
        event.position <= MAX_POSITION, f"{field}.position", f"must be at most {MAX_POSITION}, not {event.position}"
    )
    if event.HasField("propensity"):
        ok = 0.0 < event.propensity <= 1.0
        checks.require(ok, f"{field}.propensity", f"must be above 0 and at most 1, not {event.propensity}")
    if event.HasField("event_timestamp") and _timestamp(checks, event.event_timestamp, f"{field}.event_timestamp"):
        ahead = event.event_timestamp.ToMicroseconds() - now_us
        checks.require(
            ahead <= MAX_CLOCK_SKEW_US,
            f"{field}.event_timestamp",
            f"is {ahead / 1e6:.0f} s ahead of the server's clock",
        )


def _device(checks: Checks, device: str, field: str) -> None:
    size = len(device.encode())
    checks.require(size <= MAX_DEVICE_BYTES, field, f"must be at most {MAX_DEVICE_BYTES} bytes, not {size}")


def _timestamp(checks: Checks, value: Any, field: str) -> bool:
    ok = MIN_TIMESTAMP_SECONDS <= value.seconds <= MAX_TIMESTAMP_SECONDS and 0 <= value.nanos < 10**9
    return checks.require(ok, field, "must lie between the years 1 and 9999")


def _query(checks: Checks, request: Any) -> None:
    if not request.HasField("query"):
        return
    kind = request.query.WhichOneof("content")
    if (
        checks.require(kind is not None, "query.content", "must be a text, an image, a sound or a vector")
        and kind == "vector"
    ):
        vector = request.query.vector
        checks.require(bool(vector.space_id), "query.vector.space_id", "must not be empty")
        right = vector.dim > 0 and len(vector.data) == 4 * vector.dim
        checks.require(right, "query.vector.data", f"must be 4 * dim = {4 * vector.dim} bytes, not {len(vector.data)}")
