"""`triptych spaces add`: a new encoder beside those in use."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from triptych.console import EXIT_USAGE, console, err, fail, print_json
from triptych.options import JsonOption

if TYPE_CHECKING:
    from encoders.profiles import Encoder
    from feature_store.home import Home
    from feature_store.spaces import SpaceEntry


def add(
    modality: Annotated[str, typer.Argument(help="`text`, `image` or `audio`.", show_default=False)],
    source: Annotated[
        str | None, typer.Argument(help="A hub id, a model's folder, or `bundled`.", show_default=False)
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option", "-o", metavar="NAME=VALUE", help="An encoder's option, such as pooling=cls; repeatable."
        ),
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(help="Take the modality's encoder of this profile: a YAML file, `bundled`, `zh` or `hub`."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Add an encoder's space beside those in use, so that new items are written to both.

    The encoder is tried once; its space is registered together with its source and options (folders as absolute paths), and gets an
    empty table. From then on `triptych ingest` and `users build` load it by themselves. Adding a space that is in use changes nothing;
    a retired one is taken into use again.

    Options are those of a profile file: `slug`, `revision`, `whitening`, `device`, `dtype`; for text `template`, `query_prefix`,
    `max_length`, `pooling`; for audio `window_seconds`. Next: `triptych spaces backfill SPACE`.

    Example: triptych spaces add text intfloat/e5-large-v2 -o "template=passage: {text}" -o "query_prefix=query: "
    """
    from encoders.profiles import build_encoder
    from feature_store.home import find_home
    from feature_store.spaces import ADDED, SpaceEntry

    home, options = find_home(), _options(modality, source, option or [], profile)
    encoder = build_encoder(modality, options)
    entry = SpaceEntry(encoder.space, "item", ADDED, options)
    before = _state(home, entry)
    new = before is None or (before != ADDED and not _in_profile(encoder, before))
    if new:
        with err.status("trying the encoder"):
            encoder.warm_up()
        _register(home, entry)
    if json:
        print_json({"space_id": encoder.space.space_id, "added": new, "before": before, "encoder": options})
    elif new:
        console.print(f"{encoder.space.space_id} is added; new items are written to it too", highlight=False)
        console.print(f"next: triptych spaces backfill {encoder.space.space_id}", highlight=False)
    else:
        console.print(f"{encoder.space.space_id} is there already ({before})", highlight=False)


def _options(modality: str, source: str | None, given: list[str], profile: str | None) -> dict[str, Any]:
    from encoders.errors import ProfileError
    from encoders.profiles import read_choices
    from encoders.recorded import given_options

    if (source is None) == (profile is None):
        fail("give a SOURCE or --profile, one of them", EXIT_USAGE)
    try:
        if source is not None:
            return given_options(modality, source, given, Path.cwd())
        if given:
            fail("--option goes with a SOURCE; a profile has its own", EXIT_USAGE)
        choices = read_choices(profile)
    except ProfileError as error:
        fail(error, EXIT_USAGE)
    if modality not in choices:
        fail(f"profile {profile} has no {modality}; it has {', '.join(choices)}", EXIT_USAGE)
    return choices[modality]


def _state(home: "Home", entry: "SpaceEntry") -> str | None:
    from feature_store.spaces import read_entries

    entries = read_entries(home, retired=True)
    return next((known.state for known in entries if known.key == entry.key), None)


def _in_profile(encoder: "Encoder", state: str) -> bool:
    """Whether an active space is one that ingestion writes anyway, since the profile in use has it."""
    from encoders.errors import EncoderError
    from encoders.profiles import load_profile
    from feature_store.spaces import ACTIVE

    try:
        spaces = load_profile(modalities=(encoder.space.modality,)).spaces if state == ACTIVE else []
    except EncoderError:  # a profile that cannot be loaded here writes nothing
        return False
    return encoder.space.space_id in {space.space_id for space in spaces}


def _register(home: "Home", entry: "SpaceEntry") -> None:
    """Register the space; what was retired together with it comes back too."""
    from dataclasses import replace

    from feature_store.spaces import ACTIVE, ensure_embeddings, update_entries

    space_id, revived = entry.space.space_id, [entry]

    def change(entries: "dict[tuple[str, str], SpaceEntry]") -> None:
        for key, known in entries.items():
            if known.space.space_id == space_id:
                entries[key] = replace(known, state=entry.state, encoder=entry.encoder)
            elif known.retired and known.space.base_space_id == space_id:
                entries[key] = replace(known, state=ACTIVE)
            else:
                continue
            revived.append(known)
        entries.setdefault(entry.key, entry)

    update_entries(home, change)
    for known in revived:
        ensure_embeddings(home, known)
