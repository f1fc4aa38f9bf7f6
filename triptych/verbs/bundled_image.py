"""The image part of `triptych bundled`: training the projections of the bundled CLIP, and measuring them."""

from pathlib import Path
from typing import Annotated, Any

import typer

from triptych.console import console, err, fail, print_json, progress

STAMPS_HELP = "Unpacked tuxpaint-stamps-default."
OPENMOJI_HELP = "Unpacked npm package openmoji."


def train_image(
    stamps: Annotated[Path, typer.Option("--stamps", help=STAMPS_HELP, exists=True, file_okay=False)],
    openmoji: Annotated[Path, typer.Option("--openmoji", help=OPENMOJI_HELP, exists=True, file_okay=False)],
    out: Annotated[Path, typer.Option("--out", help="New folder for the checkpoint.")],
    seed: Annotated[int, typer.Option(help="The same seed on the same machine gives the same checkpoint.")] = 0,
    repeats: Annotated[
        int, typer.Option(min=1, help="Train this many seeds, and measure each; the first is written.")
    ] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Train the projections of the bundled image space, so that words find pictures.

    The pictures and captions come from Tux Paint's stamps (GPL-2) and from OpenMoji (CC BY-SA 4.0):

        apt-get download tuxpaint-stamps-default
        dpkg-deb -x tuxpaint-stamps-default_*.deb stamps
        npm pack openmoji
        mkdir openmoji && tar xzf openmoji-*.tgz -C openmoji --strip-components 1

    The towers stay as they are: each picture goes through EfficientNet-Lite0 once per view (which takes the time, some 10 minutes
    on two cores), and the two linear layers are then trained in seconds. A quarter of the objects is held out by a digest of their
    names; 15 % decide when to stop. Drawings are rendered by resvg, which the extra `train` installs.
    """
    from encoders.bundled import train_image as training
    from encoders.errors import EncoderError

    try:
        report = training.train(stamps, openmoji, out, seed=seed, repeats=repeats, bars=progress)
    except EncoderError as error:
        fail(error)
    if as_json:
        print_json(report)
        return
    for test in report["test"]:
        _print(f"seed {test['seed']}, held out", {"trained": {k: v for k, v in test.items() if k != "seed"}})
    console.print(f"{out}: best after {report['best_epoch']} epochs, in {report['seconds'] / 60:.1f} min")


def judge_image(stamps: Path, openmoji: Path | None, checkpoint: str) -> dict[str, Any]:
    """Figures of a checkpoint folder, or of the one that is `bundled`, on what training never saw."""
    from encoders.bundled.clip import CHECKPOINT
    from encoders.bundled.train_image import evaluate

    return evaluate(
        stamps, openmoji, checkpoint=CHECKPOINT if checkpoint == "bundled" else Path(checkpoint), bars=progress
    )


def print_figures(report: dict[str, Any]) -> None:
    """A table: a row per kind of pictures and of projections."""
    _print("words find pictures, on held-out ones", report)


def _print(title: str, report: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table(
        "pictures", "of", "projections", "R@1", "R@5", "R@10", "median rank", "image to text R@5", title=title
    )
    for kind in next(iter(report.values())):
        for name, parts in report.items():
            if found := parts.get(kind):
                shares = [f"{found[f'recall_at_{k}']:.3f}" for k in (1, 5, 10)]
                cells = (*shares, f"{found['median_rank']:g}", f"{found['image_to_text_at_5']:.3f}")
                table.add_row(kind.replace("_", " "), str(found["pictures"]), name, *cells)
    console.print(table)
    if not table.row_count:
        err.print("no held-out pictures there", style="yellow")
