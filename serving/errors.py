"""What a call can fail with, and the gRPC status that each becomes. Details follow google.rpc's error model.

ServingError
├── InvalidRequest      INVALID_ARGUMENT, BadRequest: every field that is wrong, by its path
│   └── WrongSpace      content of one modality for a space of another
├── NotFound            NOT_FOUND: a model that does not exist
├── PreconditionFailed  FAILED_PRECONDITION, ErrorInfo: a space that is not the expected one, no stable model
├── Overloaded          RESOURCE_EXHAUSTED, RetryInfo and grpc-retry-pushback-ms
├── Unavailable         UNAVAILABLE, the same: starting, draining, an event log that cannot be written
├── DeadlineExceeded    DEADLINE_EXCEEDED
└── ItemFailedError     INTERNAL, of one item: our code failed on it; the log says how, the caller only learns that it did
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

DETAILS_KEY: Final = "grpc-status-details-bin"
PUSHBACK_KEY: Final = "grpc-retry-pushback-ms"  # gRPC's own name, which its clients obey: gRFC A6
ERROR_DOMAIN: Final = "triptych"

Trailers = tuple[tuple[str, str | bytes], ...]


class ServingError(Exception):
    """Base; `code` is the status, `details()` the google.rpc messages beside it."""

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL

    def trailers(self) -> Trailers:
        """Trailing metadata beside the details; none by default."""
        return ()

    def details(self) -> list[Message]:
        """Machine-readable details; none by default."""
        return []


@dataclass(frozen=True)
class Violation:
    """A field, by its path in the request (`events[3].item_id`), and what is wrong with it."""

    field: str
    description: str


class InvalidRequest(ServingError):  # noqa: N818 - named for what the caller sees
    """The request breaks the API's rules."""

    code = grpc.StatusCode.INVALID_ARGUMENT

    def __init__(self, violations: Sequence[Violation]) -> None:
        super().__init__("; ".join(f"{one.field}: {one.description}" for one in violations))
        self.violations = tuple(violations)

    def details(self) -> list[Message]:
        """One BadRequest."""
        fields = [
            error_details_pb2.BadRequest.FieldViolation(field=one.field, description=one.description)
            for one in self.violations
        ]
        return [error_details_pb2.BadRequest(field_violations=fields)]


class WrongSpace(InvalidRequest):
    """The content is sound, but the space takes no such content."""


class NotFound(ServingError):  # noqa: N818
    """Something that the request names does not exist."""

    code = grpc.StatusCode.NOT_FOUND


class PreconditionFailed(ServingError):  # noqa: N818
    """The request is right, but not for the state in which the server is."""

    code = grpc.StatusCode.FAILED_PRECONDITION

    def __init__(self, message: str, reason: str, metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.metadata = dict(metadata or {})

    def details(self) -> list[Message]:
        """One ErrorInfo."""
        return [error_details_pb2.ErrorInfo(reason=self.reason, domain=ERROR_DOMAIN, metadata=self.metadata)]


class _RetryLaterError(ServingError):
    def __init__(self, message: str, retry_seconds: float = 1.0) -> None:
        super().__init__(message)
        self.retry_seconds = retry_seconds

    def trailers(self) -> Trailers:
        """How long to wait before the next try."""
        return ((PUSHBACK_KEY, str(round(1000 * self.retry_seconds))),)

    def details(self) -> list[Message]:
        """One RetryInfo."""
        info = error_details_pb2.RetryInfo()
        info.retry_delay.FromMilliseconds(round(1000 * self.retry_seconds))
        return [info]


class Overloaded(_RetryLaterError):  # noqa: N818
    """A queue is full."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class Unavailable(_RetryLaterError):  # noqa: N818
    """The server is starting or draining, or cannot write."""

    code = grpc.StatusCode.UNAVAILABLE


class DeadlineExceeded(ServingError):  # noqa: N818
    """There was no time left."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED


class ItemFailedError(ServingError):
    """Our code failed on one input."""


def packed_details(error: ServingError) -> Trailers:
    """Trailing metadata that carries the error's details; empty where it has none."""
    details = error.details()
    if not details:
        return error.trailers()
    status = status_pb2.Status(code=error.code.value[0], message=str(error))
    for detail in details:
        status.details.add().Pack(detail)
    return ((DETAILS_KEY, status.SerializeToString()), *error.trailers())
