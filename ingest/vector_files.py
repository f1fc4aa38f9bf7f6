"""Vectors that were made elsewhere: a file of them becomes an embedding space of kind `imported`.

Its id holds the digest of the file. The file is checked whole before anything is stored; rows about records that nobody knows are
quarantined. A run that was killed is run again: rows that are stored already are skipped.
"""

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from encoders.space import UNIT_NORM_TOLERANCE, EmbeddingSpace
from feature_store.home import Home
from feature_store.schemas import TIMESTAMP
from feature_store.spaces import ADDED, SpaceEntry, register_entries
from feature_store.tables import Tables
from ingest.contents import StoredContents
from ingest.errors import ManifestError
from ingest.quarantine import Quarantine, Refusal
from ingest.space_writer import once_each
from ingest.versions import embedding_versions, sibling_versions

ROWS_PER_BATCH: Final = 8_192
EVENT_TIMESTAMP: Final = "event_timestamp"
Floats = NDArray[np.float32]


@dataclass
class ImportReport:
    """Counts of one import, in rows of the file; `stored` counts rows of the table: a record may have several valid times."""

    space: EmbeddingSpace
    rows: int = 0
    stored: int = 0
    unchanged: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    refusals: list[Refusal] = field(default_factory=list)
    quarantine_file: Path | None = None
    seconds: float = 0.0

    @property
    def quarantined(self) -> int:
        """Rows that were refused."""
        return self.refused.total()

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values."""
        return {
            "space": self.space.to_dict(),
            "rows": self.rows,
            "stored": self.stored,
            "unchanged": self.unchanged,
            "quarantined": self.quarantined,
            "refused": dict(self.refused),
            "quarantine_file": str(self.quarantine_file) if self.quarantine_file else None,
            "seconds": round(self.seconds, 3),
        }


@dataclass(frozen=True)
class VectorFile:
    """A Parquet file with a column of ids and one of lists of floats, or a `.npy` matrix with the ids in a text file beside it.

    Attributes:
        path: `.parquet` or `.npy`.
        ids_path: of a `.npy`: a text file, one id a line, in the order of the rows.
        normalise: scale vectors to unit norm; else they must have it.
    """

    path: Path
    id_column: str = "item_id"
    vector_column: str = "vector"
    ids_path: Path | None = None
    normalise: bool = False

    def __post_init__(self) -> None:
        if self.path.suffix not in {".parquet", ".npy"}:
            raise ManifestError(f"{self.path}: vectors are read from .parquet or .npy, not {self.path.suffix!r}")
        for path in (self.path, *([self.ids_path] if self.ids_path else [])):
            if not path.is_file():
                raise ManifestError(f"{path}: no such file")
        if (self.path.suffix == ".npy") != (self.ids_path is not None):
            raise ManifestError(
                f"{self.path}: a .npy file needs --ids, a text file with an id a line, and only that does"
            )

    def digest(self) -> str:
        """Digest of the bytes that say which vector is whose."""
        digest = hashlib.sha256()
        for path in (self.path, *([self.ids_path] if self.ids_path else [])):
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    def count(self) -> int:
        """Rows of the file."""
        if self.path.suffix == ".parquet":
            return int(self._parquet().metadata.num_rows)
        return int(self._matrix().shape[0])

    def batches(self) -> Iterator[tuple[list[str | None], list[Floats | None], list[int | None]]]:
        """Ids, vectors as they are, and valid times (None: the file has none), some thousand rows at a time."""
        yield from self._parquet_batches() if self.path.suffix == ".parquet" else self._matrix_batches()

    def _parquet(self) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(self.path)
        except (OSError, pa.ArrowException) as error:
            raise ManifestError(f"{self.path} cannot be read as Parquet: {error}") from error

    def _parquet_batches(self) -> Iterator[tuple[list[str | None], list[Floats | None], list[int | None]]]:
        file = self._parquet()
        names = file.schema_arrow.names
        for option, name in (("--id-column", self.id_column), ("--vector-column", self.vector_column)):
            if name not in names:
                raise ManifestError(
                    f"{self.path}: no column {name!r}; it has {', '.join(names)}. Name it with {option}"
                )
        timed = EVENT_TIMESTAMP in names
        columns = [self.id_column, self.vector_column, *([EVENT_TIMESTAMP] if timed else [])]
        try:
            for batch in file.iter_batches(ROWS_PER_BATCH, columns=columns):
                vectors = batch[self.vector_column].cast(pa.list_(pa.float32())).to_pylist()
                times = batch[EVENT_TIMESTAMP].cast(TIMESTAMP).cast(pa.int64()).to_pylist() if timed else None
                yield (
                    batch[self.id_column].cast(pa.string()).to_pylist(),
                    [None if vector is None else _floats(vector) for vector in vectors],
                    times or [None] * batch.num_rows,
                )
        except (OSError, pa.ArrowException) as error:
            raise ManifestError(f"{self.path}: {error}") from error

    def _matrix(self) -> Any:
        try:
            matrix = np.load(self.path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise ManifestError(f"{self.path} cannot be read as a matrix: {error}") from error
        if matrix.ndim != 2 or matrix.dtype.kind != "f":
            raise ManifestError(f"{self.path} must hold floats [n, dim], not {matrix.dtype} {list(matrix.shape)}")
        return matrix

    def _matrix_batches(self) -> Iterator[tuple[list[str | None], list[Floats | None], list[int | None]]]:
        matrix = self._matrix()
        ids: list[str | None] = [*(self.ids_path or self.path).read_text(encoding="utf-8").splitlines()]
        if len(ids) != len(matrix):
            raise ManifestError(f"{self.ids_path} has {len(ids)} ids, and {self.path} {len(matrix)} vectors")
        for first in range(0, len(ids), ROWS_PER_BATCH):
            here = ids[first : first + ROWS_PER_BATCH]
            yield here, list(np.array(matrix[first : first + len(here)], np.float32)), [None] * len(here)


def _floats(vector: list[float | None]) -> Floats:
    return np.asarray(vector, np.float32)


def import_vectors(
    home: Home,
    name: str,
    file: VectorFile,
    modality: str,
    *,
    entity: str = "item",
    progress: Callable[[int], None] | None = None,
) -> ImportReport:
    """Store the file's vectors as a space named after `name`; their valid times are the file's, else those of the records' rows.

    Args:
        home: the root that holds the tables.
        name: the readable part of the space's id.
        file: the vectors.
        modality: what the vectors are of.
        entity: whose vectors, `item` or `user`.
        progress: called with the number of rows read, each twice: it is checked, then stored.

    Raises:
        ManifestError: the file cannot be read, or its vectors are not of one length and of unit norm; nothing was stored.
        SpaceError: the name or the modality makes no space.
    """
    started, advance = time.monotonic(), progress or (lambda _: None)
    dim = _check(file, advance)
    recipe = {"imported": file.digest(), "normalised": file.normalise, "vectors": file.vector_column}
    description = f"made elsewhere: {file.path.name}"
    space = EmbeddingSpace.from_recipe(modality, name, dim, recipe, kind="imported", description=description)
    report = ImportReport(space)
    register_entries(home, [SpaceEntry(space, entity, ADDED)], revive=True)
    with Quarantine(home.quarantine, file.path) as quarantine:
        _Importer(home, space, entity, file, quarantine, report).run(advance)
        report.refusals = quarantine.refusals
        report.quarantine_file = quarantine.path if len(quarantine) else None
    report.seconds = time.monotonic() - started
    return report


def _check(file: VectorFile, advance: Callable[[int], None]) -> int:
    """The vectors' length; raises `ManifestError` where they have several, or norms that are not 1."""
    dim, wrong, first = 0, 0, ""
    for ids, vectors, _ in file.batches():
        for record_id, vector in zip(ids, vectors, strict=True):
            if vector is None or not np.isfinite(vector).all():
                continue  # refused by itself
            dim = dim or len(vector)
            if len(vector) != dim or not dim:
                raise ManifestError(
                    f"{file.path}: the vector of {record_id!r} has {len(vector)} numbers, others have {dim}"
                )
            norm = float(np.linalg.norm(vector))
            if not file.normalise and abs(norm - 1.0) > UNIT_NORM_TOLERANCE:
                wrong, first = wrong + 1, first or f"that of {record_id!r} has norm {norm:.4g}"
        advance(len(ids))
    if not dim:
        raise ManifestError(f"{file.path}: there is no vector in it")
    if wrong:
        raise ManifestError(f"{file.path}: {wrong:,} vectors are not of unit norm ({first}); --normalise scales them")
    return dim


