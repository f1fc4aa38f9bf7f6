"""Calls of Embed, from a process of its own that costs little CPU: requests are made beforehand and replies are read afterwards.

`python -m benchmarks.load.embed` takes a `Plan` as JSON on its standard input and prints what happened as JSON. A closed loop keeps a
number of callers busy; an open one calls at random instants (Poisson), and counts a call's time from the instant at which it was
due, so that a slow server cannot slow its own load.
"""

import asyncio
import json
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Final

import grpc

from protos.triptych.v1 import embedding_pb2

METHOD: Final = "/triptych.v1.EmbeddingService/Embed"
DEADLINE_SECONDS: Final = 30.0
BULK_INPUTS: Final = 64
RETRY_SECONDS: Final = 0.2


@dataclass(frozen=True)
class Plan:
    """One run.

    Attributes:
        texts: file with a text a line; each is sent once.
        callers: of a closed loop; 0 for an open one at `rate` calls a second.
        bulk_calls: calls of 64 texts in the bulk lane that are kept under way beside it.
        skip_seconds: at the start, not counted.
    """

    address: str
    texts: str
    seconds: float
    callers: int = 0
    rate: float = 0.0
    bulk_calls: int = 0
    skip_seconds: float = 1.0
    seed: int = 0


@dataclass
class Happened:
    """Answered calls as (due, answered, reply), refused ones by code, and bulk items done; seconds of this process's CPU."""

    calls: list[tuple[float, float, bytes]] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    bulk_items: int = 0


class Run:
    """A plan under way."""

    def __init__(self, plan: Plan, channel: grpc.aio.Channel) -> None:
        self.plan, self.happened = plan, Happened()
        self._embed: Any = channel.unary_unary(METHOD)  # bytes in, bytes out
        lines = Path(plan.texts).read_text().splitlines()
        bulk = int(len(lines) * 0.5) if plan.bulk_calls else 0
        self._singles = iter([_request([line]) for line in lines[bulk:]])
        chunks = range(0, bulk, BULK_INPUTS)
        self._bulks = iter([_request(lines[i : i + BULK_INPUTS], bulk=True) for i in chunks])
        self._start = 0.0

    async def whole(self) -> dict[str, Any]:
        """Run it and sum up."""
        cpu, self._start = time.process_time(), time.perf_counter()
        bulk = [asyncio.create_task(self._bulk()) for _ in range(self.plan.bulk_calls)]
        await (self._closed() if self.plan.callers else self._open())
        for task in bulk:
            task.cancel()
        await asyncio.gather(*bulk, return_exceptions=True)
        return self._summary(time.process_time() - cpu)

    def _over(self) -> bool:
        return time.perf_counter() - self._start >= self.plan.seconds

    async def _closed(self) -> None:
        async def caller() -> None:
            while not self._over():
                await self._call(time.perf_counter(), next(self._singles))

        await asyncio.gather(*(caller() for _ in range(self.plan.callers)))

    async def _open(self) -> None:
        chance, due, tasks = random.Random(self.plan.seed), self._start, []
        while due - self._start < self.plan.seconds:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.append(asyncio.create_task(self._call(due, next(self._singles))))
            due += chance.expovariate(self.plan.rate)
        await asyncio.gather(*tasks)

    async def _call(self, due: float, request: bytes) -> None:
        try:
            reply = await self._embed(request, timeout=DEADLINE_SECONDS)
        except grpc.aio.AioRpcError as error:
            self.happened.refused[error.code().name] += 1
        else:
            self.happened.calls.append((due, time.perf_counter(), reply))

    async def _bulk(self) -> None:
        while (request := next(self._bulks, None)) is not None:
            for _ in count():
                try:
                    await self._embed(request, timeout=DEADLINE_SECONDS)
                    break
                except grpc.aio.AioRpcError:
                    await asyncio.sleep(RETRY_SECONDS)
            self.happened.bulk_items += BULK_INPUTS

    def _summary(self, cpu_seconds: float) -> dict[str, Any]:
        """Calls that were due in the counted part; throughput is of answers in it."""
        first, last = self._start + self.plan.skip_seconds, self._start + self.plan.seconds
        counted = [call for call in self.happened.calls if first <= call[0] < last]
        answered = sum(first <= end < last for _, end, _ in self.happened.calls)
        replies = [embedding_pb2.EmbedResponse.FromString(reply) for _, _, reply in counted]
        bad = sum(reply.results[0].status.code != 0 for reply in replies)
        return {
            "seconds": [end - due for due, end, _ in counted],
            "shapes": [[reply.batch_rows, reply.batch_length] for reply in replies],
            "per_second": answered / (last - first),
            "refused": dict(self.happened.refused) | ({"BAD_ITEMS": bad} if bad else {}),
            "bulk_per_second": self.happened.bulk_items / self.plan.seconds,
            "cpu_share": cpu_seconds / self.plan.seconds,
        }


def _request(texts: list[str], *, bulk: bool = False) -> bytes:
    priority = embedding_pb2.EMBED_PRIORITY_BULK if bulk else embedding_pb2.EMBED_PRIORITY_INTERACTIVE
    inputs = [embedding_pb2.EmbedInput(text=text) for text in texts]
    return embedding_pb2.EmbedRequest(inputs=inputs, priority=priority).SerializeToString()


async def main() -> None:
    """Read the plan, run it, print what happened."""
    plan = Plan(**json.load(sys.stdin))
    async with grpc.aio.insecure_channel(plan.address) as channel:
        json.dump(await Run(plan, channel).whole(), sys.stdout)


if __name__ == "__main__":
    asyncio.run(main())
