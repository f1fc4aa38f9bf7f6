"""The embedded Milvus, as `triptych up` starts it, with the same face as the standalone server."""

from pathlib import Path
from typing import Self

from benchmarks.store.standalone import folder_bytes, process_cpu_seconds
from benchmarks.store.usage import memory
from feature_store import embedded
from feature_store.home import Home


class Lite:
    """One Milvus Lite server on a home in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._home = Home(folder)
        self.uri, self.pid = "", 0

    def start(self) -> Self:
        """Start the server and wait until it is healthy."""
        server = embedded.start(self._home)
        self.uri, self.pid = server.uri, server.pid
        return self

    def stop(self) -> None:
        """Stop the server."""
        embedded.stop(self._home)

    def cpu_seconds(self) -> float:
        """User and system seconds of the server so far."""
        return process_cpu_seconds(self.pid)

    def memory_bytes(self) -> dict[str, int]:
        """The server's memory now and at its peak (resident)."""
        return {name: memory(key, self.pid) for name, key in (("now", "VmRSS"), ("peak", "VmHWM"))}

    def disk_bytes(self) -> dict[str, int]:
        """Bytes on disk; indexes and log lie among the rows."""
        return {"rows": folder_bytes(self._home.milvus_data), "index": 0, "log": 0}

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()
