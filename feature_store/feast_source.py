"""Reads a Feast view's Parquet source with DuckDB: which rows a load is to see, the newest of each key, as a stream of batches.

DuckDB's window function runs over keys and times only, within a fixed memory; what won is then streamed from the files, so that a load's
memory does not grow with the number of rows but for one byte of each.
"""

import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from feast import FeatureView, FileSource
from feast.data_format import ParquetFormat
from feast.data_source import DataSource
from numpy.typing import NDArray

from feature_store.errors import RefusedRowsError, TableError
from feature_store.feast_types import joined_ids
from feature_store.milvus_schema import ViewSchema
from feature_store.schemas import TIMESTAMP, VECTOR
from feature_store.watermarks import Watermark

MEMORY_LIMIT: Final = "192MB"
ROWS_AT_ONCE: Final = 50_000
READ_BUFFER_BYTES: Final = 1 << 20
DELETED_TAG: Final = "deleted_column"


@dataclass(frozen=True)
class Window:
    """Which rows to load: an explicit range of valid time, or (`mark`) what an earlier load has not seen, until `end_us`."""

    end_us: int
    start_us: int | None = None
    mark: Watermark | None = None

    def condition(self, event: str, created: str, overlap_us: int) -> str:
        """The window as SQL over microseconds."""
        if self.start_us is not None:
            return f"{event} BETWEEN {self.start_us} AND {self.end_us}"
        if self.mark is None:
            return f"{event} <= {self.end_us}"
        # Rows made since then, and rows made earlier whose valid time lay in the future then.
        is_new = f"{created} > {self.mark.created_us - overlap_us} OR {event} > {self.mark.end_us}"
        return f"{event} <= {self.end_us} AND ({is_new})"


class NewestRows:
    """The newest row per key of a view's source within a window.

    Attributes:
        count: number of keys.
        created_us: latest making time of any row of the source, in or out of the window; None for an empty source.
    """

    def __init__(
        self, view: FeatureView, schema: ViewSchema, window: Window, overlap_us: int, root: Path | None = None
    ) -> None:
        source = view.batch_source
        renamed = {new: old for old, new in source.field_mapping.items()}
        self._schema = schema
        self._keys = sorted(entity.name for entity in view.entity_columns)
        event, created = source.timestamp_field, source.created_timestamp_column or source.timestamp_field
        self._event, self._created = renamed.get(event, event), renamed.get(created, created)
        self._deleted = view.tags.get(DELETED_TAG)
        vector = [schema.vector_field] if schema.vector_field else []
        self._features = {name: renamed.get(name, name) for name in [*schema.fields, *vector]}
        self._stored_keys = [renamed.get(key, key) for key in self._keys]
        self._files = source_files(source, root)
        with closing(_database()) as database:
            self._winners, self.created_us = self._select(database, window, overlap_us)
        self.count = int(sum(mask.sum() for mask in self._winners.values()))

    def _select(
        self, database: duckdb.DuckDBPyConnection, window: Window, overlap_us: int
    ) -> tuple[dict[str, NDArray[np.bool_]], int | None]:
        """Which rows of each file are the newest of their key, as a mask, and the latest making time."""
        if not self._files:
            return {}, None
        keys = ", ".join(sql_name(key) for key in self._stored_keys)
        event = _us(self._event)
        self._refuse_timeless(database, keys)
        created = f"coalesce({_us(self._created)}, {event})"
        order = f"{event} DESC, {created} DESC, f DESC, file_row_number DESC"
        # Names are quoted, times are integers, and files are this home's own.
        reader = database.sql(f"""
            SELECT f, file_row_number FROM {self._table()}
            WHERE {window.condition(event, created, overlap_us)}
            QUALIFY row_number() OVER (PARTITION BY {keys} ORDER BY {order}) = 1
        """).to_arrow_reader(ROWS_AT_ONCE)  # noqa: S608
        masks: dict[str, NDArray[np.bool_]] = {}
        for batch in reader:
            _mark(masks, batch)
        latest = database.execute(f"SELECT max({created}) FROM {self._table()}").fetchall()[0][0]  # noqa: S608
        return masks, latest

    def _refuse_timeless(self, database: duckdb.DuckDBPyConnection, keys: str) -> None:
        """Raise `RefusedRowsError` for rows that say no time: no window would ever have them."""
        timeless = f"FROM {self._table()} WHERE {sql_name(self._event)} IS NULL"
        first = database.execute(f"SELECT {keys} {timeless} LIMIT 1").fetchall()
        if first:
            count = database.execute(f"SELECT count(*) {timeless}").fetchall()[0][0]
            key = ", ".join(map(str, first[0]))
            raise RefusedRowsError(
                f"view {self._schema.name}, row {key!r}: {self._event} is null; {count} such rows, nothing was written: give them a time, "
                "or take them out of the source",
                [key],
            )

    def _table(self) -> str:
        files = ", ".join(sql_text(str(file)) for file in self._files)
        return f"read_parquet([{files}], union_by_name = true, hive_partitioning = false, filename = 'f', file_row_number = true)"

    def batches(self, rows: int) -> Iterator[pa.Table]:
        """The rows as `MilvusCore.upsert` wants them, at most `rows` at a time, without those of row groups in which none won."""
        for file, mask in sorted(self._winners.items()):
            with pq.ParquetFile(file, pre_buffer=False, buffer_size=READ_BUFFER_BYTES) as parquet:
                yield from self._file_batches(parquet, mask, rows)

    def _file_batches(self, parquet: pq.ParquetFile, mask: NDArray[np.bool_], rows: int) -> Iterator[pa.Table]:
        there = set(parquet.schema_arrow.names)
        columns = [name for name in self._columns() if name in there]
        first = 0
        for group in range(parquet.num_row_groups):
            size = parquet.metadata.row_group(group).num_rows
            if mask[first : first + size].any():
                at = first
                for batch in parquet.iter_batches(rows, [group], columns, use_threads=False):
                    wins = mask[at : at + batch.num_rows]
                    at += batch.num_rows
                    if wins.any():
                        yield self._shaped(pa.table(batch if wins.all() else batch.filter(pa.array(wins))))
            first += size

    def _columns(self) -> list[str]:
        deleted = [self._deleted] if self._deleted else []
        return list(dict.fromkeys([*self._stored_keys, self._event, self._created, *deleted, *self._features.values()]))

    def _shaped(self, table: pa.Table) -> pa.Table:
        """A file's rows with the columns of an upsert; a column that only other files have is null."""
        event = _timestamps(table[self._event])
        created = (
            pc.coalesce(_timestamps(table[self._created]), event) if self._created in table.column_names else event
        )
        columns: dict[str, Any] = {
            self._schema.key: joined_ids([table[key] for key in self._stored_keys]),
            "event_timestamp": event,
            "created": created,
        }
        if self._deleted in table.column_names:
            columns["deleted"] = table[self._deleted]
        for name, stored in self._features.items():
            arrow = self._schema.fields.get(name, VECTOR)
            columns[name] = table[stored] if stored in table.column_names else pa.nulls(table.num_rows, arrow)
        return pa.table(columns)


