"""Milvus is killed at random instants of a load; after its restart every row is there once, with its newest version, loaded by itself."""

import os
import signal
import subprocess
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from fault_bench import VIEW, Bench
from fault_rows import ROWS, check_holds
from fault_worker import BATCH_ROWS

from feature_store.embedded import free_port, wait_until_healthy
from feature_store.lease import Leases

BATCHES = ROWS // BATCH_ROWS


def kill_during(bench, rng, number, order):
    """Start a load, and kill the server at a random instant of it; returns the worker."""
    worker = bench.worker(round=number, **order)
    at = int(rng.integers(0, BATCHES))
    worker.wait_for(f"batch {at}" if at else "ready")
    time.sleep(rng.uniform(0, 0.2))
    bench.server.kill()
    return worker


def ride_over(bench, rng, number):
    """The writer tries again until the server is back, and completes its load."""
    with kill_during(bench, rng, number, {}) as worker:
        bench.server.restart()
        worker.result()


def give_up(bench, rng, number):
    """The writer ends with an error (unless it was done), and another one loads everything again once the server is back."""
    with kill_during(bench, rng, number, {"retry_seconds": 0.3, "timeout_seconds": 2.0}) as worker:
        worker.process.wait(60.0)
        last = worker.lines[-1]
        assert last.startswith(("failed StoreUnavailable", "done"))
    bench.server.restart()
    with bench.worker(round=number) as again:
        again.result()


def check_kills(bench, rng, kills):
    """After each kill, restart and run: every row, once, newest; and a further run finds nothing to write."""
    for number in range(kills):
        (ride_over, give_up)[number % 2](bench, rng, number)
        with bench.core() as core:
            check_holds(core, VIEW, bench.load.later(number).newest())


@pytest.mark.timeout(600)
def test_no_row_is_lost_when_milvus_is_killed_during_a_load(bench, rng):
    """Two kills of the embedded server during loads of 50,000 rows: the writer waits for its return, or a second one runs."""
    check_kills(bench, rng, 2)
    with bench.worker(round=1) as again:
        assert again.result()["stored"] == 0


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_no_row_is_lost_in_a_series_of_kills_of_the_embedded_milvus(bench, rng):
    """Sixteen kills, on a view that holds the rows of the rounds before."""
    check_kills(bench, rng, 16)


@dataclass
class KillableStandalone:
    """A Milvus standalone server with the etcd inside it, on ports of its own."""

    package: Any
    folder: Path
    ports: dict[str, int] = field(default_factory=lambda: {"etcd_port": free_port(), "proxy_port": free_port()})
    running: Any = None
    variables: dict[bytes, bytes] = field(default_factory=dict)
    cwd: Path = Path("/")

    @property
    def uri(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.ports['proxy_port']}"

    def _etcd(self) -> Path:
        path = self.folder / "etcd.yaml"
        if not path.exists():
            peer, client = (f"http://127.0.0.1:{port}" for port in (free_port(), self.ports["etcd_port"]))
            names = {
                "client": ("listen-client-urls", "advertise-client-urls"),
                "peer": ("listen-peer-urls", "initial-advertise-peer-urls"),
            }
            urls = {name: {"client": client, "peer": peer}[kind] for kind, both in names.items() for name in both}
            settings = {"name": "default", "data-dir": str(self.folder / "etcd"), "initial-cluster": f"default={peer}"}
            path.write_text(yaml.safe_dump(settings | urls))
        return path

    def start(self) -> None:
        """Start the server by its package."""
        server = self.package.MilvusServer(wait_for_started=False, **self.ports)
        server.set_base_dir(str(self.folder))
        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # the package leaves its probes of ports to the collector
            patch.setenv("ETCD_CONFIG_PATH", str(self._etcd()))
            server.start()
        self.running = server
        wait_until_healthy(self.uri, 120.0)

    def kill(self) -> None:
        """End the server process as a loss of power would."""
        child = self.running.server_proc
        variables = Path(f"/proc/{child.pid}/environ").read_bytes().split(b"\0")
        self.variables = dict(variable.split(b"=", 1) for variable in variables if variable)
        self.cwd = Path(f"/proc/{child.pid}/cwd").resolve()
        os.kill(child.pid, signal.SIGKILL)
        child.wait()

    def restart(self) -> None:
        """Run the same command again: the package itself would not, since connections of before hold the ports for a minute."""
        command = self.running.server_proc.args
        with (self.folder / "restarts.log").open("ab") as log:
            self.running.server_proc = subprocess.Popen(
                command, env=self.variables, cwd=self.cwd, stdout=log, stderr=log
            )
        wait_until_healthy(self.uri, 120.0)

    def stop(self) -> None:
        """End the server process."""
        self.running.stop()


@pytest.fixture
def standalone_bench(tmp_path, seed):
    """The view, empty, on a standalone server that may be killed; skipped where its package is not installed."""
    server = KillableStandalone(pytest.importorskip("milvus"), tmp_path)
    server.start()
    there = Bench(server, Leases(tmp_path / "leases.db", 2.0), seed)
    try:
        there.create()
        yield there
    finally:
        server.stop()


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_no_row_is_lost_in_a_series_of_kills_of_a_standalone_milvus(standalone_bench, rng):
    """Six kills of the standalone server, whose etcd dies with it."""
    check_kills(standalone_bench, rng, 6)


def test_a_restarted_milvus_loads_its_views_by_itself(lite, bench, rng, unit_vectors):
    """After a kill a connection of before reads and searches at once, without anybody's asking for the view to be loaded."""
    small = Bench(lite, bench.leases, bench.seed, rows=ROWS // 10 + 20_000)
    with bench.core() as core:
        newest = small.load.newest()
        core.upsert(VIEW, newest.table())
        if rng.random() < 0.5:
            core.flush(VIEW)
        lite.kill()
        lite.restart()
        first = newest.take(np.flatnonzero(~newest.deleted)[:3])
        found = core.search(VIEW, first.vectors, 1)
        assert found.ids == [[name] for name in first.ids()]
        check_holds(core, VIEW, newest)
