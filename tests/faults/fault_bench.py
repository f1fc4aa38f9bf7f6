"""A Milvus of the test's own, which may be killed, and writers that share a view on it."""

import os
import signal
from dataclasses import dataclass

from fault_process import Worker
from fault_rows import ROWS, Load, fault_schema, make_load

from encoders.space import EmbeddingSpace
from feature_store import embedded
from feature_store.home import Home
from feature_store.lease import Leases
from feature_store.milvus_core import MilvusCore
from feature_store.tables import Tables

LEASE_SECONDS = 2.0
VIEW = "item_faults"


@dataclass(frozen=True)
class KillableLite:
    """An embedded Milvus server of a home."""

    home: Home

    @property
    def uri(self) -> str:
        """Its address; starts it where it does not run."""
        return embedded.start(self.home).uri

    def signal(self, number: int) -> None:
        """Pause it (SIGSTOP) or let it go on (SIGCONT)."""
        os.kill(embedded.status(self.home).pid, number)

    def kill(self) -> None:
        """End the server as a loss of power would."""
        pid = embedded.status(self.home).pid
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)

    def restart(self) -> None:
        """Start it again on the same data."""
        embedded.start(self.home)

    def stop(self) -> None:
        """End it."""
        embedded.stop(self.home)


@dataclass(frozen=True)
class Bench:
    """A server, a view on it and a load for it; `worker` starts a writer of that load."""

    server: object
    leases: Leases
    seed: int
    rows: int = ROWS

    @property
    def load(self):
        """What is to be written."""
        return make_load(self.seed, self.rows)

    def worker(self, what="load", **order) -> Worker:
        """A writer of that load, or of another `order`."""
        shared = {
            "uri": self.server.uri,
            "leases": str(self.leases.where),
            "lease_seconds": LEASE_SECONDS,
            "view": VIEW,
        }
        return Worker(what=what, **{**shared, "load": [self.seed, self.rows], "round": 0, **order})

    def core(self) -> MilvusCore:
        """A connection."""
        return MilvusCore(self.server.uri)

    def create(self) -> None:
        """Make the view."""
        with self.core() as core:
            core.create_view(fault_schema(VIEW))


def write_versions(tables: Tables, space: EmbeddingSpace, load: Load) -> None:
    """Write a load into the table of a space: a part holds an id once, so a part for each version of the ids."""
    for version in range(1 + load.nth_of_its_key().max()):
        rows = load.take(load.nth_of_its_key() == version)
        columns = {"event_timestamp": rows.event, "created": rows.created, "deleted": rows.deleted}
        tables.write_embeddings("item", space, rows.ids(), rows.vectors, content_sha256=["s"] * len(rows), **columns)
