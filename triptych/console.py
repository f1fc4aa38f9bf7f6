"""What every verb prints with: one console for results, one for messages, errors, JSON and progress bars."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console()
err = Console(stderr=True)

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_PARTIAL = 3


def fail(message: object, code: int = EXIT_FAILED) -> NoReturn:
    """Print an error to stderr and leave with `code`."""
    err.print("[bold red]error:[/]", end=" ")
    err.print(str(message), markup=False, highlight=False, soft_wrap=True)
    raise SystemExit(code)


def print_json(value: Any) -> None:
    """Print machine-readable output: one JSON document on stdout."""
    print(json.dumps(value, indent=2, ensure_ascii=False, default=str))


@contextmanager
def progress(description: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr; yields `advance(n)`. Off a terminal it prints nothing until the end."""
    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err) as bar:
        task = bar.add_task(description, total=total)
        yield lambda n: bar.advance(task, n)
