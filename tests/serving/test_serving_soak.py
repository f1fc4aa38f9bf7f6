import asyncio
import os
import random
import statistics
import time
from collections import Counter

import grpc
import pytest
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc

from feature_store.home import Home
from protos.triptych.v1 import embedding_pb2, embedding_pb2_grpc
from serving.server import EMBEDDING
from tests.serving.live import WORDS, tiny_bert, tiny_clip
from tests.serving.world import metric, new_client, png, running, until

SOAK_VARIABLE = "TRIPTYCH_SOAK_SECONDS"
SHORT_SECONDS = 6.0
LONG_SECONDS = float(os.environ.get(SOAK_VARIABLE, "600"))  # read here: fixtures hide our variables from the servers
CALIBRATION_SECONDS = 2.0
CALLERS = 48  # that find the capacity at first: nearly as many as there are permits
SETTLING_SECONDS = 45.0  # of the long run: allocators take what they need once, for every size of batch
OVERLOAD = 2.0  # offered calls over what the server can do
LEAST_OVERLOAD = 1.5  # that must come of it: the load generator has no core of its own
MOST_OUTSTANDING = 2000  # of the load generator, so that it measures the server's memory and not its own
STATED = {"OK", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "CANCELLED"}


@pytest.fixture(scope="module")
def soaked(tmp_path_factory):
    """A server process with small real encoders, few permits and a small cache."""
    root = tmp_path_factory.mktemp("soak")
    profile = root / "encoders.yaml"
    sources = {"text": str(tiny_bert(root / "bert")), "image": str(tiny_clip(root / "clip"))}
    profile.write_text(yaml.safe_dump({name: {"source": source} for name, source in sources.items()}))
    small = {"TRIPTYCH_SERVE_CACHE_BYTES": "200000", "TRIPTYCH_SERVE_PERMITS": "64"}
    home = Home(root / "home").create()
    with running(home, "soak", TRIPTYCH_ENCODERS=str(profile), **small) as server:
        yield server


class Load:
    """An open-loop load of everything that callers do: texts old and new, pictures whole and broken, bulk, haste, changes of mind."""

    def __init__(self, address: str, seed: int) -> None:
        self.channel = grpc.aio.insecure_channel(address)
        self.stub = embedding_pb2_grpc.EmbeddingServiceStub(self.channel)
        self.random = random.Random(seed)
        self.codes: Counter[str] = Counter()
        self.items: Counter[int] = Counter()
        self.wrong: list[str] = []
        self.tasks: set[asyncio.Task] = set()
        self.capacity = self.offered = 0.0  # calls a second
        self.pictures = [png(colour, 40) for colour in ("red", "green", "blue")] + [b"no picture", png("red")[:60]]

    def text(self):
        """Five words of few, so that some come again."""
        words = self.random.choices(WORDS[5:], k=self.random.randint(1, 40))
        return {"text": " ".join(words)}

    def request(self):
        """A call, its deadline in seconds and after how many it is cancelled."""
        kind = self.random.random()
        inputs = [self.text()]
        if kind < 0.10:
            inputs = [self.text() for _ in range(16)]
        elif kind < 0.25:
            inputs.append({"image": self.random.choice(self.pictures)})
        priority = embedding_pb2.EMBED_PRIORITY_BULK if kind < 0.10 else embedding_pb2.EMBED_PRIORITY_INTERACTIVE
        deadline = 0.02 if kind > 0.95 else 10.0
        return embedding_pb2.EmbedRequest(inputs=inputs, priority=priority), deadline, 0.01 if kind > 0.975 else None

    async def one(self):
        """Make one call and judge its answer."""
        request, deadline, cancel_after = self.request()
        call = self.stub.Embed(request, timeout=deadline)
        if cancel_after is not None:
            asyncio.get_running_loop().call_later(cancel_after, call.cancel)
        try:
            reply = await call
        except grpc.aio.AioRpcError as error:
            self.refusal(error)
        except asyncio.CancelledError:
            self.codes["CANCELLED"] += 1
        else:
            self.codes["OK"] += 1
            self.judge(request, reply)

    def refusal(self, error):
        """A refusal must say when to come back."""
        self.codes[error.code().name] += 1
        told = any(key == "grpc-retry-pushback-ms" for key, _ in error.trailing_metadata())
        if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and not told:
            self.wrong.append(f"no pushback: {error.details()}")

    def judge(self, request, reply):
        """Each item has a vector or a reason, and pictures that are broken are those with a reason."""
        for given, result in zip(request.inputs, reply.results, strict=True):
            self.items[result.status.code] += 1
            broken = given.image in self.pictures[3:]
            if (result.status.code == 0) == broken or (result.status.code == 0) != result.HasField("vector"):
                self.wrong.append(f"{result.status}")

    async def closed(self, callers: int, seconds: float) -> float:
        """Calls per second of so many callers that wait for each answer."""
        end, before = time.monotonic() + seconds, self.codes.total()

        async def caller():
            while time.monotonic() < end:
                await self.one()

        await asyncio.gather(*(caller() for _ in range(callers)))
        return (self.codes.total() - before) / seconds

    async def open(self, rate: float, seconds: float) -> None:
        """Calls at random instants, `rate` a second, whether earlier ones are answered or not; `offered` is what came of it."""
        start, made = time.monotonic(), 0
        end, due = start + seconds, start
        while (now := time.monotonic()) < end:
            while due <= now and len(self.tasks) < MOST_OUTSTANDING:
                task = asyncio.create_task(self.one())
                self.tasks.add(task)
                task.add_done_callback(self.tasks.discard)
                made += 1
                due += self.random.expovariate(rate)
            due = max(due, now - 1.0)
            await asyncio.sleep(0.005)
        self.offered = made / (time.monotonic() - start)
        await asyncio.gather(*self.tasks)


