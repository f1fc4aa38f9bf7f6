"""`triptych demo`: everything, end to end, on a generated catalogue."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything that the demo makes.")] = Path("demo/out"),
    seed: Annotated[int, typer.Option(help="Another seed is another shop with other users.")] = 7,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the vector store and the server running at the end.")
    ] = False,
) -> None:
    """Run everything end to end on a generated catalogue, and show the result.

    Draws a shop of sound postcards (300 items with text, picture and sound, two files broken on purpose) and 400 users whose tastes
    are planted in that content; then ingests, materializes, trains, serves and ranks with the same commands that you would use, and
    compares the ranking with popularity, with the planted truth, and with a ranker whose content was shuffled.

    Writes `report.html` (open it in a browser) and `metrics.json` into OUT, where an earlier demo's files are replaced; a
    folder with files of the same names that no demo made is refused. Everything
    that was started is stopped again, unless `--keep`. Exit code 0: all stages went well, and exactly the broken files were
    quarantined; 1: something else happened, and the message says what.
    """
    from triptych.console import console
    from triptych.demo.run import run_demo

    raise typer.Exit(run_demo(out, seed=seed, keep=keep, console=console))
