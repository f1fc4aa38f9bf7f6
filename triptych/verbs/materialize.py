"""`triptych materialize`: apply the Feast definitions and load what is new into Milvus, in one process."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from triptych.console import EXIT_USAGE, console, err, fail, print_json

if TYPE_CHECKING:
    from feature_store.home import Home

app = typer.Typer(add_completion=False)
PROFILE_VIEWS = ("item_profile", "user_profile", "user_history")


@app.command()
def materialize(
    full: Annotated[bool, typer.Option("--full", help="Load everything again, not only what is new.")] = False,
    view: Annotated[
        list[str] | None, typer.Option("--view", help="Only this view; may be given several times.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Apply the Feast definitions and load what is new into Milvus.

    The same as `feast apply` and `feast materialize-incremental NOW` in feature_repo/, with one start of Feast instead of two. New
    means made since the last load, whatever its valid time: backfills and late rows are loaded. Rows that are older than what is
    stored change nothing, so running this again, or beside a running server, is always safe.

    Needs a running Milvus: `triptych up`. What Feast itself prints goes to `logs/feast.log` in the root folder.
    """
    from contextlib import redirect_stdout

    from rich.table import Table

    from feature_store.connection import connect
    from feature_store.home import find_home

    home = find_home()
    _check_views(home, view or [])
    with connect(home, timeout_seconds=10.0) as core:
        core.list_views()  # Fails in milliseconds where Milvus is down, before Feast is imported.
    from feature_store import feast_cli

    # The bar comes first: it catches what is printed on a terminal, and would show what is meant for the log.
    with _bars() as progress, (home.logs / "feast.log").open("a") as log, redirect_stdout(log):
        feast_cli.apply(home)
        done = feast_cli.materialize(home, full=full, views=view, progress=progress)
    if as_json:
        print_json({name: {"stored": rows.stored, "unchanged": rows.unchanged} for name, rows in done.items()})
        return
    table = Table("view", "rows stored", "there already")
    for name, rows in sorted(done.items()):
        table.add_row(name, f"{rows.stored:,}", f"{rows.unchanged:,}")
    console.print(table)


def _check_views(home: "Home", names: Sequence[str]) -> None:
    """Wrong usage where a view is not among those there are, before Feast is imported."""
    from feature_store.spaces import read_entries

    known = [*PROFILE_VIEWS, *(entry.view for entry in read_entries(home))]
    for name in names:
        if name not in known:
            fail(f"there is no view {name!r}; there are {', '.join(known)}", EXIT_USAGE)


@contextmanager
def _bars() -> Iterator[Callable[[str, int, int], None]]:
    """A bar per view that has rows to load, on stderr; nothing where that is no terminal."""
    from rich.progress import Progress, TaskID

    with Progress(console=err, disable=not err.is_terminal) as bars:
        tasks: dict[str, TaskID] = {}

        def progress(view: str, done: int, total: int) -> None:
            if view not in tasks:
                tasks[view] = bars.add_task(view)
            bars.update(tasks[view], completed=done, total=total)

        yield progress
