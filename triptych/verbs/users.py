"""`triptych users`: interactions into histories and user vectors."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from triptych.console import EXIT_PARTIAL, EXIT_USAGE, console, err, fail, print_json, progress
from triptych.options import JsonOption, MapOption, column_mapping, instant

app = typer.Typer(add_completion=False, rich_markup_mode="markdown", no_args_is_help=True)


@app.callback()
def users() -> None:
    """Users' features from what they did and wrote."""


@app.command()
def build(
    interactions: Annotated[
        Path | None,
        typer.Option(
            help="Interactions to load first: user_id, item_id, event_timestamp; where known event_type, value, event_id, device, impression_id, position, propensity."
        ),
    ] = None,
    profiles: Annotated[
        Path | None, typer.Option(help="Users' own words: user_id, text, and optionally updated_at.")
    ] = None,
    mapping: MapOption = None,
    at: Annotated[
        str | None, typer.Option(help="Build from events strictly before this instant (ISO 8601). Default: now.")
    ] = None,
    half_life_days: Annotated[
        float, typer.Option(min=0.01, help="An event counts half as much after so many days.")
    ] = 30.0,
    encoders: Annotated[
        str | None,
        typer.Option(help="`bundled`, `zh`, `hub` or a YAML file. Default: TRIPTYCH_ENCODERS, else bundled."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Write each user's history, one interest vector per item space, and their encoded words.

    Events that the server recorded are drained into the interactions first. Users whose events have not changed are not written
    again. Words are encoded into the profile's text space and into those that were added (`triptych spaces add`). Exit code 3: some rows of the given files were quarantined.
    """
    from feature_store.history import Decay
    from feature_store.home import find_home
    from ingest.events import load_interactions
    from ingest.users import build_users, encode_profiles

    home, columns, quarantined = find_home(), column_mapping(mapping), 0
    if interactions:
        with progress("interactions") as advance:
            events = load_interactions(home, interactions, mapping=columns, progress=advance)
        quarantined += events.quarantined
        err.print(f"{events.written:,} interactions loaded, {events.quarantined:,} quarantined")
        if events.quarantine_file:
            err.print(f"their reasons: {events.quarantine_file}", markup=False, soft_wrap=True)
    with progress("users") as advance:
        report = build_users(
            home, at_us=instant("--at", at), decay=Decay(half_life_days=half_life_days), progress=advance
        )
    if profiles:
        from encoders.profiles import load_profile
        from encoders.recorded import in_use
        from feature_store.spaces import read_entries

        records = read_entries(home, retired=True)
        loaded = in_use(load_profile(encoders, modalities=("text",)), records, modalities=("text",))
        if loaded.text is None:
            fail(
                "these encoders have no text encoder, which --profiles needs; choose others with --encoders", EXIT_USAGE
            )
        written = encode_profiles(home, profiles, loaded.texts, mapping=columns, options=loaded.options)
        report.texts, quarantined = written.texts, quarantined + written.quarantined
        if written.quarantine_file:
            err.print(f"profiles quarantined: {written.quarantine_file}", markup=False, soft_wrap=True)
    report.quarantined = quarantined
    if json:
        print_json(vars(report))
    else:
        table = Table(title=f"{report.users:,} users in {report.seconds:.1f} s")
        table.add_column("written")
        table.add_column("rows", justify="right")
        table.add_row("events drained from the server", f"{report.drained:,}")
        table.add_row("histories", f"{report.histories:,}")
        for space_id, count in {**report.interests, **report.texts}.items():
            table.add_row(f"user_{space_id}", f"{count:,}")
        console.print(table)
    if report.unknown_items:
        err.print(f"{report.unknown_items:,} items in the interactions have no vector: ingest them too", style="yellow")
    raise SystemExit(EXIT_PARTIAL if quarantined else 0)
