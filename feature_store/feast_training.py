"""The ranker's training sets: every label with the version of its item that was true strictly before it, joined as in `feast_asof.py`.

Versions are asked for at the instant they begin, that instant included, and a label at t gets the version that began at t - 1 us or
earlier. Histories are not joined here: they are computed from the events by `history_as_of`, as in serving.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from feast import FeatureStore

from feature_store.errors import FeatureStoreError, PointInTimeError
from feature_store.feast_asof import AsOf
from feature_store.feast_cli import open_store
from feature_store.files import replace_folder
from feature_store.home import Home
from feature_store.item_versions import ItemVersions, item_versions
from feature_store.schemas import VECTOR, now_us
from feature_store.spaces import find_space, view_name
from feature_store.tables import Tables

PROFILE: Final = ("title", "category", "price", "tags")
CIRCUMSTANCES: Final = ("device", "impression_id", "position", "propensity")  # of labels: how each came about
ROWS_PER_JOIN: Final = 20_000  # bounds memory: so many rows of all vectors are held at once


@dataclass(frozen=True)
class TrainingSetInfo:
    """What a training set holds, in rows. `dropped_labels` are events about items that had no version before them."""

    folder: Path
    items: int
    versions: int
    labels: int
    dropped_labels: int
    events: int
    users: int


def build_training_set(
    home: Home,
    out: Path,
    *,
    spaces: Sequence[str],
    text_profile_space: str | None = None,
    cutoff: datetime | int | None = None,
    progress: Callable[[int], None] | None = None,
) -> TrainingSetInfo:
    """Write the training set to the folder `out`, whole or not at all, replacing what is there.

    Args:
        home: whose tables and registry; its definitions must have been applied (`triptych materialize`).
        out: items.parquet, labels.parquet, events.parquet, users.parquet and meta.json go here.
        spaces: item spaces to join.
        text_profile_space: users' text space; users.parquet has each user's newest vector before `cutoff` and since when it
            was true (`profile_from_us`): labels at or before that instant must not see it.
        cutoff: only what was true before it (a datetime, or microseconds); everything where left out.
        progress: called with the number of item versions joined.

    Raises:
        FeatureStoreError: a space or its view is not registered.
    """
    cutoff_us = _as_us(cutoff)
    described = [find_space(home, space_id) for space_id in spaces]
    versions = item_versions(home, spaces, cutoff_us)
    Tables(home).ensure()  # a home from before a column was added has no part with it
    events = Tables(home).read_interactions(before_us=cutoff_us)
    temporary = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    labels = _write_events(temporary, events, versions)
    store = open_store(home)
    item_views = [view_name("item", space_id) for space_id in spaces]
    user_views = [view_name("user", text_profile_space)] if text_profile_space is not None else []
    _write_items(temporary, store, versions, list(spaces), progress)
    users = _write_users(temporary, store, home, events, text_profile_space, cutoff_us)
    counts = {
        "items": len(np.unique(versions.code)),
        "versions": len(versions),
        "labels": labels,
        "dropped_labels": events.num_rows - labels,
        "events": events.num_rows,
        "users": users,
    }
    meta = {
        "spaces": [asdict(space) for space in described],
        "feature_views": sorted(["item_profile", *item_views, *user_views]),
        "cutoff_us": cutoff_us,
        "counts": counts,
        "created": datetime.now(UTC).isoformat(),
    }
    (temporary / "meta.json").write_text(json.dumps(meta, indent=2, ensure_ascii=False) + "\n")
    replace_folder(temporary, out)
    return TrainingSetInfo(out, **counts)


def _as_us(cutoff: datetime | int | None) -> int | None:
    if isinstance(cutoff, datetime):
        return int(pd.Timestamp(cutoff).tz_convert("UTC").as_unit("us").value)
    return cutoff


@contextmanager
def _as_of(folder: Path, store: FeatureStore, references: list[str]) -> Iterator[AsOf]:
    """The features at instants, those included; what memory cannot hold is spilled to `folder`. Raises `FeatureStoreError` where they are not registered."""
    try:
        joined = AsOf(store, references, strict=False, spill_folder=folder)
    except PointInTimeError as error:
        raise FeatureStoreError(f"{error}; `triptych materialize` registers views") from error
    with closing(joined):
        yield joined


def _write_items(
    folder: Path,
    store: FeatureStore,
    versions: ItemVersions,
    spaces: list[str],
    progress: Callable[[int], None] | None,
) -> None:
    schema = pa.schema(
        [
            pa.field("item_row", pa.int32()),
            pa.field("item_id", pa.string()),
            pa.field("valid_from_us", pa.int64()),
            pa.field("valid_to_us", pa.int64()),
            pa.field("title", pa.string()),
            pa.field("category", pa.string()),
            pa.field("price", pa.float64()),
            pa.field("tags", pa.list_(pa.string())),
            *(pa.field(f"vec_{space_id}", VECTOR) for space_id in spaces),
        ]
    )
    with pq.ParquetWriter(folder / "items.parquet", schema, compression="zstd") as writer:
        views = [view_name("item", space_id) for space_id in spaces]
        references = [*(f"item_profile:{name}" for name in PROFILE), *(f"{view}:vector" for view in views)]
        with _as_of(folder, store, references) as joined:
            for table in _item_tables(joined, versions, schema):
                writer.write_table(table)
                if progress is not None:
                    progress(table.num_rows)


def _item_tables(joined: AsOf, versions: ItemVersions, schema: pa.Schema) -> Iterator[pa.Table]:
    for first in range(0, len(versions), ROWS_PER_JOIN):
        rows = np.arange(first, min(first + ROWS_PER_JOIN, len(versions)))
        ids = versions.ids[versions.code[rows]]
        labels = pa.table({"item_id": pa.array(ids, pa.string())})
        features = joined.features(labels, versions.start_us[rows])
        known = [rows, ids, versions.start_us[rows], versions.end_us[rows]]
        columns = [*(pa.array(column) for column in known), *features.columns]
        yield pa.table(columns, names=schema.names).cast(schema)


def _write_events(folder: Path, events: pa.Table, versions: ItemVersions) -> int:
    """Write events and labels; return the number of labels."""
    times = events["event_timestamp"].cast(pa.int64())
    table = events.select(["event_id", "user_id", "item_id", "event_type", "value", *CIRCUMSTANCES]).append_column(
        "timestamp_us", times
    )
    pq.write_table(table.drop_columns(list(CIRCUMSTANCES)), folder / "events.parquet", compression="zstd")
    rows = versions.rows_at(table["item_id"].to_pylist(), times.to_numpy())
    labels = table.append_column("item_row", pa.array(rows, pa.int32())).filter(pa.array(rows >= 0))
    order = ["event_id", "user_id", "item_id", "item_row", "event_type", "value", "timestamp_us", *CIRCUMSTANCES]
    pq.write_table(labels.select(order), folder / "labels.parquet", compression="zstd")
    return int(labels.num_rows)


def _write_users(
    folder: Path, store: FeatureStore, home: Home, events: pa.Table, space_id: str | None, cutoff_us: int | None
) -> int:
    """Write users and, where asked for, their newest profile vectors before the cutoff and since when; return their number."""
    ids = sorted(set(events["user_id"].to_pylist()) | set(Tables(home).read_users()["user_id"].to_pylist()))
    columns: dict[str, Any] = {"user_id": pa.array(ids, pa.string())}
    if space_id is not None:
        at = np.full(len(ids), (cutoff_us if cutoff_us is not None else now_us()) - 1, np.int64)
        with _as_of(folder, store, [f"{view_name('user', space_id)}:vector"]) as joined:
            vectors = joined.features(pa.table({"user_id": columns["user_id"]}), at).column(0)
        # Feast does not say since when a value was true; the table does.
        known = Tables(home).embedding_index("user", space_id, before_us=int(at[0]) + 1 if ids else None)
        columns["profile_from_us"] = pa.array([known[i][1] if i in known else None for i in ids], pa.int64())
        columns[f"vec_{space_id}"] = vectors.cast(VECTOR)
    pq.write_table(pa.table(columns), folder / "users.parquet", compression="zstd")
    return len(ids)
