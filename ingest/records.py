"""Reads CSV, JSON Lines and Parquet files as a stream of numbered rows, and the few value types they hold.

Catalogue manifests, interactions and profiles all come through here, so that each names its columns and its mistakes alike.
"""

import codecs
import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from ingest.errors import ManifestError, RowError

FORMATS: Final = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
MAX_FIELD_CHARS: Final = 16 * 1024 * 1024
MAX_ID_BYTES: Final = 128
MAX_TAGS: Final = 64
MAX_TAG_BYTES: Final = 128
TAG_SEPARATOR: Final = "|"  # of tags in one CSV field
MICROSECONDS: Final = 1_000_000
# Epoch numbers above this would be the year 5138 in seconds: they are milliseconds or finer, and are refused as ambiguous.
MAX_EPOCH_SECONDS: Final = 100_000_000_000
_HEAD_BYTES: Final = 4096
# Share of a text's characters, which cleaning drops. In UTF-16 read as UTF-8 it is every other one.
_NULS_IN_TEXT: Final = 0.01


@dataclass(frozen=True)
class RecordFile:
    """A file of records; `mapping` gives our column name for each of the file's columns that is called otherwise.

    Iterating yields `(row number, row)`, counting from 1 without the header; a row that cannot be parsed is yielded as
    the `RowError` that says why.
    """

    path: Path
    mapping: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_is_what_it_says(self.path)

    @property
    def format(self) -> str:
        """`csv`, `jsonl` or `parquet`."""
        return FORMATS[self.path.suffix.lower()]

    def columns(self) -> list[str]:
        """The columns under our names; of JSON Lines, those of its first row."""
        if self.format == "parquet":
            names = list(pq.read_schema(self.path).names)
        elif self.format == "csv":
            with self._open() as handle:
                names = next(csv.reader(handle), [])
        else:
            names = list(next((row for _, row in self._raw() if isinstance(row, dict)), {}))
        return [self.mapping.get(name, name) for name in names]

    def require(self, *columns: str) -> None:
        """Raise `ManifestError` where a column is missing, or there twice, naming those that are there."""
        there = self.columns()
        if twice := [name for name in dict.fromkeys(there) if there.count(name) > 1]:
            raise ManifestError(f"{self.path}: there are two columns {twice[0]!r}; rename one of them")
        for column in columns:
            if column not in there:
                raise ManifestError(
                    f"{self.path}: no column {column!r}; it has {', '.join(there) or 'no columns'}. "
                    f"Rename it, or say which one is meant: --map YOUR_COLUMN={column}"
                )

    def count(self) -> int:
        """Number of rows, for a progress bar; streams the file once."""
        if self.format == "parquet":
            return int(pq.read_metadata(self.path).num_rows)
        return sum(1 for _ in self._raw())

    def __iter__(self) -> Iterator[tuple[int, dict[str, Any] | RowError]]:
        for number, row in self._raw():
            if isinstance(row, RowError):
                yield number, row
            else:
                yield number, {self.mapping.get(name, name): value for name, value in row.items()}

    def _raw(self) -> Iterator[tuple[int, dict[str, Any] | RowError]]:
        try:
            yield from {"csv": self._csv, "jsonl": self._jsonl, "parquet": self._parquet}[self.format]()
        except UnicodeDecodeError as error:
            raise ManifestError(
                f"{self.path}: not UTF-8 text ({error.reason}: {error.object[error.start : error.end]!r}); save it as UTF-8"
            ) from error
        except (pa.ArrowException, OSError) as error:
            raise ManifestError(f"{self.path}: cannot be read to its end ({error})") from error

    def _open(self) -> Any:
        return self.path.open(encoding="utf-8-sig", newline="")

    def _csv(self) -> Iterator[tuple[int, dict[str, Any] | RowError]]:
        csv.field_size_limit(MAX_FIELD_CHARS)
        with self._open() as handle:
            reader = csv.reader(handle)
            header = next(reader, [])
            try:
                for number, values in enumerate((v for v in reader if v), 1):
                    if len(values) != len(header):
                        message = f"row {number} has {len(values)} fields where the header has {len(header)}; quote fields that hold commas"
                        yield number, RowError("wrong_field_count", message)
                    else:
                        yield number, dict(zip(header, values, strict=True))
            except csv.Error as error:
                raise ManifestError(f"{self.path}, line {reader.line_num}: {error}") from error

    def _jsonl(self) -> Iterator[tuple[int, dict[str, Any] | RowError]]:
        with self._open() as handle:
            for number, line in enumerate((text for text in handle if text.strip()), 1):
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    yield number, RowError("bad_json", f"row {number} is not JSON: {error}")
                    continue
                yield (
                    number,
                    row if isinstance(row, dict) else RowError("bad_json", f"row {number} is not a JSON object"),
                )

    def _parquet(self) -> Iterator[tuple[int, dict[str, Any] | RowError]]:
        number = 0
        for batch in pq.ParquetFile(self.path).iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield number, row


