"""Whether a space is ready to take the place of another: coverage, neighbours, what the vector store finds, and drift. Numpy only.

Vectors of two spaces are never compared: each space is searched by its own vectors, and only the ids that were found are. Of the
vectors, no more than the queries and one part of a table are in memory at once.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from feature_store.errors import ViewNotFoundError
from feature_store.home import Home
from feature_store.milvus_core import MilvusCore
from feature_store.spaces import view_name
from feature_store.tables import Tables

NEIGHBOURS: Final = 10
QUERIES: Final = 1_000
PAIRS: Final = 5_000
ROWS_PER_PRODUCT: Final = 8_192
# Cosines that differ by less are a tie: float32 products summed in another order differ by so much.
TIE: Final = 1e-5
# Nothing that the old space has may be lost; the thousandth part is what a damaged file here and there makes.
MIN_COVERAGE: Final = 0.999
# As good as exact search, for an index of FLAT, or of HNSW with its usual parameters.
MIN_RECALL: Final = 0.95
# Beyond, random pairs look all alike: the encoder says next to nothing.
MAX_MEAN_COSINE: Final = 0.99
# Items that have equal vectors and yet other contents: the encoder does not tell them apart.
MAX_COLLAPSED: Final = 0.02
# Neighbours that two random spaces share are NEIGHBOURS of n - 1: a real encoder shares several times as many with another.
MIN_OVERLAP_OVER_CHANCE: Final = 2.0
# With fewer items chance alone is above a quarter, and says nothing.
FEWEST_FOR_OVERLAP: Final = 41

Floats = NDArray[np.float32]
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Drift:
    """How the vectors of a space lie.

    Attributes:
        mean_cosine: of random pairs; 0 where directions are spread evenly, 1 where all vectors are one.
        min_norm, max_norm: lengths of the stored vectors.
        duplicates: share of items whose vector another one has too.
        collapsed: share of items whose vector another item of other content has too.
    """

    vectors: int
    mean_cosine: float
    min_norm: float
    max_norm: float
    duplicates: float
    collapsed: float


@dataclass(frozen=True)
class SpaceCheck:
    """What `check_space` found; None where there was nothing to measure it on.

    Attributes:
        coverage: share of the old space's live ids that the new one has.
        label_coverage: of interactions that join a vector in the old space strictly before them, the share that do in the new one.
        overlap: mean share of an item's nearest that are the same in both spaces; `chance` is what random spaces would share.
        recall: share of the exact nearest that the vector store finds; None where `not_loaded` says why.
        problems: what must be mended before the new space can take over, with thresholds; empty: ready.
    """

    space_id: str
    against: str | None
    coverage: float | None
    missing: tuple[str, ...]
    labels: int
    labels_old: int
    labels_both: int
    label_coverage: float | None
    overlap: float | None
    chance: float | None
    queries: int
    recall: float | None
    not_loaded: str
    drift: Drift
    drift_old: Drift | None
    problems: tuple[str, ...] = field(default=())

    @property
    def ready(self) -> bool:
        """Whether nothing speaks against it."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "ready": self.ready}


def check_space(
    home: Home,
    space_id: str,
    against: str | None,
    core: MilvusCore | None,
    *,
    entity: str = "item",
    seed: int = 0,
    progress: Progress = lambda _: None,
) -> SpaceCheck:
    """Measure a space, and compare what it has and finds with another.

    Args:
        home: whose tables.
        space_id: the new space.
        against: the old one, None where there is none.
        core: the vector store; None where there is none to ask.
        entity: whose vectors.
        seed: of the items that are searched with.
        progress: called with the name of each stage before it.
    """
    tables, rng = Tables(home), np.random.default_rng(seed)
    progress("drift")
    ids, drift = _drift(tables, entity, space_id, rng)
    old_ids, drift_old = _drift(tables, entity, against, rng) if against else ([], None)
    missing = sorted(set(old_ids).difference(ids))
    progress("labels")
    labels = _labels(tables, space_id, against) if entity == "item" else (0, 0, 0)
    progress("neighbours")
    common = sorted(set(ids).intersection(old_ids)) if against else ids
    chosen = _sample(common, QUERIES, rng)
    found = _neighbours(tables, entity, space_id, chosen, frozenset(common))
    overlap = None
    if against and len(common) > 1:
        overlap = overlap_of(found, _neighbours(tables, entity, against, chosen, frozenset(common)))
    progress("recall")
    recall, not_loaded = _recall(tables, core, entity, space_id, _sample(ids, QUERIES, rng))
    check = SpaceCheck(
        space_id,
        against,
        1.0 - len(missing) / len(old_ids) if old_ids else None,
        tuple(missing[:NEIGHBOURS]),
        *labels,
        labels[2] / labels[1] if labels[1] else None,
        overlap,
        min(1.0, NEIGHBOURS / (len(common) - 1)) if len(common) > 1 else None,
        len(chosen),
        recall,
        not_loaded,
        drift,
        drift_old,
    )
    return SpaceCheck(**{**vars(check), "problems": tuple(_problems(check))})


