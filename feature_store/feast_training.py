"""Point-in-time training sets: every label with the version of its item that was true strictly before it, joined by Feast.

Feast joins `<=`, so versions are asked for at the instant they begin, and a label at t gets the version that began at t - 1 us or
earlier. Histories are not joined here: they are computed from the events by `history_as_of`, as in serving.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from feature_store.errors import FeatureStoreError
from feature_store.feast_cli import open_store
from feature_store.files import replace_folder
from feature_store.home import Home
from feature_store.item_versions import ItemVersions, item_versions
from feature_store.schemas import VECTOR, now_us
from feature_store.spaces import find_space, view_name
from feature_store.tables import Tables

PROFILE: Final = ("title", "category", "price")
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
    events = Tables(home).read_interactions(before_us=cutoff_us)
    temporary = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    labels = _write_events(temporary, events, versions)
    with closing(_Join(home)) as joined:
        _write_items(temporary, joined, versions, list(spaces), progress)
        users = _write_users(temporary, joined, home, events, text_profile_space, cutoff_us)
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
        "feature_views": sorted(joined.views),
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


class _Join:
    """Feast's point-in-time join, and which views it was asked for."""

    def __init__(self, home: Home) -> None:
        self._store = open_store(home)
        self.views: set[str] = set()

    def features(self, key: str, ids: Any, times_us: Any, references: list[str]) -> pa.Table:
        """The features of `ids` as of `times_us`, one row each, in order; columns are named `<view>__<feature>`."""
        from feast.errors import FeatureViewNotFoundException

        self.views |= {reference.split(":")[0] for reference in references}
        times = pd.to_datetime(np.asarray(times_us, np.int64), unit="us", utc=True)
        asked = pd.DataFrame({"at_row": np.arange(len(ids)), key: np.asarray(ids, object), "event_timestamp": times})
        try:
            job = self._store.get_historical_features(asked, references, full_feature_names=True)
        except FeatureViewNotFoundException as error:
            raise FeatureStoreError(f"{error}: run `triptych materialize`, which registers views") from error
        table = job.to_arrow().sort_by("at_row")
        if table.num_rows != len(ids):
            raise FeatureStoreError(f"the point-in-time join gave {table.num_rows} rows for {len(ids)}")
        return table

    @staticmethod
    def close() -> None:
        """Close the DuckDB connection that Feast leaves open, since DuckDB complains of it when the process ends."""
        import ibis

        backend = ibis.options.default_backend
        if backend is not None:
            backend.disconnect()
            ibis.options.default_backend = None


def _write_items(
    folder: Path, joined: _Join, versions: ItemVersions, spaces: list[str], progress: Callable[[int], None] | None
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
            *(pa.field(f"vec_{space_id}", VECTOR) for space_id in spaces),
        ]
    )
    with pq.ParquetWriter(folder / "items.parquet", schema, compression="zstd") as writer:
        for table in _item_tables(joined, versions, spaces, schema):
            writer.write_table(table)
            if progress is not None:
                progress(table.num_rows)


def _item_tables(joined: _Join, versions: ItemVersions, spaces: list[str], schema: pa.Schema) -> Iterator[pa.Table]:
    views = [view_name("item", space_id) for space_id in spaces]
    references = [*(f"item_profile:{name}" for name in PROFILE), *(f"{view}:vector" for view in views)]
    for first in range(0, len(versions), ROWS_PER_JOIN):
        rows = np.arange(first, min(first + ROWS_PER_JOIN, len(versions)))
        ids = versions.ids[versions.code[rows]]
        features = joined.features("item_id", ids, versions.start_us[rows], references)
        known = [rows, ids, versions.start_us[rows], versions.end_us[rows]]
        wanted = [*(f"item_profile__{name}" for name in PROFILE), *(f"{view}__vector" for view in views)]
        columns = [*(pa.array(column) for column in known), *(features[name] for name in wanted)]
        yield pa.table(columns, names=schema.names).cast(schema)


def _write_events(folder: Path, events: pa.Table, versions: ItemVersions) -> int:
    """Write events and labels; return the number of labels."""
    times = events["event_timestamp"].cast(pa.int64())
    table = events.select(["event_id", "user_id", "item_id", "event_type", "value"]).append_column(
        "timestamp_us", times
    )
    pq.write_table(table, folder / "events.parquet", compression="zstd")
    rows = versions.rows_at(table["item_id"].to_pylist(), times.to_numpy())
    labels = table.append_column("item_row", pa.array(rows, pa.int32())).filter(pa.array(rows >= 0))
    order = ["event_id", "user_id", "item_id", "item_row", "event_type", "value", "timestamp_us"]
    pq.write_table(labels.select(order), folder / "labels.parquet", compression="zstd")
    return int(labels.num_rows)


def _write_users(
    folder: Path, joined: _Join, home: Home, events: pa.Table, space_id: str | None, cutoff_us: int | None
) -> int:
    """Write users and, where asked for, their newest profile vectors before the cutoff and since when; return their number."""
    ids = sorted(set(events["user_id"].to_pylist()) | set(Tables(home).read_users()["user_id"].to_pylist()))
    columns: dict[str, Any] = {"user_id": pa.array(ids, pa.string())}
    if space_id is not None:
        view = view_name("user", space_id)
        at = np.full(len(ids), (cutoff_us if cutoff_us is not None else now_us()) - 1, np.int64)
        vectors = joined.features("user_id", ids, at, [f"{view}:vector"])[f"{view}__vector"] if ids else pa.nulls(0)
        # Feast does not say since when a value was true; the table does.
        known = Tables(home).embedding_index("user", space_id, before_us=int(at[0]) + 1 if ids else None)
        columns["profile_from_us"] = pa.array([known[i][1] if i in known else None for i in ids], pa.int64())
        columns[f"vec_{space_id}"] = vectors.cast(VECTOR)
    pq.write_table(pa.table(columns), folder / "users.parquet", compression="zstd")
    return len(ids)
