"""Starts `fault_worker.py`, follows what it tells, and kills, pauses or resumes it by its process id."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path
from typing import Self

WORKER = Path(__file__).with_name("fault_worker.py")
PATIENCE_SECONDS = 120.0


class Worker:
    """A running worker; a context manager that leaves no process behind."""

    def __init__(self, **order) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(WORKER), json.dumps(order)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        self._errors: deque[str] = deque(maxlen=40)
        self._readers = [
            threading.Thread(target=self._read, args=(stream, into), daemon=True)
            for stream, into in ((self.process.stdout, self.lines), (self.process.stderr, self._errors))
        ]
        for reader in self._readers:
            reader.start()

    @staticmethod
    def _read(stream, into) -> None:
        for line in stream:
            into.append(line.rstrip())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.end()

    def go(self) -> None:
        """Tell it to begin, where it waits for that."""
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def wait_for(self, prefix: str) -> str:
        """Its first line that begins so."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            ended = self.process.poll() is not None
            if ended:
                self._join()
            for line in list(self.lines):
                if line.startswith(prefix):
                    return line
            if ended or time.monotonic() > deadline:
                raise AssertionError(f"no {prefix!r} of {self.process.args}: {self.lines[-3:]}, {list(self._errors)}")
            time.sleep(0.005)

    def wait_stopped(self) -> None:
        """Wait until it has paused itself."""
        self.wait_for("paused")
        while Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            time.sleep(0.005)

    def resume(self) -> None:
        """Let it go on."""
        os.kill(self.process.pid, signal.SIGCONT)

    def kill(self) -> None:
        """End it as a loss of power would."""
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def result(self, code: int = 0) -> dict | str:
        """Wait for its end, with this exit code: what was done, or the error."""
        self.process.wait(PATIENCE_SECONDS)
        self._join()
        assert self.process.returncode == code, (self.lines[-3:], list(self._errors))
        word, _, rest = self.lines[-1].partition(" ")
        return json.loads(rest) if word == "done" else rest

    def end(self) -> None:
        """Kill it where it still runs."""
        if self.process.poll() is None:
            self.kill()
        self._join()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            stream.close()

    def _join(self) -> None:
        for reader in self._readers:
            reader.join()
