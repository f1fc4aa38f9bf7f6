"""The embedded Milvus: one Milvus Lite server (`lite_server.py`) per home, on 127.0.0.1, started, found and stopped by its process id.

A server of its own, rather than a library in the caller, lets `feast materialize` write while the ranking service reads.
"""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from feature_store.errors import StoreUnavailable
from feature_store.files import locked, write_whole
from feature_store.home import Home

HOST: Final = "127.0.0.1"
POLL_SECONDS: Final = 0.05
PORTS: Final = range(20_000, 32_000)
SERVER: Final = "feature_store.lite_server"  # by its name: importing it would import Milvus Lite


@dataclass(frozen=True)
class EmbeddedServer:
    """A running server: its address, process id and start (seconds since 1970)."""

    uri: str
    pid: int
    started: float


def status(home: Home) -> EmbeddedServer | None:
    """The home's server if its process lives and is ours; None otherwise, a stale `milvus.json` included."""
    try:
        data = json.loads(home.milvus_json.read_text())
        server = EmbeddedServer(str(data["uri"]), int(data["pid"]), float(data["started"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return server if _is_ours(server.pid, home) else None


def start(home: Home, *, port: int | None = None, timeout_seconds: float = 60.0) -> EmbeddedServer:
    """Start the home's server, or return the one that runs. Raises `StoreUnavailable` with the log's end if it does not come up."""
    home.create()
    with locked(_lock_file(home)):
        running = status(home)
        if running is not None:
            wait_until_healthy(running.uri, timeout_seconds)
            return running
        return _launch(home, port or _usual_port(home), timeout_seconds)


def _launch(home: Home, port: int, timeout_seconds: float) -> EmbeddedServer:
    log = home.logs / "milvus.log"
    command = [sys.executable, "-m", SERVER, "--data-dir", str(home.milvus_data)]
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*command, "--host", HOST, "--port", str(port)],
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    server = EmbeddedServer(f"http://{HOST}:{port}", process.pid, time.time())
    try:
        # Before it is healthy: a server whose starter is killed meanwhile is found and stopped by its process id.
        write_whole(home.milvus_json, json.dumps(asdict(server)) + "\n")
        wait_until_healthy(server.uri, timeout_seconds, process)
        _port_file(home).write_text(f"{port}\n")
    except BaseException as error:  # Ctrl-C too: nobody else would end a server in a session of its own.
        process.kill()
        process.wait()
        home.milvus_json.unlink(missing_ok=True)
        if isinstance(error, StoreUnavailable):
            raise StoreUnavailable(f"{error}; the end of {log}:\n{_tail(log)}") from error
        raise
    process.returncode = 0  # It outlives us on purpose; without this, Popen warns when it is collected.
    return server


def stop(home: Home, timeout_seconds: float = 20.0) -> bool:
    """Stop the home's server and forget its address; False where none was running."""
    home.create()
    with locked(_lock_file(home)):
        server = status(home)
        if server is not None:
            _end(server.pid, home, timeout_seconds)
        home.milvus_json.unlink(missing_ok=True)
        return server is not None


def _end(pid: int, home: Home, timeout_seconds: float) -> None:
    for number, patience in ((signal.SIGTERM, timeout_seconds), (signal.SIGKILL, 5.0)):
        if _is_ours(pid, home):
            os.kill(pid, number)
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            # Not `_is_ours`: a process that is about to end has no arguments any more, and holds its files yet.
            if not _lives(pid):
                _reap(pid)
                return
            time.sleep(POLL_SECONDS)
    raise StoreUnavailable(f"process {pid} of the embedded Milvus does not end; see {home.logs / 'milvus.log'}")


def _reap(pid: int) -> None:
    """Collect the ended process if it is our child, so that it does not stay a zombie."""
    with suppress(ChildProcessError):
        os.waitpid(pid, 0)


def _is_ours(pid: int, home: Home) -> bool:
    """Whether `pid` lives and is a server on this home's data: a process id may have been given to somebody else since."""
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return _lives(pid) and SERVER.encode() in arguments and str(home.milvus_data).encode() in arguments


def _lives(pid: int) -> bool:
    """Whether there is such a process, and it is no zombie: one whose main thread has ended may have others that end yet."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state not in {"Z", "X"} or len(list(Path(f"/proc/{pid}/task").iterdir())) > 1
    except (OSError, IndexError):
        return False


def wait_until_healthy(uri: str, timeout_seconds: float, process: subprocess.Popen[bytes] | None = None) -> None:
    """Wait until the server at `uri` answers. Raises `StoreUnavailable` when the time is over or `process` has ended."""
    from feature_store.milvus_core import MilvusCore

    deadline = time.monotonic() + timeout_seconds
    with MilvusCore(uri, timeout_seconds=2.0) as core:
        while not core.healthy():
            if process is not None and process.poll() is not None:
                raise StoreUnavailable(f"the embedded Milvus ended with code {process.returncode}")
            if time.monotonic() > deadline:
                raise StoreUnavailable(f"Milvus at {uri} did not answer within {timeout_seconds:.0f} s")
            time.sleep(POLL_SECONDS)


def free_port(preferred: int | None = None) -> int:
    """A port of this machine that nobody listens on at the moment: `preferred` if it is such a one.

    It lies below the range that the system gives to outgoing connections: a client that waits for a stopped server could otherwise
    be given the server's own port.
    """
    first = [] if preferred is None else [preferred]
    for port in [*first, *random.sample(PORTS, len(PORTS))]:
        with socket.socket() as probe, suppress(OSError, OverflowError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((HOST, port))
            return port
    raise StoreUnavailable(f"no port from {PORTS.start} to {PORTS.stop} of {HOST} is free")


def _usual_port(home: Home) -> int:
    """The port of the last time where it is free, so that processes which were connected find the server again."""
    try:
        return free_port(int(_port_file(home).read_text()))
    except (OSError, ValueError):
        return free_port()


def _port_file(home: Home) -> Path:
    return home.root / "milvus.port"


def _lock_file(home: Home) -> Path:
    return home.root / ".milvus.lock"


def _tail(log: Path, lines: int = 15) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
