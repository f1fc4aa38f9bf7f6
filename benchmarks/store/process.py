"""The parent's side of a worker: starts it, asks, and ends it by its process id."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final, Self

ROOT: Final = Path(__file__).resolve().parents[2]
LAST_LINES: Final = 15


class WorkerError(Exception):
    """A worker ended; the message ends with what it said last."""


class Process:
    """A running worker; `log` gets what its libraries print."""

    def __init__(self, log: Path, environment: dict[str, str]) -> None:
        self._log = log
        with log.open("a") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.store.worker"],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def ask(self, do: str, **arguments: Any) -> Any:
        """What the worker answers. Raises `WorkerError` where it ended instead."""
        if self._process.stdin is None or self._process.stdout is None:
            raise WorkerError("the worker has no pipes")
        try:
            print(json.dumps({"do": do, **arguments}), file=self._process.stdin, flush=True)
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            last = self._log.read_text(errors="replace").splitlines()[-LAST_LINES:]
            raise WorkerError(f"{do} failed:\n" + "\n".join(last))
        return json.loads(answer)

    def close(self) -> None:
        """End the worker."""
        self._process.kill()
        self._process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
