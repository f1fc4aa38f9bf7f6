"""`triptych evaluate`: a checkpoint against popularity and random, on the labels that its training left for the test."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from triptych.console import console, err, fail, print_json

if TYPE_CHECKING:
    from ranker.data import TrainingSet

app = typer.Typer(add_completion=False)


@app.command()
def evaluate(
    model_id: Annotated[str | None, typer.Argument(help="Model to measure; default: the stable one.")] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            file_okay=False,
            help="Also write report.html and report.json into this folder: intervals, slices, gates, attention.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Measure a trained ranker against popularity and random.

    Judged are exactly the labels that training left for the test, by the protocol that the model was trained with (`triptych train
    --protocol`). At each of them the whole catalogue of that instant is ranked, what the user had met before left out, with the history
    strictly before it. Items that nobody had met in what training could read are also reported by themselves.

    --report adds intervals by bootstrap over users, further metrics, slices (cold items and users, history length, popularity, missing modalities),
    training curves, gates by category and one user's attention, as a page and as JSON (docs/evaluation.md).

    Reads the training set that `triptych train` left in training/MODEL_ID, or the folder that was given with --data; without it a model
    cannot be measured again.
    """
    from feature_store.home import find_home
    from ranker import checkpoint
    from ranker.data import TrainingSet
    from ranker.errors import RankerError
    from ranker.evaluate import evaluate as measure
    from triptych.verbs.train import metrics_table

    home = find_home()
    try:
        folder = home.models / model_id if model_id else checkpoint.stable_folder(home)
        given = checkpoint.read_manifest(folder).get("data", {}).get("folder")
        ts = TrainingSet.load(Path(given) if given else home.training / folder.name)
        measured = measure(folder, ts)
        page = _report(report, folder, ts) if report else None
    except RankerError as error:
        fail(error)
    if as_json:
        print_json(measured)
        return
    console.print(metrics_table(measured))
    if page:
        console.print(f"report: {page}")


def _report(out: Path, folder: Path, ts: "TrainingSet") -> Path:
    """Judge again with everything that the page shows, with a progress bar."""
    from rich.progress import Progress

    from ranker.judged import report_of
    from ranker.report import write_report
    from ranker.scorer import Ranker

    with Progress(console=err, transient=True) as bar:
        task = bar.add_task("judging each test label", total=None)
        found = report_of(Ranker.load(folder), ts, lambda done, total: bar.update(task, completed=done, total=total))
    return write_report(out, found)
