import asyncio
import contextlib
import json
import signal
import sqlite3
import threading
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from typer.testing import CliRunner

from feature_store.connection import connect
from feature_store.event_log import EventLog
from feature_store.home import Home
from protos.triptych.v1 import embedding_pb2, embedding_pb2_grpc, feedback_pb2, feedback_pb2_grpc
from serving.budget import set_deadline
from serving.errors import DeadlineExceeded, Overloaded, ServingError
from serving.server import RANKING, Server
from serving.settings import ServeSettings
from serving.workers import Worker
from tests.serving.world import ITEMS, Running, annex, metric, new_client, reasons, running, until
from triptych.client import Client, ClientError, make_event
from triptych.verbs import serve


def record_until(address: str, stop: threading.Event, acknowledged: list[str], writer: int) -> None:
    """Record events one by one, noting the id of each that was acknowledged, until told or refused."""
    with Client(address, timeout=5.0) as client:
        for i in range(100_000):
            if stop.is_set():
                return
            event = make_event("item_00", user_id=f"writer_{writer}", event_id=f"{writer}_{i}")
            try:
                client.record_events([event])
            except ClientError:
                return
            acknowledged.append(event.event_id)


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> tuple[Home, list[str]]:
    """A home whose server got SIGKILL in the middle of requests, and the ids of the events that it had acknowledged."""
    home = Home(tmp_path_factory.mktemp("killed") / "home").create()
    acknowledged: list[str] = []
    stop = threading.Event()
    with running(home, "victim", until="listening") as victim:
        recorders = [(victim.address, stop, acknowledged, writer) for writer in range(3)]
        writers = [threading.Thread(target=record_until, args=recorder) for recorder in recorders]
        for writer in writers:
            writer.start()
        until(lambda: len(acknowledged) >= 60 or stop.is_set(), 60.0, every=0.002)
        assert victim.end(signal.SIGKILL) == -signal.SIGKILL
        stop.set()
        for writer in writers:
            writer.join(20)
    return home, acknowledged


@pytest.fixture(scope="module")
def restarted(killed) -> Iterator[Running]:
    """A new server in the home of the killed one."""
    with running(killed[0], "restarted") as server:
        yield server


def test_no_acknowledged_event_is_lost_by_a_kill(killed, restarted):
    """After SIGKILL in the middle of requests every acknowledged event is in the log, and the restarted server knows it."""
    home, acknowledged = killed
    with contextlib.closing(EventLog(home.events)) as log:
        kept = {event.event_id for event in log.read_after(0)}
    assert len(acknowledged) >= 60
    assert set(acknowledged) <= kept
    with new_client(restarted) as client:
        again = client.record_events(make_event("item_00", user_id="w", event_id=one) for one in acknowledged)
    assert (again.recorded, again.duplicates) == (0, len(acknowledged))


def test_sigterm_answers_what_is_under_way_and_ends_well(killed, restarted):
    """A call that began before SIGTERM is answered; then the process exits with 0 and takes its address file away."""
    told: list[object] = []
    serve_file = killed[0].root / "serve.json"

    def call() -> None:
        with new_client(restarted, timeout=30.0) as client:
            told.append(client.embed(texts=[f"{i} " + "many words " * 200 for i in range(64)])[0].vector)

    assert json.loads(serve_file.read_text())["address"] == restarted.address
    caller = threading.Thread(target=call)
    caller.start()
    until(lambda: metric(restarted.metrics_address, "triptych_embed_bytes_in_flight") > 0, every=0.005)
    assert restarted.end(signal.SIGTERM) == 0
    caller.join(30)
    assert told
    assert told[0] is not None
    assert not serve_file.exists()


@contextlib.asynccontextmanager
async def starting_server(root, **settings) -> AsyncIterator[tuple[Server, Client]]:
    """A server in this process that listens and has loaded nothing."""
    server = Server(Home(root).create(), ServeSettings(port=0, permits=1, **settings))
    await server.start()
    try:
        with Client(server.address, timeout=5.0) as client:
            yield server, client
    finally:
        await server.stop()


