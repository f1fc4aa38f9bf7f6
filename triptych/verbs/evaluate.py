"""`triptych evaluate`: a checkpoint against popularity and random, on the labels that its training left for the test."""

from typing import Annotated

import typer

from triptych.console import console, fail, print_json

app = typer.Typer(add_completion=False)


@app.command()
def evaluate(
    model_id: Annotated[str | None, typer.Argument(help="Model to measure; default: the stable one.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Measure a trained ranker against popularity and random.

    At each test label the whole catalogue of that instant is ranked, what the user had met before left out, with the history
    strictly before it. Items that nobody had met before the test window are also reported by themselves.

    Reads the training set that `triptych train` left in training/MODEL_ID; without that folder a model cannot be measured again.
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
        checkpoint.read_manifest(folder)
        report = measure(folder, TrainingSet.load(home.training / folder.name))
    except RankerError as error:
        fail(error)
    if as_json:
        print_json(report)
        return
    console.print(metrics_table(report))
