"""The serving process: puts the services on two ports, warms up, follows the store and the models, and shuts down in order.

The order of the end: NOT_SERVING, so that balancers look elsewhere; no new calls; calls under way; watchers; then files and stores.
"""

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from feature_store.errors import FeatureStoreError
from feature_store.event_log import EventLog
from feature_store.home import Home
from feature_store.spaces import read_entries
from protos.triptych.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    embedding_pb2,
    embedding_pb2_grpc,
    feedback_pb2,
    feedback_pb2_grpc,
    ranking_pb2,
    ranking_pb2_grpc,
)
from ranker.errors import RankerError
from serving.admin import AdminService
from serving.embedder import Embedder
from serving.embedding import EmbeddingService
from serving.errors import ServingError
from serving.feedback import FeedbackService
from serving.guard import Guard
from serving.metrics import Metrics, MetricsPort
from serving.models import Models
from serving.ranking import RankingService
from serving.settings import ServeSettings
from serving.store import Store
from serving.users import Users

EMBEDDING: Final = embedding_pb2.DESCRIPTOR.services_by_name["EmbeddingService"].full_name
RANKING: Final = ranking_pb2.DESCRIPTOR.services_by_name["RankingService"].full_name
FEEDBACK: Final = feedback_pb2.DESCRIPTOR.services_by_name["FeedbackService"].full_name
ADMIN: Final = admin_pb2.DESCRIPTOR.services_by_name["AdminService"].full_name
WHOLE_SERVER: Final = ""
SERVE_FILE: Final = "serve.json"
# Long enough for a balancer that watches health to look elsewhere before connections are refused.
NOTICE_SECONDS: Final = 0.2

Status = health_pb2.HealthCheckResponse
log = structlog.get_logger("serving")