def test_a_server_without_a_model_says_what_to_do(tmp_path):
    """Without a stable model Rank fails the precondition and names the command; ranking is NOT_SERVING; events are recorded."""

    async def scenario() -> None:
        async with starting_server(tmp_path) as (server, client):
            with pytest.raises(ClientError, match=r"UNAVAILABLE.*being loaded"):
                await asyncio.to_thread(client.embed, texts=["a"])
            with pytest.raises(ClientError, match="UNAVAILABLE"):
                await asyncio.to_thread(client.rank, "ann")
            await server._poll()
            with pytest.raises(ClientError, match=r"FAILED_PRECONDITION.*triptych train"):
                await asyncio.to_thread(client.rank, "ann")
            assert not await asyncio.to_thread(client.healthy, RANKING)
            recorded = await asyncio.to_thread(client.record_events, [make_event("i", user_id="u")])
            assert recorded.recorded == 1

    asyncio.run(scenario())


def test_a_draining_server_refuses_new_calls(tmp_path):
    """While it drains, the server is NOT_SERVING and answers UNAVAILABLE with RetryInfo."""

    async def scenario() -> None:
        async with starting_server(tmp_path) as (server, client):
            await server.health.enter_graceful_shutdown()
            server.guard.drain()
            assert not await asyncio.to_thread(client.healthy, "triptych.v1.FeedbackService")
            with pytest.raises(ClientError, match=r"UNAVAILABLE.*shutting down"):
                await asyncio.to_thread(client.record_events, [make_event("i", user_id="u")])

    asyncio.run(scenario())


def test_calls_past_the_permits_are_told_when_to_come_back(tmp_path):
    """Past a method's permits a call gets RESOURCE_EXHAUSTED with RetryInfo, and health still answers."""

    async def scenario() -> None:
        async with starting_server(tmp_path) as (server, client):
            server.guard._under_way["EmbeddingService/Embed"] = 1
            error = await refused(server.address)
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            retry = error_details_pb2.RetryInfo()
            assert rpc_status.from_call(error).details[0].Unpack(retry)
            assert retry.retry_delay.ToMilliseconds() > 0
            assert not await asyncio.to_thread(client.healthy)  # answered: NOT_SERVING, since it is starting

    async def refused(address: str) -> grpc.aio.AioRpcError:
        async with grpc.aio.insecure_channel(address) as channel:
            stub = embedding_pb2_grpc.EmbeddingServiceStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Embed(embedding_pb2.EmbedRequest(inputs=[{"text": "a"}]), timeout=5)
        return caught.value

    asyncio.run(scenario())


def test_a_port_that_is_taken_is_named(tmp_path):
    """A second server on the same port fails with the address in the message, and the first goes on."""

    async def scenario() -> None:
        async with starting_server(tmp_path / "one") as (server, client):
            port = int(server.address.rsplit(":", 1)[1])
            second = Server(Home(tmp_path / "two").create(), ServeSettings(port=port))
            with pytest.raises(ServingError, match=str(port)):
                await second.start()
            await second.stop()
            assert await asyncio.to_thread(client.healthy, "triptych.v1.FeedbackService")

    asyncio.run(scenario())


