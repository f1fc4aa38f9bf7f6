import asyncio
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encoders.errors import MediaError
from serving.batching import forwarders
from serving.batching.jobs import Call, Item, Outcome, rows_of
from serving.batching.queue import Lane, Taken
from serving.errors import DeadlineExceeded, ItemFailedError, Unavailable
from tests.serving.doubles import Asked, Bench, DoubleEncoder, DoubleSounds, PowerCut, vector_of
from tests.serving.world import until, wav


@pytest.fixture
def bench():
    """A running pipeline around a double."""
    with Bench() as one:
        yield one


def hold(bench):
    """Keep the encoder busy with one text until the gate opens."""
    bench.encoder.gate.clear()
    first = bench.ask("first in hand")
    until(lambda: bench.pipeline.forwarders.members[0]._in_hand, every=0.005)
    return first


def kind(outcome):
    """What an outcome is, in a word."""
    return "vector" if outcome.vector is not None else type(outcome.error).__name__


def test_outcomes_are_in_the_order_of_their_inputs(bench):
    """A call's vectors are those of its texts, in their order, whatever the batches."""
    texts = [f"text {'e' * (1 + i * 7 % 31)} {i}" for i in range(64)]
    for text, outcome in zip(texts, bench.ask(*texts).result(), strict=True):
        np.testing.assert_allclose(outcome.vector, vector_of(text), atol=1e-6)


words = st.sampled_from(["good", "poison", "nan", "unfit", " ", "long", "good e", "a much longer good text"])


@given(st.lists(st.lists(st.tuples(words, st.integers(0, 9)), min_size=1, max_size=9), min_size=1, max_size=12))
@settings(max_examples=40, deadline=None)
def test_every_call_is_answered_once_and_poison_harms_only_itself(calls):
    """Good texts have their vectors beside any mixture of bad ones, in every call; each call is answered exactly once."""
    with Bench(DoubleEncoder(budget=48)) as bench:
        asked = [[f"{word}{number or ''}" for word, number in call] for call in calls]
        answers = [bench.ask(*texts, lane=Lane(i % 2)) for i, texts in enumerate(asked)]
        expected = {"poison": "ItemFailedError", "nan": "ItemFailedError", "unfit": "MediaError"}
        for texts, answer in zip(asked, answers, strict=True):
            for text, outcome in zip(texts, answer.result(), strict=True):
                default = "vector" if text.strip() else "MediaError"
                wanted = next((what for bad, what in expected.items() if bad in text), default)
                assert kind(outcome) == wanted, text
        assert [len(answer.answers) for answer in answers] == [1] * len(answers)
        assert bench.pipeline.jobs.under_way == 0
    assert all(len(batch) * max(map(len, batch)) <= 48 or len(batch) == 1 for batch in bench.encoder.batches)


def test_a_bad_batch_is_halved_until_the_poison_is_alone(bench):
    """One poison among sixteen costs a logarithm of forwards, and its own status alone."""
    held = hold(bench)
    asked = bench.ask(*(f"fine{i:02}" for i in range(5)), "poison", *(f"fine{i:02}" for i in range(5, 9)))
    until(lambda: bench.pipeline.waiting == 10, every=0.005)
    bench.encoder.gate.set()
    assert [kind(one) for one in asked.result()] == ["vector"] * 5 + ["ItemFailedError"] + ["vector"] * 4
    assert held.result()[0].vector is not None
    assert len(bench.encoder.batches) <= 10
    assert bench.value("triptych_embed_bisections_total") >= 1
    assert bench.states == [True]


def test_the_same_asked_twice_at_once_is_encoded_once(bench):
    """Texts that differ in nothing that matters share one forward pass; later ones come from the cache."""
    held = hold(bench)
    asked = [bench.ask("the same", "other"), bench.ask("the   same\n"), bench.ask("the same", "the same")]
    until(lambda: bench.value("triptych_embed_cache_total", result="coalesced") == 3, every=0.005)
    bench.encoder.gate.set()
    vectors = [outcome.vector for one in asked for outcome in one.result()]
    assert sorted(bench.encoder.forwarded) == ["first in hand", "other", "the same"]
    for vector in (vectors[0], *vectors[2:]):
        np.testing.assert_array_equal(vector, vectors[0])
    [again] = bench.ask("the same").result()
    assert again.trace.shared
    assert bench.value("triptych_embed_cache_total", result="hit") == 1
    assert held.result()


