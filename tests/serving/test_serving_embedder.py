import asyncio

from encoders.profiles import Encoders
from protos.triptych.v1 import embedding_pb2
from serving import embedder
from serving.admission import Admission
from serving.batching.queue import Lane
from serving.embedder import Embedder, Target
from serving.errors import Overloaded
from serving.metrics import Metrics
from serving.settings import ServeSettings
from tests.serving.doubles import DoubleEncoder
from tests.serving.live import Live
from tests.serving.world import until


def test_both_lanes_together_keep_within_the_bytes():
    """Bulk calls get neither more than their half, nor what would bring both lanes past the whole; nor do interactive ones."""
    admission = Admission(ServeSettings(max_bytes_in_flight=1000), Metrics(), lambda: 0, lambda: 0.1)

    def refuses(lane: Lane, size: int) -> bool:
        try:
            with admission.admitted(lane, size):
                return False
        except Overloaded:
            return True

    with admission.admitted(Lane.INTERACTIVE, 400), admission.admitted(Lane.BULK, 300):
        assert not refuses(Lane.BULK, 200)
        assert refuses(Lane.BULK, 201)  # more than half
        assert not refuses(Lane.INTERACTIVE, 300)
        assert refuses(Lane.INTERACTIVE, 301)
        with admission.admitted(Lane.INTERACTIVE, 200):
            assert not refuses(Lane.BULK, 100)
            assert refuses(Lane.BULK, 101)  # of the whole, not of their half


def test_who_hangs_up_leaves_nothing_in_memory(tmp_path, monkeypatch):
    """A call that is cancelled while it waits to be prepared is forgotten before its turn comes."""
    with Live(tmp_path, Encoders(text=DoubleEncoder()), monkeypatch) as live:
        held = live.later("slow")
        pipeline = live.server.embedder.pipeline
        until(
            lambda: live.server.guard._under_way["EmbeddingService/Embed"] == 1 and not pipeline._texts.waiting,
            every=0.01,
        )
        cancelled = live.stub.Embed.future(embedding_pb2.EmbedRequest(inputs=[{"text": "cancelled"}]), timeout=20)
        until(lambda: pipeline._texts.waiting == 1, every=0.005)
        cancelled.cancel()
        until(lambda: pipeline._texts.waiting == 0, seconds=5.0, every=0.005)
        live.encoders.text.slow.set()
        assert held.result(20).results[0].status.code == 0
        assert live.encoders.text.forwarded == ["slow"]


def test_an_answer_to_nobody_harms_no_thread(monkeypatch):
    """A call whose event loop has closed, at the very moment when it is answered, ends no encoding thread."""
    encoder, loop = DoubleEncoder(), asyncio.new_event_loop()
    monkeypatch.setattr(embedder, "load_profile", lambda _: Encoders(text=encoder))
    metrics = Metrics()
    embedding = Embedder(ServeSettings(), metrics)
    embedding.pipeline.start().result(10)
    encoder.gate.clear()
    waiting = loop.create_task(embedding.embed([(Target("text", encoder, query=False, positions=[0]), "a text")]))
    loop.run_until_complete(asyncio.sleep(0.05))
    loop.close()
    monkeypatch.setattr(loop, "is_closed", lambda: False)  # as whoever asked just before would have heard
    encoder.gate.set()
    until(lambda: embedding.pipeline.jobs.under_way == 0, every=0.005)
    embedding.close()
    assert not waiting.done()
    waiting._log_destroy_pending = False  # left behind on purpose: asyncio need not say so
    assert metrics.registry.get_sample_value("triptych_embed_worker_restarts_total") == 0


def test_a_decode_has_little_time():
    """The server's decoders are given the seconds that the operator set, 10 where nothing was said."""
    for settings, seconds in ((ServeSettings(), 10.0), (ServeSettings(decode_seconds=2.5), 2.5)):
        embedding = Embedder(settings, Metrics())
        assert embedding.pipeline._decoding.limits.max_decode_seconds == seconds
        embedding.close()
