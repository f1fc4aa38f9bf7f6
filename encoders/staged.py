"""An encoder in stages, so that its CPU work and its forward passes can run beside each other and be batched by others.

`prepare` turns items into units (rows of a forward pass), `forward` turns units of one group into pooled rows, `finish` turns
an item's rows into its vector. `encode_all` runs the stages one after the other, in the caller's thread.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from encoders.batching import in_windows, plan_groups
from encoders.errors import MediaError
from encoders.space import EmbeddingSpace
from encoders.vectors import Progress, Vectors

# Forwards' worth of units that are planned together: enough to sort by length, little enough to hold.
WINDOW_BATCHES: Final = 32
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
        """Pooled rows [n, dim] of units of one group, not yet normalised; one caller at a time."""

    def finish(self, pooled: Sequence[NDArray[np.float32]]) -> Vectors:
        """Unit vectors [n, dim] of n items, each given as the rows [k, dim] of its units.

        Raises:
            EncoderError: a vector is not finite or zero; its index is named.
        """

    def warm_up(self) -> None:
        """Load the model and run one forward of each kind."""


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
    """
    if not len(items):
        return np.zeros((0, encoder.space.dim), dtype=np.float32)
    pooled: list[NDArray[np.float32]] = []
    for window in in_windows(
        _prepared(encoder, items, query=query), lambda units: load(encoder, units), WINDOW_BATCHES, WINDOW_ITEMS
    ):
        pooled += forward_window(encoder, window, progress)
    return encoder.finish(pooled)


def _prepared(encoder: StagedEncoder, items: Sequence[Any], *, query: bool) -> Iterator[Units]:
    for start in range(0, len(items), PREPARE_ITEMS):
        for place, units in enumerate(prepare_each(encoder, items[start : start + PREPARE_ITEMS], query=query)):
            if isinstance(units, MediaError):
                raise MediaError(units.code, f"item {start + place}: {units}") from units
            yield units


def load(encoder: StagedEncoder, units: Units) -> float:
    """How many forwards' worth an item is."""
    return sum(unit.length / encoder.budget(unit.group) for unit in units)


def forward_window(
    encoder: StagedEncoder, prepared: Sequence[Units], progress: Callable[[int], None] | None = None
) -> list[NDArray[np.float32]]:
    """Pooled rows [k, dim] of each item's k units, in batches planned over all of them."""
    owners = [(item, place) for item, units in enumerate(prepared) for place in range(len(units))]
    flat = [prepared[item][place] for item, place in owners]
    pooled = [np.zeros((len(units), encoder.space.dim), dtype=np.float32) for units in prepared]
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
    return pooled
