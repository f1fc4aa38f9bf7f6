import asyncio
from dataclasses import replace

import pytest
import structlog

from encoders import TextEncoder
from encoders.profiles import Encoders
from feature_store.errors import SpaceRegistryError
from feature_store.spaces import ADDED, RETIRED, SpaceEntry
from protos.triptych.v1 import embedding_pb2
from serving import embedder
from serving.admission import Admission
from serving.batching.queue import Lane
from serving.embedder import Embedder, Target
from serving.errors import Overloaded
from serving.metrics import Metrics
from serving.settings import ServeSettings
from tests.serving.doubles import DoubleEncoder
from tests.serving.live import Live, tiny_bert
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


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """The entry of a text space whose encoder only the home's list knows."""
    options = {"source": str(tiny_bert(tmp_path_factory.mktemp("models") / "tiny-bert")), "device": "cpu"}
    return SpaceEntry(TextEncoder(**options).space, "item", ADDED, options)


@pytest.fixture
def embedding(monkeypatch):
    """Make an embedder around a double, and around what is recorded."""
    made = []

    def make(*records):
        monkeypatch.setattr(embedder, "load_profile", lambda _: Encoders(text=DoubleEncoder()))
        made.append(Embedder(ServeSettings(), Metrics(), records=lambda: records))
        made[0].pipeline.start().result(30)
        return made[0]

    yield make
    for one in made:
        one.close()


def test_an_encoder_that_a_model_needs_is_loaded_beside_the_profiles(embedding, recorded):
    """It is not at the start; once a model wants its space, queries reach it, and the profile's stays the modality's own."""
    one, space_id = embedding(recorded), recorded.space.space_id
    assert [space.space_id for space in one.spaces] != [space_id]
    own = one.spaces[0]

    async def embed():
        await one.serve_spaces({space_id, own.space_id, "text_unknown_00000000"})
        target = one.target("text", space_id, [0], query=True)
        [outcome] = await one.embed([(target, "a red bird")])
        return outcome.vector

    vector = asyncio.run(embed())
    assert vector.shape == (recorded.space.dim,)
    assert one.target("text", "", [0], query=True).space == own
    assert one.spaces == [own, recorded.space]


def test_an_encoder_that_cannot_be_loaded_is_left_out(embedding, recorded):
    """The server goes on without it and tries it once; a record that is mended is tried again."""
    broken = replace(recorded, encoder={**recorded.encoder, "source": "/nowhere"})
    records = [broken]
    one = embedding(*records)
    asyncio.run(one.serve_spaces({recorded.space.space_id}))
    assert len(one.spaces) == 1
    one._records = lambda: [recorded]
    asyncio.run(one.serve_spaces({recorded.space.space_id}))
    assert len(one.spaces) == 2


def test_an_encoder_that_could_not_be_loaded_is_tried_again_in_a_while(embedding, recorded, monkeypatch):
    """Its folder was away for a time: at once it is not tried again, later it is."""
    one, load, tries = embedding(recorded), embedder.load_recorded, []

    def flaky(space, options):
        tries.append(space.space_id)
        if len(tries) == 1:
            raise OSError("the folder is away")
        return load(space, options)

    monkeypatch.setattr(embedder, "load_recorded", flaky)
    wanted = {recorded.space.space_id}
    asyncio.run(one.serve_spaces(wanted))
    asyncio.run(one.serve_spaces(wanted))
    assert (len(tries), len(one.spaces)) == (1, 1)
    monkeypatch.setattr(embedder, "FAILED_RETRY_SECONDS", 0.0)
    asyncio.run(one.serve_spaces(wanted))
    assert (len(tries), len(one.spaces)) == (2, 2)


def test_a_space_without_a_recorded_encoder_is_said_once(embedding):
    """Models are looked after every few seconds; the log says it at the first time."""
    one = embedding()
    with structlog.testing.capture_logs() as logs:
        for _ in range(3):
            asyncio.run(one.serve_spaces({"text_unknown_00000000"}))
    assert [(line["event"], line["space_id"]) for line in logs] == [
        ("no queries for this space", "text_unknown_00000000")
    ]


def test_the_successor_of_a_retired_space_answers(embedding, recorded):
    """A modality whose own space was retired embeds into the one that was added."""
    retired = SpaceEntry(DoubleEncoder().space, "item", RETIRED)
    one = embedding(retired, recorded)
    assert one.target("text", "", [0], query=True).space == recorded.space


def test_a_damaged_list_of_spaces_keeps_no_server_from_starting(monkeypatch):
    """What cannot be read beside the profile is said in the log; the profile is served."""

    def damaged():
        raise SpaceRegistryError("spaces.yaml is not a list")

    monkeypatch.setattr(embedder, "load_profile", lambda _: Encoders(text=DoubleEncoder()))
    one = Embedder(ServeSettings(), Metrics(), records=damaged)
    one.pipeline.start().result(30)
    asyncio.run(one.serve_spaces({"text_unknown_00000000"}))
    assert len(one.spaces) == 1
    one.close()