def test_a_call_without_a_deadline_gets_one(tmp_path):
    """A caller that brings no deadline is answered DEADLINE_EXCEEDED when the server's own has passed; a retry then succeeds."""

    async def scenario() -> None:
        async with starting_server(tmp_path, default_deadline_seconds=0.2) as (server, client):
            with contextlib.closing(sqlite3.connect(server.home.events, isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")  # a drain that takes long, for instance
                error = await refused(server.address)
                other.execute("ROLLBACK")
            assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            again = await asyncio.to_thread(client.record_events, [make_event("i", user_id="u", event_id="e")])
            assert again.recorded + again.duplicates == 1

    async def refused(address: str) -> grpc.aio.AioRpcError:
        async with grpc.aio.insecure_channel(address) as channel:
            stub = feedback_pb2_grpc.FeedbackServiceStub(channel)
            event = make_event("i", user_id="u", event_id="e")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.RecordEvents(feedback_pb2.RecordEventsRequest(events=[event]))
        return caught.value

    asyncio.run(scenario())


def test_a_full_disk_is_said_with_a_time_to_come_back(tmp_path):
    """An event log that cannot grow answers UNAVAILABLE with RetryInfo, and takes the events once it can."""

    async def scenario() -> None:
        async with starting_server(tmp_path) as (server, client):
            connection = server._logs[0]._connection
            connection.execute("PRAGMA max_page_count = 1")  # the size that it has
            events = [make_event(f"item_{i:0100}", user_id="u") for i in range(400)]
            with pytest.raises(ClientError, match=r"UNAVAILABLE.*full") as caught:
                await asyncio.to_thread(client.record_events, events)
            retry = error_details_pb2.RetryInfo()
            assert rpc_status.from_call(caught.value.__cause__).details[0].Unpack(retry)
            connection.execute("PRAGMA max_page_count = 1000000")
            assert (await asyncio.to_thread(client.record_events, events)).recorded == len(events)

    asyncio.run(scenario())


@pytest.mark.parametrize("arguments", [("--port", "99999"), ("--admin-port", "-1"), ("--log-level", "loud")])
def test_settings_that_cannot_be_are_usage_errors(tmp_path, arguments):
    """`triptych serve` exits with 2, names what is wrong, and starts nothing."""
    told = CliRunner().invoke(serve.app, [*arguments, "--home", str(tmp_path / "home")])
    assert told.exit_code == 2
    assert arguments[1] in told.output
    assert not (tmp_path / "home").exists()


def test_no_vector_is_lost_by_a_kill(world, tmp_path):
    """A server that is killed in the middle of its work and started again leaves every vector, and ranks as before."""
    home, environment = annex(world, tmp_path / "home")
    before, moment = all_vectors(world), datetime.now(UTC)
    ranked = []
    for name in ("first_life", "second_life"):
        with running(home, name, **environment) as server, new_client(server) as client:
            ranking = until(
                lambda c=client: (r := c.rank("ann", ITEMS, at=moment)) and not reasons(r) & {"STORE_UNAVAILABLE"} and r
            )
            ranked.append((ranking.item_ids, ranking.scores.tolist()))
            assert server.end(signal.SIGKILL) == -signal.SIGKILL
    after = all_vectors(world)
    assert before.keys() == after.keys()
    for view, vectors in before.items():
        np.testing.assert_array_equal(vectors, after[view])
    assert ranked[0][0] == ranked[1][0]
    np.testing.assert_allclose(ranked[0][1], ranked[1][1], atol=1e-5)


def all_vectors(world) -> dict[str, np.ndarray]:
    """Vectors of all items, by view; rows of those that a view lacks are 0."""
    views = [f"item_{space.space_id}" for space in world.spaces.values()] + ["item_fused_first"]
    with contextlib.closing(connect(world.home)) as core:
        return {view: core.read_vectors(view, ITEMS, strong=True)[0] for view in views}


def test_a_full_queue_refuses_at_once():
    """A worker with room for one job refuses the second with a hint, and takes it once the first is done."""

    async def scenario() -> None:
        worker, gate = Worker("test", capacity=1), threading.Event()
        first = asyncio.create_task(worker.run(gate.wait, 10))
        await asyncio.sleep(0.05)
        with pytest.raises(Overloaded) as caught:
            await worker.run(int)
        assert caught.value.retry_seconds > 0
        gate.set()
        assert await first
        await asyncio.sleep(0.05)
        assert await worker.run(int, "7") == 7
        worker.close()

    asyncio.run(scenario())


def test_an_abandoned_job_keeps_its_place_until_its_thread_is_free():
    """A caller that gives up does not make room while the thread still works; a job past its deadline is not started."""

    async def scenario() -> None:
        worker, gate, ran = Worker("test", capacity=2), threading.Event(), []
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await worker.run(gate.wait, 10)
        late = asyncio.create_task(in_time(worker.run(ran.append, 1), 0.05))
        await asyncio.sleep(0.1)
        with pytest.raises(Overloaded):
            await worker.run(int)
        gate.set()
        with pytest.raises(DeadlineExceeded):
            await late
        assert ran == []
        worker.close()

    async def in_time(job, seconds):
        set_deadline(seconds)
        return await job

    asyncio.run(scenario())
