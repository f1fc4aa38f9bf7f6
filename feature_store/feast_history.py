"""Point-in-time training sets for any Feast repository: labels in, the same labels with the features that were true before them out.

Labels are streamed, so memory follows `rows_per_join` and not their number; every label comes out once, in its place, with its own
columns as they were. Which row of a view a label sees is decided in `feast_asof.py`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from feast import FeatureService, FeatureStore
from numpy.typing import NDArray

from feature_store.errors import PointInTimeError
from feature_store.feast_asof import AsOf
from feature_store.files import whole

ROWS_PER_JOIN: Final = 20_000
NANOSECONDS_PER_MICROSECOND: Final = 1_000
Labels: TypeAlias = pa.Table | pa.RecordBatchReader | pd.DataFrame | str | Path


@dataclass(frozen=True)
class PointInTimeInfo:
    """What a training set holds.

    Attributes:
        path: the Parquet file.
        rows: as many as there were labels.
        features: the features' columns.
        found: by view, the number of labels for which something was true before them.
        joins: how many times the views were joined.
    """

    path: Path
    rows: int
    features: list[str]
    found: dict[str, int]
    joins: int


def point_in_time(
    store: FeatureStore,
    labels: Labels,
    features: Sequence[str] | FeatureService,
    out: str | Path,
    *,
    timestamp_column: str = "event_timestamp",
    strict: bool = True,
    full_feature_names: bool = True,
    rows_per_join: int = ROWS_PER_JOIN,
    progress: Callable[[int], None] | None = None,
) -> PointInTimeInfo:
    """Write labels with their features as of each label's instant to the Parquet file `out`, whole or not at all.

    Every label comes out exactly once, in the input's order, with its own columns; duplicates are kept, and a feature is null where
    nothing was true before the label, where it had expired (the view's ttl), or where the newest row was a tombstone (the column
    named by the view's tag `deleted_column`).

    Args:
        store: any repository whose views read local Parquet files; definitions must have been applied.
        labels: an Arrow table or stream, a pandas frame (its index is left out), or the path of a Parquet file or of a folder of
            them (read in the order of their names). Holds the join keys, a time, and whatever else.
        features: "view:feature" references, or a FeatureService.
        out: replaced if it is there.
        timestamp_column: of the labels; a time without a zone is UTC, and what is below a microsecond is cut off.
        strict: whether a feature row at a label's very microsecond is not seen; if not, it is, as in Feast's own call.
        full_feature_names: columns are `<view>__<feature>`, or `<feature>`.
        rows_per_join: labels in memory at a time; every join reads the views' files.
        progress: called with the number of labels joined since the last call.

    Raises:
        PointInTimeError: unknown features, columns that are missing or clash, times that are null or no times. Nothing is written.
    """
    out = Path(out)
    _check_out(out, labels, rows_per_join)
    reader = _reader(labels, rows_per_join)
    out.parent.mkdir(parents=True, exist_ok=True)
    with closing(AsOf(store, features, strict=strict, spill_folder=out.parent)) as joined:
        names = joined.asked.columns(full_feature_names=full_feature_names)
        _check_labels(reader.schema, names, timestamp_column)
        joined.check_columns(reader.schema.names)
        tables = _joined(joined, reader, names, timestamp_column, rows_per_join)
        rows, joins = _write(out, tables, progress)
        return PointInTimeInfo(out, rows, names, {view: joined.found[view] for view in joined.views}, joins)


def _check_out(out: Path, labels: Labels, rows_per_join: int) -> None:
    if rows_per_join < 1:
        raise PointInTimeError(f"rows_per_join is {rows_per_join}: it must be at least 1")
    if out.is_dir():
        raise PointInTimeError(f"{out} is a folder: name the Parquet file to write")
    if isinstance(labels, str | Path) and Path(labels).resolve() in out.resolve().parents:
        raise PointInTimeError(
            f"{out} lies among the labels of {labels}, and would be read as one of them: write elsewhere"
        )


def _reader(labels: Labels, rows: int) -> pa.RecordBatchReader:
    """Labels as a stream of small batches, in order."""
    if isinstance(labels, pa.RecordBatchReader):
        return labels
    if isinstance(labels, pa.Table):
        return labels.to_reader(rows)
    try:
        if isinstance(labels, pd.DataFrame):
            return pa.Table.from_pandas(labels, preserve_index=False).to_reader(rows)
        return _file_reader(Path(labels), rows)
    except (pa.ArrowException, OSError) as error:
        raise PointInTimeError(f"the labels cannot be read: {error}") from error


def _file_reader(path: Path, rows: int) -> pa.RecordBatchReader:
    files = sorted(path.glob("**/*.parquet")) if path.is_dir() else [path]
    if not files:
        raise PointInTimeError(f"there are no Parquet files in {path}")
    schema = pa.unify_schemas([pq.read_schema(file) for file in files], promote_options="permissive")
    # One batch is read ahead, by one thread: order is kept, and memory does not grow with the files.
    dataset = ds.dataset([str(file) for file in files], schema=schema, format="parquet")
    return dataset.scanner(batch_size=rows, batch_readahead=1, fragment_readahead=1, use_threads=False).to_reader()


def _check_labels(schema: pa.Schema, features: list[str], timestamp_column: str) -> None:
    names = schema.names
    if timestamp_column not in names:
        raise PointInTimeError(
            f"the labels have no column {timestamp_column!r}: name their time's by timestamp_column; they have {', '.join(names)}"
        )
    kind = schema.field(timestamp_column).type
    if not (pa.types.is_timestamp(kind) or pa.types.is_date(kind)):
        raise PointInTimeError(f"the labels' column {timestamp_column!r} is {kind}: make it a timestamp")
    clash = sorted({name for name in names if name in features})
    if clash:
        raise PointInTimeError(
            f"the labels' columns {', '.join(clash)} have names of features: rename them, or change full_feature_names"
        )
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise PointInTimeError(f"the labels have several columns named {', '.join(twice)}: rename them")


def _joined(
    joined: AsOf, reader: pa.RecordBatchReader, names: list[str], timestamp_column: str, rows: int
) -> Iterator[pa.Table]:
    """Labels with their features, at most `rows` at a time; one table without rows where there are no labels."""
    done = 0
    for labels in _chunks(reader, rows):
        found = joined.features(labels, label_us(labels[timestamp_column], timestamp_column, done))
        fields = [pa.field(name, column.type) for name, column in zip(names, found.columns, strict=True)]
        schema = pa.schema([*reader.schema, *fields], metadata=reader.schema.metadata)
        yield pa.Table.from_arrays([*labels.columns, *found.columns], schema=schema)
        done += labels.num_rows


def _chunks(reader: pa.RecordBatchReader, rows: int) -> Iterator[pa.Table]:
    """The stream's rows in tables of exactly `rows`, but for the last."""
    held: list[pa.RecordBatch] = []
    count, yielded = 0, False
    for batch in reader:
        held.append(batch)
        count += batch.num_rows
        while count >= rows:
            table = pa.Table.from_batches(held, reader.schema)
            yield table.slice(0, rows)
            rest = table.slice(rows)
            held, count, yielded = rest.to_batches(), rest.num_rows, True
    if count or not yielded:
        yield pa.Table.from_batches(held, reader.schema)


def label_us(times: pa.ChunkedArray, name: str = "event_timestamp", first_row: int = 0) -> NDArray[np.int64]:
    """Labels' times as int64 microseconds [n], cut down to them; a time without a zone is UTC. Raises `PointInTimeError` for nulls."""
    if times.null_count:
        row = first_row + pc.index(pc.is_null(times), value=True).as_py()
        raise PointInTimeError(
            f"the labels' time {name!r} is null in row {row}: give every label a time, or leave it out"
        )
    if not pa.types.is_timestamp(times.type):
        times = times.cast(pa.timestamp("us"))
    values = times.cast(pa.int64()).to_numpy()
    if times.type.unit == "ns":
        return np.asarray(values // NANOSECONDS_PER_MICROSECOND, np.int64)
    per_unit = {"us": 1, "ms": 1_000, "s": 1_000_000}[times.type.unit]
    return np.asarray(values * per_unit, np.int64)


def _write(out: Path, tables: Iterator[pa.Table], progress: Callable[[int], None] | None) -> tuple[int, int]:
    """Write the tables as one file; return its rows and how many tables there were."""
    rows = count = 0
    first = next(tables)
    with whole(out) as temporary, pq.ParquetWriter(temporary, first.schema, compression="zstd") as writer:
        for table in _after(first, tables):
            writer.write_table(table.cast(first.schema))
            rows, count = rows + table.num_rows, count + 1
            if progress is not None:
                progress(table.num_rows)
    return rows, count


def _after(first: pa.Table, rest: Iterator[pa.Table]) -> Iterator[pa.Table]:
    yield first
    yield from rest