def _problems(check: SpaceCheck) -> Iterator[str]:
    """What speaks against the new space, each with its threshold."""
    drift = check.drift
    if not drift.vectors:
        yield "it has no vectors: `triptych spaces backfill` makes them"
        return
    for name, value in (("coverage", check.coverage), ("label coverage", check.label_coverage)):
        if value is not None and value < MIN_COVERAGE:
            yield f"{name} {value:.4f} is below {MIN_COVERAGE}"
    judged = (
        check.overlap is not None and check.chance is not None and check.chance <= NEIGHBOURS / (FEWEST_FOR_OVERLAP - 1)
    )
    if judged and (check.overlap or 0.0) < MIN_OVERLAP_OVER_CHANCE * (check.chance or 0.0):
        yield f"neighbour overlap {check.overlap:.4f} is below {MIN_OVERLAP_OVER_CHANCE:g} times chance, {check.chance:.4f}"
    if check.recall is not None and check.recall < MIN_RECALL:
        yield f"recall@{NEIGHBOURS} of the vector store {check.recall:.4f} is below {MIN_RECALL}"
    if drift.mean_cosine > MAX_MEAN_COSINE:
        yield f"mean cosine of random pairs {drift.mean_cosine:.4f} is above {MAX_MEAN_COSINE}: all vectors are nearly one"
    if drift.collapsed > MAX_COLLAPSED:
        yield f"{drift.collapsed:.1%} of items share a vector with an item of other content, above {MAX_COLLAPSED:.0%}"


# ---- coverage ----------------------------------------------------------------------------------------------------------


def _labels(tables: Tables, space_id: str, against: str | None) -> tuple[int, int, int]:
    """Interactions in all; those that join a vector in the old space; and those of them that do in the new one."""
    events = tables.read_interactions()
    item_ids = events["item_id"].to_pylist()
    times_us = events["event_timestamp"].cast(pa.int64()).to_numpy()
    new = covered(tables.embedding_rows("item", space_id), item_ids, times_us)
    old = covered(tables.embedding_rows("item", against), item_ids, times_us) if against else new
    return len(item_ids), int(old.sum()), int((old & new).sum())


