"""`triptych spaces`: the embedding spaces of this root."""

from typing import Annotated

import typer

from triptych.console import console, print_json

app = typer.Typer(add_completion=False, help="List the embedding spaces.", no_args_is_help=True)


@app.callback()
def spaces() -> None:
    """The embedding spaces: what makes two vectors comparable.

    A space's id holds a digest of everything that changes a vector, so vectors of two spaces can never be mixed by accident.
    """


@app.command("list")
def list_spaces(as_json: Annotated[bool, typer.Option("--json", help="Print the spaces as JSON.")] = False) -> None:
    """List the registered spaces with their kind, dim and number of vectors.

    A space of kind `untrained` comes from a fixed-seed initialisation: its vectors tell pictures or sounds apart, and mean little.
    """
    from rich.table import Column, Table

    from feature_store.home import find_home
    from feature_store.spaces import read_entries
    from feature_store.tables import Tables

    home = find_home()
    tables = Tables(home)
    rows = [(e, len(tables.embedding_index(e.entity, e.space.space_id))) for e in read_entries(home)]
    if as_json:
        print_json([{"entity": e.entity, **e.space.to_dict(), "vectors": count} for e, count in rows])
        return
    table = Table(Column("space", overflow="fold"), "of", "kind", "dim", "vectors", "description")
    for entry, count in rows:
        space = entry.space
        kind = f"[yellow]{space.kind}[/]" if space.kind == "untrained" else space.kind
        table.add_row(space.space_id, entry.entity, kind, str(space.dim), f"{count:,}", space.description)
    console.print(table)
