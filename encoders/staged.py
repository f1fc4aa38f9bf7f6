"""An encoder in stages, so that its CPU work and its forward passes can run beside each other and be batched by others.

`prepare` turns items into units (rows of a forward pass), `forward` turns units of one group into pooled rows, `finish` turns
an item's rows into its vector. `encode_all` runs the stages one after the other, in the caller's thread.
"""

import abc
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from encoders.batching import in_windows, plan_groups
from encoders.device import Compute
from encoders.errors import EncoderError, MediaError
from encoders.space import EmbeddingSpace
from encoders.vectors import Progress, Vectors, finished, to_numpy
from encoders.whitening import Whitening

# Forwards' worth of units that are planned together: enough to sort by length, little enough to hold. Pictures are all of one size.
WINDOW_BATCHES: Final = {"text": 128, "image": 1, "audio": 64}
# Beyond this many forwards at once on a CPU each gets more threads rather than a neighbour: their working sets share one cache.
MAX_CPU_LANES: Final = 8
WINDOW_ITEMS: Final = 4096
PREPARE_ITEMS: Final = 32  # prepared in one call: tokenizers are faster on lists


@dataclass(frozen=True, slots=True)
class Unit:
    """One row of a forward pass.

    Attributes:
        group: only units of one group share a batch (audio: the exact window length; else `image` or `text`).
        length: tokens, samples, or 1 for a picture; a batch's rows are padded to its longest.
        data: token ids, a float tensor [3, height, width], or float32 samples.
    """

    group: Hashable
    length: int
    data: Any


Units = tuple[Unit, ...]


class StagedEncoder(Protocol):
    """What text, image and audio encoders have in common."""

    space: EmbeddingSpace

    def prepare(self, items: Sequence[Any], *, query: bool = False) -> list[Units]:
        """Units of each item; CPU work, by any number of threads at once.

        Args:
            items: clean texts, RGB pictures or 16 kHz mono clips; texts alone where `query` is set.
            query: word the texts as queries.

        Raises:
            MediaError: an item cannot be encoded; which one is not said.
        """

    def budget(self, group: Hashable) -> int:
        """Padded length (rows times the longest) that one forward should hold; one row is always allowed."""

    def forward(self, units: Sequence[Unit]) -> NDArray[np.float32]:
        """Pooled rows [n, dim] of units of one group, not yet normalised; by as many threads at once as `lanes` gives."""

    def finish(self, pooled: Sequence[NDArray[np.float32]]) -> Vectors:
        """Unit vectors [n, dim] of n items, each given as the rows [k, dim] of its units.

        Raises:
            EncoderError: a vector is not finite or zero; its index is named.
        """

    def warm_up(self) -> None:
        """Load the model and run one forward of each kind."""


class Stages(abc.ABC):
    """What the three encoders do alike. Theirs are `prepare`, `budget`, `collate`, `launch` and `warm_up`."""

    space: EmbeddingSpace
    whitening: Whitening | None = None

    @property
    @abc.abstractmethod
    def compute(self) -> Compute:
        """Where and in which precision the model runs."""

    @abc.abstractmethod
    def prepare(self, items: Sequence[Any], *, query: bool = False) -> list[Units]:
        """See `StagedEncoder`."""

    @abc.abstractmethod
    def budget(self, group: Hashable) -> int:
        """See `StagedEncoder`."""

    @abc.abstractmethod
    def collate(self, units: Sequence[Unit]) -> Any:
        """Units of one group as the tensors of one batch, on their way to the device; by any thread."""

    @abc.abstractmethod
    def launch(self, batch: Any) -> Any:
        """Pooled rows [n, dim] of a collated batch, a tensor on the device; a GPU may still be computing it.

        By as many threads at once as `lanes` gives.
        """

    @abc.abstractmethod
    def warm_up(self) -> None:
        """See `StagedEncoder`."""

    def encode(self, items: Sequence[Any], *, progress: Progress = None) -> Vectors:
        """Unit vectors [n, dim] of items in their order; `progress` is told how many more are done."""
        return encode_all(self, items, progress=progress)

    def forward(self, units: Sequence[Unit]) -> Vectors:
        """Pooled rows [n, dim] of units of one group, not yet normalised."""
        return self.fetch(self.launch(self.collate(units)))

    def fetch(self, rows: Any) -> Vectors:
        """What `launch` gave, as float32 on the CPU."""
        return to_numpy(rows)

    def finish(self, pooled: Sequence[NDArray[np.float32]]) -> Vectors:
        """Unit vectors [n, dim] of n items, each the mean of its rows [k, model's dim], whitened where the space is.

        Raises:
            EncoderError: a vector is not finite or zero; its index is named.
        """
        return finished(pooled, self.space, self.whitening)

    def plan(self, units: Sequence[Unit]) -> Iterator[list[int]]:
        """Indices of units in batches, each of one group."""
        return plan_groups(units, self.budget)

    def compile_forwards(self) -> None:  # noqa: B027  (most have nothing to compile)
        """Compile, where the encoder is to, for this thread's number of threads; no other thread may use torch meanwhile."""

    @property
    def launched_ahead(self) -> int:
        """Batches that may be launched before the result of an earlier one is fetched."""
        return 0 if self.compute.kind == "cpu" else 1

    def lanes(self, threads: int) -> tuple[int, int]:
        """How many forwards may run at once, each in a thread of its own, and with how many of torch's `threads` each."""
        if self.compute.kind != "cpu":
            return 1, threads
        count = min(threads, MAX_CPU_LANES)
        return count, threads // count


