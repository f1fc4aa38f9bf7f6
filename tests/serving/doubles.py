"""Encoders in plain Python that fail in chosen ways, which real ones do only on broken hardware; and calls without a server."""

import threading
import time

import numpy as np
from structlog.testing import capture_logs

from encoders.errors import EncoderError, MediaError
from encoders.space import EmbeddingSpace
from encoders.staged import Unit
from serving.batching.jobs import Call, Item
from serving.batching.pipeline import Pipeline
from serving.batching.queue import Lane
from serving.metrics import Metrics

DIM = 4
SPACE = EmbeddingSpace.from_recipe("text", "double", DIM, {"what": "a test double"})


class PowerCut(BaseException):
    """Ends the thread that meets it, as nothing but the interpreter's own death should."""


def vector_of(text: str) -> np.ndarray:
    """The vector that the double gives a text."""
    raw = np.array([1.0, len(text), sum(map(ord, text)) % 97, text.count("e")], np.float32)
    return raw / np.linalg.norm(raw)


class DoubleEncoder:
    """A `StagedEncoder` of texts, whose words choose their fate.

    `poison` breaks its batch, `deadly` kills the thread, `nan` gives no vector, `unfit` cannot be prepared, `long` has three units,
    `lost` has none and no place, which no encoder may do, and `slow` is prepared when its gate opens.
    """

    space = SPACE

    def __init__(self, budget: int = 64, seconds: float = 0.0, lanes: int = 1) -> None:
        self.limit, self.seconds, self.lane_count = budget, seconds, lanes
        self.batches: list[list[str]] = []
        self.warm_ups = 0
        self.broken = False
        self.gate = threading.Event()
        self.gate.set()
        self.slow = threading.Event()

    def prepare(self, items, *, query=False):  # noqa: ARG002 - the protocol's
        """A unit for each character's length."""
        if any("unfit" in text for text in items):
            raise MediaError("empty", "unfit")
        if any("slow" in text for text in items):
            self.slow.wait(10)
        return [
            tuple(Unit("text", max(1, len(text)), text) for _ in range(3 if "long" in text else 1))
            for text in items
            if "lost" not in text
        ]

    def lanes(self, _threads):
        """As the test wants it."""
        return self.lane_count, 1

    def budget(self, _group):
        """The same for all."""
        return self.limit

    def forward(self, units):
        """Vectors, or the fate that a text chose."""
        self.gate.wait(10)
        texts = [unit.data for unit in units]
        self.batches.append(texts)
        if self.seconds:
            time.sleep(self.seconds)
        if any("deadly" in text for text in texts):
            raise PowerCut
        if self.broken or any("poison" in text for text in texts):
            raise RuntimeError("poisoned")
        return np.stack([np.full(DIM, np.nan) if "nan" in text else vector_of(text) for text in texts])

    def finish(self, pooled):
        """Means, if they are finite."""
        means = np.stack([rows.mean(0) for rows in pooled])
        if not np.isfinite(means).all():
            raise EncoderError("not finite")
        return (means / np.linalg.norm(means, axis=1, keepdims=True)).astype(np.float32)

    def warm_up(self):
        """Fails while the device is broken."""
        self.warm_ups += 1
        if self.broken:
            raise RuntimeError("the device is gone")

    @property
    def forwarded(self) -> list[str]:
        """All texts that were forwarded, in order."""
        return [text for batch in self.batches for text in batch]


class DoubleSounds(DoubleEncoder):
    """The same for sounds: a unit each, that holds all samples."""

    space = EmbeddingSpace.from_recipe("audio", "double", DIM, {"what": "a test double"})

    def prepare(self, items, *, query=False):  # noqa: ARG002 - the protocol's
        """Samples as they are."""
        return [(Unit("audio", 1, samples),) for samples in items]

    def forward(self, units):
        """The first samples."""
        self.gate.wait(10)
        return np.stack([unit.data[:DIM] + 1 for unit in units])


class Bench:
    """A pipeline around a double, called without a server."""

    def __init__(self, encoder: DoubleEncoder | None = None, cache_bytes: int = 1 << 20, prepared_bytes: int = 1 << 20):
        self.encoder = encoder or DoubleEncoder()
        self.metrics, self.states = Metrics(), []
        self.pipeline = Pipeline(
            lambda: [self.encoder], self.metrics, cache_bytes=cache_bytes, decode_workers=2,
            prepared_bytes=prepared_bytes, on_state=self.states.append,
        )  # fmt: skip

    def __enter__(self):
        self._quiet = capture_logs()  # tracebacks of planned failures, drawn in colour, take longer than the tests
        self.logged = self._quiet.__enter__()
        self.pipeline.start().result(10)
        return self

    def __exit__(self, *_):
        self.encoder.gate.set()
        self.pipeline.close()
        self._quiet.__exit__(None, None, None)

    def ask(self, *contents: str | bytes, lane: Lane = Lane.INTERACTIVE, seconds: float = 20.0) -> "Asked":
        """Submit one call: texts, or sounds of a sound encoder."""
        asked = Asked(len(contents), lane, seconds)
        modality = self.encoder.space.modality
        items = [Item(i, modality, self.encoder, False, content) for i, content in enumerate(contents)]
        self.pipeline.submit(asked.call, items)
        return asked

    def value(self, name: str, **labels: str) -> float:
        """A metric's value."""
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


class Asked:
    """A call and its outcomes; counts how often it was answered."""

    def __init__(self, count: int, lane: Lane, seconds: float) -> None:
        self.answers: list = []
        self._told = threading.Event()
        self.call = Call(lane, time.monotonic() + seconds, count, self._done)

    def _done(self, outcomes) -> None:
        self.answers.append(outcomes)
        self._told.set()

    def result(self, seconds: float = 10.0) -> list:
        """The outcomes, once they are all there."""
        assert self._told.wait(seconds), "not settled"
        return self.answers[0]
