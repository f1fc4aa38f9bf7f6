"""What every call of our own services passes through: request ids, deadlines, permits, draining, statuses and the log line.

Health and reflection pass by it, so that a server at its limits still answers its balancer.
"""

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Final

import grpc
import structlog

from serving import budget
from serving.errors import DeadlineExceeded, Overloaded, ServingError, Unavailable, packed_details
from serving.metrics import Metrics
from serving.settings import ServeSettings

OUR_PREFIX: Final = "/triptych.v1."
PERMIT_RETRY_SECONDS: Final = 0.1  # at least
SMOOTHING: Final = 0.05  # weight of the newest call in the running mean of a method's seconds

Handler = Callable[[Any, Any], Awaitable[Any]]
log = structlog.get_logger("serving")


class Guard(grpc.aio.ServerInterceptor):
    """Wraps the unary methods of our services."""

    def __init__(self, settings: ServeSettings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._under_way: Counter[str] = Counter()
        self._mean_seconds: dict[str, float] = {}
        self._draining = False

    def drain(self) -> None:
        """Answer UNAVAILABLE from now on; calls under way go on."""
        self._draining = True

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], details: Any) -> Any:
        """Replace the behaviour of our methods by the guarded one."""
        handler = await continuation(details)
        if handler is None or not details.method.startswith(OUR_PREFIX):
            return handler
        name = details.method.removeprefix(OUR_PREFIX)

        async def behaviour(request: Any, context: Any) -> Any:
            return await self._answer(name, handler.unary_unary, request, context)

        return grpc.unary_unary_rpc_method_handler(
            behaviour,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    async def _answer(self, name: str, handler: Handler, request: Any, context: Any) -> Any:
        request.request_id = request.request_id or uuid.uuid4().hex
        start = time.perf_counter()
        try:
            reply = await self._limited(name, handler, request, context)
        except ServingError as error:
            self._note(name, request, start, error.code.name, str(error))
            await context.abort(error.code, str(error), packed_details(error))
        except asyncio.CancelledError:
            self._note(name, request, start, "CANCELLED", "the caller went away")
            raise
        except Exception:
            log.exception("failed", method=name, request_id=request.request_id)
            self._note(name, request, start, "INTERNAL", "internal error")
            await context.abort(grpc.StatusCode.INTERNAL, f"internal error; request_id {request.request_id}")
        else:
            reply.request_id = request.request_id
            self._note(name, request, start, "OK", "")
            return reply

    async def _limited(self, name: str, handler: Handler, request: Any, context: Any) -> Any:
        if self._draining:
            self._metrics.rejections.labels("draining").inc()
            raise Unavailable("the server is shutting down")
        if self._under_way[name] >= self._settings.permits:
            self._metrics.rejections.labels("permits").inc()
            raise Overloaded(f"{self._settings.permits} calls of {name} are under way", self._retry_seconds(name))
        self._under_way[name] += 1
        start = time.monotonic()
        try:
            return await self._timed(handler, request, context)
        finally:
            self._under_way[name] -= 1
            mean = self._mean_seconds.get(name, PERMIT_RETRY_SECONDS)
            self._mean_seconds[name] = mean + SMOOTHING * (time.monotonic() - start - mean)

    def _retry_seconds(self, name: str) -> float:
        """Half of what a call takes: by then half of those under way have ended."""
        return max(PERMIT_RETRY_SECONDS, self._mean_seconds.get(name, 0.0) / 2)

    async def _timed(self, handler: Handler, request: Any, context: Any) -> Any:
        left = context.time_remaining()
        seconds = (
            self._settings.default_deadline_seconds if left is None else min(left, self._settings.max_deadline_seconds)
        )
        budget.set_deadline(seconds)
        try:
            async with asyncio.timeout(seconds):
                return await handler(request, context)
        except TimeoutError as error:
            raise DeadlineExceeded(f"no answer within {seconds:.3g} s") from error

    def _note(self, name: str, request: Any, start: float, code: str, message: str) -> None:
        seconds = time.perf_counter() - start
        self._metrics.calls.labels(name, code).inc()
        self._metrics.call_seconds.labels(name).observe(seconds)
        milliseconds = round(1000 * seconds, 2)
        log.info("call", method=name, request_id=request.request_id, code=code, ms=milliseconds, error=message or None)
