"""A peer in a venv and a process of its own, driven from here over JSON lines.

The venv is made on first use under `.peers/` in the working folder (several GB; delete it at will). Between requests the peer waits
for input and takes no time from what is measured beside it.
"""

import json
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

HERE: Final = Path(__file__).parent
VENVS: Final = Path(".peers")
INSTALL_SECONDS: Final = 1800


class PeerError(Exception):
    """A peer could not be installed, or failed; the message ends with what it said last."""


def python_of(peer: str) -> Path:
    """The peer's interpreter; its venv is made where there is none, or where its requirements have changed.

    Raises:
        PeerError: pip could not install it.
    """
    venv, wanted = VENVS / peer, (HERE / f"requirements-{peer}.txt").read_text()
    stamp, python = venv / "installed.txt", venv / "bin" / "python"
    if stamp.is_file() and stamp.read_text() == wanted:
        return python
    VENVS.mkdir(exist_ok=True)
    (VENVS / ".gitignore").write_text("*\n")
    install = [python, "-m", "pip", "install", "--quiet", "--requirement", HERE / f"requirements-{peer}.txt"]
    for command in ([sys.executable, "-m", "venv", venv], install):
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False)
        if done.returncode:
            raise PeerError(f"{peer} cannot be installed: {last_line(done.stderr)}")
    stamp.write_text(wanted)
    return python


def last_line(text: str) -> str:
    """The last line that says something."""
    return next((line for line in reversed(text.splitlines()) if line.strip()), "")


class Peer:
    """A running peer with one model loaded; `versions` says which releases it uses."""

    def __init__(self, peer: str, model: Path, modality: str, log: Path) -> None:
        self._name, self._log = peer, log
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                [python_of(peer), HERE / "worker.py", peer],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        try:
            self.versions: dict[str, str] = self._ask({"load": str(model), "modality": modality})
        except BaseException:
            self.close()
            raise

    def encode(self, inputs: Path, batch_size: int, out: Path | None = None) -> float:
        """Seconds that the peer takes for the JSON list in `inputs`; unit vectors go to `out` (.npy)."""
        request = {"encode": str(inputs), "batch_size": batch_size, "out": str(out) if out else None}
        return float(self._ask(request)["seconds"])

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise PeerError(f"{self._name} has no pipes")
        try:
            print(json.dumps(request), file=stdin, flush=True)
        except BrokenPipeError:
            raise self._failed() from None
        answer = stdout.readline()
        if not answer:
            raise self._failed()
        reply: dict[str, Any] = json.loads(answer)
        return reply

    def _failed(self) -> PeerError:
        return PeerError(f"{self._name} failed: {last_line(self._log.read_text())}")

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()  # waits, and closes the pipes

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
