"""One gRPC channel to Milvus: credentials, deadlines, and its failures as this room's errors. Knows nothing of views."""

import asyncio
import base64
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import unquote, urlparse

import grpc
import grpc.aio
from pymilvus.grpc_gen import milvus_pb2, milvus_pb2_grpc

from feature_store.errors import StoreRequestError, StoreUnavailable, ViewNotFoundError

DEFAULT_PORT: Final = 19530
SCHEMES: Final = ("http", "https", "tcp")
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
# Else all channels of a process to one address share a connection; which is well for one, since a restarted server is then found at once.
OWN_CONNECTION: Final = ("grpc.use_local_subchannel_pool", 1)


class MilvusChannel:
    """A lazy connection to one Milvus server, or several in turn. Its credentials are in no log, repr or error.

    Args:
        uri: `http://host:port`, or `https://` for TLS; without a port 19530.
        token: `user:password` or an API key; wins over `user` and `password`.
        user: name to log in with.
        password: of `user`.
        db: database on the server; its default where empty.
        ca_file: PEM file of the authority that signed the server's certificate; the system's own where empty. Makes it TLS.
        timeout_seconds: of a call that names none.
        channels: TCP connections, used in turn.

    Raises:
        StoreUnavailable: the address is none, or the CA file cannot be read.
    """

    def __init__(
        self,
        uri: str,
        *,
        token: str = "",
        user: str = "",
        password: str = "",
        db: str = "",
        ca_file: str = "",
        timeout_seconds: float = 30.0,
        channels: int = 1,
    ) -> None:
        parsed = urlparse(uri if "://" in uri else f"http://{uri}")
        if not parsed.hostname or parsed.scheme not in SCHEMES:
            raise StoreUnavailable(
                f"{_without_secrets(uri)!r} is not the address of a Milvus server; it looks like http://127.0.0.1:19530"
            )
        self.uri = _without_secrets(uri)
        self.timeout_seconds = timeout_seconds
        self._target = f"{parsed.hostname}:{parsed.port or DEFAULT_PORT}"
        in_uri = f"{unquote(parsed.username)}:{unquote(parsed.password or '')}" if parsed.username else ""
        self._metadata = _metadata(token or (f"{user}:{password}" if user else in_uri), db)
        self._credentials = _credentials(ca_file) if ca_file or parsed.scheme == "https" else None
        self._options = [*OPTIONS, OWN_CONNECTION] if channels > 1 else OPTIONS
        self._channels = [self._open(grpc) for _ in range(channels)]
        self._stubs = itertools.cycle([milvus_pb2_grpc.MilvusServiceStub(channel) for channel in self._channels])
        self._upserts = itertools.cycle([_raw_upsert(channel) for channel in self._channels])
        self._async: dict[asyncio.AbstractEventLoop, tuple[Any, Any]] = {}

    def __repr__(self) -> str:
        return f"MilvusChannel({self.uri!r})"

    def _open(self, library: Any) -> Any:
        if self._credentials is not None:
            return library.secure_channel(self._target, self._credentials, options=self._options)
        return library.insecure_channel(self._target, options=self._options)

    def start(self, method: str, request: Any, timeout_seconds: float | None = None) -> Any:
        """Send a request and return its future; give it to `finish`."""
        timeout = timeout_seconds or self.timeout_seconds
        return getattr(next(self._stubs), method).future(request, timeout=timeout, metadata=self._metadata)

    def start_upsert(self, request: bytes, timeout_seconds: float | None = None) -> Any:
        """`start` for an UpsertRequest that is encoded already."""
        return next(self._upserts).future(
            request, timeout=timeout_seconds or self.timeout_seconds, metadata=self._metadata
        )

    def finish(self, future: Any) -> Any:
        """Wait for a reply. Raises `StoreUnavailable`, `ViewNotFoundError` or `StoreRequestError`."""
        try:
            reply = future.result()
        except grpc.RpcError as error:
            raise self._translated(error) from error
        return checked(reply)

    def call(self, method: str, request: Any, timeout_seconds: float | None = None) -> Any:
        """Send a request and wait for its reply; raises as `finish` does."""
        try:  # A future costs a thread each, which a caller who waits at once can do without.
            reply = getattr(next(self._stubs), method)(
                request, timeout=timeout_seconds or self.timeout_seconds, metadata=self._metadata
            )
        except grpc.RpcError as error:
            raise self._translated(error) from error
        return checked(reply)

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
        for channel in self._channels:
            channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _raw_upsert(channel: grpc.Channel) -> Any:
    return channel.unary_unary(
        "/milvus.proto.milvus.MilvusService/Upsert", response_deserializer=milvus_pb2.MutationResult.FromString
    )


def _without_secrets(uri: str) -> str:
    """The address without a user and password that it may hold."""
    scheme, separator, rest = uri.rpartition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"


def _credentials(ca_file: str) -> Any:
    try:
        return grpc.ssl_channel_credentials(Path(ca_file).expanduser().read_bytes() if ca_file else None)
    except OSError as error:
        raise StoreUnavailable(f"the CA file {ca_file} cannot be read: {error.strerror}") from error


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
