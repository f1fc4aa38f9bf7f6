"""`triptych spaces import`: vectors that were made elsewhere."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from triptych.console import EXIT_PARTIAL, EXIT_USAGE, console, err, fail, print_json, progress
from triptych.options import JsonOption


def import_file(
    name: Annotated[str, typer.Argument(help="Readable part of the space's id: a-z, 0-9 and `_`.", show_default=False)],
    file: Annotated[Path, typer.Argument(help="A .parquet file, or a .npy matrix with --ids.", show_default=False)],
    modality: Annotated[str, typer.Option(help="What the vectors are of: `text`, `image` or `audio`.")],
    entity: Annotated[str, typer.Option(help="Whose they are: `item` or `user`.")] = "item",
    id_column: Annotated[
        str | None, typer.Option(help="Column of the ids. Default: item_id, or user_id.", show_default=False)
    ] = None,
    vector_column: Annotated[str, typer.Option(help="Column of the vectors, lists of numbers.")] = "vector",
    ids: Annotated[Path | None, typer.Option(help="Of a .npy: a text file with an id a line.")] = None,
    normalise: Annotated[
        bool, typer.Option("--normalise", help="Scale vectors to unit norm; without it they must have it.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Make vectors that were computed elsewhere a space of kind `imported`.

    The file is checked whole before anything is stored: one length, unit norm. Its digest is part of the space's id, so another file
    is another space. A vector is true while its item's content of that modality is, as the tables have it, so that old labels join; a
    column `event_timestamp` says otherwise. Rows about unknown ids, and broken vectors, are quarantined (exit code 3).

    Ingestion cannot write to such a space: import a file of the new items' vectors when they are there, as a new space.
    """
    from encoders.space import SpaceError, slugify
    from feature_store.home import find_home
    from feature_store.schemas import ENTITIES
    from ingest.vector_files import VectorFile, import_vectors

    if entity not in ENTITIES:
        fail(f"--entity {entity!r} must be one of {', '.join(ENTITIES)}", EXIT_USAGE)
    if slugify(name) != name:
        fail(f"name {name!r} must be lower-case words of a-z and 0-9 joined by '_'; try {slugify(name)}", EXIT_USAGE)
    vectors = VectorFile(file, id_column or f"{entity}_id", vector_column, ids, normalise)
    try:
        with progress("rows checked and stored", 2 * vectors.count()) as advance:
            report = import_vectors(find_home(), name, vectors, modality, entity=entity, progress=advance)
    except SpaceError as error:
        fail(error, EXIT_USAGE)
    if json:
        print_json(report.to_dict())
    else:
        table = Table("rows", "stored", "there already", "quarantined", title=report.space.space_id)
        table.add_row(*(f"{n:,}" for n in (report.rows, report.stored, report.unchanged, report.quarantined)))
        console.print(table)
    for code, count in report.refused.items():
        example = next(refusal.reason for refusal in report.refusals if refusal.code == code)
        err.print(f"{count:,} x {code}: {example}", style="yellow", markup=False, soft_wrap=True)
    if report.quarantine_file:
        err.print(f"all of them, with reasons: {report.quarantine_file}", markup=False, soft_wrap=True)
    raise SystemExit(EXIT_PARTIAL if report.quarantined else 0)
