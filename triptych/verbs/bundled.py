"""`triptych bundled`: train the encoders that the project ships, and judge them."""

from pathlib import Path
from typing import Annotated

import typer

from triptych.console import fail, print_json
from triptych.verbs import bundled_audio

app = typer.Typer(
    add_completion=False, help="Train and judge the encoders that the project ships.", no_args_is_help=True
)


@app.callback()
def bundled() -> None:
    """The bundled encoders: how they were trained, and how good they are.

    Their checkpoints lie in encoders/bundled/checkpoints, each with a card. These commands make such a checkpoint again, from
    packages that anyone can fetch; `ingest` and `serve` need none of them.
    """


app.command("train-audio")(bundled_audio.train_audio)


@app.command()
def evaluate(
    sounds: Annotated[
        list[Path], typer.Option("--sounds", help=bundled_audio.SOUNDS_HELP, exists=True, file_okay=False)
    ],
    audio: Annotated[str, typer.Option("--audio", help="Checkpoint folder, or bundled.")] = "bundled",
    seed: Annotated[int, typer.Option(help="Of the networks before training, and of the bootstrap.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Probe vectors on items that training never saw, beside log-mel statistics and the same network before training."""
    from encoders.errors import EncoderError

    try:
        rows = bundled_audio.judge_audio(sounds, audio, seed)
    except EncoderError as error:
        fail(error)
    if as_json:
        print_json(bundled_audio.rows_as_json(rows))
    else:
        bundled_audio.print_rows(rows)
