"""What goes over the wire: records the requests that a client makes, and sends them again, bare.

A bare request is bytes made beforehand, and its reply is not decoded beyond the message: it asks the server for exactly what ours
asked it for, and does nothing else.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, Self
from urllib.parse import urlparse

import grpc

SERVICE: Final = "/milvus.proto.milvus.MilvusService/"
UNLIMITED: Final = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
DEADLINE_SECONDS: Final = 120.0


class Recorder(grpc.UnaryUnaryClientInterceptor):
    """Keeps each request of the methods asked for as (method, bytes), and how many of a method were under way at most."""

    def __init__(self, *methods: str) -> None:
        self.requests: list[tuple[str, bytes]] = []
        self.peak_in_flight = 0
        self._methods = {SERVICE + method: method for method in methods}
        self._in_flight = 0
        self._lock = threading.Lock()

    def intercept_unary_unary(self, continuation: Callable[..., Any], client_call_details: Any, request: Any) -> Any:
        """Called by gRPC with each request."""
        method = self._methods.get(client_call_details.method)
        if method is None:
            return continuation(client_call_details, request)
        with self._lock:
            self.requests.append((method, request if isinstance(request, bytes) else request.SerializeToString()))
            self._in_flight += 1
            self.peak_in_flight = max(self.peak_in_flight, self._in_flight)
        call = continuation(client_call_details, request)
        call.add_done_callback(self._done)
        return call

    def _done(self, _: Any) -> None:
        with self._lock:
            self._in_flight -= 1

    @contextmanager
    def on(self) -> Iterator[Self]:
        """Record what goes over the channels that are opened within."""
        real = grpc.insecure_channel

        def recorded(*arguments: Any, **options: Any) -> Any:
            return grpc.intercept_channel(real(*arguments, **options), self)

        grpc.insecure_channel = recorded
        try:
            yield self
        finally:
            grpc.insecure_channel = real


class Bare:
    """A channel that sends bytes and reads replies as messages."""

    def __init__(self, uri: str) -> None:
        self._channel = grpc.insecure_channel(urlparse(uri).netloc, options=UNLIMITED)

    def method(self, name: str) -> Any:
        """A callable of bytes, which also has `future`."""
        from pymilvus.grpc_gen import milvus_pb2

        reply = {
            "Upsert": milvus_pb2.MutationResult,
            "Query": milvus_pb2.QueryResults,
            "Search": milvus_pb2.SearchResults,
        }
        return self._channel.unary_unary(SERVICE + name, None, reply[name].FromString)

    def upsert(self, requests: Sequence[bytes], in_flight: int) -> float:
        """Send all requests with `in_flight` under way; seconds until the last reply. Raises `RuntimeError` on a refusal."""
        upsert, free = self.method("Upsert"), threading.Semaphore(in_flight)
        calls = []
        started = time.perf_counter()
        for request in requests:
            free.acquire()
            call = upsert.future(request, timeout=DEADLINE_SECONDS)
            call.add_done_callback(lambda _: free.release())
            calls.append(call)
        for call in calls:
            status = call.result().status
            if status.code or status.error_code:
                raise RuntimeError(f"Milvus refused a bare upsert: {status.reason}")
        return time.perf_counter() - started

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()


def into(collection: str, upsert: bytes) -> bytes:
    """A recorded upsert, for another collection."""
    from pymilvus.grpc_gen import milvus_pb2

    request = milvus_pb2.UpsertRequest.FromString(upsert)
    request.collection_name = collection
    made: bytes = request.SerializeToString()
    return made
