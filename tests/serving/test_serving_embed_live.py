import time
import urllib.error
import urllib.request

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from typer.testing import CliRunner

from encoders.profiles import Encoders
from encoders.text import TextEncoder
from protos.triptych.v1 import embedding_pb2
from serving.server import EMBEDDING
from tests.serving.doubles import DIM, SPACE, DoubleEncoder, vector_of
from tests.serving.live import WORDS, Live, tiny_bert
from tests.serving.world import until
from triptych import calls
from triptych.client import Client, ClientError
from triptych.verbs import client as client_verb

BULK = embedding_pb2.EMBED_PRIORITY_BULK


@pytest.fixture
def live(tmp_path, monkeypatch):
    """A server around a double."""
    with Live(tmp_path, Encoders(text=DoubleEncoder()), monkeypatch) as one:
        yield one


@pytest.fixture
def narrow(tmp_path, monkeypatch):
    """A server that takes two calls and 1,000 bytes at once."""
    limits = {"permits": 2, "max_bytes_in_flight": 1000}
    with Live(tmp_path, Encoders(text=DoubleEncoder()), monkeypatch, **limits) as one:
        yield one


def vectors(reply):
    """Vectors [n, dim] of a reply."""
    return np.stack([np.frombuffer(one.vector.data, "<f4") for one in reply.results])


def hold(live):
    """A call that the encoder has in hand until the gate opens."""
    live.encoders.text.gate.clear()
    held = live.later("held")
    until(lambda: live.server.embedder.pipeline.forwarders.members[0]._in_hand, every=0.005)
    return held


def refused(job):
    """The error of a call, with its RetryInfo in milliseconds and its pushback trailer."""
    with pytest.raises(grpc.RpcError) as caught:
        job()
    retry = error_details_pb2.RetryInfo()
    for detail in rpc_status.from_call(caught.value).details:
        detail.Unpack(retry)
    trailers = dict(caught.value.trailing_metadata())
    return caught.value, retry.retry_delay.ToMilliseconds(), int(trailers["grpc-retry-pushback-ms"])


# ---- one answer per content ------------------------------------------------------------------------------------------


def test_the_same_text_at_once_is_encoded_once(live):
    """Calls that bring the same text while it is under way get the same vector from one forward pass, and are told so."""
    held = hold(live)
    same = [live.later("the same", "the same") for _ in range(5)]
    until(lambda: live.value("triptych_embed_cache_total", result="coalesced") == 9, every=0.01)
    live.encoders.text.gate.set()
    replies = [one.result(20) for one in same]
    assert live.encoders.text.forwarded.count("the same") == 1
    assert sorted(reply.cached for reply in replies) == [1, 2, 2, 2, 2]
    for reply in replies:
        np.testing.assert_allclose(vectors(reply), [vector_of("the same")] * 2, atol=1e-6)
    assert held.result(20)


def test_a_text_asked_again_comes_from_the_cache(live):
    """The second reply has the same bytes, no forward pass and no batch."""
    first, second = live.embed("once"), live.embed("once")
    assert first.results[0].vector.data == second.results[0].vector.data
    assert (first.cached, first.batch_rows, first.batch_length) == (0, 1, 4)
    assert (second.cached, second.batch_rows, second.batch_length) == (1, 0, 0)
    assert live.encoders.text.forwarded == ["once"]


def test_replies_say_where_the_time_went(live):
    """Timings have the stages of the batching pipeline, and none is longer than the total."""
    stages = {one.stage: one.milliseconds for one in live.embed("a text").timings}
    assert set(stages) == {"decode", "prepare", "queue", "forward", "total"}
    assert all(0 <= stages[name] <= stages["total"] for name in stages)


# ---- limits ----------------------------------------------------------------------------------------------------------


def test_calls_past_the_permits_are_pushed_back(narrow):
    """The third call at once is RESOURCE_EXHAUSTED, with RetryInfo and gRPC's own pushback, which agree."""
    held = [hold(narrow), narrow.later("second")]
    until(lambda: narrow.waiting == 1, every=0.005)
    error, retry, pushback = refused(lambda: narrow.embed("third"))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert retry == pushback > 0
    assert narrow.client.healthy()
    assert narrow.value("triptych_rejections_total", reason="permits") == 1
    narrow.encoders.text.gate.set()
    assert all(one.result(20) for one in held)


def test_bytes_past_the_limit_are_pushed_back(narrow):
    """A call that would bring the bytes under way past the limit waits outside; alone it comes in, however large."""
    assert narrow.embed("e" * 2000).results[0].status.code == 0
    held = hold(narrow)
    error, retry, pushback = refused(lambda: narrow.embed("e" * 2001))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "bytes" in error.details()
    assert retry == pushback > 0
    narrow.encoders.text.gate.set()
    assert held.result(20)
    until(lambda: narrow.value("triptych_embed_bytes_in_flight") == 0, every=0.01)


