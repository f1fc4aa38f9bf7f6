"""`triptych bundled`: train the encoders that the project ships, and judge them."""

from pathlib import Path
from typing import Annotated

import typer

from triptych.console import EXIT_USAGE, fail, print_json
from triptych.verbs import bundled_audio, bundled_image

app = typer.Typer(
    add_completion=False, help="Train and judge the encoders that the project ships.", no_args_is_help=True
)


@app.callback()
def bundled() -> None:
    """The bundled encoders: how they were trained, and how good they are.

    Their checkpoints lie in encoders/bundled/checkpoints, each with a card. These commands make such a checkpoint again, from
    packages that anyone can fetch; `ingest` and `serve` need none of them.
    """


app.command("train-image")(bundled_image.train_image)
app.command("train-audio")(bundled_audio.train_audio)


@app.command()
def evaluate(
    stamps: Annotated[
        Path | None, typer.Option("--stamps", help=bundled_image.STAMPS_HELP, exists=True, file_okay=False)
    ] = None,
    openmoji: Annotated[
        Path | None, typer.Option("--openmoji", help=bundled_image.OPENMOJI_HELP, exists=True, file_okay=False)
    ] = None,
    sounds: Annotated[
        list[Path] | None, typer.Option("--sounds", help=bundled_audio.SOUNDS_HELP, exists=True, file_okay=False)
    ] = None,
    image: Annotated[str, typer.Option("--image", help="Checkpoint folder, or bundled.")] = "bundled",
    audio: Annotated[str, typer.Option("--audio", help="Checkpoint folder, or bundled.")] = "bundled",
    seed: Annotated[int, typer.Option(help="Of the networks before training, and of the bootstrap.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Measure the encoders on items that training never saw: --stamps judges the image space, --sounds the audio space.

    Images: whether words find their picture, beside untrained projections and chance. Audio: linear probes, beside log-mel
    statistics and the same network before training.
    """
    from encoders.errors import EncoderError

    if stamps is None and not sounds:
        fail("give --stamps DIR, --sounds DIR or both", EXIT_USAGE)
    if stamps is None and (openmoji is not None or image != "bundled"):
        fail("--openmoji and --image judge pictures: give --stamps DIR too", EXIT_USAGE)
    if not sounds and audio != "bundled":
        fail("--audio judges sounds: give --sounds DIR too", EXIT_USAGE)
    try:
        figures = bundled_image.judge_image(stamps, openmoji, image) if stamps else None
        rows = bundled_audio.judge_audio(sounds, audio, seed) if sounds else []
    except EncoderError as error:
        fail(error)
    if as_json:
        print_json({"image": figures, "audio": bundled_audio.rows_as_json(rows)})
        return
    if figures:
        bundled_image.print_figures(figures)
    if rows:
        bundled_audio.print_rows(rows)
