"""One call to a server, as the client library makes it: with a deadline, an error in words, and retries where the server asks for them.

A server that is full, or busy restarting, says when to come back (`grpc-retry-pushback-ms`, gRFC A6). Such a call was not begun, or
only computes, so that trying again is safe; without that word nothing is tried again.
"""

import random
import time
from collections.abc import Collection
from typing import Any, Final

import grpc

PUSHBACK_KEY: Final = "grpc-retry-pushback-ms"
MAX_TRIES: Final = 6
# Callers that were refused together must not come back together; nor ever sooner than they were told.
MOST_JITTER: Final = 0.5
FULL: Final = frozenset({grpc.StatusCode.RESOURCE_EXHAUSTED})
FULL_OR_RESTARTING: Final = FULL | {grpc.StatusCode.UNAVAILABLE}


class ClientError(Exception):
    """A call failed. `code` is the gRPC status' name, for instance `INVALID_ARGUMENT`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


def call(method: Any, request: Any, timeout: float, retried: Collection[grpc.StatusCode] = FULL) -> Any:
    """Call a stub's method, again where the server says when; all tries together take at most `timeout` seconds.

    Raises `ClientError` in place of `grpc.RpcError`: the server's own last words, where there is no time for another try.
    """
    end, tries = time.monotonic() + timeout, 1
    while True:
        try:
            return method(request, timeout=max(0.0, end - time.monotonic()))
        except grpc.RpcError as error:
            wait = pushback_seconds(error) if error.code() in retried else None
            if wait is not None:
                wait *= 1 + random.uniform(0, MOST_JITTER)  # noqa: S311 - spreads callers, keeps no secret
            if wait is None or tries >= MAX_TRIES or time.monotonic() + wait >= end:
                raise ClientError(error.code().name, error.details() or "no details") from error
        time.sleep(wait)
        tries += 1


def pushback_seconds(error: Any) -> float | None:
    """When the server wants to see a refused call again; None where it does not say, or not at all."""
    for key, value in error.trailing_metadata() or ():
        if key == PUSHBACK_KEY:
            try:
                milliseconds = int(value)
            except ValueError:
                return None
            return milliseconds / 1000 if milliseconds >= 0 else None
    return None