def test_a_failure_is_shared_but_not_kept(bench):
    """Everybody who waits for a text that fails is told; who asks later makes it be tried again."""
    held = hold(bench)
    asked = [bench.ask("poison"), bench.ask("poison")]
    until(lambda: bench.value("triptych_embed_cache_total", result="coalesced") == 1, every=0.005)
    bench.encoder.gate.set()
    assert [kind(one.result()[0]) for one in asked] == ["ItemFailedError"] * 2
    before = bench.encoder.forwarded.count("poison")
    assert kind(bench.ask("poison").result()[0]) == "ItemFailedError"
    assert bench.encoder.forwarded.count("poison") == before + 1
    assert held.result()


def test_the_cache_is_bounded_in_bytes():
    """However many texts come, cached vectors take no more than the bound; none are kept where it is 0."""
    with Bench(cache_bytes=8192) as bench:
        for start in range(0, 300, 50):
            bench.ask(*(f"text {i}" for i in range(start, start + 50))).result()
        assert 0 < bench.value("triptych_embed_cache_bytes") <= 8192
        [newest] = bench.ask("text 299").result()
        [oldest] = bench.ask("text 0").result()
        assert (newest.trace.shared, oldest.trace.shared) == (True, False)
    with Bench(cache_bytes=0) as bench:
        assert not any(bench.ask("again").result()[0].trace.shared for _ in range(2))


def test_cancelled_and_expired_work_is_never_forwarded(bench):
    """What nobody waits for any more is dropped before the forward pass, and answered where somebody could still read it."""
    held = hold(bench)
    gone, late, good = bench.ask("gone"), bench.ask("late", seconds=0.05), bench.ask("good")
    until(lambda: bench.pipeline.waiting == 3, every=0.005)
    gone.call.abandon()
    time.sleep(0.1)
    bench.encoder.gate.set()
    assert kind(good.result()[0]) == "vector"
    assert [kind(one.result()[0]) for one in (gone, late)] == ["DeadlineExceeded"] * 2
    assert sorted(bench.encoder.forwarded) == ["first in hand", "good"]
    assert held.result()


def test_work_that_somebody_else_wants_outlives_who_asked_first(bench):
    """If the first of two callers goes away, the second still gets its vector."""
    held = hold(bench)
    first, second = bench.ask("shared", seconds=0.05), bench.ask("shared")
    until(lambda: bench.value("triptych_embed_cache_total", result="coalesced") == 1, every=0.005)
    first.call.abandon()
    time.sleep(0.1)
    bench.encoder.gate.set()
    assert kind(second.result()[0]) == "vector"
    assert held.result()


def test_an_interactive_caller_makes_bulk_work_urgent(bench):
    """A text that waits in the bulk lane goes ahead of the others when an interactive call asks for it too."""
    held = hold(bench)
    bulk = [bench.ask(f"bulk text number {i} " + "e" * 40, lane=Lane.BULK) for i in range(3)]
    until(lambda: bench.pipeline.waiting == 3, every=0.005)
    urgent = bench.ask("bulk text number 2 " + "e" * 40)
    until(lambda: bench.value("triptych_embed_cache_total", result="coalesced") == 1, every=0.005)
    bench.encoder.gate.set()
    assert urgent.result()
    assert "number 2" in bench.encoder.forwarded[1]
    assert [kind(one.result()[0]) for one in (*bulk, held)] == ["vector"] * 4


def test_a_dead_thread_fails_what_it_had_and_is_replaced(bench):
    """What the dying thread had, or had before it, is UNAVAILABLE; a new one is warmed up and serves; both states are told."""
    held = hold(bench)
    asked = [bench.ask("deadly"), bench.ask("its neighbour")]
    until(lambda: bench.pipeline.waiting == 2, every=0.005)
    bench.encoder.gate.set()
    assert held.result()[0].vector is not None
    assert [kind(one.result()[0]) for one in asked] == ["Unavailable"] * 2
    until(lambda: bench.states == [True, False, True], every=0.01)
    assert kind(bench.ask("afterwards").result()[0]) == "vector"
    assert bench.encoder.warm_ups == 2
    assert bench.value("triptych_embed_worker_restarts_total") == 1


def test_one_of_two_threads_may_die():
    """Two threads forward at once; when one dies, the other takes what waits, and health says that one is missing until it is back."""
    with Bench(DoubleEncoder(lanes=2)) as bench:
        bench.encoder.gate.clear()
        first, second = bench.ask("deadly in the first"), bench.ask("good in the second thread, of another length")
        until(lambda: all(member._in_hand for member in bench.pipeline.forwarders.members), every=0.005)
        waiting = bench.ask("waits meanwhile")
        until(lambda: bench.pipeline.waiting == 1, every=0.005)
        bench.encoder.gate.set()
        assert [kind(one.result()[0]) for one in (first, second, waiting)] == ["Unavailable", "vector", "vector"]
        until(lambda: bench.states == [True, False, True], every=0.01)
        assert bench.value("triptych_embed_workers_up") == 2


