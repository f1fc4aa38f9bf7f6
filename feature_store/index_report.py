"""How good a view's index is: recall against exact search, latency, throughput and memory, by search parameter.

Reads only, and through the same calls as any other reader. What is exact, and what recall is, says `exact_search.py`; queries come from
`index_queries.py`; tables, plots and files are the command line's (`triptych index report`).
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from pymilvus.grpc_gen import milvus_pb2

from feature_store.errors import IndexReportError, StoreRequestError
from feature_store.exact_search import ExactNeighbours, Vectors, exact_neighbours, recall_at_k, score_hits
from feature_store.index_queries import Advance, Queries, sample_queries, vector_blocks, vector_schema
from feature_store.milvus_core import MilvusCore
from feature_store.milvus_schema import ViewSchema

GRAPHS: Final = frozenset({"HNSW", "AUTOINDEX"})  # indexes that are searched with `ef`
EF_LADDER: Final = (16, 32, 64, 128, 256, 512)
DEFAULT_M: Final = 16  # where the server does not say: what Milvus Lite and this project build with
LINK_BYTES: Final = 4
WARM_UP_QUERIES: Final = 10
QUERIES_PER_BATCH: Final = 64
PROBE_SECONDS: Final = 0.5
NOT_IN_USE: Final = (
    "the server does not search the index yet: it is being built, or the rows were never flushed. Until then it scans all rows, or a "
    "Milvus standalone answers from its coarse interim index, which may miss many: measure again later"
)
OWN_ROWS: Final = (
    "the queries are rows of the view, and a graph links each row to its neighbours: other queries (users, words) find less; "
    "measure those with queries of their own (--queries-from)"
)
MAX_K: Final = 16_383  # Milvus answers at most 16,384 hits, and one may be the query itself


@dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
        ks: recall@k for these k.
        queries: how many rows are drawn from the view as queries.
        efs: values of `ef` to try, those below k left out; () tries k and the powers of two up to 512.
        seed: of the draw.
        wait_seconds: how long to wait for a server that is still building the index.
    """

    ks: tuple[int, ...] = (10, 100)
    queries: int = 100
    efs: tuple[int, ...] = ()
    seed: int = 0
    wait_seconds: float = 60.0

    def __post_init__(self) -> None:
        if not self.ks or not all(1 <= k <= MAX_K for k in self.ks):
            raise IndexReportError(f"k must be from 1 to {MAX_K}, not {list(self.ks)}")
        if self.queries < 1 or any(ef < 1 for ef in self.efs):
            raise IndexReportError(f"queries ({self.queries}) and ef ({list(self.efs)}) must be at least 1")


@dataclass(frozen=True)
class Prepared:
    """A view with its queries and their exact neighbours: what search points are judged against."""

    schema: ViewSchema
    queries: Queries
    nearest: ExactNeighbours
    exact_seconds: float


@dataclass(frozen=True)
class Point:
    """One search setting.

    Attributes:
        k: neighbours wanted; fewer where the view has fewer rows.
        params: the overriding search parameters, {} for what a search uses by itself.
        recall: mean recall@k over the queries, as `exact_search.recall_at_k` defines it.
        recall_p5: the recall that 95 % of the queries reach.
        p50_ms: latency of one query in one request, median over the queries, in milliseconds as the client sees it; p95, p99 likewise.
        queries_per_second: of requests with up to `QUERIES_PER_BATCH` queries, one request at a time.
    """

    k: int
    params: Mapping[str, object]
    recall: float
    recall_p5: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    queries_per_second: float

    @property
    def label(self) -> str:
        """The setting in a few letters: `ef=64`, or `default`."""
        return " ".join(f"{name}={value}" for name, value in self.params.items()) or "default"


