"""A full disk under Milvus, the leases or the offline tables: an error that says so, and nothing that was acknowledged is lost."""

import os
import resource
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from fault_bench import VIEW, Bench, KillableLite
from fault_rows import DIM, check_holds, fault_schema, make_load, stored
from fault_worker import BATCH_ROWS

from encoders.space import EmbeddingSpace
from feature_store import embedded
from feature_store.errors import LedgerError, StoreRequestError
from feature_store.home import Home
from feature_store.lease import Leases
from feature_store.milvus_core import MilvusCore
from feature_store.spaces import register_spaces
from feature_store.tables import Tables

DISK_MIB = 48
ROWS, KEYS = 12_000, 6_000


@dataclass
class SmallDisk:
    """A file system of its own in memory, which can be filled."""

    folder: Path

    @property
    def _ballast(self) -> Path:
        return self.folder / "ballast"

    def fill(self, room: int) -> None:
        """Leave `room` bytes."""
        there = os.statvfs(self.folder)
        self._ballast.write_bytes(b"x" * max(0, there.f_bavail * there.f_frsize - room))

    def free(self) -> None:
        """Make room again."""
        self._ballast.unlink()


@dataclass
class SmallFiles:
    """A server that may write no file beyond a size, which works without the right to mount."""

    home: Home

    def fill(self, room: int) -> None:
        """Let files grow by `room` bytes."""
        largest = max((path.stat().st_size for path in self.home.milvus_data.rglob("*.arrow")), default=0)
        self._limit(largest + room)

    def free(self) -> None:
        """Let files grow as they will."""
        self._limit(resource.RLIM_INFINITY)

    def _limit(self, size: int) -> None:
        pid = embedded.status(self.home).pid
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


