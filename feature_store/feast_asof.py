"""Feast's point-in-time join over keys and times only: which row of each view a label may see, and then the features of those rows.

Feast's own join carries every feature through every (label, older row) pair, so its memory follows the number of versions; here it
sees keys, times and a row number. What Feast is shown is made to agree with what is served online: one row per key and instant, the
last created; and no row number for a tombstone, so that a deleted entity is missing rather than as it was before.
"""

import tempfile
import warnings
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import ibis
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from feast import FeatureService, FeatureStore, FeatureView, FileSource
from feast.infra.offline_stores.ibis import get_historical_features_ibis
from numpy.typing import NDArray

from feature_store.errors import PointInTimeError, SchemaDriftError
from feature_store.feast_references import full_name, resolve
from feature_store.feast_source import DELETED_TAG, is_local_parquet, source_files, sql_name, sql_text
from feature_store.feast_types import arrow_type, is_message

MICROSECOND: Final = timedelta(microseconds=1)
# A row's number is its file's place in the list of files, times this, plus its place in the file.
ROWS_PER_FILE_BITS: Final = 40
_EVENT, _SINCE, _ROW, _LABEL = "asof_event", "asof_since_us", "asof_row", "asof_label"
# Feast finds the labels' time by this name.
_FEAST_TIME: Final = "event_timestamp"


class AsOf:
    """Features as of instants.

    Args:
        store: a repository whose views read Parquet files; its offline and online stores are not used.
        features: "view:feature" references, or a FeatureService.
        strict: whether a row at the very instant is not seen.
        spill_folder: where DuckDB may put what does not fit into memory; the system's temporary folder where left out.

    Attributes:
        found: by view, the number of labels so far for which there was a row.

    Raises:
        PointInTimeError: a view, feature, service or file is not there, or a view does not read Parquet files.
    """

    def __init__(
        self,
        store: FeatureStore,
        features: Sequence[str] | FeatureService,
        *,
        strict: bool = True,
        spill_folder: Path | None = None,
    ) -> None:
        self._store, self._strict = store, strict
        self.asked = resolve(store, features)
        self.found: Counter[str] = Counter()
        self._spill = tempfile.TemporaryDirectory(prefix=".asof-", dir=spill_folder)
        self._backend = ibis.duckdb.connect(temp_directory=self._spill.name)
        try:
            self._views = [
                _Versions(self._backend.con, f"v{number}", view, names, store.config.repo_path)
                for number, (view, names) in enumerate(self.asked.views)
            ]
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Free DuckDB's memory and what it spilled."""
        self._backend.disconnect()
        self._spill.cleanup()

    @property
    def views(self) -> list[str]:
        """The stored views that are read."""
        return [view.name for view in self._views]

    def check_columns(self, columns: Sequence[str]) -> None:
        """Raise `PointInTimeError` where labels with these columns lack a join key or an on-demand view's input."""
        needed = {key: f"view {view.name} joins by it" for view in self._views for key in view.keys.values()}
        for computed in self.asked.on_demand:
            needed |= dict.fromkeys(computed.get_request_data_schema(), f"view {computed.name} is computed from it")
        for name, why in needed.items():
            if name not in columns:
                raise PointInTimeError(f"the labels have no column {name!r}: {why}; they have {', '.join(columns)}")

    def features(self, labels: pa.Table, at_us: NDArray[np.int64]) -> pa.Table:
        """One row per label, in order: each feature as of the label's instant, as `<view>__<feature>` in the order asked.

        `labels` has the join keys and what on-demand views need; `at_us` is int64 microseconds [n]. Null where nothing was true.
        """
        rows = self._rows_seen(labels, at_us)
        columns: dict[str, pa.Array] = {}
        for view in self._views:
            seen = rows[view.alias]
            self.found[view.name] += len(seen) - seen.null_count
            columns |= view.read(seen)
        table = self._computed(pa.table(columns), labels)
        return table.select([full_name(reference) for reference in self.asked.references])

    def _rows_seen(self, labels: pa.Table, at_us: NDArray[np.int64]) -> dict[str, pa.Array]:
        """By view, the number of the row that each label sees, null where none."""
        if not len(at_us):
            return {view.alias: pa.nulls(0, pa.int64()) for view in self._views}
        asked_us = at_us - 1 if self._strict else at_us  # Feast's own join sees a row at the very instant.
        columns: dict[str, Any] = {
            _LABEL: np.arange(len(at_us)),
            _FEAST_TIME: pd.to_datetime(asked_us, unit="us", utc=True),
        }
        for view in self._views:
            columns |= {name: _pandas(column) for name, column in view.label_keys(labels).items()}
        job = get_historical_features_ibis(
            config=self._store.config,
            feature_views=[view.slim() for view in self._views],
            feature_refs=[f"{view.alias}:{name}" for view in self._views for name in (_ROW, _SINCE)],
            entity_df=pd.DataFrame(columns),
            registry=self._store.registry,
            project=self._store.project,
            data_source_reader=lambda source, _: self._backend.table(source.path),
            data_source_writer=lambda *_: None,
            full_feature_names=True,
        )
        with warnings.catch_warnings():
            # ibis calls DuckDB by a name that is going away, and says so once per join.
            warnings.filterwarnings("ignore", message="fetch_arrow_table", category=DeprecationWarning)
            table = job.to_arrow().sort_by(_LABEL)
        if table.num_rows != len(at_us):
            raise PointInTimeError(f"Feast's join gave {table.num_rows} rows for {len(at_us)} labels")
        return {
            view.alias: view.unexpired(table[f"{view.alias}__{_ROW}"], table[f"{view.alias}__{_SINCE}"], at_us)
            for view in self._views
        }

    def _computed(self, table: pa.Table, labels: pa.Table) -> pa.Table:
        """Append what on-demand views make of the features and of the labels' own columns."""
        for view in self.asked.on_demand:
            inputs = table
            for name in view.get_request_data_schema():
                inputs = inputs.append_column(name, labels[name])
            made = view.transform_arrow(inputs, full_feature_names=True)
            name = view.projection.name_to_use()
            for reference in (r for r in self.asked.references if r.split(":", 1)[0] == name):
                field = next(f for f in view.features if f.name == reference.split(":", 1)[1])
                column = _cast(reference, made[full_name(reference)], _declared(field.dtype))
                table = table.append_column(full_name(reference), column)
        return table


