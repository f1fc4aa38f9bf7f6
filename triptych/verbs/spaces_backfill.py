"""`triptych spaces backfill`: what is stored, encoded into a new space."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from triptych.console import EXIT_PARTIAL, console, err, fail, print_json
from triptych.options import JsonOption

if TYPE_CHECKING:
    from encoders.profiles import Encoder
    from feature_store.home import Home
    from ingest.backfill import BackfillReport


def backfill(
    space: Annotated[
        str, typer.Argument(help="Id of the space to fill, as `spaces list` shows it.", show_default=False)
    ],
    encoders: Annotated[
        str | None, typer.Option(help="Profile that has the space's encoder, where `spaces list` shows none.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Encode the catalogue that is stored already into a space's own table, with the valid times of the old spaces.

    Every version that another space of the modality has of an item is made again for this one: same id, same time, same content;
    deletions too. Old labels then join exactly as they did. A text space gets users' own words as well.

    What is there already is skipped, so a backfill that was interrupted is run again. Media that are gone, or are not what they were, are
    quarantined with the reason (exit code 3). It may run beside `ingest`, `materialize` and a server, which go on with the old space.

    Next: `triptych users build` (interests in the space), `triptych materialize`, `triptych spaces check SPACE`.
    """
    from feature_store.home import find_home
    from ingest.backfill import backfill as run

    home = find_home()
    encoder = _encoder(home, space, encoders)
    with _bar(f"backfilling {space}") as progress:
        report = run(home, encoder, progress=progress)
    if json:
        print_json(report.to_dict())
    else:
        _print(report)
    for code, count in report.refused.items():
        example = next((r for r in report.refusals if r.code == code), None)
        text = f"{count:,} x {code}: {example.record_id}: {example.reason}" if example else f"{count:,} x {code}"
        err.print(text, style="yellow", markup=False, soft_wrap=True)
    if report.quarantine_file:
        err.print(f"all of them, with reasons: {report.quarantine_file}", markup=False, soft_wrap=True)
    raise SystemExit(EXIT_PARTIAL if report.quarantined else 0)


def _encoder(home: "Home", space_id: str, profile: str | None) -> "Encoder":
    from encoders.profiles import load_profile
    from encoders.recorded import load_recorded
    from feature_store.spaces import find_entry

    entry = find_entry(home, space_id)
    if entry.retired:
        fail(f"space {space_id} is retired: `triptych spaces add` brings it back")
    if entry.space.kind == "imported":
        fail(
            f"space {space_id} was imported, so nothing here can make its vectors: `triptych spaces import` a new file"
        )
    if entry.space.kind == "fused" or entry.space.base_space_id is not None:
        fail(
            f"space {space_id} follows from others: `triptych users build` and `triptych model export` write such vectors"
        )
    if entry.encoder and profile is None:
        return load_recorded(entry.space, entry.encoder)
    return load_profile(profile, modalities=(entry.space.modality,)).by_space(space_id)


@contextmanager
def _bar(description: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr that learns its total from its first call."""
    from rich.progress import Progress

    with Progress(*Progress.get_default_columns(), console=err, disable=not err.is_terminal) as bar:
        tasks: dict[int, int] = {}

        def advance(rows: int, total: int) -> None:
            # Items first, then users: each has a total of its own.
            if total not in tasks:
                tasks[total] = bar.add_task(description, total=total)
            bar.advance(tasks[total], rows)  # type: ignore[arg-type]  # rich's TaskID is an int

        yield advance


def _print(report: "BackfillReport") -> None:
    table = Table(title=f"{report.space_id}: {report.records:,} items and users in {report.seconds:.1f} s")
    for name in ("encoded", "deletions", "there already", "quarantined"):
        table.add_column(name, justify="right")
    numbers = (report.encoded, report.deleted, report.done, report.quarantined)
    table.add_row(*(f"{number:,}" for number in numbers))
    console.print(table)
    if report.quarantined:
        older = report.quarantined - report.refused_current
        console.print(
            f"of the quarantined, {report.refused_current:,} are an item's newest content, {older:,} an older one"
        )
