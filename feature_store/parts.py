"""Parts: the immutable Parquet files that offline tables are made of.

A part is written under a temporary name that no reader's pattern matches, synced, then renamed: a reader sees all of it or nothing.
"""

import io
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from feature_store.errors import TableError
from feature_store.files import whole
from feature_store.schemas import as_us, now_us

ZERO_ROWS: Final = "part-0.parquet"  # sorts before every other part
MAX_ROWS_PER_GROUP: Final = 65_536


def write_part(folder: Path, table: pa.Table, name: str | None = None) -> Path:
    """Write `table` as one new part of `folder`; return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (name or f"part-{now_us():020d}-{uuid.uuid4().hex[:8]}.parquet")
    codecs = _codecs(table.schema)
    with whole(path) as temporary:
        pq.write_table(
            table,
            temporary,
            compression=codecs,
            use_dictionary=[column for column, codec in codecs.items() if codec != "none"],
            row_group_size=MAX_ROWS_PER_GROUP,
        )
    return path


def _codecs(schema: pa.Schema) -> dict[str, str]:
    """Codec of each leaf column: zstd, but none for lists of float32, since vectors get hardly smaller and are read twice as fast."""
    empty = io.BytesIO()
    pq.write_table(schema.empty_table(), empty)
    leaves = pq.read_metadata(empty).schema
    columns = [leaves.column(at) for at in range(len(leaves))]
    return {
        column.path: "none" if column.physical_type == "FLOAT" and column.max_repetition_level else "zstd"
        for column in columns
    }


def ensure_zero_rows(folder: Path, schema: pa.Schema) -> None:
    """Put a part without rows into `folder`, so that readers of a table find all its columns, in whichever parts they are.

    One from before a column was added is replaced: DuckDB refuses a column that no part has.
    """
    if not set(schema.names) <= _columns_of(folder / ZERO_ROWS):
        write_part(folder, schema.empty_table(), ZERO_ROWS)


def _columns_of(part: Path) -> set[str]:
    """The columns of a part; none where it is missing or damaged."""
    try:
        return set(pq.read_schema(part).names)
    except (OSError, pa.ArrowException):
        return set()


def list_parts(folder: Path) -> list[Path]:
    """All parts under `folder` and its partitions, oldest first within each."""
    return sorted(folder.glob("**/*.parquet"))


def read_parts(parts: Sequence[Path], schema: pa.Schema, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """Each part as a table with the columns asked for, in order. Raises `TableError` naming a part that cannot be read.

    A nullable column that a part lacks, since it was written before there was one, is null.
    """
    names = list(columns) if columns is not None else schema.names
    wanted = pa.schema([schema.field(name) for name in names])
    for part in parts:
        try:
            yield _with_columns(pq.ParquetFile(part).read(columns=names), wanted).cast(wanted)
        except (OSError, pa.ArrowException, KeyError) as error:
            raise TableError(f"part {part} cannot be read: {error}; remove it and ingest its rows again") from error


def _with_columns(table: pa.Table, wanted: pa.Schema) -> pa.Table:
    for field in wanted:
        if field.nullable and field.name not in table.column_names:
            table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    return table.select(wanted.names)


def first_time_us(part: Path, column: str) -> int | None:
    """The earliest time in a column, int64 us, from the part's statistics alone; None where it has no rows."""
    try:
        groups = pq.read_metadata(part).to_dict()["row_groups"]
    except (OSError, pa.ArrowException) as error:
        raise TableError(f"part {part} cannot be read: {error}; remove it and ingest its rows again") from error
    columns = [c for group in groups if group["num_rows"] for c in group["columns"] if c["path_in_schema"] == column]
    if not columns:
        return None
    return int(as_us([c["statistics"]["min"] for c in columns], len(columns)).min())


def newest_rows(ids: pa.Array, event_us: NDArray[np.int64], created_us: NDArray[np.int64]) -> NDArray[np.int64]:
    """Row numbers of the newest version of each id, sorted by id.

    The newest has the latest `event_us`, then the latest `created_us`, then the last position. All inputs are [n].
    """
    if len(ids) == 0:
        return np.empty(0, np.int64)
    codes = ids.dictionary_encode()
    rank = np.argsort(np.argsort(codes.dictionary.to_numpy(zero_copy_only=False).astype(object)))
    code = rank[codes.indices.to_numpy()]
    order = np.lexsort((created_us, event_us, code))
    last = np.flatnonzero(np.append(np.diff(code[order]) != 0, True))
    return np.asarray(order[last], np.int64)
