"""Reads a Feast view's Parquet source with DuckDB: which rows a load is to see, the newest of each key, as a stream of batches.

The window function runs over keys and times only; vectors are read only from the files that hold a row that won.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import duckdb
import pyarrow as pa
from feast import FeatureView, FileSource

from feature_store.feast_types import joined_ids
from feature_store.milvus_schema import ViewSchema
from feature_store.schemas import TIMESTAMP
from feature_store.watermarks import Watermark

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

    def __init__(self, view: FeatureView, schema: ViewSchema, window: Window, overlap_us: int) -> None:
        source = view.batch_source
        self._schema = schema
        self._keys = [entity.name for entity in view.entity_columns]
        self._renamed = {new: old for old, new in source.field_mapping.items()}
        self._event = _us(source.timestamp_field)
        self._created = _us(source.created_timestamp_column or source.timestamp_field)
        self._deleted = view.tags.get(DELETED_TAG)
        self._db = duckdb.connect()
        self._db.execute("SET TimeZone = 'UTC'")
        self._files = source_files(source)
        self.count, self.created_us = self._select(window, overlap_us)

    def _table(self, files: Iterable[Path | str]) -> str:
        files = ", ".join(_text(str(file)) for file in files)
        return f"read_parquet([{files}], union_by_name = true, hive_partitioning = false, filename = 'f', file_row_number = true)"

    def _column(self, name: str) -> str:
        return _name(self._renamed.get(name, name))

    def _select(self, window: Window, overlap_us: int) -> tuple[int, int | None]:
        if not self._files:
            return 0, None
        keys = ", ".join(self._column(key) for key in self._keys)
        order = f"{self._event} DESC, {self._created} DESC, f DESC, file_row_number DESC"
        # Names are quoted, times are integers, and files are this home's own.
        self._db.execute(f"""
            CREATE TEMP TABLE newest AS SELECT f, file_row_number FROM {self._table(self._files)}
            WHERE {window.condition(self._event, self._created, overlap_us)}
            QUALIFY row_number() OVER (PARTITION BY {keys} ORDER BY {order}) = 1
        """)  # noqa: S608
        count = self._one("SELECT count(*) FROM newest")
        return int(count), self._one(f"SELECT max({self._created}) FROM {self._table(self._files)}")  # noqa: S608

    def _winners(self) -> str:
        """The files with a newest row, with all files' columns: one that only others have is null."""
        files = [file for (file,) in self._db.execute("SELECT DISTINCT f FROM newest").fetchall()]
        columns = f"SELECT * FROM {self._table(self._files)} WHERE false"  # noqa: S608
        return f"(SELECT * FROM {self._table(files)} UNION ALL BY NAME {columns})"  # noqa: S608

    def _one(self, query: str) -> Any:
        # All rows, though there is one: a result that was not read to its end keeps the connection busy.
        return self._db.execute(query).fetchall()[0][0]

    def batches(self, rows: int) -> Iterator[pa.Table]:
        """The rows as `MilvusCore.upsert` wants them, `rows` at a time."""
        if not self.count:
            return
        names = [*self._schema.fields, *([self._schema.vector_field] if self._schema.vector_field else [])]
        columns = [f"{self._column(name)} AS {_name(name)}" for name in [*self._keys, *names] if name is not None]
        columns += [f"{self._event} AS event_us", f"{self._created} AS created_us"]
        deleted = f"coalesce({_name(self._deleted)}, false)" if self._deleted else "false"
        query = f"SELECT {', '.join(columns)}, {deleted} AS deleted FROM {self._winners()} JOIN newest USING (f, file_row_number)"  # noqa: S608
        reader = self._db.sql(query).to_arrow_reader(rows)
        for batch in reader:
            yield self._shaped(pa.table(batch), [name for name in names if name is not None])

    def _shaped(self, table: pa.Table, names: list[str]) -> pa.Table:
        joined = joined_ids([table[key] for key in sorted(self._keys)])
        times = [table[name].cast(pa.int64()).cast(TIMESTAMP) for name in ("event_us", "created_us")]
        columns = [joined, *times, table["deleted"], *(table[name] for name in names)]
        return pa.table(columns, names=[self._schema.key, "event_timestamp", "created", "deleted", *names])

    def close(self) -> None:
        """Free DuckDB's memory."""
        self._db.close()


def source_files(source: FileSource) -> list[Path]:
    """The Parquet files of a source as they are now: of a folder and the folders in it, of a pattern, or the one file."""
    path = Path(source.path)
    if path.is_dir():
        return sorted(path.glob("**/*.parquet"))
    if "*" in source.path:
        anchor = Path(path.anchor)
        return sorted(anchor.glob(str(path.relative_to(anchor))))
    return [path]


def _us(column: str) -> str:
    return f"epoch_us(CAST({_name(column)} AS TIMESTAMPTZ))"


def _name(identifier: str) -> str:
    return '"' + identifier.replace('"', '""') + '"'


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