class _Versions:
    """One view's rows in DuckDB: keys, times and row numbers in memory, features in their files.

    Attributes:
        name: of the view, as asked for.
        alias: of the table with its keys, times and row numbers.
        keys: the labels' column for each of the source's join keys.
    """

    def __init__(self, db: Any, alias: str, view: FeatureView, features: list[str], repo_path: Path | None) -> None:
        self.alias, self.name, self._db, self._view = alias, view.projection.name_to_use(), db, view
        self.keys: dict[str, str] = view.projection.join_key_map or {e.name: e.name for e in view.entity_columns}
        source = _parquet_source(view, repo_path)
        self._renamed = {new: old for old, new in source.field_mapping.items()}
        self._files = sorted(str(file) for file in source_files(source))
        self._types = {f.name: _declared(f.dtype) for f in view.projection.features if f.name in features}
        if not self._files:
            raise PointInTimeError(f"view {self.name} reads {source.path}, where there is no Parquet file yet")
        self._check_columns(source)
        self._create(source)

    def _column(self, name: str) -> str:
        return sql_name(self._renamed.get(name, name))

    def _check_columns(self, source: FileSource) -> None:
        there = self._db.sql(f"SELECT * FROM {_read(self._files)} LIMIT 0").to_arrow_table().schema  # noqa: S608
        deleted = self._view.tags.get(DELETED_TAG)
        wanted = [*self.keys, *self._types, source.timestamp_field, source.created_timestamp_column, deleted]
        for name in filter(None, wanted):
            if self._renamed.get(name, name) not in there.names:
                raise PointInTimeError(
                    f"view {self.name} needs column {name!r}, which none of its files has ({source.path}); "
                    f"they have {', '.join(there.names)}"
                )
        self._key_types = {key: there.field(self._renamed.get(key, key)).type for key in self.keys}
        self._types = {
            name: declared if declared is not None else there.field(self._renamed.get(name, name)).type
            for name, declared in self._types.items()
        }

    def _create(self, source: FileSource) -> None:
        """One row per key and instant: the last created, then the last in the last file, as the online store is loaded."""
        keys = "".join(f"{self._column(key)} AS {sql_name(key)}, " for key in self.keys)
        event = f"CAST({self._column(source.timestamp_field)} AS TIMESTAMPTZ)"
        created = f"coalesce(CAST({self._column(source.created_timestamp_column or source.timestamp_field)} AS TIMESTAMPTZ), {event})"
        deleted = self._view.tags.get(DELETED_TAG)
        dead = f"coalesce({self._column(deleted)}, false)" if deleted else "false"
        number = f"(file_index::BIGINT << {ROWS_PER_FILE_BITS}) + file_row_number"
        same = ", ".join([*(self._column(key) for key in self.keys), event])
        # Names are quoted, and files are the repository's own.
        self._db.execute(f"""
            CREATE TABLE {self.alias} AS
            SELECT {keys} {event} AS {_EVENT}, epoch_us({event}) AS {_SINCE}, CASE WHEN {dead} THEN NULL ELSE {number} END AS {_ROW}
            FROM {_read(self._files)} WHERE {event} IS NOT NULL
            QUALIFY row_number() OVER (
                PARTITION BY {same} ORDER BY {created} DESC, file_index DESC, file_row_number DESC
            ) = 1
        """)  # noqa: S608

    def slim(self) -> FeatureView:
        """What Feast's join is to see in place of the view: the table of row numbers and times, without a ttl, which ibis cannot always express."""
        source = FileSource(name=self.alias, path=self.alias, timestamp_field=_EVENT)
        slim = FeatureView(name=self.alias, source=source, ttl=timedelta(0))
        slim.entity_columns, slim.projection.join_key_map = [], dict(self.keys)
        return slim

    def unexpired(self, rows: pa.ChunkedArray, since_us: pa.ChunkedArray, at_us: NDArray[np.int64]) -> pa.Array:
        """The row numbers, null where the row's time plus the view's ttl lies before the label. A ttl of 0 is none, as in Feast."""
        found = rows.combine_chunks()
        ttl = getattr(self._view, "ttl", None)
        if not ttl:
            return found
        age_us = at_us - since_us.combine_chunks().fill_null(0).to_numpy(zero_copy_only=False)
        return pc.if_else(pa.array(age_us <= ttl // MICROSECOND), found, None)

    def label_keys(self, labels: pa.Table) -> dict[str, pa.ChunkedArray]:
        """The labels' join keys, in the types of this view's files. Raises `PointInTimeError` where they cannot be."""
        return {name: self._label_key(key, labels[name], name) for key, name in self.keys.items()}

    def _label_key(self, key: str, column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
        wanted = self._key_types[key]
        if pa.types.is_integer(column.type) and pa.types.is_integer(wanted):
            return column
        try:
            return column.cast(wanted)
        except pa.ArrowException as error:
            raise PointInTimeError(
                f"the labels' join key {name!r} is {column.type} and view {self.name} has {wanted}: {error}; cast it"
            ) from error

    def read(self, rows: pa.Array) -> dict[str, pa.Array]:
        """The features of the rows with these numbers, int64 [n], as columns [n]; null where a number is null."""
        wanted = np.unique(rows.drop_null().to_numpy())
        found = self._read_rows(wanted) if wanted.size else self._no_rows()
        at = pc.index_in(rows, value_set=found[_ROW].combine_chunks())
        base = self._view.projection.name_alias or self._view.name
        return {
            f"{base}__{name}": _without_nan(_cast(f"{self.name}:{name}", found[name].take(at), arrow))
            for name, arrow in self._types.items()
        }

    def _no_rows(self) -> pa.Table:
        return pa.schema([pa.field(_ROW, pa.int64()), *(pa.field(*item) for item in self._types.items())]).empty_table()

    def _read_rows(self, numbers: NDArray[np.int64]) -> pa.Table:
        """Read from the files that hold one of the rows; a column that only other files have is null."""
        in_list, file_row = numbers >> ROWS_PER_FILE_BITS, numbers & ((1 << ROWS_PER_FILE_BITS) - 1)
        used, file = np.unique(in_list, return_inverse=True)
        asof_wanted = pa.table({_ROW: numbers, "file_index": file.astype(np.uint64), "file_row_number": file_row})
        columns = ", ".join(f"{self._column(name)} AS {sql_name(name)}" for name in self._types)
        self._db.register("asof_wanted", asof_wanted)
        try:
            return self._db.sql(f"""
                SELECT {_ROW}, {columns} FROM (
                    SELECT *, file_index, file_row_number FROM {_read([self._files[number] for number in used])}
                    UNION ALL BY NAME
                    SELECT * FROM {_read(self._files)} WHERE false
                ) JOIN asof_wanted USING (file_index, file_row_number)
            """).to_arrow_table()  # noqa: S608
        finally:
            self._db.unregister("asof_wanted")


def _parquet_source(view: FeatureView, repo_path: Path | None) -> FileSource:
    """The view's source, with its path as Feast's commands see it: relative to the repository."""
    source: Any = getattr(view, "batch_source", None)
    if not is_local_parquet(source):
        kind = f"{type(source).__name__} {getattr(source, 'path', '')}".strip()
        raise PointInTimeError(
            f"view {view.name} reads a {kind}: features are joined from FileSources of local Parquet files"
        )
    path = Path(source.path)
    return FileSource(
        name=source.name,
        path=str(path if path.is_absolute() or repo_path is None else Path(repo_path) / path),
        timestamp_field=source.timestamp_field,
        created_timestamp_column=source.created_timestamp_column,
        field_mapping=source.field_mapping,
    )


def _declared(dtype: Any) -> pa.DataType | None:
    """A feature's type by its definition, the same as online; None for types that only Feast's own stores keep."""
    try:
        return None if is_message(dtype) else arrow_type(dtype)
    except SchemaDriftError:
        return None


def _cast(reference: str, column: pa.ChunkedArray | pa.Array, wanted: pa.DataType | None) -> pa.ChunkedArray | pa.Array:
    if wanted is None or column.type == wanted:
        return column
    try:
        # Times below a microsecond are cut off, as they are in the join.
        return column.cast(wanted, safe=not pa.types.is_timestamp(wanted))
    except pa.ArrowException as error:
        raise PointInTimeError(
            f"feature {reference} is {column.type} in its files and declared {wanted}: {error}; mend either"
        ) from error


def _without_nan(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A NaN scalar is a missing value, as it is online."""
    return pc.if_else(pc.is_nan(column), None, column) if pa.types.is_floating(column.type) else column


def _pandas(column: pa.ChunkedArray) -> Any:
    """For Feast's data frame: integers stay integers beside nulls."""
    integers = {pa.int64(): pd.Int64Dtype(), pa.int32(): pd.Int32Dtype(), pa.uint64(): pd.UInt64Dtype()}
    return column.to_pandas(types_mapper=integers.get)


def _read(files: Sequence[str]) -> str:
    names = ", ".join(map(sql_text, files))
    return f"read_parquet([{names}], union_by_name = true, hive_partitioning = false)"
