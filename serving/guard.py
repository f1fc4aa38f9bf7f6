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
from serving.settings import ServeSettings

OUR_PREFIX: Final = "/triptych.v1."
PERMIT_RETRY_SECONDS: Final = 0.1

Handler = Callable[[Any, Any], Awaitable[Any]]
log = structlog.get_logger("serving")


class Guard(grpc.aio.ServerInterceptor):
    """Wraps the unary methods of our services."""

    def __init__(self, settings: ServeSettings) -> None:
        self._settings = settings
        self._under_way: Counter[str] = Counter()
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
            self._log(name, request, start, error.code.name, str(error))
            await context.abort(error.code, str(error), packed_details(error))
        except Exception:
            log.exception("failed", method=name, request_id=request.request_id)
            await context.abort(grpc.StatusCode.INTERNAL, f"internal error; request_id {request.request_id}")
        else:
            reply.request_id = request.request_id
            self._log(name, request, start, "OK", "")
            return reply

    async def _limited(self, name: str, handler: Handler, request: Any, context: Any) -> Any:
        if self._draining:
            raise Unavailable("the server is shutting down")
        if self._under_way[name] >= self._settings.permits:
            raise Overloaded(f"{self._settings.permits} calls of {name} are under way", PERMIT_RETRY_SECONDS)
        self._under_way[name] += 1
        try:
            return await self._timed(handler, request, context)
        finally:
            self._under_way[name] -= 1

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

    @staticmethod
    def _log(name: str, request: Any, start: float, code: str, message: str) -> None:
        milliseconds = round(1000 * (time.perf_counter() - start), 2)
        log.info("call", method=name, request_id=request.request_id, code=code, ms=milliseconds, error=message or None)
