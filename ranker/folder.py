"""The folder of a training set: four Parquet files and `meta.json`, whether `triptych train` joined them or a person made them by hand.

Reads them and checks files, columns, types and numbers of rows; what each row may say (times, versions) is `leakage.check_training_set`'s to check.
docs/training-sets.md has the layout in words.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from encoders.space import EmbeddingSpace
from ranker.errors import TrainingSetError

LAYOUT: Final = "docs/training-sets.md has the layout"
META: Final = "meta.json"
_EVENT: Final = {
    "event_id": pa.string(),
    "user_id": pa.string(),
    "item_id": pa.string(),
    "event_type": pa.string(),
    "timestamp_us": pa.int64(),
}
_REQUIRED: Final[Mapping[str, Mapping[str, pa.DataType]]] = {
    "items": {
        "item_row": pa.int64(),
        "item_id": pa.string(),
        "valid_from_us": pa.int64(),
        "valid_to_us": pa.int64(),
    },
    "labels": {**_EVENT, "item_row": pa.int64()},
    "events": _EVENT,
    "users": {"user_id": pa.string()},
}
_OPTIONAL: Final[Mapping[str, Mapping[str, pa.DataType]]] = {
    "items": {"category": pa.string(), "price": pa.float64()},
    "labels": {"value": pa.float64()},
    "events": {"value": pa.float64()},
    "users": {},
}

_FITS: Final[Mapping[pa.DataType, Callable[[pa.DataType], bool]]] = {
    pa.string(): lambda found: pa.types.is_string(found) or pa.types.is_large_string(found),
    pa.int64(): pa.types.is_integer,
    pa.float64(): lambda found: pa.types.is_floating(found) or pa.types.is_integer(found),
}


def read_folder(folder: Path) -> tuple[dict[str, Any], list[EmbeddingSpace], dict[str, pa.Table]]:
    """(meta, its spaces, tables `items`, `labels`, `events`, `users`); an optional column that is missing is there, and null.

    Raises `TrainingSetError`, which names the file, the column and the remedy, where something is missing or of another type.
    """
    meta = _read_meta(folder)
    spaces = _spaces(folder, meta)
    tables = {name: _checked(folder, name, _read(folder, name)) for name in _REQUIRED}
    _check_rows(folder, tables)
    return meta, spaces, tables


def _read_meta(folder: Path) -> dict[str, Any]:
    try:
        meta = json.loads((folder / META).read_bytes())
    except FileNotFoundError as error:
        raise _gone(folder, META) from error
    except (OSError, ValueError) as error:
        raise TrainingSetError(f"training set {folder} cannot be read: {META}: {error}") from error
    if not isinstance(meta, dict) or not isinstance(meta.get("spaces"), list):
        raise TrainingSetError(
            f"{META} of training set {folder} has no list `spaces`: it names the embedding space of each vec_ column of items; {LAYOUT}"
        )
    return meta


def _spaces(folder: Path, meta: Mapping[str, Any]) -> list[EmbeddingSpace]:
    try:
        return [EmbeddingSpace.from_dict(space) for space in meta["spaces"]]
    except (ValueError, TypeError, AttributeError, KeyError) as error:  # a SpaceError is a ValueError
        raise TrainingSetError(
            f"a space in {META} of training set {folder} cannot be used: {error}. Copy it from spaces.yaml, or write what "
            f"`EmbeddingSpace.to_dict` gives; {LAYOUT}"
        ) from error


def _read(folder: Path, name: str) -> pa.Table:
    path = folder / f"{name}.parquet"
    try:
        return pq.read_table(path)
    except FileNotFoundError as error:
        raise _gone(folder, path.name) from error
    except (OSError, ValueError) as error:
        raise TrainingSetError(f"training set {folder} cannot be read: {path.name}: {error}") from error


def _gone(folder: Path, name: str) -> TrainingSetError:
    return TrainingSetError(
        f"training set {folder} is gone or incomplete ({name} is missing): restore the folder, or train a model of another name with "
        f"`triptych train`, which writes its own; one made by hand for `triptych train --data` needs that file ({LAYOUT})"
    )


def _checked(folder: Path, name: str, table: pa.Table) -> pa.Table:
    """The table with every column that is read, of its type; other columns are left as they are."""
    for column, kind in _REQUIRED[name].items():
        if column not in table.column_names:
            raise TrainingSetError(
                f"{name}.parquet of training set {folder} has no column {column} ({kind}); it has {', '.join(table.column_names) or 'none'}: "
                f"add it; {LAYOUT}"
            )
        table = _cast(folder, name, table, column, kind)
        if nulls := table[column].null_count:
            raise TrainingSetError(
                f"column {column} of {name}.parquet of training set {folder} has {nulls} nulls: every row needs a value"
            )
    for column, kind in _OPTIONAL[name].items():
        if column not in table.column_names:
            table = table.append_column(column, pa.nulls(table.num_rows, kind))
        table = _cast(folder, name, table, column, kind)
    return table


def _cast(folder: Path, name: str, table: pa.Table, column: str, kind: pa.DataType) -> pa.Table:
    found = table.schema.field(column).type
    if not (_FITS[kind](found) or pa.types.is_null(found)):
        raise TrainingSetError(
            f"column {column} of {name}.parquet of training set {folder} is {found}, not {kind}: times are microseconds since 1970 as integers, "
            f"ids are strings; {LAYOUT}"
        )
    try:
        return table.set_column(table.column_names.index(column), column, table[column].cast(kind))
    except pa.ArrowInvalid as error:
        raise TrainingSetError(f"column {column} of {name}.parquet of training set {folder}: {error}") from error


def _check_rows(folder: Path, tables: Mapping[str, pa.Table]) -> None:
    """Item rows are 0 to R - 1, each once, and labels name those; event ids are unique."""
    rows = np.sort(np.asarray(tables["items"]["item_row"].combine_chunks(), np.int64))
    if wrong := np.flatnonzero(rows != np.arange(len(rows))).tolist():
        raise TrainingSetError(
            f"item_row of items.parquet of training set {folder} must be 0 to {len(rows) - 1}, each once: "
            f"{rows[wrong[0]]} stands where {wrong[0]} should"
        )
    named = np.asarray(tables["labels"]["item_row"].combine_chunks(), np.int64)
    if len(outside := named[(named < 0) | (named >= len(rows))]):
        raise TrainingSetError(
            f"{len(outside)} labels of training set {folder} are about item rows that items.parquet does not have, such as {outside[0]}: "
            f"it has 0 to {len(rows) - 1}"
        )
    for name in ("labels", "events"):
        ids = tables[name]["event_id"]
        if twice := len(ids) - len(ids.unique()):
            raise TrainingSetError(
                f"{twice} event ids of {name}.parquet of training set {folder} are not unique: every event needs its own event_id"
            )
