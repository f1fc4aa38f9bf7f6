"""Milvus Lite's server, made to keep what it has acknowledged: through kills, full disks and writes at the same time.

Milvus Lite 3.2.2 has no lock around writes, drops rows whose checkpoint failed, and stops reading its log at a record that was cut short.
Each override here says what it mends (`docs/decisions/017-the-embedded-server-is-guarded.md`). Run as
`python -m feature_store.lite_server --data-dir D --port P`; `embedded.py` starts and stops it.
"""

# ruff: noqa: SLF001 - what must be mended is private

import copy
import os
import shutil
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Any

import structlog
from milvus_lite import cmdline, db
from milvus_lite.adapter.grpc import server
from milvus_lite.db import COLLECTIONS_DIRNAME, DATABASES_DIRNAME, SCHEMA_FILENAME, MilvusLite
from milvus_lite.engine.collection import Collection
from milvus_lite.engine.flush import execute_flush
from milvus_lite.storage.memtable import MemTable
from milvus_lite.storage.wal import WAL, _cleanup_old_wals

log = structlog.get_logger(__name__)


def _one_at_a_time(method: Callable[..., Any]) -> Callable[..., Any]:
    """The method under the object's own lock."""

    @wraps(method)
    def locked(self: Any, *args: Any, **settings: Any) -> Any:
        with self.changing:
            return method(self, *args, **settings)

    return locked


def _of_one_moment(read: Callable[..., Any]) -> Callable[..., Any]:
    """A read, done again where a checkpoint moved rows from memory to a file meanwhile: it may have seen them in neither."""

    @wraps(read)
    def steady(self: Any, *args: Any, **settings: Any) -> Any:
        while True:
            before = self.checkpoints
            found = read(self, *args, **settings)
            if before == self.checkpoints:
                return found

    return steady


class OldestFirstLog(WAL):  # type: ignore[misc]
    """A log that goes away after the older ones: read back without it, those would bring old versions of its rows."""

    def close_and_delete(self) -> None:
        """Delete the older logs, then this one."""
        _cleanup_old_wals(self.wal_dir, self.number - 1)
        super().close_and_delete()


