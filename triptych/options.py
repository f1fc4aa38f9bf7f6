"""Options that several verbs share."""

from typing import Annotated

import typer

from triptych.console import EXIT_USAGE, fail

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")]
MapOption = Annotated[
    list[str] | None,
    typer.Option(
        "--map",
        metavar="THEIRS=OURS",
        help="A column's name in the given files and ours, such as `sku=item_id`; repeatable.",
    ),
]


def column_mapping(pairs: list[str] | None) -> dict[str, str]:
    """`["sku=item_id"]` as `{"sku": "item_id"}`; wrong usage ends the command."""
    mapping = {}
    for pair in pairs or []:
        theirs, equals, ours = pair.partition("=")
        if not (theirs and equals and ours):
            fail(f"--map {pair!r} must be THEIRS=OURS, such as sku=item_id", EXIT_USAGE)
        mapping[theirs] = ours
    return mapping


def instant(option: str, moment: str | None) -> int | None:
    """An option's ISO 8601 or epoch seconds as microseconds since the epoch; wrong usage ends the command."""
    from ingest.errors import RowError
    from ingest.records import timestamp_of

    try:
        return timestamp_of({option: moment}, option)
    except RowError as error:
        fail(error, EXIT_USAGE)
