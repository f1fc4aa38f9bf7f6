"""A Milvus of the test's own, which may be killed, and the orders that its writers share."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from fault_process import Worker
from fault_rows import ROWS, fault_schema, make_load

from feature_store import embedded
from feature_store.home import Home
from feature_store.lease import Leases
from feature_store.milvus_core import MilvusCore

LEASE_SECONDS = 2.0
VIEW = "item_faults"


@dataclass(frozen=True)
class KillableLite:
    """An embedded Milvus server of a home."""

    home: Home

    @property
    def uri(self) -> str:
        return embedded.start(self.home).uri

    def kill(self) -> None:
        """End the server as a loss of power would."""
        pid = embedded.status(self.home).pid
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)

    def restart(self) -> None:
        embedded.start(self.home)

    def stop(self) -> None:
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
        return make_load(self.seed, self.rows)

    def worker(self, what="load", **order) -> Worker:
        shared = {"uri": self.server.uri, "leases": str(self.leases.where), "lease_seconds": LEASE_SECONDS, "view": VIEW}
        return Worker(what=what, **{**shared, "load": [self.seed, self.rows], "round": 0, **order})

    def core(self) -> MilvusCore:
        return MilvusCore(self.server.uri)

    def create(self) -> None:
        with self.core() as core:
            core.create_view(fault_schema(VIEW))


@pytest.fixture(scope="session")
def lite(tmp_path_factory):
    """An embedded server for tests that kill it."""
    server = KillableLite(Home(tmp_path_factory.mktemp("killable")).create())
    yield server
    server.stop()


@pytest.fixture
def bench(lite, tmp_path, seed):
    """The view, empty, on the embedded server."""
    there = Bench(lite, Leases(Path(tmp_path) / "leases.db", LEASE_SECONDS), seed)
    there.create()
    yield there
    with there.core() as core:
        for name in core.list_views():
            core.drop_view(name)


@pytest.fixture
def let_the_lease_end():
    """Wait until the lease of a killed or paused writer has run out."""
    return lambda: time.sleep(LEASE_SECONDS + 0.2)
