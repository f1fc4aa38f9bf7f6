"""One gRPC channel to Milvus: credentials, deadlines, and its failures as this room's errors. Knows nothing of views."""

import asyncio
import base64
from collections.abc import Sequence
from typing import Any, Final, Self
from urllib.parse import urlparse

import grpc
import grpc.aio
from pymilvus.grpc_gen import milvus_pb2, milvus_pb2_grpc

from feature_store.errors import StoreRequestError, StoreUnavailable, ViewNotFoundError

INDEX_EXISTS: Final = 35
NOT_FOUND: Final = 100
NOT_LOADED: Final = 101
UNREACHABLE: Final = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)
OPTIONS: Final = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # A restarted server is found again within a second.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.keepalive_time_ms", 60_000),
]


class MilvusChannel:
    """A lazy connection to one Milvus server.

    Attributes:
        uri: `http://host:port`, or `https://` for TLS.
    """

    def __init__(self, uri: str, *, token: str = "", db: str = "", timeout_seconds: float = 30.0) -> None:
        parsed = urlparse(uri if "://" in uri else f"http://{uri}")
        if not parsed.hostname:
            raise StoreUnavailable(
                f"{uri!r} is not the address of a Milvus server; it looks like http://127.0.0.1:19530"
            )
        self.uri = uri
        self.timeout_seconds = timeout_seconds
        self._target = f"{parsed.hostname}:{parsed.port or 19530}"
        self._secure = parsed.scheme == "https"
        self._metadata = _metadata(token, db)
        self._channel = self._open(grpc)
        self._stub = milvus_pb2_grpc.MilvusServiceStub(self._channel)
        self._async: dict[asyncio.AbstractEventLoop, tuple[Any, Any]] = {}

    def _open(self, library: Any) -> Any:
        if self._secure:
            return library.secure_channel(self._target, grpc.ssl_channel_credentials(), options=OPTIONS)
        return library.insecure_channel(self._target, options=OPTIONS)

    def start(self, method: str, request: Any, timeout_seconds: float | None = None) -> Any:
        """Send a request and return its future; give it to `finish`."""
        timeout = timeout_seconds or self.timeout_seconds
        return getattr(self._stub, method).future(request, timeout=timeout, metadata=self._metadata)

    def finish(self, future: Any) -> Any:
        """Wait for a reply. Raises `StoreUnavailable`, `ViewNotFoundError` or `StoreRequestError`."""
        try:
            reply = future.result()
        except grpc.RpcError as error:
            raise self._translated(error) from error
        return checked(reply)

    def call(self, method: str, request: Any, timeout_seconds: float | None = None) -> Any:
        """Send a request and wait for its reply; raises as `finish` does."""
        return self.finish(self.start(method, request, timeout_seconds))

    async def call_async(self, method: str, request: Any) -> Any:
        """`call` on the running event loop."""
        try:
            reply = await getattr(self._async_stub(), method)(
                request, timeout=self.timeout_seconds, metadata=self._metadata
            )
        except grpc.RpcError as error:
            raise self._translated(error) from error
        return checked(reply)

    def _async_stub(self) -> Any:
        loop = asyncio.get_running_loop()
        if loop not in self._async:
            self._async = {known: pair for known, pair in self._async.items() if not known.is_closed()}
            channel = self._open(grpc.aio)
            self._async[loop] = (channel, milvus_pb2_grpc.MilvusServiceStub(channel))
        return self._async[loop][1]

    def _translated(self, error: Any) -> Exception:
        code, details = error.code(), error.details()
        if code in UNREACHABLE:
            return StoreUnavailable(
                f"Milvus at {self.uri} does not answer ({code.name.lower()}: {details}): run `triptych up`, "
                "or point TRIPTYCH_MILVUS_URI at a server that runs"
            )
        return StoreRequestError(f"Milvus at {self.uri} failed: {code.name.lower()}: {details}")

    def healthy(self) -> bool:
        """Whether the server answers and calls itself healthy."""
        try:
            return bool(self.call("CheckHealth", milvus_pb2.CheckHealthRequest()).isHealthy)
        except (StoreUnavailable, StoreRequestError):
            return False

    async def close_async(self) -> None:
        """Close the running loop's channel."""
        channel, _ = self._async.pop(asyncio.get_running_loop(), (None, None))
        if channel is not None:
            await channel.close()

    def close(self) -> None:
        """Close the channel; channels of event loops are closed by `close_async`."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _metadata(token: str, db: str) -> Sequence[tuple[str, str]]:
    pairs = [("dbname", db)] if db else []
    if token:
        pairs.append(("authorization", base64.b64encode(token.encode()).decode()))
    return pairs


def checked(reply: Any) -> Any:
    """The reply if its status is well; else its error. A failed status may be told by either of two codes."""
    status = getattr(reply, "status", reply)
    code = status.code or status.error_code
    if code == 0:
        return reply
    if NOT_FOUND in (status.code, status.error_code) or status.error_code == 4:
        raise ViewNotFoundError(f"{status.reason}: run `triptych materialize` (or `feast apply`), which creates views")
    raise StoreRequestError(f"Milvus refused: {status.reason}", int(code))
