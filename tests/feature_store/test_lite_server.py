"""What the embedded server adds to Milvus Lite, on a real server that is killed."""

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest

from feature_store import embedded
from feature_store.home import Home
from feature_store.milvus_core import MilvusCore
from feature_store.milvus_schema import ViewSchema
from feature_store.schemas import timestamps

DIM, COUNT = 16, 16_000
SCHEMA = ViewSchema("items", fields={}, vector_field="vector", dim=DIM)
IDS = [f"i{n:05d}" for n in range(COUNT)]


@pytest.fixture
def server(tmp_path):
    """A home with a running server and the view."""
    home = Home(tmp_path)
    with MilvusCore(embedded.start(home).uri) as core:
        core.create_view(SCHEMA)
        yield home, core
    embedded.stop(home)


@pytest.fixture
def vectors(unit_vectors):
    return unit_vectors(COUNT, DIM)


def some(vectors, rows, event=1):
    columns = {
        "entity_id": IDS[rows],
        "event_timestamp": timestamps(np.full(len(IDS[rows]), event)),
        "vector": pa.array(list(vectors[rows]), pa.list_(pa.float32())),
    }
    return pa.table(columns)


def kill_and_restart(home):
    pid = embedded.status(home).pid
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    embedded.start(home)


def test_writes_at_the_same_time_are_all_there_after_a_kill(server, vectors):
    """Eight threads write their own rows of one view: every acknowledged row is read back from the log."""
    home, core = server
    parts = [slice(first, first + 500) for first in range(0, COUNT, 500)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda rows: core.upsert("items", some(vectors, rows)), parts))
    kill_and_restart(home)
    found, present, _ = core.read_vectors("items", IDS, strong=True)
    assert present.all()
    np.testing.assert_array_equal(found, vectors)


def test_the_first_requests_after_a_restart_open_a_view_once(server, vectors):
    """Writers that come at once to a view that is not open yet write into one and the same."""
    home, core = server
    core.upsert("items", some(vectors, slice(0, 4_000)))
    kill_and_restart(home)
    parts = [slice(first, first + 500) for first in range(4_000, 8_000, 500)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda rows: core.upsert("items", some(vectors, rows)), parts))
    assert core.count("items") == 8_000
    kill_and_restart(home)
    assert core.count("items") == 8_000


def test_readers_miss_nothing_while_rows_move_into_a_file(server, vectors):
    """During checkpoints every read has every row."""
    _, core = server
    core.upsert("items", some(vectors, slice(0, 3_000)))
    asked, done, missing = IDS[:3_000:100], threading.Event(), []

    def read():
        while not done.is_set():
            missing.append((~core.read_vectors("items", asked, strong=True)[1]).sum())

    reader = threading.Thread(target=read)
    reader.start()
    for event in range(2, 8):
        core.upsert("items", some(vectors, slice(0, 3_000), event))
        core.flush("items")
    done.set()
    reader.join()
    assert missing
    assert not any(missing)


def test_an_index_file_that_a_kill_cut_short_is_built_anew(server, vectors):
    """The view is loaded and searched as before."""
    home, core = server
    core.upsert("items", some(vectors, slice(0, 2_000)))
    core.flush("items")
    core.search("items", vectors[:1], 1)
    kill_and_restart(home)
    core.load("items")
    files = list(home.milvus_data.glob("collections/items/partitions/*/indexes/*"))
    assert files
    for file in files:
        os.truncate(file, file.stat().st_size // 2)
    kill_and_restart(home)
    assert core.search("items", vectors[5:6], 1).ids == [[IDS[5]]]


def test_a_collection_that_a_kill_left_half_made_or_half_dropped_is_no_obstacle(server):
    """A folder without a schema is of no view: its name can be used."""
    home, core = server
    folder = home.milvus_data / "collections" / "second" / "partitions"
    folder.mkdir(parents=True)
    (folder / "leftover").write_text("x")
    kill_and_restart(home)
    core.create_view(ViewSchema("second", fields={}, vector_field="vector", dim=DIM))
    assert core.count("second") == 0
