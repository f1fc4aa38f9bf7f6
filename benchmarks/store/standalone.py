"""A Milvus standalone server of its own for one run: started in a folder, measured, started again on its data, stopped by its process id.

It is the real server out of PyPI's `milvus` wheel (2.3.5, Linux x86-64). The server outlives a starter that was killed, so `stop` must
be reached: use it as a context, which also ends it when this process is asked to end.
"""

import importlib
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any, Final, Self

import yaml

from benchmarks.store.usage import memory
from feature_store.embedded import free_port, wait_until_healthy

START_SECONDS: Final = 120.0
STOP_SECONDS: Final = 15.0  # with views loaded it may never end by itself; what was flushed is safe
# What a server keeps under its folder. Its etcd sets aside the same room for every catalogue, and is left out.
DATA_FOLDERS: Final = {
    "rows": ("insert_log", "stats_log", "delta_log"),
    "index": ("index_files",),
    "log": ("rocksmq", "rocksmq_meta_kv"),
}


class Standalone:
    """One server on `folder`; `uri` is its address while it runs, another one after each start."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ports: dict[str, int] = {}
        self._server: Any = None
        self._old_handler: Any = None

    @property
    def uri(self) -> str:
        """Address, as `http://host:port`."""
        return f"http://127.0.0.1:{self._ports['proxy_port']}"

    @property
    def pid(self) -> int:
        """Process id of the running server."""
        return int(self._server.server_proc.pid)

    def start(self) -> Self:
        """Start the server and wait until it is healthy. Raises `ModuleNotFoundError` where the wheel is not installed."""
        package = importlib.import_module("milvus")
        self.folder.mkdir(parents=True, exist_ok=True)
        # New ones each time: those of a server that has just ended are not free for a minute.
        self._ports = {"etcd_port": free_port(), "proxy_port": free_port()}
        self._server = package.MilvusServer(wait_for_started=False, **self._ports)
        self._server.set_base_dir(str(self.folder))
        before = dict(os.environ)
        os.environ["ETCD_CONFIG_PATH"] = str(self._etcd_config())
        try:
            with warnings.catch_warnings():
                warnings.simplefilter(
                    "ignore", ResourceWarning
                )  # the package leaves its probes of ports to the collector
                self._server.start()
            wait_until_healthy(self.uri, START_SECONDS)
        except BaseException:
            self.stop()
            raise
        finally:
            os.environ.clear()
            os.environ.update(before)
        return self

    def _etcd_config(self) -> Path:
        """Ports of its own for the etcd inside, whose usual ones another server on this machine may have."""
        peer, client = f"http://127.0.0.1:{free_port()}", f"http://127.0.0.1:{self._ports['etcd_port']}"
        settings = {
            "name": "default",
            "data-dir": str(self.folder / "etcd"),
            "listen-client-urls": client,
            "advertise-client-urls": client,
            "listen-peer-urls": peer,
            "initial-advertise-peer-urls": peer,
            "initial-cluster": f"default={peer}",
        }
        path = self.folder / "etcd.yaml"
        path.write_text(yaml.safe_dump(settings))
        return path

    def stop(self) -> None:
        """Ask the server to end, wait, and end it by force where it does not."""
        if self._server is None:
            return
        process = self._server.server_proc
        if process is not None:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except Exception:  # noqa: BLE001 - whatever happened, the next line ends it by force
                process.kill()
        self._server.stop()
        self._server = None

    def cpu_seconds(self) -> float:
        """User and system seconds of the server so far."""
        return process_cpu_seconds(self.pid)

    def memory_bytes(self) -> dict[str, int]:
        """The server's memory now and at its peak (resident)."""
        return {name: memory(key, self.pid) for name, key in (("now", "VmRSS"), ("peak", "VmHWM"))}

    def disk_bytes(self) -> dict[str, int]:
        """Bytes on disk: of sealed rows, of their indexes, and of the message log, which is trimmed by time and size."""
        data = self.folder / "data"
        return {kind: sum(folder_bytes(data / place) for place in places) for kind, places in DATA_FOLDERS.items()}

    def __enter__(self) -> Self:
        self._old_handler = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()
        signal.signal(signal.SIGTERM, self._old_handler)


def process_cpu_seconds(pid: int) -> float:
    """User and system seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def folder_bytes(folder: Path) -> int:
    """What the files under a folder occupy on disk; a file that vanishes meanwhile counts nothing."""
    total = 0
    for place, _, files in os.walk(folder):
        for name in files:
            try:
                total += os.lstat(os.path.join(place, name)).st_blocks * 512  # noqa: PTH118 - os.walk gives text
            except FileNotFoundError:
                continue
    return total
