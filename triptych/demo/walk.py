"""Runs the demo's stages as the project's own commands, times them, and stops whatever it started, come what may."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Final, Self

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

SERVER_START_SECONDS: Final = 90.0
STOP_SECONDS: Final = 15.0
LOOK_SECONDS: Final = 0.2  # how often a walk that waits looks whether it was asked to end
SHOWN_LOG_LINES: Final = 15
# The demo has its own root, store and server, whatever the caller's shell points at.
FOREIGN_VARIABLES: Final = ("TRIPTYCH_MILVUS_URI", "TRIPTYCH_TARGET", "TRIPTYCH_ENCODERS", "FEAST_FS_YAML_FILE_PATH")


class StageError(Exception):
    """A stage of the demo failed; the message names it and ends with the last lines of its log."""


class Walk:
    """One walk through the rooms; a context manager that stops its processes when left, unless `keep_running`.

    Attributes:
        seconds: by stage, in the order in which they ran.
        address: where the server listens, once `start_server` has returned.
    """

    def __init__(self, home: Path, logs: Path, console: Console, *, keep_running: bool = False) -> None:
        self.seconds: dict[str, float] = {}
        self.address = ""
        self._home, self._logs, self._keep_running = home, logs, keep_running
        self._server: subprocess.Popen[str] | None = None
        self._store_started = False
        self._asked: int | None = None  # the number of the signal by which the walk was asked to end
        self._bar = Progress(
            SpinnerColumn(finished_text="[green]✓[/]"),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=console,
        )
        self._environment = {k: v for k, v in os.environ.items() if k not in FOREIGN_VARIABLES}
        self._environment |= {"TRIPTYCH_HOME": str(home), "PYTHONUNBUFFERED": "1", "NO_COLOR": "1", "COLUMNS": "120"}

    def __enter__(self) -> Self:
        self._logs.mkdir(parents=True, exist_ok=True)
        self._old_handler = signal.signal(signal.SIGTERM, self._ask)
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if not (self._keep_running and error is None):
                self.stop()
        finally:
            self._bar.stop()
            signal.signal(signal.SIGTERM, self._old_handler)
        if error is None:
            self._leave_if_asked()

    def _ask(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the signature of a signal handler
        """Remember a termination request.

        It does not raise: an error from a handler comes at any instant, in the middle of starting a command or where Python drops it.
        """
        self._asked = number

    def _leave_if_asked(self) -> None:
        """Unwind the stack, once, so that everything started is stopped on the way out."""
        if self._asked is not None:
            code, self._asked = 128 + self._asked, None
            raise SystemExit(code)

    @contextmanager
    def stage(self, name: str, description: str) -> Iterator[None]:
        """Show and time one stage."""
        task = self._bar.add_task(f"[bold]{name:<12}[/] {description}", total=1)
        started = time.monotonic()
        try:
            yield
            self._leave_if_asked()
        except BaseException:
            self._bar.update(task, description=f"[bold red]{name:<12}[/] {description}: failed")
            raise
        self._bar.advance(task)
        self.seconds[name] = round(time.monotonic() - started, 2)

    def triptych(self, *arguments: str, ok: Collection[int] = (0,)) -> str:
        """Run a `triptych` command to its end and return its stdout; `StageError` where its exit code is not in `ok`."""
        return self.python("triptych", *arguments, ok=ok)

    def triptych_json(self, *arguments: str, ok: Collection[int] = (0,)) -> Any:
        """The same with `--json`, parsed."""
        return json.loads(self.triptych(*arguments, "--json", ok=ok))

    def python(self, module: str, *arguments: str, ok: Collection[int] = (0,)) -> str:
        """Run `python -m MODULE ARGUMENTS` like `triptych`; its stderr goes to the log."""
        log = self._logs / f"{len(list(self._logs.iterdir())):02d}-{'-'.join(_words(module, arguments))}.log"
        with log.open("w", encoding="utf-8") as handle:
            process = self._start([module, *arguments], handle)
            try:
                output = self._output(process)
            except BaseException:
                _end(process)
                raise
            handle.write(output)
        if process.returncode not in ok:
            raise _failed(" ".join([module, *arguments]), process.returncode, log)
        return output

    def _output(self, process: subprocess.Popen[str]) -> str:
        """A command's output, once it has ended."""
        while True:
            with suppress(subprocess.TimeoutExpired):
                return process.communicate(timeout=LOOK_SECONDS)[0]
            self._leave_if_asked()

    def start_store(self) -> None:
        """`triptych up`; it is stopped again even where starting it fails half-way."""
        self._store_started = True
        self.triptych("up")

    def start_server(self) -> str:
        """`triptych serve` on a free port; return its address once it serves."""
        from triptych.client import Client

        log, file = self._logs / "serve.log", self._home / "serve.json"
        file.unlink(missing_ok=True)
        with log.open("w", encoding="utf-8") as handle:
            self._server = self._start(["triptych", "serve", "--port", "0"], handle, stdout=handle)
        until = time.monotonic() + SERVER_START_SECONDS
        while time.monotonic() < until and self._server.poll() is None:
            self._leave_if_asked()
            if file.exists():
                self.address = str(json.loads(file.read_text())["address"])
                with Client(self.address) as client:
                    if client.wait_until_healthy(until - time.monotonic()):
                        return self.address
            time.sleep(0.1)
        raise _failed("triptych serve", self._server.poll(), log)

    def stop(self) -> None:
        """Stop the server and the embedded store, if this walk started them."""
        if self._server:
            _end(self._server)
            self._server = None
        if self._store_started:
            self._store_started = False
            self.triptych("down")

    def _start(self, command: Sequence[str], log: Any, stdout: Any = subprocess.PIPE) -> subprocess.Popen[str]:
        # In a session of its own, so that Ctrl-C reaches us alone and we stop it in order.
        return subprocess.Popen(
            [sys.executable, "-m", *command],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=log,
            env=self._environment,
            text=True,
            start_new_session=True,
        )


def _words(module: str, arguments: Sequence[str]) -> list[str]:
    """What a log is named after: the command's leading words."""
    words = [module.rpartition(".")[2], *arguments][:3]
    return [word for word in words if word.isidentifier()]


def _end(process: subprocess.Popen[str]) -> None:
    """Ask a child to stop; make it stop where it does not."""
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _failed(command: str, code: int | None, log: Path) -> StageError:
    tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-SHOWN_LOG_LINES:]
    state = "did not become ready" if code is None else f"ended with exit code {code}"
    return StageError("\n".join([f"`{command}` {state}; its log {log} ends:", *tail]))