def test_a_broken_device_is_not_taken_for_poison(bench):
    """When nothing comes through any more, the thread checks its encoders, dies with them, and serves again once they work."""
    bench.encoder.broken = True
    for i in range(3):
        assert kind(bench.ask(f"victim {i}").result()[0]) == "ItemFailedError"
    until(lambda: bench.states == [True, False], every=0.01)
    bench.encoder.broken = False
    until(lambda: bench.states == [True, False, True], every=0.01)
    assert kind(bench.ask("victim 0").result()[0]) == "vector"


def test_a_server_that_cannot_load_says_why():
    """If the first warm-up fails, so does the start, and nothing is tried again."""
    encoder = DoubleEncoder()
    encoder.broken = True
    bench = Bench(encoder)
    with pytest.raises(RuntimeError, match="device is gone"):
        bench.pipeline.start().result(10)
    bench.pipeline.close()
    assert encoder.warm_ups == 1
    assert bench.states == []


def test_closing_loses_no_call():
    """On close the batch under way is finished, what waits is UNAVAILABLE, and so is what comes later."""
    bench = Bench()
    with bench:
        held = hold(bench)
        waiting = [bench.ask(f"waits {i}") for i in range(5)]
        until(lambda: bench.pipeline.waiting == 5, every=0.005)
        closer = threading.Thread(target=bench.pipeline.close)
        closer.start()
        until(bench.pipeline.forwarders.members[0]._closing.is_set, every=0.005)
        bench.encoder.gate.set()
        closer.join(10)
    late = bench.ask("too late")
    assert kind(held.result()[0]) == "vector"
    assert [kind(one.result()[0]) for one in (*waiting, late)] == ["Unavailable"] * 6
    assert isinstance(late.result()[0].error, Unavailable)


def test_an_item_is_settled_once():
    """Settling an item again is a bug and is said so."""
    told = []
    call = Call(Lane.BULK, time.monotonic() + 1, 1, told.append)
    call.settle(0, Outcome(error=ItemFailedError("x")))
    with pytest.raises(RuntimeError, match="twice"):
        call.settle(0, Outcome(error=DeadlineExceeded("x")))
    assert len(told) == 1


def test_long_items_are_whole_again_after_many_batches(bench):
    """An item of several units is answered once all of them were forwarded, wherever their batches began and ended."""
    texts = [f"long {'e' * 20} {i}" for i in range(12)]
    for text, outcome in zip(texts, bench.ask(*texts).result(), strict=True):
        np.testing.assert_allclose(outcome.vector, vector_of(text), atol=1e-6)
    assert len(bench.encoder.forwarded) == 36


def test_a_text_that_is_nothing_is_refused_by_name(bench):
    """White space alone is a `MediaError` with its code."""
    [outcome] = bench.ask(" \n ").result()
    assert isinstance(outcome.error, MediaError)
    assert outcome.error.code == "empty"


# ---- threads ---------------------------------------------------------------------------------------------------------


def test_decoded_sounds_wait_within_a_bound():
    """While the encoder is busy, decoded clips stay below the bound and one more for each thread; then all are answered."""
    clip_bytes, bound = 4 * 16_000, 3 * 4 * 16_000
    with Bench(DoubleSounds(budget=1), prepared_bytes=bound) as bench:
        bench.encoder.gate.clear()
        calls = [bench.ask(wav(200.0 + i, seconds=1.0)) for i in range(12)]
        until(lambda: bench.pipeline.waiting >= 3, every=0.005)
        time.sleep(0.3)  # for whoever would not stop
        assert bound <= bench.pipeline._inbox.bytes <= bound + 2 * clip_bytes
        bench.encoder.gate.set()
        assert [kind(one.result()[0]) for one in calls] == ["vector"] * 12
        assert bench.pipeline._inbox.bytes == 0


def test_closing_waits_for_nobody_who_waits_for_room():
    """A pipeline whose decoders wait for room can be closed; every clip is answered."""
    with Bench(DoubleSounds(budget=1), prepared_bytes=1) as bench:
        bench.encoder.gate.clear()
        calls = [bench.ask(wav(200.0 + i, seconds=0.5)) for i in range(6)]
        until(lambda: bench.pipeline.waiting >= 1, every=0.005)
        closer = threading.Thread(target=bench.pipeline.close, daemon=True)
        closer.start()
        until(bench.pipeline.forwarders.members[0]._closing.is_set, seconds=5.0, every=0.005)
        bench.encoder.gate.set()
        closer.join(10)
        assert not closer.is_alive()
        assert {kind(one.result()[0]) for one in calls} <= {"vector", "Unavailable"}


