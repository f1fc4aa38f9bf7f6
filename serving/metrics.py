"""What a server counts, for Prometheus, and the port on which it tells.

One registry per server, so that two of them in one process do not mix. Labels have few, known values: never an id, never a message.
"""

from typing import TYPE_CHECKING, Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, start_http_server

from serving.errors import ServingError

if TYPE_CHECKING:
    import threading

SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
ROWS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
SHARES: Final = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75)


class Metrics:
    """All metrics of one server. `EmbeddingService`'s are called `triptych_embed_...`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.calls = self._counter("triptych_calls", "Calls answered, by method and gRPC status", "method", "code")
        self.call_seconds = self._seconds("triptych_call_seconds", "Time from a call to its answer", "method")
        self.rejections = self._counter("triptych_rejections", "Calls refused without work, by reason", "reason")
        self.items = self._counter("triptych_embed_items", "Items answered, by gRPC status", "code")
        self.bytes_held = self._gauge("triptych_embed_bytes_in_flight", "Bytes of Embed requests under way")
        self.queue_rows = self._gauge("triptych_embed_queue_rows", "Rows waiting for a forward pass", "lane")
        self.batch_rows = self._histogram("triptych_embed_batch_rows", "Rows of a forward pass", ROWS, "modality")
        self.padding = self._histogram(
            "triptych_embed_padding_share", "Part of a forward pass that was padding", SHARES, "modality"
        )
        self.length = self._counter(
            "triptych_embed_length", "Tokens, samples or pictures forwarded, `padded` or `real`", "modality", "kind"
        )
        self.decode_seconds = self._seconds(
            "triptych_embed_decode_seconds", "Decoding one picture or sound", "modality"
        )
        self.prepare_seconds = self._seconds(
            "triptych_embed_prepare_seconds", "Preparing one call's texts, or one picture or sound", "modality"
        )
        self.queue_seconds = self._seconds("triptych_embed_queue_seconds", "A row's wait for its batch", "lane")
        self.forward_seconds = self._seconds("triptych_embed_forward_seconds", "One forward pass", "modality")
        self.cache = self._counter("triptych_embed_cache", "Cache lookups: hit, miss or coalesced", "result")
        self.cache_bytes = self._gauge("triptych_embed_cache_bytes", "Bytes of cached vectors")
        self.workers_up = self._gauge("triptych_embed_workers_up", "Encoding threads that serve")
        self.restarts = self._counter("triptych_embed_worker_restarts", "Encoding threads started after one died")
        self.isolated = self._counter("triptych_embed_bisections", "Batches that failed and were split")

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(name, text, labels, registry=self.registry, buckets=buckets)

    def _seconds(self, name: str, text: str, *labels: str) -> Histogram:
        return self._histogram(name, text, SECONDS, *labels)


class MetricsPort:
    """The metrics over HTTP, at `/metrics`, from a thread of its own. Raises `ServingError` where the port is taken."""

    def __init__(self, metrics: Metrics, host: str, port: int) -> None:
        self._server: Any
        self._thread: threading.Thread
        try:
            self._server, self._thread = start_http_server(port, addr=host, registry=metrics.registry)
        except OSError as error:
            raise ServingError(
                f"cannot serve metrics on {host}:{port}: {error}; choose another port, 0, or none"
            ) from error
        self.address = f"{host}:{self._server.server_port}"

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