class _Importer:
    """The second pass over the file: rows into the table."""

    def __init__(
        self,
        home: Home,
        space: EmbeddingSpace,
        entity: str,
        file: VectorFile,
        quarantine: Quarantine,
        report: ImportReport,
    ) -> None:
        self._tables, self._space, self._entity, self._file = Tables(home), space, entity, file
        self._quarantine, self._report = quarantine, report
        self._stored = embedding_versions(self._tables, entity, space.space_id)
        self._siblings = sibling_versions(home, space.modality, space.space_id, entity)
        self._contents = StoredContents(self._tables, entity, space.modality)
        self._known = {*self._siblings.ids, *self._contents.ids}
        self._seen: set[tuple[str, int | None]] = set()

    def run(self, advance: Callable[[int], None]) -> None:
        """Store what is not there yet."""
        for ids, vectors, times in self._file.batches():
            rows: list[tuple[str, Floats, int | None]] = []
            for record_id, vector, at_us in zip(ids, vectors, times, strict=True):
                self._report.rows += 1
                problem = self._problem(record_id, vector, at_us)
                if problem:
                    text = str(record_id)[:128]
                    self._report.refused[problem[0]] += 1
                    self._quarantine.add(Refusal(self._report.rows, text, "row", text, *problem))
                elif record_id is not None and vector is not None:
                    rows.append((record_id, vector, at_us))
            self._store(rows)
            advance(len(ids))

    def _problem(self, record_id: str | None, vector: Floats | None, at_us: int | None) -> tuple[str, str] | None:
        """Why a row cannot be taken: a code, and the reason."""
        if not record_id:
            return "missing_id", f"{self._file.id_column} is empty"
        if record_id not in self._known:
            return (
                "unknown_id",
                f"no {self._entity} {record_id!r} is stored; ingest it first, then import the file again",
            )
        if vector is None or not np.isfinite(vector).all() or not vector.any():
            return "bad_vector", f"the vector of {record_id!r} is missing, zero or not finite"
        if (record_id, at_us) in self._seen:
            return "duplicate_id", f"{record_id!r} is in an earlier row already; that row was kept"
        self._seen.add((record_id, at_us))
        return None

    def _store(self, rows: Sequence[tuple[str, Floats, int | None]]) -> None:
        live: list[tuple[str, int, str, Floats]] = []
        gone: list[tuple[str, int]] = []
        for record_id, vector, at_us in rows:
            unit = vector / np.float32(np.linalg.norm(vector)) if self._file.normalise else vector
            sha = hashlib.sha256(unit.tobytes()).hexdigest()
            there = self._stored.of(record_id)
            for event_us, is_live in self._spans(record_id) if at_us is None else [(at_us, True)]:
                if (event_us, sha if is_live else None) in there:
                    self._report.unchanged += 1
                elif is_live:
                    live.append((record_id, event_us, sha, unit))
                else:
                    gone.append((record_id, event_us))
        self._write(live, gone)
        self._report.stored += len(live) + len(gone)

    def _spans(self, record_id: str) -> list[tuple[int, bool]]:
        """When a record's content of this modality began to be, and ceased: the vector is taken to be true all that time."""
        versions: list[tuple[int, bool]] = [(us, sha is not None) for us, sha in self._siblings.of(record_id)]
        if not versions:
            versions = [(one.event_us, one.content is not None) for one in self._contents.of(record_id)]
        if not any(live for _, live in versions):  # nothing of this modality is known: as old as the record itself
            versions = [(us, True) for us, _ in versions[:1]]
        return [pair for before, pair in zip([(0, False), *versions], versions, strict=False) if before[1] != pair[1]]

    def _write(self, live: Sequence[tuple[str, int, str, Floats]], gone: Sequence[tuple[str, int]]) -> None:
        for batch in once_each([row[0] for row in live]):
            chosen = [live[row] for row in batch]
            ids, times, shas, vectors = zip(*chosen, strict=True)
            self._tables.write_embeddings(
                self._entity,
                self._space,
                list(ids),
                np.stack(vectors),
                content_sha256=list(shas),
                event_timestamp=np.array(times, np.int64),
            )
        for batch in once_each([record_id for record_id, _ in gone]):
            times_us = np.array([gone[row][1] for row in batch], np.int64)
            self._tables.delete_embeddings(self._entity, self._space, [gone[row][0] for row in batch], times_us)