def _database() -> duckdb.DuckDBPyConnection:
    """A DuckDB of its own, which spills to a temporary folder rather than take more memory."""
    database = duckdb.connect(config={"memory_limit": MEMORY_LIMIT, "temp_directory": tempfile.gettempdir()})
    database.execute("SET TimeZone = 'UTC'")
    return database


def _mark(masks: dict[str, NDArray[np.bool_]], winners: pa.RecordBatch) -> None:
    """Set the winners' rows in the masks of their files."""
    files = winners["f"].dictionary_encode()
    codes, rows = files.indices.to_numpy(), winners["file_row_number"].to_numpy()
    for code, file in enumerate(files.dictionary.to_pylist()):
        if file not in masks:
            masks[file] = np.zeros(pq.read_metadata(file).num_rows, np.bool_)
        masks[file][rows[codes == code]] = True


def _timestamps(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column of times in microseconds, UTC; times without a zone are UTC, as Feast has it."""
    return column.cast(TIMESTAMP, safe=False)


def is_local_parquet(source: DataSource) -> bool:
    """Whether a source is Parquet files of this machine."""
    if not isinstance(source, FileSource) or "://" in source.path:
        return False
    return source.file_format is None or isinstance(source.file_format, ParquetFormat)


def source_files(source: FileSource, root: Path | None = None) -> list[Path]:
    """The Parquet files of a source as they are now: of a folder and the folders in it, of a pattern, or the one file.

    A relative path is one from `root`, the repository's folder. Raises `TableError` where there is nothing at the path.
    """
    path = Path(source.path) if root is None else Path(root) / source.path
    if path.is_dir():
        return sorted(path.glob("**/*.parquet"))
    if "*" in source.path:
        anchor = Path(path.absolute().anchor)
        return sorted(anchor.glob(str(path.absolute().relative_to(anchor))))
    if not path.exists():
        raise TableError(f"source {source.name} has no file or folder {path}: write it, or mend the source's path")
    return [path]


def _us(column: str) -> str:
    return f"epoch_us(CAST({sql_name(column)} AS TIMESTAMPTZ))"


def sql_name(identifier: str) -> str:
    """A column's name, quoted for SQL."""
    return '"' + identifier.replace('"', '""') + '"'


def sql_text(value: str) -> str:
    """A text literal, quoted for SQL."""
    return "'" + value.replace("'", "''") + "'"