@contextmanager
def mounted(folder):
    """A folder on a small file system of its own; skipped where this may not be mounted."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def disk(tmp_path):
    with mounted(tmp_path / "disk") as small:
        yield small


@pytest.fixture(params=["disk", "file size"])
def tight(request, tmp_path):
    """A home whose Milvus can be short of space, its disk, and a view on it."""
    home = Home(tmp_path / "home").create()
    disk = SmallFiles(home)
    if request.param == "disk":
        disk = request.getfixturevalue("disk")
        (disk.folder / "milvus").mkdir()
        home.milvus_data.symlink_to(disk.folder / "milvus")
    bench = Bench(KillableLite(home), Leases(tmp_path / "leases.db", 2.0), request.getfixturevalue("seed"))
    bench.create()
    yield bench, disk
    embedded.stop(home)


def kill_and_restart(bench):
    bench.server.kill()
    bench.server.restart()


def check_has_at_least(core, acknowledged):
    """Each of these versions is there, or a newer one in its place."""
    found = stored(core, VIEW)
    assert len(np.unique(found.key)) == len(found)
    kept = found.take(np.isin(found.key, acknowledged.key))
    np.testing.assert_array_equal(kept.key, acknowledged.key)
    older = (kept.event < acknowledged.event) | (
        (kept.event == acknowledged.event) & (kept.created < acknowledged.created)
    )
    assert not older.any()


@pytest.mark.timeout(240)
def test_a_load_onto_a_full_disk_fails_by_name_and_is_completed_once_there_is_room(tight, seed, rng):
    """The error names view and cause; what was acknowledged outlives a kill; a re-run completes, and outlives one too."""
    bench, disk = tight
    load, order = make_load(seed, ROWS, KEYS), {"load": [seed, ROWS, KEYS]}
    with bench.core() as core:
        core.upsert(VIEW, load.take(slice(2_000)).table())
        disk.fill(int(rng.integers(4_096, 400_000)))
        with bench.worker(**order) as worker:
            error = worker.result(code=1)
            batches = sum(line.startswith("batch") for line in worker.lines)
        assert ("StoreRequestError" in error, f"view {VIEW}" in error) == (True, True)
        assert ("No space left" in error) or ("File too large" in error)
        acknowledged = load.take(slice(max(2_000, batches * BATCH_ROWS))).newest()
        check_has_at_least(core, acknowledged)
        disk.free()
        kill_and_restart(bench)
        check_has_at_least(core, acknowledged)
        with bench.worker(**order) as again:
            again.result()
        check_holds(core, VIEW, load.newest())
        kill_and_restart(bench)
        check_holds(core, VIEW, load.newest())


@pytest.mark.timeout(240)
def test_writes_go_on_without_a_restart_once_there_is_room(tight, seed, rng):
    """What is written behind a record that did not fit is read back after a kill."""
    bench, disk = tight
    load = make_load(seed, ROWS, KEYS)
    with bench.core() as core:
        core.upsert(VIEW, load.take(slice(2_000)).table())
        disk.fill(int(rng.integers(4_096, 100_000)))
        with pytest.raises(StoreRequestError, match=f"view {VIEW} cannot be written"):
            core.upsert(VIEW, load.take(slice(2_000, 7_000)).table())
        disk.free()
        core.upsert(VIEW, load.table())
        kill_and_restart(bench)
        check_holds(core, VIEW, load.newest())


@pytest.mark.timeout(240)
def test_a_checkpoint_on_a_full_disk_lets_go_of_nothing(tight, seed):
    """A flush that fails leaves every row readable; the next one has them, and so has the server after a kill."""
    bench, disk = tight
    rows = make_load(seed, KEYS, KEYS).newest()
    with bench.core() as core:
        core.upsert(VIEW, rows.table())
        disk.fill(4_096 - 1 if isinstance(disk, SmallDisk) else -500_000)
        with pytest.raises(StoreRequestError, match=f"view {VIEW} cannot be written"):
            core.flush(VIEW)
        check_holds(core, VIEW, rows)
        disk.free()
        core.upsert(VIEW, rows.take(slice(10)).later(1).table())
        core.flush(VIEW)
        kill_and_restart(bench)
        newer = np.where(np.arange(KEYS) < 10, rows.later(1).event, rows.event)
        check_holds(core, VIEW, replace(rows, event=newer))


def test_a_view_can_be_made_and_dropped_around_a_full_disk(tight):
    """What could not be made leaves nothing in its way; what is there can be dropped, which is how room is made."""
    bench, disk = tight
    if isinstance(disk, SmallFiles):
        pytest.skip("a limit of file sizes does not hinder a folder")
    with bench.core() as core:
        core.upsert(VIEW, make_load(1, 100, 100).table())
        disk.fill(0)
        with pytest.raises(StoreRequestError, match="No space left"):
            core.create_view(fault_schema("item_second"))
        assert core.drop_view(VIEW)
        disk.free()
        core.create_view(fault_schema("item_second"))
        assert core.list_views() == ["item_second"]


def test_without_room_for_leases_nothing_is_written(disk, milvus_server):
    """Nobody can be sure to be the only writer then: an error that names the file, and the lease of before still holds."""
    leases = Leases(disk.folder / "leases.db")
    leases.take("view").release()
    disk.fill(0)
    with pytest.raises(LedgerError, match=r"leases\.db cannot be used: .*full"), leases.hold("view"):
        raise AssertionError("a lease was given")
    disk.free()
    with leases.hold("view") as lease, MilvusCore(milvus_server):
        assert lease.token == 2


def test_offline_parts_are_written_whole_or_not_at_all(disk, rng, unit_vectors):
    """A table on a full disk refuses the rows, keeps those it has, and takes them once there is room."""
    home = Home(disk.folder / "home").create()
    home.spaces.write_text("spaces: []\n")
    space = EmbeddingSpace.from_recipe("text", "full", DIM, {"weights": "none"})
    register_spaces(home, [space])
    tables = Tables(home)
    tables.ensure()
    ids, vectors = [f"i{n}" for n in range(5_000)], unit_vectors(5_000, DIM)

    def write(rows):
        at = np.full(len(ids[rows]), 1)
        tables.write_embeddings(
            "item", space, ids[rows], vectors[rows], content_sha256=["s"] * len(at), event_timestamp=at
        )

    write(slice(1_000))
    disk.fill(int(rng.integers(0, 100_000)))
    with pytest.raises(OSError, match="No space left"):
        write(slice(1_000, 5_000))
    assert tables.read_embeddings("item", space.space_id).ids == sorted(ids[:1_000])
    disk.free()
    write(slice(1_000, 5_000))
    assert tables.read_embeddings("item", space.space_id).ids == sorted(ids)