def test_rows_past_the_limit_are_pushed_back(tmp_path, monkeypatch):
    """While too many rows wait for the encoder, a call is refused; they are answered."""
    with Live(tmp_path, Encoders(text=DoubleEncoder()), monkeypatch, queue_rows=2) as live:
        held = hold(live)
        waiting = live.later("one", "two")
        until(lambda: live.waiting == 2, every=0.005)
        error, _, _ = refused(lambda: live.embed("three"))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "rows" in error.details()
        live.encoders.text.gate.set()
        assert len(waiting.result(20).results) == 2
        assert held.result(20)


def test_bulk_calls_leave_room_for_others(narrow):
    """Bulk calls hold at most half of the permits: the second is refused, an interactive one comes in."""
    narrow.encoders.text.gate.clear()
    bulk = narrow.later("bulk", priority=BULK)
    until(lambda: narrow.server.embedder.pipeline.forwarders.members[0]._in_hand, every=0.005)
    error, _, _ = refused(lambda: narrow.embed("more bulk", priority=BULK))
    assert "bulk" in error.details()
    other = narrow.later("a person")
    until(lambda: narrow.waiting == 1, every=0.005)
    narrow.encoders.text.gate.set()
    assert other.result(20).results[0].status.code == bulk.result(20).results[0].status.code == 0


@pytest.mark.parametrize(
    ("fields", "field"),
    [({"inputs": [{"text": "a"}] * 65}, "inputs"), ({"inputs": [{"text": "a"}], "priority": 7}, "priority")],
)
def test_too_many_inputs_and_unknown_lanes_are_invalid(live, fields, field):
    """A call of more than 64 inputs, or of a lane that does not exist, is INVALID_ARGUMENT and names the field."""
    with pytest.raises(grpc.RpcError) as caught:
        live.stub.Embed(embedding_pb2.EmbedRequest(**fields), timeout=20)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert field in caught.value.details()


# ---- time ------------------------------------------------------------------------------------------------------------


def gone(live):
    """Calls that ended before they were answered; whether a deadline or its caller ended one is a race."""
    codes = ("CANCELLED", "DEADLINE_EXCEEDED")
    return sum(live.value("triptych_calls_total", method="EmbeddingService/Embed", code=code) for code in codes)


def test_who_is_late_is_not_encoded(live):
    """A call whose deadline passes while it waits is DEADLINE_EXCEEDED and costs no forward pass, nor does one that was cancelled."""
    held = hold(live)
    with pytest.raises(grpc.RpcError) as caught:
        live.embed("late", timeout=0.2)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    until(lambda: gone(live) == 1, every=0.01)
    cancelled = live.stub.Embed.future(embedding_pb2.EmbedRequest(inputs=[{"text": "cancelled"}]), timeout=20)
    until(lambda: live.waiting == 2, every=0.005)
    cancelled.cancel()
    until(lambda: gone(live) == 2, every=0.01)
    live.encoders.text.gate.set()
    assert live.embed("good").results[0].status.code == 0
    assert held.result(20)
    assert sorted(live.encoders.text.forwarded) == ["good", "held"]


def test_bulk_does_not_keep_a_person_waiting(live):
    """Beside a bulk backlog an interactive text goes in the very next batch, and bulk batches are an eighth of the budget."""
    live.embed("somebody is about")
    held = hold(live)
    bulk = live.later(*(f"bulk {i:02}" for i in range(60)), priority=BULK)
    until(lambda: live.waiting == 60, every=0.005)
    person = live.later("a person")
    until(lambda: live.waiting == 61, every=0.005)
    live.encoders.text.gate.set()
    assert len(bulk.result(20).results) == 60
    assert person.result(20)
    batches = live.encoders.text.batches
    assert batches[2] == ["a person"]
    assert all(len(batch) == 1 for batch in batches[3:])  # of 7 characters: 8 is an eighth of the budget
    assert held.result(20)


# ---- faults ----------------------------------------------------------------------------------------------------------


def test_a_bad_item_has_its_own_status(live):
    """An input that breaks the encoder is INTERNAL without the exception's words, an empty one INVALID_ARGUMENT; the rest are well."""
    reply = live.embed("fine", "poison", "  ", "unfit", "also fine")
    assert [one.status.code for one in reply.results] == [0, 13, 3, 3, 0]
    assert reply.results[1].status.reason == "encoder_failed"
    assert "poisoned" not in reply.results[1].status.message
    assert reply.results[2].status.reason == "empty"
    assert [one.HasField("vector") for one in reply.results] == [True, False, False, False, True]
    counted = [live.value("triptych_embed_items_total", code=code) for code in ("OK", "INTERNAL", "INVALID_ARGUMENT")]
    assert counted == [2, 1, 2]