def covered(rows: pa.Table, item_ids: Sequence[str], times_us: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which labels [n] have a live vector strictly before their instant, of all `rows` of an item's embedding table."""
    out = np.zeros(len(item_ids), np.bool_)
    if not rows.num_rows or not len(item_ids):
        return out
    names, code = np.unique(np.asarray(rows["item_id"].to_pylist(), object), return_inverse=True)
    event_us = rows["event_timestamp"].cast(pa.int64()).to_numpy()
    order = np.lexsort((rows["created"].cast(pa.int64()).to_numpy(), event_us, code))
    instants, rank = np.unique(event_us, return_inverse=True)
    keys = code[order] * (len(instants) + 1) + rank[order]  # ascending
    wanted = np.asarray(item_ids, object)
    place = np.minimum(np.searchsorted(names, wanted), len(names) - 1)
    before = place * (len(instants) + 1) + np.searchsorted(instants, times_us, side="left")
    row = np.searchsorted(keys, before, side="left") - 1
    at = order[np.maximum(row, 0)]
    live = ~np.asarray(rows["deleted"].to_numpy(zero_copy_only=False), np.bool_)
    return np.asarray((row >= 0) & (names[place] == wanted) & (code[at] == place) & live[at], np.bool_)


# ---- how the vectors lie -------------------------------------------------------------------------------------------------


def _drift(tables: Tables, entity: str, space_id: str, rng: np.random.Generator) -> tuple[list[str], Drift]:
    """The live ids, sorted, and the figures of one pass over the vectors."""
    index = tables.embedding_index(entity, space_id)
    ids = sorted(index)
    if not ids:
        return [], Drift(0, 0.0, 0.0, 0.0, 0.0, 0.0)
    norms = (np.inf, 0.0)
    of_vector: dict[bytes, list[str]] = {}
    for names, vectors in tables.embedding_blocks(entity, space_id):
        lengths = np.linalg.norm(vectors, axis=1)
        norms = min(norms[0], float(lengths.min())), max(norms[1], float(lengths.max()))
        for name, vector in zip(names, vectors, strict=True):
            of_vector.setdefault(_short_hash(vector), []).append(name)
    shared = [names for names in of_vector.values() if len(names) > 1]
    # Contents without a hash tell nothing apart.
    collapsed = [names for names in shared if len({index[name][0] for name in names} - {None}) > 1]
    figures = (sum(map(len, groups)) / len(ids) for groups in (shared, collapsed))
    return ids, Drift(len(ids), _mean_cosine(tables, entity, space_id, ids, rng), *norms, *figures)


def _short_hash(vector: Floats) -> bytes:
    from hashlib import blake2b

    return blake2b(vector.tobytes(), digest_size=8).digest()


def _mean_cosine(tables: Tables, entity: str, space_id: str, ids: list[str], rng: np.random.Generator) -> float:
    """Of pairs of different items, drawn from a sample of them."""
    if len(ids) < 2:
        return 0.0
    vectors = tables.read_embeddings(entity, space_id, _sample(ids, QUERIES, rng)).vectors
    one = rng.integers(0, len(vectors), PAIRS)
    other = (one + rng.integers(1, len(vectors), PAIRS)) % len(vectors)
    return float(np.mean(np.einsum("ij,ij->i", vectors[one], vectors[other])))


# ---- neighbours ----------------------------------------------------------------------------------------------------------


def overlap_of(one: Sequence[Sequence[str]], other: Sequence[Sequence[str]]) -> float:
    """Mean share of the neighbours of each query that both lists have."""
    shares = [len(set(a) & set(b)) / len(a) for a, b in zip(one, other, strict=True) if a]
    return float(np.mean(shares)) if shares else 0.0


def _neighbours(
    tables: Tables, entity: str, space_id: str, ids: Sequence[str], among: frozenset[str]
) -> list[list[str]]:
    """Of each of `ids`, the nearest other ids of `among` in the space, by its own vectors. Ties go by id."""
    queries = tables.read_embeddings(entity, space_id, ids)
    scores, names = exact_nearest(tables.embedding_blocks(entity, space_id), queries.vectors, NEIGHBOURS + 1, among)
    del scores
    place = {name: row for row, name in enumerate(queries.ids)}
    return [[name for name in names[place[one]] if name != one][:NEIGHBOURS] for one in ids]


def exact_nearest(
    blocks: Iterator[tuple[list[str], Floats]], queries: Floats, k: int, among: frozenset[str] | None = None
) -> tuple[list[list[float]], list[list[str]]]:
    """Cosines and ids of the `k` unit vectors nearest to each query [q, dim], best first, over blocks of (ids, vectors [n, dim])."""
    best: list[list[tuple[float, str]]] = [[] for _ in queries]
    for ids, vectors in _slices(blocks):
        kept = [row for row, name in enumerate(ids) if among is None or name in among]
        if not kept:
            continue
        # Rounded, so that equal vectors tie whatever the block, and ties go by id.
        cosines = np.round((queries @ vectors[kept].T).astype(np.float64) / TIE) * TIE
        names = np.asarray([ids[row] for row in kept], object)
        for row, scores in enumerate(cosines):
            top = _top(scores, names, k)
            best[row] = sorted([*best[row], *top], key=lambda pair: (-pair[0], pair[1]))[:k]
    return [[score for score, _ in row] for row in best], [[name for _, name in row] for row in best]


def _slices(blocks: Iterator[tuple[list[str], Floats]]) -> Iterator[tuple[list[str], Floats]]:
    """Blocks of at most `ROWS_PER_PRODUCT` rows, since a part may hold a whole catalogue."""
    for ids, vectors in blocks:
        for first in range(0, len(ids), ROWS_PER_PRODUCT):
            yield ids[first : first + ROWS_PER_PRODUCT], vectors[first : first + ROWS_PER_PRODUCT]


def _top(scores: NDArray[np.float64], names: NDArray[np.object_], k: int) -> list[tuple[float, str]]:
    """The best `k` of one block, and whatever ties with the last of them."""
    floor = np.partition(scores, -k)[-k] if len(scores) > k else -np.inf
    return [(float(scores[row]), str(names[row])) for row in np.flatnonzero(scores >= floor)]


def _recall(
    tables: Tables, core: MilvusCore | None, entity: str, space_id: str, ids: list[str]
) -> tuple[float | None, str]:
    """The share of the exact nearest that the vector store finds, or why it was not asked."""
    view = view_name(entity, space_id)
    if core is None:
        return None, "no Milvus answers: `triptych up`"
    try:
        rows = core.count(view)
    except ViewNotFoundError:
        return None, f"there is no view {view} yet: `triptych materialize`"
    if not rows:
        return None, f"the view {view} is empty: `triptych materialize`"
    if not ids:
        return None, "there is nothing to search with"
    queries = tables.read_embeddings(entity, space_id, ids).vectors
    scores, _ = exact_nearest(tables.embedding_blocks(entity, space_id), queries, NEIGHBOURS)
    found = core.search(view, queries, NEIGHBOURS)
    shares = [
        # By cosine rather than by id: which of several equal vectors is found makes no difference.
        sum(float(score) >= exact[-1] - 2 * TIE for score in got) / len(exact)
        for exact, got in zip(scores, found.scores, strict=True)
    ]
    return float(np.mean(np.minimum(shares, 1.0))), ""


def _sample(ids: Sequence[str], most: int, rng: np.random.Generator) -> list[str]:
    if len(ids) <= most:
        return list(ids)
    return [ids[row] for row in np.sort(rng.choice(len(ids), most, replace=False))]
