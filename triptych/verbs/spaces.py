"""`triptych spaces`: the embedding spaces of this root, and how one takes the place of another."""

from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from triptych.console import console, print_json
from triptych.verbs import spaces_add, spaces_backfill, spaces_check, spaces_import, spaces_retire

if TYPE_CHECKING:
    from feature_store.home import Home
    from feature_store.spaces import SpaceEntry
    from feature_store.tables import Tables

COLUMNS: Final = ("space", "of", "state", "kind", "dim", "vectors", "coverage", "pinned by", "encoder")
NARROW: Final = ("space", "of", "state", "vectors", "coverage")  # what fits into 80 characters
WIDE: Final = 120

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
    """A line for each space; its id, which the other commands need, is always whole."""
    from rich import box
    from rich.table import Column, Table

    lines = [_cells(row) for row in rows]
    wide = console.width >= WIDE
    names = [name for name in COLUMNS if wide or name in NARROW]
    table = Table(
        *(Column(name, no_wrap=name == "space") for name in names),
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        caption=None if wide else "a wider terminal, or --json, shows all columns",
    )
    styles = {"retired": "dim", "added": "green"}
    for line in lines:
        table.add_row(*(line[name] for name in names), style=styles.get(line["state"]))
    console.print(table)


def _cells(row: dict[str, Any]) -> dict[str, str]:
    from rich.markup import escape

    return {
        "space": row["space_id"],
        "of": row["entity"],
        "state": row["state"],
        "kind": f"[yellow]{row['kind']}[/]" if row["kind"] == "untrained" else row["kind"],
        "dim": str(row["dim"]),
        "vectors": f"{row['vectors']:,}",
        "coverage": "" if row["coverage"] is None else f"{row['coverage']:.1%}",
        "pinned by": escape(", ".join(row["pinned_by"])),
        "encoder": escape(str(row["encoder"].get("source", ""))),
    }


app.command("add")(spaces_add.add)
app.command("import")(spaces_import.import_file)
app.command("backfill")(spaces_backfill.backfill)
app.command("check")(spaces_check.check)
app.command("retire")(spaces_retire.retire)
