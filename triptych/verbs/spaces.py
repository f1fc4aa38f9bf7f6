"""`triptych spaces`: the embedding spaces of this root, and how one takes the place of another."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from triptych.console import console, print_json
from triptych.verbs import spaces_add, spaces_backfill, spaces_check, spaces_import, spaces_retire

if TYPE_CHECKING:
    from feature_store.home import Home
    from feature_store.spaces import SpaceEntry
    from feature_store.tables import Tables

app = typer.Typer(
    add_completion=False,
    help="List, add, import, backfill, check and retire embedding spaces.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)


@app.callback()
def spaces() -> None:
    """The embedding spaces: what makes two vectors comparable.

    A space's id holds a digest of everything that changes a vector, so vectors of two spaces can never be mixed by accident. A new
    encoder is therefore a new space, with a table, a view and vectors of its own beside the old ones. To change one under traffic:

    `spaces add` (new items are written to both), `spaces backfill` (what is stored is encoded again, with its old times), `spaces
    check`, `materialize`, `train --upgrade SPACE`, `materialize`, `model promote` (`model undo` goes back), and when no model needs the
    old space any more: `spaces retire`.
    """


@app.command("list")
def list_spaces(as_json: Annotated[bool, typer.Option("--json", help="Print the spaces as JSON.")] = False) -> None:
    """List the registered spaces: state, number of vectors, coverage, the models that pin them, and the encoder.

    `active` spaces came with a profile, with users' interests or with a model; `added` ones are written beside the profile's; `retired`
    ones have no view, and nothing is written to them any more. Coverage is the share of the items (or users) of any space of the
    modality that this one has too. A space of kind `untrained` comes from a fixed-seed initialisation: its vectors mean little.
    """
    from feature_store.home import find_home

    rows = describe(find_home())
    if as_json:
        print_json(rows)
    else:
        _print(rows)


def describe(home: "Home") -> list[dict[str, Any]]:
    """What `list` shows of each entry."""
    from feature_store.pins import pinned_by
    from feature_store.spaces import read_entries
    from feature_store.tables import Tables

    entries, models, tables = read_entries(home, retired=True), pinned_by(home), Tables(home)
    ids = {entry.key: _ids(tables, entry) for entry in entries}
    return [
        {
            "entity": entry.entity,
            **entry.space.to_dict(),
            "state": entry.state,
            "vectors": len(ids[entry.key]),
            "coverage": _coverage(entry, entries, ids),
            "pinned_by": models.get(entry.space.space_id, []),
            "encoder": dict(entry.encoder),
        }
        for entry in entries
    ]


def _ids(tables: "Tables", entry: "SpaceEntry") -> set[str]:
    return set(tables.embedding_index(entry.entity, entry.space.space_id))


def _coverage(entry: "SpaceEntry", entries: "list[SpaceEntry]", ids: dict[tuple[str, str], set[str]]) -> float | None:
    """The share of what any space in use of the modality has; None where there is nothing to have, or of derived vectors."""
    if entry.space.kind == "fused" or entry.space.base_space_id is not None:
        return None
    alike = [
        ids[e.key]
        for e in entries
        if (e.entity, e.space.modality) == (entry.entity, entry.space.modality)
        and e.space.base_space_id is None
        and not e.retired
    ]
    everything = set().union(*alike)
    return round(len(ids[entry.key] & everything) / len(everything), 4) if everything else None


def _print(rows: list[dict[str, Any]]) -> None:
    from rich.markup import escape
    from rich.table import Column, Table

    table = Table(
        Column("space", overflow="fold"), "of", "state", "kind", "dim", "vectors", "coverage", "pinned by", "encoder"
    )
    styles = {"retired": "dim", "added": "green"}
    for row in rows:
        kind = f"[yellow]{row['kind']}[/]" if row["kind"] == "untrained" else row["kind"]
        coverage = "" if row["coverage"] is None else f"{row['coverage']:.1%}"
        pinned, source = ", ".join(row["pinned_by"]), str(row["encoder"].get("source", ""))
        cells = (str(row["dim"]), f"{row['vectors']:,}", coverage, escape(pinned), escape(source))
        table.add_row(row["space_id"], row["entity"], row["state"], kind, *cells, style=styles.get(row["state"]))
    console.print(table)


app.command("add")(spaces_add.add)
app.command("import")(spaces_import.import_file)
app.command("backfill")(spaces_backfill.backfill)
app.command("check")(spaces_check.check)
app.command("retire")(spaces_retire.retire)