def test_a_dead_worker_is_seen_and_replaced(live):
    """A dying encoding thread answers UNAVAILABLE with a time to come back; health goes NOT_SERVING and SERVING again; calls work."""
    seen = []
    watch = health_pb2_grpc.HealthStub(live.channel).Watch(health_pb2.HealthCheckRequest(service=EMBEDDING))
    seen.append(next(watch).status)
    error, retry, pushback = refused(lambda: live.embed("deadly"))
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert retry == pushback > 0
    seen += [next(watch).status, next(watch).status]
    assert seen == [health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING, 1]
    watch.cancel()
    assert live.client.embed(texts=["alive"])[0].vector is not None
    assert live.value("triptych_embed_worker_restarts_total") == 1


def test_shutdown_answers_everybody(tmp_path, monkeypatch):
    """Calls under way when the server stops are answered, or told that it is stopping; none hangs and none is lost."""
    with Live(tmp_path, Encoders(text=DoubleEncoder(seconds=0.05)), monkeypatch) as live:
        calls_made = [live.later(f"text number {i} " + "e" * 40, timeout=15.0) for i in range(30)]
        until(lambda: len(live.encoders.text.batches) >= 3, every=0.005)
        live.run(live.server.stop())
        outcomes = [one.exception(20) for one in calls_made]
    assert sum(error is None for error in outcomes) >= 3
    codes = {error.code() for error in outcomes if error is not None}
    assert codes <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}


# ---- metrics ---------------------------------------------------------------------------------------------------------


def scrape(address: str) -> str:
    """What Prometheus would read."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as reply:
        return reply.read().decode()


def test_metrics_are_told_over_http(live):
    """The port in `serve.json` tells queue, batches, padding, seconds, cache, items and rejections, with few label values."""
    import json

    live.embed("a text", "poison")
    live.embed("a text")
    about = json.loads((live.server.home.root / "serve.json").read_text())
    text = scrape(about["metrics_address"])
    for line in (
        'triptych_embed_queue_rows{lane="bulk"} 0.0',
        'triptych_embed_batch_rows_count{modality="text"}',
        'triptych_embed_padding_share_bucket{le="0.0",modality="text"}',
        'triptych_embed_length_total{kind="real",modality="text"} 6.0',
        'triptych_embed_forward_seconds_sum{modality="text"}',
        'triptych_embed_prepare_seconds_count{modality="text"}',
        'triptych_embed_cache_total{result="hit"} 1.0',
        'triptych_embed_items_total{code="OK"} 2.0',
        'triptych_embed_items_total{code="INTERNAL"} 1.0',
        'triptych_calls_total{code="OK",method="EmbeddingService/Embed"} 2.0',
        "triptych_embed_workers_up 1.0",
        "process_resident_memory_bytes",
    ):
        assert line in text, line
    assert "a text" not in text


def test_metrics_can_be_off(tmp_path, monkeypatch):
    """With metrics off no port is opened and none is written down; a port that is taken is an error in words."""
    with Live(tmp_path, Encoders(text=DoubleEncoder()), monkeypatch, metrics=False) as live:
        assert live.server.metrics_address == ""
        assert "metrics_address" not in (live.server.home.root / "serve.json").read_text()
        taken = int(live.server.address.rsplit(":", 1)[1])
        from serving.errors import ServingError
        from serving.metrics import Metrics, MetricsPort

        with pytest.raises(ServingError, match=str(taken)):
            MetricsPort(Metrics(), "127.0.0.1", taken)


# ---- spaces ----------------------------------------------------------------------------------------------------------


def test_an_unserved_space_is_named_in_the_details(live):
    """FAILED_PRECONDITION for a space without an encoder carries ErrorInfo with what was asked and what there is."""
    with pytest.raises(grpc.RpcError) as caught:
        live.embed("a", space_id="image_other_00000000")
    info = error_details_pb2.ErrorInfo()
    assert rpc_status.from_call(caught.value).details[0].Unpack(info)
    assert info.reason == "SPACE_NOT_SERVED"
    assert dict(info.metadata) == {
        "space_id": "image_other_00000000", "modality": "text", "served": SPACE.space_id,
    }  # fmt: skip


def test_the_expected_space_passes_and_another_fails(live):
    """Who expects the space that there is gets vectors of it; who expects another gets both names and no work is done."""
    reply = live.embed("a", expected_space_id=SPACE.space_id)
    assert reply.results[0].vector.space_id == SPACE.space_id
    with pytest.raises(ClientError, match=r"FAILED_PRECONDITION: .*text_old_00000000.*" + SPACE.space_id):
        live.client.embed(texts=["b"], expected_space="text_old_00000000")
    assert live.encoders.text.forwarded == ["a"]
    [space] = [space for space in live.client.list_spaces() if space.embeddable]
    assert (space.space_id, space.embeddable, space.dim) == (SPACE.space_id, True, DIM)


# ---- the client library ----------------------------------------------------------------------------------------------


def test_the_client_splits_what_is_too_much_for_one_call(live, tmp_path):
    """200 texts and a file come back in their order, from calls of at most 64, two of them at once, in the bulk lane."""
    texts = [f"text {i} {'e' * (1 + i % 9)}" for i in range(200)]
    results = live.client.embed(texts=texts, priority="bulk")
    for text, result in zip(texts, results, strict=True):
        np.testing.assert_allclose(result.vector, vector_of(text), atol=1e-6)
    assert live.value("triptych_calls_total", method="EmbeddingService/Embed", code="OK") == 4
    assert live.value("triptych_embed_queue_seconds_count", lane="bulk") == 200
    missing = tmp_path / "missing.png"
    with pytest.raises(FileNotFoundError):
        live.client.embed(images=[missing])
    with pytest.raises(ValueError, match="'URGENT' must be one of UNSPECIFIED, INTERACTIVE, BULK"):
        live.client.embed(texts=["a"], priority="URGENT")
    with pytest.raises(TypeError, match="texts must be a list"):
        live.client.embed(texts="a")


def test_the_client_comes_back_when_it_is_told(narrow):
    """A refused client waits as long as the server says and then gets its answer; it never asks sooner."""
    held = [hold(narrow), narrow.later("second")]
    until(lambda: narrow.waiting == 1, every=0.005)
    waiting = narrow._callers.submit(narrow.client.embed, texts=["patient"])
    until(lambda: narrow.value("triptych_rejections_total", reason="permits") >= 1, every=0.01)
    narrow.encoders.text.gate.set()
    assert waiting.result(20)[0].vector is not None
    assert all(one.result(20) for one in held)
    assert narrow.value("triptych_rejections_total", reason="permits") < calls.MAX_TRIES


def test_the_client_gives_up_in_time(narrow):
    """Where its own deadline would pass first, or after six tries, the client raises the server's last words."""
    held = [hold(narrow), narrow.later("second")]
    until(lambda: narrow.waiting == 1, every=0.005)
    narrow.server.guard._mean_seconds["EmbeddingService/Embed"] = 60.0
    start = time.monotonic()
    with Client(narrow.server.address, timeout=5.0) as hasty, pytest.raises(ClientError, match="RESOURCE_EXHAUSTED"):
        hasty.embed(texts=["no time"])
    assert time.monotonic() - start < 4.0
    narrow.server.guard._mean_seconds["EmbeddingService/Embed"] = 0.0
    with pytest.raises(ClientError, match="RESOURCE_EXHAUSTED"):
        narrow.client.embed(texts=["no luck"])
    assert narrow.value("triptych_rejections_total", reason="permits") == 1 + calls.MAX_TRIES
    narrow.encoders.text.gate.set()
    assert all(one.result(20) for one in held)