class Server:
    """One serving process. `start` returns when it answers; `warm_up` when it is SERVING; `stop` ends it in order."""

    def __init__(self, home: Home, settings: ServeSettings) -> None:
        self.home = home
        self.settings = settings
        self.metrics = Metrics()
        self.guard = Guard(settings, self.metrics)
        self.health = health.aio.HealthServicer()
        # Two connections: a reader never waits for a writer's sync.
        self._logs = (EventLog(home.events), EventLog(home.events))
        self.store = Store(home, settings)
        records = partial(read_entries, home, retired=True)
        self.embedder = Embedder(settings, self.metrics, self._embedding_changed, records)
        self.models = Models(home, self.store, settings, self.embedder.serve_spaces)
        self.users = Users(self.store, self._logs[1], settings)
        self.ranking = RankingService(home, self.models, self.users, self.store, self.embedder, settings)
        self.feedback = FeedbackService(self._logs[0], settings)
        self._servers: list[grpc.aio.Server] = []
        self._watcher: asyncio.Task[None] | None = None
        self._poll_error = ""
        self._loop: asyncio.AbstractEventLoop
        self._metrics_port: MetricsPort | None = None
        self._stopping = False
        self.address = self.admin_address = self.metrics_address = ""

    async def start(self) -> None:
        """Open the ports; feedback and administration are SERVING, the rest is not yet."""
        self._loop = asyncio.get_running_loop()
        for service in (WHOLE_SERVER, EMBEDDING, RANKING):
            await self.health.set(service, Status.NOT_SERVING)
        for service in (FEEDBACK, ADMIN):
            await self.health.set(service, Status.SERVING)
        self.address = await self._open(self._add_public, self.settings.host, self.settings.port)
        self.admin_address = await self._open(self._add_admin, self.settings.admin_host, self.settings.admin_port)
        if self.settings.metrics:
            self._metrics_port = MetricsPort(self.metrics, self.settings.metrics_host, self.settings.metrics_port)
            self.metrics_address = self._metrics_port.address
        log.info("listening", **self._about())

    def _about(self) -> dict[str, Any]:
        addresses = {"address": self.address, "admin_address": self.admin_address}
        metrics = {"metrics_address": self.metrics_address} if self.metrics_address else {}
        return {**addresses, **metrics, "pid": os.getpid()}

    async def _open(self, add: Callable[[grpc.aio.Server], tuple[str, ...]], host: str, port: int) -> str:
        limits = [
            ("grpc.max_receive_message_length", self.settings.max_message_bytes),
            ("grpc.max_send_message_length", self.settings.max_message_bytes),
            ("grpc.so_reuseport", 0),  # a port that is taken is an error, not half of the calls
        ]
        server = grpc.aio.server(interceptors=[self.guard], options=limits)
        names = (*add(server), health.SERVICE_NAME, reflection.SERVICE_NAME)
        health_pb2_grpc.add_HealthServicer_to_server(self.health, server)
        reflection.enable_server_reflection(names, server)
        try:
            bound = server.add_insecure_port(f"{host}:{port}")
        except RuntimeError as error:
            raise ServingError(f"cannot listen on {host}:{port}: {error}; choose another port, or 0") from error
        await server.start()
        self._servers.append(server)
        return f"{host}:{bound}"

    def _add_public(self, server: grpc.aio.Server) -> tuple[str, ...]:
        embedding = EmbeddingService(self.embedder, self.home, self.settings, self.metrics, self.models.items_loaded)
        embedding_pb2_grpc.add_EmbeddingServiceServicer_to_server(embedding, server)
        ranking_pb2_grpc.add_RankingServiceServicer_to_server(self.ranking, server)
        feedback_pb2_grpc.add_FeedbackServiceServicer_to_server(self.feedback, server)
        return EMBEDDING, RANKING, FEEDBACK

    def _add_admin(self, server: grpc.aio.Server) -> tuple[str, ...]:
        admin_pb2_grpc.add_AdminServiceServicer_to_server(AdminService(self.models), server)
        return (ADMIN,)

    async def warm_up(self) -> None:
        """Load encoders and the stable model; the whole server is SERVING after that, with or without a model."""
        await self.embedder.load()  # its health is set by `_embedding_changed`
        await self._poll()
        await self.health.set(WHOLE_SERVER, Status.SERVING)
        self._watcher = asyncio.create_task(self._watch())
        self._write_address()
        log.info("serving", address=self.address, ranking=self.models.ready)

    def _embedding_changed(self, serves: bool) -> None:
        """Called by the embedder's threads."""
        if not self._stopping:
            status = Status.SERVING if serves else Status.NOT_SERVING
            asyncio.run_coroutine_threadsafe(self.health.set(EMBEDDING, status), self._loop)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self.settings.refresh_seconds)
            await self._poll()

    async def _poll(self) -> None:
        try:
            await self.models.poll()
            self._poll_error = ""
        except (FeatureStoreError, RankerError, ServingError) as error:
            if self._poll_error != str(error):  # said once, not every few seconds
                log.warning("not refreshed", error=str(error))
            self._poll_error = str(error)
        except Exception:  # the watcher must outlive surprises: without it the server would go stale in silence
            log.exception("not refreshed")
        await self.health.set(RANKING, Status.SERVING if self.models.ready else Status.NOT_SERVING)

    def _write_address(self) -> None:
        path = self.home.root / SERVE_FILE
        temporary = path.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(self._about()))
        temporary.replace(path)

    async def stop(self) -> None:
        """End in order; see the module's docstring."""
        log.info("stopping")
        self._stopping = True
        await self.health.enter_graceful_shutdown()
        await asyncio.sleep(NOTICE_SECONDS)
        self.guard.drain()
        await asyncio.gather(*(server.stop(self.settings.drain_seconds) for server in self._servers))
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
        await asyncio.to_thread(self._close)
        log.info("stopped")

    def _close(self) -> None:
        rooms: tuple[Any, ...] = (self.feedback, self.ranking, self.users, self.embedder, self.models, self.store)
        for room in (*rooms, *self._logs):
            room.close()
        if self._metrics_port is not None:
            self._metrics_port.close()
        self._forget_address()

    def _forget_address(self) -> None:
        path = self.home.root / SERVE_FILE
        with contextlib.suppress(OSError, ValueError, KeyError):
            if json.loads(path.read_text())["pid"] == os.getpid():
                path.unlink()


async def serve(home: Home, settings: ServeSettings, announce: Callable[[Server], None]) -> None:
    """Run until SIGTERM or SIGINT; `announce` is called once the server is SERVING."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    server = Server(home, settings)
    try:
        await server.start()
        await _run(server, stop, announce)
    finally:
        await server.stop()


async def _run(server: Server, stop: asyncio.Event, announce: Callable[[Server], None]) -> None:
    warming = asyncio.create_task(server.warm_up())
    stopped = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({warming, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if warming.done():
            warming.result()
            announce(server)
            await stopped
    finally:
        warming.cancel()
        stopped.cancel()
