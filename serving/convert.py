"""Between the API's messages and the rooms' own types. Nothing here decides anything."""

import time
import uuid
from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
from google.protobuf.timestamp_pb2 import Timestamp
from numpy.typing import NDArray

from encoders.space import EmbeddingSpace
from feature_store.event_log import LoggedEvent
from feature_store.history import Events
from protos.triptych.v1 import common_pb2, embedding_pb2

PACKED_FLOAT: Final = np.dtype("<f4")


def now_us() -> int:
    """Microseconds since 1970, UTC."""
    return time.time_ns() // 1000


def timestamp(microseconds: int) -> Timestamp:
    """A protobuf timestamp."""
    message = Timestamp()
    message.FromMicroseconds(microseconds)
    return message


def pack(values: NDArray[Any]) -> bytes:
    """Little-endian float32, row-major."""
    return np.ascontiguousarray(values, PACKED_FLOAT).tobytes()


def unpack(vector: common_pb2.Vector) -> NDArray[np.float32]:
    """A vector [dim]; its length was validated."""
    return np.frombuffer(vector.data, PACKED_FLOAT).astype(np.float32)


def vector_message(vector: NDArray[np.float32], space_id: str) -> common_pb2.Vector:
    """A vector [dim] for the wire."""
    return common_pb2.Vector(space_id=space_id, dim=len(vector), data=pack(vector))


def modality(name: str | None) -> common_pb2.Modality.ValueType:
    """`text` -> MODALITY_TEXT; None -> UNSPECIFIED."""
    return common_pb2.Modality.Value(f"MODALITY_{(name or 'unspecified').upper()}")


def space_message(space: EmbeddingSpace, embeddable: bool, items_loaded: int) -> embedding_pb2.Space:
    """One space for ListSpaces."""
    return embedding_pb2.Space(
        space_id=space.space_id,
        modality=modality(space.modality),
        kind=common_pb2.SpaceKind.Value(f"SPACE_KIND_{space.kind.upper()}"),
        dim=space.dim,
        description=space.description,
        query_modality=modality(space.query_modality),
        base_space_id=space.base_space_id or "",
        embeddable=embeddable,
        items_loaded=items_loaded,
    )


def logged_events(events: Iterable[common_pb2.Event], now: int) -> list[LoggedEvent]:
    """Validated events as the log keeps them; ids are made and clocks that run ahead are cut to `now` (microseconds)."""
    return [
        LoggedEvent(
            event_id=event.event_id or uuid.uuid4().hex,
            user_id=event.user_id,
            item_id=event.item_id,
            event_type=event.event_type,
            value=event.value if event.HasField("value") else None,
            timestamp_us=min(now, event.event_timestamp.ToMicroseconds()) if event.HasField("event_timestamp") else now,
            impression_id=event.impression_id or None,
            request_id=event.request_id or None,
            propensity=event.propensity if event.HasField("propensity") else None,
            device=event.device or None,
            position=event.position or None,
            created_us=now,
        )
        for event in events
    ]


def session_events(events: Sequence[common_pb2.Event], at_us: int, now_us: int) -> Events:
    """Session events as history of a request for `at_us` that came at `now_us`.

    Those without a time happened just before `at_us`, in their order; clocks that run ahead are cut to just before `now_us`.
    """
    logged = logged_events(events, now_us - 1)
    first = at_us - len(logged)
    times = [
        one.timestamp_us if raw.HasField("event_timestamp") else first + i
        for i, (raw, one) in enumerate(zip(events, logged, strict=True))
    ]
    return _events(logged, times)


def history_events(events: Sequence[LoggedEvent]) -> Events:
    """Events of the log as history."""
    return _events(events, [event.timestamp_us for event in events])


def _events(events: Sequence[LoggedEvent], times: Sequence[int]) -> Events:
    return Events(
        [event.event_id for event in events],
        [event.item_id for event in events],
        [event.event_type for event in events],
        np.array([np.nan if event.value is None else event.value for event in events], np.float64),
        np.array(times, np.int64),
    )