def test_abandoned_work_is_let_go_before_its_turn(bench):
    """What waits to be prepared holds nothing any more once its call was abandoned, and others keep their place."""
    slow = bench.ask("slow")
    until(lambda: bench.pipeline._texts.waiting == 0, every=0.005)
    gone, good = [bench.ask(f"gone {i}") for i in range(5)], bench.ask("good")
    for one in gone:
        one.call.abandon()
    bench.pipeline.prune()
    assert bench.pipeline._texts.waiting == 1
    assert [kind(one.result()[0]) for one in gone] == ["DeadlineExceeded"] * 5
    bench.encoder.slow.set()
    assert [kind(one.result()[0]) for one in (slow, good)] == ["vector"] * 2


def test_one_call_keeps_all_threads_busy():
    """The rows of one call, which come all at once, are taken by both encoding threads."""
    with Bench(DoubleEncoder(budget=16, lanes=2)) as bench:
        time.sleep(0.1)  # both are asleep
        bench.encoder.gate.clear()
        asked = bench.ask(*(f"sixteen letters{i}" for i in range(8)))
        until(lambda: all(member._in_hand for member in bench.pipeline.forwarders.members), seconds=2.0, every=0.005)
        bench.encoder.gate.set()
        assert [kind(one) for one in asked.result()] == ["vector"] * 8


def test_an_encoder_that_miscounts_harms_only_the_call(bench):
    """Where `prepare` returns too few, that call's items fail, no job stays open, and the next call is served."""
    asked = bench.ask("one", "lost", "three")
    assert [kind(one) for one in asked.result()] == ["ItemFailedError"] * 3
    assert bench.pipeline.jobs.under_way == 0
    assert kind(bench.ask("one").result()[0]) == "vector"


def test_what_cannot_be_looked_up_harms_only_the_call(bench):
    """An item that breaks the preparer before it has a job fails with those behind it; the ones before, and later calls, too have an end."""
    asked = bench.ask("one", None, "three")
    assert [kind(one) for one in asked.result()] == ["ItemFailedError"] * 3
    assert bench.pipeline.jobs.under_way == 0
    assert kind(bench.ask("three").result()[0]) == "vector"


def test_a_thread_that_dies_before_its_batch_loses_nothing(bench):
    """A thread that dies while it drops what is late tells the batch that it took beside it to come back, and bulk goes on."""
    held = hold(bench)

    def die(_):
        raise PowerCut

    bench.pipeline.submit(call := Call(Lane.INTERACTIVE, time.monotonic() + 20, 1, die), [item_of(bench, "gone")])
    bulk = bench.ask("bulk", lane=Lane.BULK)
    until(lambda: bench.pipeline.waiting == 2, every=0.005)
    call.abandon()
    bench.encoder.gate.set()
    assert held.result()
    assert kind(bulk.result()[0]) == "Unavailable"
    until(lambda: bench.states == [True, False, True], every=0.01)
    assert kind(bench.ask("bulk again", lane=Lane.BULK).result()[0]) == "vector"


def item_of(bench, text):
    """A call's only item."""
    return Item(0, "text", bench.encoder, False, text)


def test_who_joins_what_was_dropped_is_told_of_the_end(bench):
    """A row that is wanted again after it was found dead, when the inbox has closed meanwhile, is `Unavailable`."""
    forwarder, asked = bench.pipeline.forwarders.members[0], Asked(1, Lane.INTERACTIVE, 20.0)
    job = bench.pipeline.jobs.open("key", bench.encoder, asked.call, 0)
    rows = rows_of(job, bench.encoder.prepare(["text"])[0], time.monotonic())
    bench.pipeline.close()
    forwarder._serve(Taken([], rows))
    assert kind(asked.result()[0]) == "Unavailable"


def test_who_stops_waiting_for_the_start_does_not_spoil_it():
    """If whoever waits for the encoders is cancelled while they load, loading ends as if nobody had."""

    async def give_up(start):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.wrap_future(start), 0.01)

    encoder, loading = DoubleEncoder(), threading.Event()
    encoder.warm_up = loading.wait
    bench = Bench(encoder)
    start = bench.pipeline.start()
    asyncio.run(give_up(start))
    loading.set()
    assert start.result(10) is None
    bench.pipeline.close()


def test_cores_are_counted_once(monkeypatch):
    """However many threads encode, the number of cores is read before the first of them changes it."""
    counted = []
    monkeypatch.setattr(forwarders, "computing_threads", lambda: counted.append(1) or 1)
    with Bench(DoubleEncoder(lanes=3)):
        assert len(counted) == 1
