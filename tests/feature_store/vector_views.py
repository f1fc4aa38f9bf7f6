"""Views of random unit vectors, for tests of what searches them."""

import pyarrow as pa

from feature_store.milvus_schema import ViewSchema

ROWS, DIM = 4_000, 64


def made(core, unit_vectors, kind, *, name=None, rows=ROWS, dim=DIM, metric="COSINE", flush=True):
    """A view of random unit vectors; returns (name, ids, vectors)."""
    view = name or f"item_{kind.lower()}_{metric.lower()}"
    core.create_view(ViewSchema(view, {}, "vector", dim, metric, kind))
    ids, vectors = [f"i{row:05d}" for row in range(rows)], unit_vectors(rows, dim)
    if rows:
        core.upsert(view, table(ids, vectors))
    if rows and flush:
        core.flush(view)
    return view, ids, vectors


def table(ids, vectors):
    return pa.table(
        {
            "entity_id": ids,
            "event_timestamp": pa.array([1] * len(ids), pa.timestamp("us", "UTC")),
            "vector": pa.array(list(vectors), pa.list_(pa.float32())),
        }
    )
