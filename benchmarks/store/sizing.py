"""Weighs one view on a server of its own: loads it, waits, weighs the disk, starts the server again and weighs its memory."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.store.catalogue import Catalogue, table
from benchmarks.store.lite import Lite
from benchmarks.store.settling import quiet, settled
from benchmarks.store.standalone import Standalone
from feature_store.milvus_core import MilvusCore
from feature_store.milvus_schema import ViewSchema

VIEW: Final = "weighed"
SERVERS: Final[Mapping[str, Callable[[Path], Any]]] = {"standalone": Standalone, "embedded": Lite}


@dataclass(frozen=True)
class Weighed:
    """Bytes of one view: rows, index and message log on disk, in a server that serves it, and at the peak of the load.

    Memory is above that of an empty server (`empty_bytes`).
    """

    rows_bytes: int
    index_bytes: int
    log_bytes: int
    memory_bytes: int
    peak_bytes: int
    empty_bytes: int
    load_seconds: float
    settle_seconds: float


def weigh(server: Any, catalogue: Catalogue, index: str) -> Weighed:
    """Load the catalogue into a view with that index on `server`, which has not been started, and weigh it."""
    with server:
        quiet(server)
        empty, empty_disk = server.memory_bytes()["now"], server.disk_bytes()
        with MilvusCore(server.uri, timeout_seconds=120.0) as core:
            load_seconds = fill(core, catalogue, index)
            settle_seconds = settle(core, server, catalogue.rows, index)
        peak, disk = server.memory_bytes()["peak"], server.disk_bytes()
        server.stop()
        server.start()
        with MilvusCore(server.uri, timeout_seconds=120.0) as core:
            core.load(VIEW)
            settle(core, server, catalogue.rows, index)
            core.search(VIEW, catalogue.queries(1), 10)
        serving = server.memory_bytes()["now"]
    grown = {kind: disk[kind] - empty_disk[kind] for kind in disk}
    return Weighed(
        grown["rows"], grown["index"], grown["log"], serving - empty, peak - empty, empty, load_seconds, settle_seconds
    )


def fill(core: MilvusCore, catalogue: Catalogue, index: str) -> float:
    """Write every row and flush; seconds."""
    core.create_view(ViewSchema(VIEW, {}, "vector", catalogue.dim, index=index, key="item_id"))
    started = time.monotonic()
    for first, vectors in catalogue.blocks():
        core.upsert(VIEW, table(first, vectors))
    core.flush(VIEW, 600.0)
    return time.monotonic() - started


def settle(core: MilvusCore, server: Any, rows: int, index: str) -> float:
    """Wait for the index, where the server tells of it, and for quiet; seconds."""
    if isinstance(server, Standalone):
        return settled(core, server, VIEW, rows, flat=index == "FLAT")
    started = time.monotonic()
    quiet(server)
    return time.monotonic() - started