def memory_bytes(address: str) -> float:
    """The server's resident memory, as its metrics tell it."""
    return metric(address, "process_resident_memory_bytes")


async def soak(
    address: str, metrics_address: str, settling: float, seconds: float, seed: int
) -> tuple[Load, list[float], set[int]]:
    """The load's record, the server's memory over time and every health status that was seen."""
    load, memory, statuses = Load(address, seed), [], set()
    stub = health_pb2_grpc.HealthStub(load.channel)

    async def watch():
        while True:
            check = health_pb2.HealthCheckRequest(service=EMBEDDING)
            statuses.add((await stub.Check(check, timeout=10)).status)
            memory.append(await asyncio.to_thread(memory_bytes, metrics_address))
            await asyncio.sleep(max(0.25, seconds / 200))

    load.capacity = await load.closed(CALLERS, CALIBRATION_SECONDS)
    before = load.codes["OK"]
    await load.open(OVERLOAD * load.capacity, settling)
    # Callers that wait for each other's batches show less than a server can do that is warm and full.
    load.capacity = max(load.capacity, (load.codes["OK"] - before) / settling)
    watching = asyncio.create_task(watch())
    await load.open(OVERLOAD * load.capacity, seconds)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    await load.channel.close()
    return load, memory, statuses


def check(server, settling: float, seconds: float, seed: int, growth: float) -> None:
    """Soak and judge; memory may grow so much after it has settled."""
    load, memory, statuses = asyncio.run(soak(server.address, server.metrics_address, settling, seconds, seed))
    assert not load.wrong[:3]
    assert load.offered >= LEAST_OVERLOAD * load.capacity, f"{load.offered:.0f}/s of {load.capacity:.0f}/s"
    assert set(load.codes) <= STATED, load.codes
    assert min(load.codes["OK"], load.codes["RESOURCE_EXHAUSTED"]) > 10, load.codes
    assert set(load.items) == {0, 3}
    assert statuses == {health_pb2.HealthCheckResponse.SERVING}
    quarter = max(1, len(memory) // 4)
    first, last = statistics.median(memory[:quarter]), statistics.median(memory[-quarter:])
    assert last <= growth * first, f"{first / 2**20:.1f} MiB grew to {last / 2**20:.1f} MiB"
    until(lambda: metric(server.metrics_address, "triptych_embed_bytes_in_flight") == 0)
    assert metric(server.metrics_address, "triptych_embed_queue_rows") == 0
    assert metric(server.metrics_address, "triptych_embed_worker_restarts_total") == 0
    with new_client(server) as client:
        assert client.embed(texts=["after the storm"])[0].vector is not None


def test_twice_the_capacity_for_seconds(soaked, seed):
    """At twice the capacity every reply is a result or a stated error, refusals say when to come back, and health stays SERVING."""
    check(soaked, 2.0, SHORT_SECONDS, seed, growth=1.15)


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_twice_the_capacity_for_minutes(soaked, seed):
    """The same for ten minutes (or TRIPTYCH_SOAK_SECONDS), and memory does not grow by more than 5 %."""
    check(soaked, SETTLING_SECONDS, LONG_SECONDS, seed, growth=1.05)
