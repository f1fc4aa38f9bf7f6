"""The catalogue that the store's benchmarks load: vectors of a stated seed and structure, as Parquet parts, and the exact neighbours among them.

Vectors are unit norm, drawn around cluster centres in a space of few dimensions and mixed into all of them with a little noise, as
encoders' vectors are: an index finds neighbours among such, while among vectors without any structure nobody has near neighbours to find.
They come in blocks that depend on nothing but their number, so that a smaller catalogue is the beginning of a larger one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from feature_store.parts import write_part
from feature_store.schemas import timestamps

SEED: Final = 20_261
BLOCK_ROWS: Final = 10_000
PART_BLOCKS: Final = 10
CLUSTERS: Final = 1_000
LATENT_DIM: Final = 32  # intrinsic dimensions of encoders' vectors are estimated at some tens
SPREAD: Final = 0.5  # of a cluster, against centres of norm 1 in each latent dimension
NOISE: Final = 0.02  # in each of the stored dimensions
FIRST_EVENT_US: Final = 1_735_689_600_000_000  # 2025-01-01
CREATED_US: Final = 1_767_225_600_000_000  # 2026-01-01
_QUERY_BLOCK: Final = 1 << 40  # a block that no catalogue reaches


@dataclass(frozen=True)
class Catalogue:
    """`rows` items with vectors of `dim` values."""

    rows: int
    dim: int

    def blocks(self) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """(number of the first row, vectors [n, dim]), block by block."""
        for block in range(-(-self.rows // BLOCK_ROWS)):
            first = block * BLOCK_ROWS
            # A whole block is drawn and then cut, since what is drawn depends on how much is.
            yield first, self._vectors(block, BLOCK_ROWS)[: self.rows - first]

    def queries(self, count: int) -> NDArray[np.float32]:
        """Vectors [count, dim] from the same distribution that are not in the catalogue."""
        return self._vectors(_QUERY_BLOCK, count)

    def _vectors(self, block: int, count: int) -> NDArray[np.float32]:
        shape = np.random.default_rng(SEED)
        centres = shape.standard_normal((CLUSTERS, LATENT_DIM), np.float32)
        mixing = shape.standard_normal((LATENT_DIM, self.dim), np.float32) / np.float32(np.sqrt(LATENT_DIM))
        rng = np.random.default_rng((SEED, block))
        latent = centres[rng.integers(CLUSTERS, size=count)]
        latent = latent + SPREAD * rng.standard_normal((count, LATENT_DIM), np.float32)
        vectors = latent @ mixing + NOISE * rng.standard_normal((count, self.dim), np.float32)
        return unit(vectors)

    def write(self, folder: Path) -> int:
        """Write the catalogue as parts of 100,000 rows, as the project's own tables are written; return its bytes."""
        waiting: list[pa.Table] = []
        for first, vectors in self.blocks():
            waiting.append(table(first, vectors))
            if len(waiting) == PART_BLOCKS:
                write_part(folder, pa.concat_tables(waiting))
                waiting = []
        if waiting:
            write_part(folder, pa.concat_tables(waiting))
        return sum(part.stat().st_size for part in folder.glob("*.parquet"))

    def nearest(self, queries: NDArray[np.float32], k: int) -> list[set[str]]:
        """Ids of the `k` nearest items of each query [q, dim] by cosine, by comparing with every item."""
        best = np.full((len(queries), 0), 0, np.float32)
        rows = np.full((len(queries), 0), 0, np.int64)
        for first, vectors in self.blocks():
            best = np.hstack([best, queries @ vectors.T])
            rows = np.hstack(
                [rows, np.broadcast_to(np.arange(first, first + len(vectors)), (len(queries), len(vectors)))]
            )
            kept = np.argpartition(-best, min(k, best.shape[1]) - 1, axis=1)[:, :k]
            best, rows = np.take_along_axis(best, kept, 1), np.take_along_axis(rows, kept, 1)
        return [set(ids(found)) for found in rows]

    def sample_ids(self, count: int, sets: int) -> list[list[str]]:
        """`sets` random choices of `count` ids each."""
        rng = np.random.default_rng((SEED, 1))
        return [ids(rng.choice(self.rows, min(count, self.rows), replace=False)) for _ in range(sets)]


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows at norm 1."""
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def ids(rows: Any) -> list[str]:
    """Ids of row numbers: spread over the alphabet, so that a catalogue is not sorted by them."""
    return [f"item_{int(row) * 2_654_435_761 % 2**32:08x}" for row in rows]


def table(first: int, vectors: NDArray[np.float32]) -> pa.Table:
    """Rows `first` and on as the offline tables have them."""
    count, dim = vectors.shape
    offsets = pa.array(np.arange(0, (count + 1) * dim, dim, dtype=np.int32))
    rows = np.arange(first, first + count)
    return pa.table(
        {
            "item_id": pa.array(ids(rows), pa.string()),
            "vector": pa.ListArray.from_arrays(offsets, pa.array(vectors.reshape(-1))),
            "event_timestamp": timestamps(FIRST_EVENT_US + rows * 1_000),
            "created": timestamps(np.full(count, CREATED_US)),
        }
    )
