"""`triptych ingest`: a catalogue manifest into checked media, vectors and offline tables."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from triptych.console import EXIT_PARTIAL, console, err, print_json, progress
from triptych.options import JsonOption, MapOption, column_mapping, instant

if TYPE_CHECKING:
    from ingest.pipeline import IngestReport
    from ingest.quarantine import Refusal

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")
SHOWN_REFUSALS = 10


@app.command()
def ingest(
    manifest: Annotated[Path, typer.Argument(help="CSV, JSON Lines or Parquet file.", show_default=False)],
    interactions: Annotated[
        Path | None,
        typer.Option(help="Interactions to load first: user_id, item_id, event_timestamp, event_type, value."),
    ] = None,
    mapping: MapOption = None,
    available_at: Annotated[
        str | None,
        typer.Option(
            help="When items that do not say it became available (ISO 8601). Default: just before the first interaction."
        ),
    ] = None,
    encoders: Annotated[
        str | None,
        typer.Option(help="`bundled`, `zh`, `hub` or a YAML file. Default: TRIPTYCH_ENCODERS, else bundled."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Read a catalogue, check and encode its media, and write the offline tables.

    Columns: `item_id`, and any of `title`, `description`, `category`, `price`, `tags` (a list of kind:value, in CSV with | between them), `image`,
    `audio` (paths relative to the manifest) and `available_at`; a column that is absent leaves what is stored. A part that cannot be read is quarantined with its reason, and the item keeps its other parts. Running it again
    encodes only what changed. Spaces that were added (`triptych spaces add`) are written beside the profile's, retired ones are not.

    Exit code 0: all rows are in; 3: some were quarantined; 1: the file could not be read.
    """
    from encoders.profiles import load_profile
    from encoders.recorded import in_use
    from feature_store.home import find_home
    from feature_store.spaces import read_entries
    from ingest.catalogue import open_manifest
    from ingest.events import load_interactions
    from ingest.pipeline import ingest_manifest

    home, columns, default_us = find_home(), column_mapping(mapping), instant("--available-at", available_at)
    rows, quarantined = open_manifest(manifest, columns).count(), 0
    loaded = in_use(load_profile(encoders), read_entries(home, retired=True))
    if interactions:
        with progress("interactions") as advance:
            events = load_interactions(home, interactions, mapping=columns, progress=advance)
        quarantined += events.quarantined
        err.print(f"{events.written:,} interactions loaded, {events.quarantined:,} quarantined")
        _print_refusals(events.refusals, events.quarantine_file)
    with progress("parts encoded", rows * len(loaded.spaces)) as advance:
        report = ingest_manifest(
            home, manifest, loaded, mapping=columns, default_available_us=default_us, progress=advance
        )
    if json:
        print_json(report.to_dict())
    else:
        _print(report)
    for warning in report.warnings:
        err.print(f"warning: {warning}", style="yellow", markup=False, soft_wrap=True)
    _print_refusals(report.refusals, report.quarantine_file)
    raise SystemExit(EXIT_PARTIAL if quarantined + report.quarantined else 0)


def _print(report: "IngestReport") -> None:
    table = Table(title=f"{report.manifest.name}: {report.rows:,} rows in {report.seconds:.1f} s")
    names = ("encoded", "unchanged", "missing", "quarantined")
    table.add_column("modality")
    for name in names:
        table.add_column(name, justify="right")
    table.add_column("space", overflow="fold")
    for space in report.spaces:
        counts = report.counts[space.space_id]
        shown = f"{space.space_id} [yellow](untrained)[/]" if space.kind == "untrained" else space.space_id
        table.add_row(space.modality, *(f"{counts[name]:,}" for name in names), shown)
    console.print(table)
    console.print(
        f"{report.items_written:,} items written, {report.items_unchanged:,} unchanged, {report.refused['row']:,} rows refused"
    )


def _print_refusals(refusals: list["Refusal"], path: Path | None) -> None:
    for refusal in refusals[:SHOWN_REFUSALS]:
        err.print(
            f"quarantined row {refusal.row} {refusal.record_id} {refusal.part}: {refusal.reason}",
            style="yellow",
            markup=False,
            soft_wrap=True,
        )
    if len(refusals) > SHOWN_REFUSALS:
        err.print(f"... and {len(refusals) - SHOWN_REFUSALS:,} more", style="yellow")
    if path:
        err.print(f"all of them, with reasons: {path}", markup=False, soft_wrap=True)