@dataclass(frozen=True)
class IndexReport:
    """One view's index as it was measured.

    Attributes:
        index_used: whether searches went through the graph; False where the server does without it yet, None where there is no graph.
        vector_bytes: estimated memory of the vectors.
        link_bytes: estimated memory of the graph's links.
        notes: what a reader of the numbers must know.
    """

    view: str
    index: str
    metric: str
    dim: int
    rows: int
    build_params: Mapping[str, object]
    index_used: bool | None
    queries: int
    queries_from: str
    exact_seconds: float
    vector_bytes: int
    link_bytes: int
    points: tuple[Point, ...]
    notes: tuple[str, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values."""
        return asdict(self)


def measure_index(
    core: MilvusCore, view: str, settings: Settings | None = None, queries: Queries | None = None
) -> IndexReport:
    """Measure one view's index; `prepare` and `measure` in one.

    Raises `ViewNotFoundError`, and `IndexReportError` where the view has no vector or too few rows.
    """
    chosen = settings or Settings()
    return measure(core, prepare(core, view, chosen, queries), chosen)


# ---- queries and exact search ----------------------------------------------------------------------------------------


def prepare(
    core: MilvusCore,
    view: str,
    settings: Settings,
    queries: Queries | None = None,
    advance: Advance = lambda _: None,
) -> Prepared:
    """Draw the queries where none are given, and find their exact neighbours by a pass over the view; `advance(rows)` as it goes."""
    schema = vector_schema(core, view)
    chosen = queries or sample_queries(core, view, settings.queries, settings.seed)
    if chosen.vectors.ndim != 2 or chosen.vectors.shape[1] != schema.dim or not len(chosen.vectors):
        raise IndexReportError(
            f"queries of view {view} must be [q, {schema.dim}], not {list(chosen.vectors.shape)} ({chosen.source})"
        )
    began = time.perf_counter()
    blocks = vector_blocks(core, schema, advance)
    nearest = exact_neighbours(chosen.vectors, blocks, max(settings.ks), schema.metric, leave_out=chosen.ids)
    if nearest.k == 0:
        raise IndexReportError(
            f"view {view} has {nearest.rows} rows, too few to find neighbours in: load more with `triptych materialize`"
        )
    return Prepared(schema, chosen, nearest, time.perf_counter() - began)


# ---- search ----------------------------------------------------------------------------------------------------------


def sweep(
    schema: ViewSchema, queries: Queries, settings: Settings, *, index_used: bool | None
) -> list[tuple[int, dict[str, object]]]:
    """The points (k, overriding parameters) to measure: for each k what a search uses by itself, then `ef` ascending.

    Milvus refuses an `ef` below the number of hits asked for. Without a graph in use, `ef` changes nothing and is not swept.
    """
    points: list[tuple[int, dict[str, object]]] = []
    for k in sorted(set(settings.ks)):
        points.append((k, {}))
        if index_used and schema.index in GRAPHS:
            least = queries.limit(k)
            ladder = [ef for ef in sorted(set(settings.efs)) if ef >= least] if settings.efs else [*EF_LADDER, least]
            points += [(k, {"ef": ef}) for ef in sorted(set(ladder or [least])) if ef >= least]
    return points


def measure(core: MilvusCore, prepared: Prepared, settings: Settings, advance: Advance = lambda _: None) -> IndexReport:
    """Search with every point's parameters, warmed up, one query at a time and then in batches; `advance(1)` after each query.

    The points take turns query by query, each at another query, so that a busy moment of the machine slows all of them alike and none
    finds in the processor's caches what the one before it left there.
    """
    schema, queries = prepared.schema, prepared.queries
    used = wait_for_index(core, schema, queries, settings.wait_seconds)
    searches, refused = [], []
    for k, params in sweep(schema, queries, settings, index_used=used):
        search = _Search(core, prepared, k, params)
        try:
            search.warm_up()
            searches.append(search)
        except StoreRequestError as error:
            refused.append(f"k={k} {params}: {error}")
    if not searches:
        raise IndexReportError(f"view {schema.name}: every search was refused; the first: {refused[0]}")
    count = len(queries.vectors)
    for turn in range(count):
        for place, search in enumerate(searches):
            search.time((turn + place * count // len(searches)) % count)
        advance(1)
    vectors = _VectorCache(core, schema.name)
    points = tuple(search.point(vectors) for search in searches)
    return _report(core, prepared, points, used, [*_notes(core, prepared, settings, used), *refused])


def _report(
    core: MilvusCore, prepared: Prepared, points: tuple[Point, ...], used: bool | None, notes: list[str]
) -> IndexReport:
    schema, rows = prepared.schema, prepared.nearest.rows
    m, build = _build_params(core, schema)
    return IndexReport(
        view=schema.name,
        index=schema.index,
        metric=schema.metric,
        dim=schema.dim,
        rows=rows,
        build_params=build,
        index_used=used,
        queries=len(prepared.queries.vectors),
        queries_from=prepared.queries.source,
        exact_seconds=prepared.exact_seconds,
        vector_bytes=vector_bytes(rows, schema.dim),
        link_bytes=link_bytes(rows, m) if schema.index in GRAPHS else 0,
        points=points,
        notes=tuple(notes),
    )


def wait_for_index(core: MilvusCore, schema: ViewSchema, queries: Queries, seconds: float) -> bool | None:
    """Whether searches go through the graph, waiting up to `seconds` until they do; None where the index is no graph."""
    if schema.index not in GRAPHS:
        return None
    deadline = time.monotonic() + seconds
    while not (used := index_used(core, schema, queries)) and time.monotonic() < deadline:
        time.sleep(PROBE_SECONDS)
    return used


def index_used(core: MilvusCore, schema: ViewSchema, queries: Queries) -> bool:
    """Whether the server searches a graph for this view, at least in part of the rows.

    Asks with an `ef` that is no number: only the code that walks a graph reads it, and refuses; whatever answers in its place does not.
    Servers say "index finished" before they search by it (Milvus 2.3 by seconds; Milvus Lite says so always), so they are not asked.
    """
    try:
        core.search(schema.name, queries.vectors[:1], 1, params={"ef": "not a number"})
    except StoreRequestError:
        core.search(schema.name, queries.vectors[:1], 1)  # Raises where searching itself is what fails.
        return True
    return False


class _Search:
    """The searches of one point, and what they found and took."""

    def __init__(self, core: MilvusCore, prepared: Prepared, k: int, params: dict[str, object]) -> None:
        self.k, self.params = k, params
        self._core, self._prepared = core, prepared
        self._vectors = prepared.queries.vectors
        self._hits: list[list[str]] = [[]] * len(self._vectors)
        self._milliseconds = np.zeros(len(self._vectors))

    def warm_up(self) -> None:
        for query in self._vectors[:WARM_UP_QUERIES]:
            self._search(query)

    def time(self, at: int) -> None:
        """Search with the query at row `at` alone."""
        began = time.perf_counter()
        found = self._search(self._vectors[at])
        self._milliseconds[at] = 1_000 * (time.perf_counter() - began)
        self._hits[at] = found[0]

    def point(self, vectors: "_VectorCache") -> Point:
        queries, nearest = self._prepared.queries, self._prepared.nearest.first(self.k)
        hits = others(self._hits, queries.ids, self.k)
        scores = score_hits(queries.vectors, hits, self._prepared.schema.metric, nearest, vectors.read)
        recall = recall_at_k(nearest, hits, scores)
        p50, p95, p99 = (float(value) for value in np.percentile(self._milliseconds, (50, 95, 99)))
        low = float(np.percentile(recall, 5))
        return Point(self.k, self.params, float(recall.mean()), low, p50, p95, p99, self._queries_per_second())

    def _queries_per_second(self) -> float:
        began = time.perf_counter()
        for first in range(0, len(self._vectors), QUERIES_PER_BATCH):
            self._search(self._vectors[first : first + QUERIES_PER_BATCH])
        return len(self._vectors) / (time.perf_counter() - began)

    def _search(self, vectors: Vectors) -> list[list[str]]:
        limit = self._prepared.queries.limit(self.k)
        return self._core.search(self._prepared.schema.name, vectors, limit, params=self.params).ids


def others(hits: Sequence[Sequence[str]], ids: Sequence[str] | None, k: int) -> list[list[str]]:
    """The first `k` hits of each query that are not the query itself."""
    if ids is None:
        return [list(found[:k]) for found in hits]
    return [[name for name in found if name != own][:k] for found, own in zip(hits, ids, strict=True)]


class _VectorCache:
    """Vectors of hits that are not among the exact neighbours, read once for all points."""

    def __init__(self, core: MilvusCore, view: str) -> None:
        self._core = core
        self._view = view
        self._known: dict[str, Vectors] = {}

    def read(self, ids: list[str]) -> Mapping[str, Vectors]:
        new = [name for name in ids if name not in self._known]
        if new:
            vectors, present, _ = self._core.read_vectors(self._view, new, strong=True)
            self._known.update((name, row) for name, row, there in zip(new, vectors, present, strict=True) if there)
        return self._known


# ---- memory and remarks ----------------------------------------------------------------------------------------------


def vector_bytes(rows: int, dim: int) -> int:
    """Memory of `rows` float32 vectors: 4 * dim bytes each, whatever the index."""
    return rows * dim * 4


def link_bytes(rows: int, m: int) -> int:
    """Memory of an HNSW graph's links: 2 * M * 4 bytes per row.

    From the Faiss wiki ("Guidelines to choose an index": d * 4 + M * 2 * 4 bytes per vector). It counts the lowest layer's 2 * M links;
    the layers above add about M / (M - 1) links per row (Malkov and Yashunin, 2018, section 4.2.3), a few bytes.
    """
    return rows * 2 * m * LINK_BYTES


def resident_bytes(pid: int) -> int | None:
    """Memory that a process of this machine occupies (its resident set), all views together; None where that cannot be read."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    sizes = [int(line.split()[1]) for line in lines if line.startswith("VmRSS:")]
    return sizes[0] * 1024 if sizes else None


def _build_params(core: MilvusCore, schema: ViewSchema) -> tuple[int, dict[str, object]]:
    """M for the estimate, and the build parameters as the server states them."""
    request = milvus_pb2.DescribeIndexRequest(collection_name=schema.name, field_name=schema.stored_vector)
    reply = core.channel.call("DescribeIndex", request)
    stated = {pair.key: pair.value for index in reply.index_descriptions for pair in index.params}
    build: dict[str, object] = json.loads(stated.get("params") or "{}")
    return int(str(build.get("M", DEFAULT_M))), build


def _notes(core: MilvusCore, prepared: Prepared, settings: Settings, used: bool | None) -> Iterator[str]:
    view, rows = prepared.schema.name, prepared.nearest.rows
    if used is False:
        yield NOT_IN_USE
    elif used is not None and not index_used(core, prepared.schema, prepared.queries):
        yield "the server stopped using the index while it was measured: measure again"
    if (now := core.count(view)) != rows:
        yield f"the view went from {rows:,} to {now:,} rows while it was measured: recall is a little off, measure again"
    if used and prepared.queries.ids is not None:
        yield OWN_ROWS
    least = prepared.queries.limit(max(settings.ks))
    if used and (low := [ef for ef in settings.efs if ef < least]):
        yield f"ef={', '.join(map(str, low))}: below the {least} hits asked for, so not tried for every k"
    short = [k for k in settings.ks if k > prepared.nearest.k]
    if short:
        yield f"k={', '.join(map(str, short))}: a query has only {prepared.nearest.k} neighbours, and recall is of those"