def _check_is_what_it_says(path: Path) -> None:
    """Raise `ManifestError` where the file is missing, of an unknown ending, or not what its ending says."""
    if not path.exists():
        raise ManifestError(f"{path}: no such file")
    if not path.is_file():
        raise ManifestError(f"{path}: a folder or device, not a file")
    kind = FORMATS.get(path.suffix.lower())
    if kind is None:
        raise ManifestError(f"{path}: the ending {path.suffix!r} is none of {', '.join(FORMATS)}")
    with path.open("rb") as handle:
        head = handle.read(_HEAD_BYTES)
    found = _sniff(head)
    if found in FORMATS.values() and found != kind:
        raise ManifestError(f"{path}: named {path.suffix} but its content is {found}; give it the ending that fits")
    if found != kind:
        raise ManifestError(
            f"{path}: its content is {found}; CSV and JSON Lines must be UTF-8 text with one record a line"
        )
    if kind == "parquet":
        try:
            pq.read_metadata(path)
        except Exception as error:
            raise ManifestError(f"{path}: not a readable Parquet file ({error})") from error


def _sniff(head: bytes) -> str:
    if head.startswith(b"PAR1"):
        return "parquet"
    try:
        # A character that the cut falls into is left to the reader: only whole input is final.
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(head, final=len(head) < _HEAD_BYTES)
    except UnicodeDecodeError:
        return "not UTF-8 text"
    if text.count("\0") > _NULS_IN_TEXT * len(text):
        return "binary data"
    start = text.lstrip()
    if not start:
        return "empty"
    return "jsonl" if start.startswith("{") else "a JSON array" if start.startswith("[") else "csv"


def text_of(row: Mapping[str, Any], column: str) -> str:
    """The column as stripped text; empty where it is missing or null."""
    value = row.get(column)
    return "" if value is None else str(value).strip()


def id_of(row: Mapping[str, Any], column: str) -> str:
    """An identifier of 1 to 128 bytes without control characters, else `RowError`."""
    value = text_of(row, column)
    if not value:
        raise RowError(f"missing_{column}", f"{column} is empty")
    if len(value.encode()) > MAX_ID_BYTES:
        raise RowError(f"bad_{column}", f"{column} {value[:40]!r}... is longer than {MAX_ID_BYTES} bytes")
    if not value.isprintable():
        raise RowError(f"bad_{column}", f"{column} {value!r} holds control characters")
    return value


def number_of(row: Mapping[str, Any], column: str) -> float | None:
    """A finite number, None where the column is empty, else `RowError`."""
    value = text_of(row, column)
    if not value:
        return None
    try:
        number = float(value)
    except ValueError:
        number = float("nan")
    if not abs(number) < float("inf"):
        raise RowError(f"bad_{column}", f"{column} {value[:40]!r} is not a finite number")
    return number


def tags_of(row: Mapping[str, Any], column: str) -> tuple[str, ...]:
    """At most 64 different tags in the order given: a list of texts, or one text in which `|` separates them.

    A tag is `kind:value`, of at most 128 bytes and without control characters; anything else is a `RowError`.
    """
    value = row.get(column)
    given = value.split(TAG_SEPARATOR) if isinstance(value, str) else value if isinstance(value, list) else [value]
    given = [tag.strip() if isinstance(tag, str) else tag for tag in given]
    tags = tuple(dict.fromkeys(_tag(tag, column) for tag in given if tag is not None and tag != ""))
    if len(tags) > MAX_TAGS:
        raise RowError(f"bad_{column}", f"{column} are {len(tags)}, and at most {MAX_TAGS} can be: leave out the rest")
    return tags


def _tag(value: Any, column: str) -> str:
    kind, colon, name = (part.strip() for part in str(value).partition(":"))
    if not isinstance(value, str) or not (kind and colon and name):
        raise RowError(f"bad_{column}", f"{column} has {str(value)[:40]!r}, which is not kind:value (director:Varda)")
    tag = f"{kind}:{name}"
    if len(tag.encode()) > MAX_TAG_BYTES:
        raise RowError(f"bad_{column}", f"{column} has {tag[:40]!r}..., which is longer than {MAX_TAG_BYTES} bytes")
    if not tag.isprintable():
        raise RowError(f"bad_{column}", f"{column} has {tag!r}, which holds control characters")
    return tag


def timestamp_of(row: Mapping[str, Any], column: str) -> int | None:
    """Microseconds since the epoch, from ISO 8601 (no zone means UTC), epoch seconds or a Parquet timestamp.

    None where the column is empty; anything else is a `RowError`.
    """
    value = row.get(column)
    if isinstance(value, datetime):
        return _microseconds(value)
    text = text_of(row, column)
    if not text:
        return None
    try:
        return _microseconds(datetime.fromisoformat(text))
    except ValueError:
        return _epoch(text, column)


def _microseconds(moment: datetime) -> int:
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    delta = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (delta.days * 86_400 + delta.seconds) * MICROSECONDS + delta.microseconds


def _epoch(text: str, column: str) -> int:
    try:
        seconds = float(text)
    except ValueError:
        seconds = float("nan")
    if not abs(seconds) <= MAX_EPOCH_SECONDS:
        raise RowError(
            f"bad_{column}", f"{column} {text[:40]!r} is neither ISO 8601 (2026-01-31T12:00:00Z) nor epoch seconds"
        )
    return round(seconds * MICROSECONDS)
