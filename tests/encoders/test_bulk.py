import itertools
import threading
import time
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from encoders import AudioEncoder, ImageEncoder, TextEncoder
from encoders.bulk import Repeats, compute_with, encode_stream
from encoders.errors import EncoderError, MediaError
from encoders.space import EmbeddingSpace
from encoders.staged import Stages, Unit
from tests.encoders.media_files import noise_picture, tone

TEXTS = ["a red bird", "stone", "a blue bird sings : a red stone", "bird " * 30, "a", "stone bird"]


class Echo(Stages):
    """An encoder of numbers: a number's vector depends on it alone. It notes what it was asked to do."""

    def __init__(self, lanes=2, budget=8, modality="text"):
        self.space = EmbeddingSpace.from_recipe(modality, "echo", 2, {})
        self.batches = []
        self._lanes, self._budget = lanes, budget

    @property
    def compute(self):
        """No device is needed."""
        raise AssertionError("not asked for")

    launched_ahead = 0

    def lanes(self, threads):  # noqa: ARG002
        """As many as the test wants."""
        return self._lanes, 1

    def prepare(self, items, *, query=False):  # noqa: ARG002
        """One or two units of a number, in one of three groups."""
        if any(item < 0 for item in items):
            raise MediaError("undecodable", "negative")
        return [tuple(Unit(item % 3, 1 + item % 4, item) for _ in range(1 + item % 2)) for item in items]

    def budget(self, group):  # noqa: ARG002
        """As the test wants."""
        return self._budget

    def collate(self, units):
        """The units."""
        return units

    def launch(self, batch):
        """Points on the circle."""
        self.batches.append(len(batch) * max(unit.length for unit in batch))
        assert len({unit.group for unit in batch}) == 1
        return torch.tensor([[np.cos(unit.data), np.sin(unit.data)] for unit in batch])

    def warm_up(self):
        """Nothing to load."""


def angle(vector):
    return np.arctan2(vector[1], vector[0])


def same(value):
    return value


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(-2, 30), max_size=80),
    st.integers(1, 3),
    st.integers(1, 9),
    st.integers(1, 20),
    st.booleans(),
    st.sampled_from(["text", "image"]),
)
def test_one_outcome_per_source_in_order(numbers, lanes, budget, window, keyed, modality):
    """Whatever the batches, windows, lanes and repeats: each source gets its own vector or its own error, in its place."""
    encoder = Echo(lanes, budget, modality)
    outcomes = list(encode_stream(encoder, numbers, same, key=same if keyed else None, window=window))
    assert len(outcomes) == len(numbers)
    for number, outcome in zip(numbers, outcomes, strict=True):
        if number < 0:
            assert isinstance(outcome, MediaError)
        else:
            np.testing.assert_allclose(outcome, [np.cos(number), np.sin(number)], atol=1e-6)
    assert all(size <= max(budget, 4) for size in encoder.batches)


def test_an_endless_source_is_read_only_as_far_as_is_taken():
    """What was not taken stays unread, but for a bounded part; closing the stream ends its threads."""
    read = itertools.count()
    before = threading.active_count()
    stream = encode_stream(Echo(), read, same, window=16)
    first = [next(stream) for _ in range(100)]
    time.sleep(0.2)
    stream.close()
    assert len(first) == 100
    assert next(read) < 100 + 2 * 16 + 32 * 32
    assert threading.active_count() == before


def test_an_endless_source_of_repeats_comes_through():
    """A repeated source waits for the first one; many of them never keep that one from being encoded."""
    decoded = Counter()

    def decode(number):
        decoded[number] += 1
        return number

    stream = encode_stream(Echo(), itertools.repeat(7), decode, key=same, window=16)
    for _ in range(2_000):
        assert angle(next(stream)) == pytest.approx(7 - 2 * np.pi, abs=1e-6)
    stream.close()
    assert decoded == {7: 1}


def test_vectors_cannot_be_written():
    """Repeated sources share a vector: nobody can change another's, nor make it writable."""
    first, second = encode_stream(Echo(), [5, 5], same, key=same)
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 9
    with pytest.raises(ValueError, match="WRITEABLE"):
        first.setflags(write=True)
    assert angle(second) == pytest.approx(5 - 2 * np.pi, abs=1e-6)


