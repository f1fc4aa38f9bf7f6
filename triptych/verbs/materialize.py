"""`triptych materialize`: apply the Feast definitions and load what is new into Milvus, in one process."""

from typing import Annotated

import typer

from triptych.console import console, print_json

app = typer.Typer()


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

    Needs a running Milvus: `triptych up`.
    """
    import sys
    from contextlib import redirect_stdout

    from rich.table import Table

    from feature_store.connection import connect
    from feature_store.home import find_home

    home = find_home()
    with connect(home, timeout_seconds=10.0) as core:
        core.list_views()  # Fails in milliseconds where Milvus is down, before Feast is imported.
    from feature_store import feast_cli

    with redirect_stdout(sys.stderr):
        feast_cli.apply(home)
        done = feast_cli.materialize(home, full=full, views=view)
    if as_json:
        print_json({name: {"stored": rows.stored, "unchanged": rows.unchanged} for name, rows in done.items()})
        return
    table = Table("view", "rows stored", "there already")
    for name, rows in sorted(done.items()):
        table.add_row(name, f"{rows.stored:,}", f"{rows.unchanged:,}")
    console.print(table)
