"""When a server has finished what it was given: nothing is being indexed or compacted, and every row is served from a sealed segment."""

import time
from typing import Final, Protocol

from feature_store.milvus_core import MilvusCore

QUIET_CORES: Final = 0.2
QUIET_SECONDS: Final = 2.0
SETTLE_SECONDS: Final = 3_600.0  # an index over a million vectors takes two cores many minutes
SEALED: Final = 3
LEAST_INDEXED_ROWS: Final = 1_024  # Milvus's own: smaller segments are searched without an index


class Server(Protocol):
    """A running Milvus."""

    @property
    def uri(self) -> str:
        """Address."""

    def cpu_seconds(self) -> float:
        """CPU seconds of the server so far."""


def quiet(server: Server) -> None:
    """Wait until the server has done next to nothing for a while. Raises `RuntimeError` where it never does."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while time.monotonic() < deadline:
        before = server.cpu_seconds()
        time.sleep(QUIET_SECONDS)
        if server.cpu_seconds() - before < QUIET_CORES * QUIET_SECONDS:
            return
    raise RuntimeError(f"the server is not quiet after {SETTLE_SECONDS:.0f} s")


def settled(core: MilvusCore, server: Server, view: str, rows: int, *, flat: bool = False) -> float:
    """Wait until every row of `view` is served from a sealed segment with its index, and for quiet; seconds that it took.

    For standalone and distributed servers: Milvus Lite does not tell of its segments. A FLAT index (`flat`) is the rows themselves, and
    is never named.
    """
    from pymilvus.grpc_gen import milvus_pb2

    started, request = time.monotonic(), milvus_pb2.GetQuerySegmentInfoRequest(collectionName=view)
    while True:
        segments = core.channel.call("GetQuerySegmentInfo", request).infos
        waiting = [
            s for s in segments if s.state != SEALED or not (flat or s.index_name or s.num_rows < LEAST_INDEXED_ROWS)
        ]
        if sum(s.num_rows for s in segments) >= rows and not waiting:
            break
        if time.monotonic() - started > SETTLE_SECONDS:
            raise RuntimeError(f"{view}: {len(waiting)} segments are not indexed after {SETTLE_SECONDS:.0f} s")
        time.sleep(0.5)
    quiet(server)
    return time.monotonic() - started