def prepare_each(encoder: StagedEncoder, items: Sequence[Any], *, query: bool = False) -> list[Units | MediaError]:
    """Units of each item, or why it has none: one bad item harms no other."""
    try:
        return list(encoder.prepare(items, query=query))
    except MediaError as error:
        if len(items) == 1:
            return [error]
        return [prepare_each(encoder, [item], query=query)[0] for item in items]


def encode_all(
    encoder: StagedEncoder, items: Sequence[Any], *, query: bool = False, progress: Progress = None
) -> Vectors:
    """Unit vectors [n, dim] of items in their order; `progress` is told how many more are done.

    Raises:
        MediaError: an item cannot be encoded; its index is in the message.
        EncoderError: one text was given where a list is wanted, or an item is of a wrong type.
    """
    if isinstance(items, (str, bytes)):
        raise EncoderError(f"items must be a list, even of one: [{items!r:.40}]")
    if not len(items):
        return np.zeros((0, encoder.space.dim), dtype=np.float32)
    pooled: list[NDArray[np.float32]] = []
    for window in in_windows(
        _prepared(encoder, items, query=query),
        lambda units: load(encoder, units),
        window_batches(encoder),
        WINDOW_ITEMS,
    ):
        pooled += forward_window(encoder, window, progress)
    return encoder.finish(pooled)


def _prepared(encoder: StagedEncoder, items: Sequence[Any], *, query: bool) -> Iterator[Units]:
    for start in range(0, len(items), PREPARE_ITEMS):
        for place, units in enumerate(prepare_each(encoder, items[start : start + PREPARE_ITEMS], query=query)):
            if isinstance(units, MediaError):
                raise MediaError(units.code, f"item {start + place}: {units}") from units
            yield units


def window_batches(encoder: StagedEncoder) -> int:
    """How many forwards' worth of the encoder's units are planned together."""
    return WINDOW_BATCHES[encoder.space.modality]


def load(encoder: StagedEncoder, units: Units) -> float:
    """How many forwards' worth an item is."""
    return sum(unit.length / encoder.budget(unit.group) for unit in units)


def forward_window(
    encoder: StagedEncoder, prepared: Sequence[Units], progress: Callable[[int], None] | None = None
) -> list[NDArray[np.float32]]:
    """Pooled rows [k, dim] of each item's k units, in batches planned over all of them."""
    owners = [(item, place) for item, units in enumerate(prepared) for place in range(len(units))]
    flat = [prepared[item][place] for item, place in owners]
    pooled: list[list[Any]] = [[None] * len(units) for units in prepared]
    left = [len(units) for units in prepared]
    for batch in plan_groups(flat, encoder.budget):
        rows = encoder.forward([flat[index] for index in batch])
        done = 0
        for index, row in zip(batch, rows, strict=True):
            item, place = owners[index]
            pooled[item][place] = row
            left[item] -= 1
            done += left[item] == 0
        if progress:
            progress(done)
    return [np.stack(rows) for rows in pooled]