def test_repeats_are_remembered_between_streams_and_forgotten_in_the_end():
    """Keys given with `repeats` are known to the next stream; beyond its size the oldest are encoded again."""
    decoded, repeats = Counter(), Repeats(most=3)

    def decode(number):
        decoded[number] += 1
        return number

    for numbers in ([1, 2, 1], [2, 3, 4, 5], [1, 5]):
        outcomes = list(encode_stream(Echo(), numbers, decode, key=same, repeats=repeats))
        assert [round(float(v[0]), 5) for v in outcomes] == [round(float(np.cos(n)), 5) for n in numbers]
    assert decoded == {1: 2, 2: 1, 3: 1, 4: 1, 5: 1}


@pytest.mark.parametrize("place", ["source", "decode", "launch"])
def test_a_failure_reaches_the_caller(place):
    """An error that is no item's own ends the stream as it is, and leaves no thread behind."""
    before = threading.active_count()

    def sources():
        yield from range(40)
        if place == "source":
            raise OSError("disk gone")

    def decode(number):
        if place == "decode" and number == 20:
            raise OSError("disk gone")
        return number

    encoder = Echo()
    if place == "launch":
        encoder.launch = lambda _: (_ for _ in ()).throw(OSError("disk gone"))
    with pytest.raises(OSError, match="disk gone"):
        list(encode_stream(encoder, sources(), decode))
    assert threading.active_count() == before


def test_a_vector_that_is_none_ends_the_stream():
    """A model that gives NaN is broken: the stream says so instead of skipping items."""
    encoder = Echo()
    encoder.launch = lambda batch: torch.full((len(batch), 2), torch.nan)
    with pytest.raises(EncoderError, match="norm nan"):
        list(encode_stream(encoder, range(3), same))


def test_bad_media_have_their_own_outcome_and_progress_counts_all():
    """Errors of `key` and of `decode` stay with their item."""
    done = []

    def key(number):
        if number == 1:
            raise MediaError("not_found", "no such file")
        return number

    def decode(number):
        if number == 2:
            raise MediaError("truncated", "cut short")
        return number

    outcomes = list(encode_stream(Echo(), range(4), decode, key=key, progress=done.append))
    assert [getattr(outcome, "code", None) for outcome in outcomes] == [None, "not_found", "truncated", None]
    assert sum(done) == 4


def test_texts_in_bulk_are_texts_encoded_alone(bert_folder):
    """The bulk path, one lane or two, gives each text the vector that it has alone; queries are worded as queries."""
    encoder = TextEncoder(bert_folder, dtype="float32", query_prefix="query : ")
    expected = np.concatenate([encoder.encode([text]) for text in TEXTS])
    got = np.stack(list(encode_stream(encoder, TEXTS, same)))
    assert (got * expected).sum(1).min() > 0.99999
    queries = np.stack(list(encode_stream(encoder, TEXTS, same, query=True)))
    assert (queries * encoder.encode_query(TEXTS)).sum(1).min() > 0.99999


def test_pictures_and_sounds_in_bulk_are_those_encoded_alone(clip_folder, wav2vec2_folder):
    """So for pictures, and for clips of one window and of several."""
    image = ImageEncoder(clip_folder, dtype="float32")
    pictures = [noise_picture(seed, (40 + seed, 50)) for seed in range(5)]
    got = np.stack(list(encode_stream(image, pictures, same)))
    assert (got * np.concatenate([image.encode([one]) for one in pictures])).sum(1).min() > 0.99999
    audio = AudioEncoder(wav2vec2_folder, dtype="float32", window_seconds=1.0)
    clips = [tone(seconds, hertz=hertz) for seconds, hertz in [(0.3, 300), (2.2, 400), (1.0, 500), (0.3, 700)]]
    got = np.stack(list(encode_stream(audio, clips, same)))
    assert (got * np.concatenate([audio.encode([one]) for one in clips])).sum(1).min() > 0.99999


def test_other_threads_keep_their_number_of_threads(bert_folder):
    """Lanes compute with threads of their own; the caller's and later threads compute with as many as before."""
    before, later = torch.get_num_threads(), []
    torch.set_num_threads(2)
    try:
        list(encode_stream(TextEncoder(bert_folder), TEXTS, same))
        thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert (torch.get_num_threads(), later) == (2, [2])
    finally:
        torch.set_num_threads(before)


def test_a_lane_keeps_its_number_of_threads():
    """Torch would give a thread the number of the others at its first operation."""
    before, during = torch.get_num_threads(), []

    def lane() -> None:
        compute_with(1, others=3)
        torch.ones(8, 8) @ torch.ones(8, 8)
        during.append(torch.get_num_threads())

    torch.set_num_threads(2)
    try:
        thread = threading.Thread(target=lane)
        thread.start()
        thread.join()
        assert during == [1]
    finally:
        torch.set_num_threads(before)