def test_the_command_embeds_in_the_bulk_lane(live, monkeypatch):
    """`triptych client embed --priority bulk` goes into that lane; an unknown one is a usage error."""
    arguments = ["embed", "--text", "from a shell", "--target", live.server.address, "--priority"]
    told = CliRunner().invoke(client_verb.app, [*arguments, "bulk", "--expected-space", SPACE.space_id, "--json"])
    assert told.exit_code == 0, told.output
    assert live.value("triptych_embed_queue_seconds_count", lane="bulk") == 1
    assert CliRunner().invoke(client_verb.app, [*arguments, "soon"]).exit_code == 2


# ---- a real encoder --------------------------------------------------------------------------------------------------


def test_batched_vectors_equal_those_of_the_encoder_alone(tmp_path, monkeypatch, rng):
    """Texts of all lengths from 32 callers at once have the vectors that the encoder gives them one by one (cosine >= .99999)."""
    encoder = TextEncoder(tiny_bert(tmp_path / "bert"), device="cpu", dtype="float32")
    texts = [" ".join(rng.choice(WORDS[5:], size=rng.integers(1, 50))) + f" {i}" for i in range(96)]
    with Live(tmp_path / "home", Encoders(text=encoder), monkeypatch) as live:
        replies = [live.later(*texts[i : i + 3], role=embedding_pb2.EMBED_ROLE_QUERY) for i in range(0, 96, 3)]
        got = np.concatenate([vectors(one.result(30)) for one in replies])
        rows = live.value("triptych_embed_batch_rows_count", modality="text")
    alone = np.concatenate([encoder.encode_query([text]) for text in texts])
    assert (got * alone).sum(1).min() >= 0.99999
    assert rows < 96