class DurableCollection(Collection):  # type: ignore[misc]
    """A collection that is written by one thread at a time and loses nothing where it cannot write."""

    _memtable: Any
    _wal: Any

    def __init__(self, *args: Any, **settings: Any) -> None:
        self.changing = threading.RLock()  # before recovery, which may write a checkpoint
        self.checkpoints = 0
        super().__init__(*args, **settings)
        self._wal = self._new_log(self._wal.number)

    # Two threads in one log stream leave it unreadable from there on.
    insert = _one_at_a_time(Collection.insert)
    upsert = _one_at_a_time(Collection.upsert)
    delete = _one_at_a_time(Collection.delete)
    flush = _one_at_a_time(Collection.flush)
    drop_partition = _one_at_a_time(Collection.drop_partition)
    get = _of_one_moment(Collection.get)
    query = _of_one_moment(Collection.query)
    search = _of_one_moment(Collection.search)
    _num_entities = _of_one_moment(Collection._num_entities)

    def _new_log(self, number: int) -> OldestFirstLog:
        return OldestFirstLog(
            wal_dir=str(Path(self._data_dir) / "wal"),
            wal_data_schema=self._wal_data_schema,
            wal_delta_schema=self._wal_delta_schema,
            wal_number=number,
        )

    def _apply(self, op: Any) -> None:
        """Cut a half-written record off the log: recovery would not read what is written behind it."""
        try:
            super()._apply(op)
        except OSError as error:
            self._cut_log()
            raise self._named(error) from error

    def _cut_log(self) -> None:
        """Cut the log after its last whole record and go on in a new one."""
        wal = self._wal
        for sink, size in ((wal._data_sink, wal._data_size_bytes), (wal._delta_sink, wal._delta_size_bytes)):
            if sink is not None:
                with suppress(OSError):  # The file is closed even where its buffer cannot be written.
                    sink.close()
                os.truncate(sink.name, size)
        self._recovered_wal_bytes += wal.size_bytes
        self._wal = self._new_log(wal.number + 1)

    def _trigger_flush(self) -> None:
        """Write a checkpoint and only then let go of rows and log: one that fails leaves both, for the next to try again."""
        with self.changing, self._maintenance_lock:
            manifest = self._manifest
            version, files = manifest.version, copy.deepcopy(manifest._partitions)
            try:
                execute_flush(
                    frozen_memtable=self._memtable,
                    frozen_wal=self._wal,
                    data_dir=self._data_dir,
                    schema=self._schema,
                    manifest=manifest,
                    delta_index=self._delta_index,
                    new_wal_number=self._wal.number + 1,
                )
            except OSError as error:
                if manifest.version == version:
                    manifest._partitions = files
                    raise self._named(error) from error
                log.warning("a checkpoint is written, its log is not closed", view=self._name, error=str(error))
            self._refresh_segment_cache()
            self._memtable, self._wal = MemTable(self._schema), self._new_log(self._wal.number + 1)
            self._recovered_wal_bytes = 0
            self.checkpoints += 1
        self._schedule_bg_maintenance()

    def _build_or_load_segment_index(self, seg: Any, spec: Any) -> None:
        """Build an index anew whose file cannot be read: a kill or a full disk leaves half of it, and the view could never be loaded."""
        try:
            super()._build_or_load_segment_index(seg, spec)
        except Exception as error:  # faiss, numpy and the file system each have their own
            path = Path(seg.index_file_path(self._index_dir(seg.partition), spec.index_type, spec.field_name))
            if not path.exists():
                raise
            log.warning("an index file is built anew", view=self._name, file=path.name, error=str(error))
            path.unlink()
            super()._build_or_load_segment_index(seg, spec)

    def close(self) -> None:
        """Close, where the disk is full too: so that a view can be dropped then. Its rows are in the log."""
        with self.changing:
            try:
                super().close()
            except OSError as error:
                log.warning("closed without a checkpoint", view=self._name, error=str(error))
                self._bg_closed = True
                self._bg_executor.shutdown(wait=True)

    def _named(self, error: OSError) -> OSError:
        """The error with the view's name, as the client is told it."""
        return OSError(f"view {self._name} cannot be written: {error}; what was acknowledged is kept")


class DurableLite(MilvusLite):  # type: ignore[misc]
    """A database in which a collection is opened once, and whose half-made collections stand in nobody's way."""

    def __init__(self, data_dir: str) -> None:
        self.changing = threading.RLock()
        super().__init__(data_dir)
        for folder in self._half_made(Path(data_dir)):
            shutil.rmtree(folder)

    # Opened by two threads at once there would be two objects, each with rows that the other does not see.
    get_collection = _one_at_a_time(MilvusLite.get_collection)
    drop_collection = _one_at_a_time(MilvusLite.drop_collection)
    rename_collection = _one_at_a_time(MilvusLite.rename_collection)

    @staticmethod
    def _half_made(root: Path) -> list[Path]:
        """Folders of collections without a schema: unreadable, left by a kill, and the name could not be used again."""
        roots = [root / COLLECTIONS_DIRNAME, *(root / DATABASES_DIRNAME).glob(f"*/{COLLECTIONS_DIRNAME}")]
        folders = [folder for there in roots if there.is_dir() for folder in there.iterdir() if folder.is_dir()]
        return [folder for folder in folders if not (folder / SCHEMA_FILENAME).exists()]

    def create_collection(self, name: str, *args: Any, **settings: Any) -> Any:
        """Create a collection, or leave no folder behind that would stand in the way of the next try."""
        with self.changing:
            try:
                return super().create_collection(name, *args, **settings)
            except OSError:
                for folder in self._half_made(Path(self._data_dir)):
                    shutil.rmtree(folder)
                raise


def main(arguments: list[str]) -> int:
    """Serve until the process is ended. `arguments` are those of `milvus-lite server`."""
    db.Collection = DurableCollection
    server.MilvusLite = DurableLite
    return int(cmdline.main(["server", *arguments]))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
