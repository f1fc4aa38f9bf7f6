"""What an index is judged with: query vectors, drawn from a view or read from a file, and the view's own vectors in blocks."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from feature_store.errors import IndexReportError
from feature_store.exact_search import Vectors
from feature_store.milvus_core import MilvusCore
from feature_store.milvus_schema import ViewSchema

SCAN_BYTES_PER_BATCH: Final = 8 << 20
SCAN_ROWS_PER_BATCH: Final = 4_096

Advance = Callable[[int], None]


@dataclass(frozen=True)
class Queries:
    """Query vectors [q, dim] and where they come from; `ids` where they are rows of the view itself, which are no hits of their own."""

    vectors: Vectors
    source: str
    ids: tuple[str, ...] | None = None

    def limit(self, k: int) -> int:
        """How many hits a search must ask for to find `k` others."""
        return k if self.ids is None else k + 1


def vector_schema(core: MilvusCore, view: str) -> ViewSchema:
    """The view's schema. Raises `IndexReportError` where it has no vector to search by."""
    schema = core.describe_view(view)
    if schema.vector_field is None:
        raise IndexReportError(
            f"view {view} has no vector, so there is no index to measure; choose a view that has one"
        )
    return schema


def sample_queries(core: MilvusCore, view: str, count: int, seed: int = 0) -> Queries:
    """`count` rows of the view (all, where it has fewer), each as likely as any other; the same for the same seed and rows."""
    schema = vector_schema(core, view)
    rng = np.random.default_rng(seed)
    ids, ranks = np.empty(0, object), np.empty(0)
    for batch in core.scan(view):
        ids = np.concatenate([ids, np.asarray(batch[schema.key].to_pylist(), object)])
        ranks = np.concatenate([ranks, rng.random(batch.num_rows)])
        lowest = np.argsort(ranks)[:count]  # The rows with the smallest random numbers are a fair draw in one pass.
        ids, ranks = ids[lowest], ranks[lowest]
    if not len(ids):
        raise IndexReportError(f"view {view} has no rows: load it with `triptych materialize`")
    vectors, present, _ = core.read_vectors(view, ids.tolist(), strong=True)
    return Queries(vectors[present], f"rows of {view}", tuple(ids[present].tolist()))


def load_queries(path: Path) -> Queries:
    """Query vectors from a NumPy file of floats [q, dim]. Raises `IndexReportError` naming the file."""
    try:
        vectors = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise IndexReportError(
            f"{path} is no NumPy file that can be read ({error}); write one with numpy.save"
        ) from error
    if vectors.ndim != 2 or vectors.dtype.kind != "f" or not len(vectors) or not np.isfinite(vectors).all():
        raise IndexReportError(
            f"{path} must hold finite floats [queries, dim], not {vectors.dtype} {list(vectors.shape)}"
        )
    return Queries(vectors.astype(np.float32), str(path))


def vector_blocks(core: MilvusCore, schema: ViewSchema, advance: Advance) -> Iterator[tuple[list[str], Vectors]]:
    """All live rows as (ids [n], vectors [n, dim]) blocks of a few MiB; `advance(n)` after each."""
    name = str(schema.vector_field)
    rows = max(1, min(SCAN_ROWS_PER_BATCH, SCAN_BYTES_PER_BATCH // (4 * schema.dim)))
    for batch in core.scan(schema.name, [name], batch=rows):
        flat = batch[name].flatten().to_numpy(zero_copy_only=False)
        yield batch[schema.key].to_pylist(), np.asarray(flat, np.float32).reshape(-1, schema.dim)
        advance(batch.num_rows)
