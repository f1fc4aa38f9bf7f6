"""`triptych train`: point-in-time training set, ranker, test report, fused vectors, and the first promotion."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from triptych.console import EXIT_USAGE, console, err, fail, print_json

if TYPE_CHECKING:
    from encoders.space import EmbeddingSpace
    from feature_store.home import Home
    from ranker.data import TrainingSet
    from ranker.train import TrainResult

MAX_SEED: Final = 2**32 - 1  # numpy takes no larger one
app = typer.Typer(add_completion=False)


@app.command()
def train(
    model_id: Annotated[str, typer.Option("--model-id", help="Name of the new model: 1 to 40 of a-z, 0-9 and '_'.")],
    model: Annotated[
        str,
        typer.Option(
            "--model",
            help="fusion (the network), ease (linear item-to-item regression) or svd (matrix factors): baselines, and makers of candidates.",
        ),
    ] = "fusion",
    preset: Annotated[
        str,
        typer.Option(
            help="tiny (hundreds of items; attends to single events), small (thousands of labels: better and faster) or base (wider)."
        ),
    ] = "tiny",
    seed: Annotated[
        int, typer.Option(min=0, max=MAX_SEED, help="The same seed on the same machine gives the same model.")
    ] = 0,
    space: Annotated[
        list[str] | None,
        typer.Option(
            "--space",
            help="Item space to read, and none but those named; once per modality. Default: those in service.",
        ),
    ] = None,
    upgrade: Annotated[
        list[str] | None,
        typer.Option("--upgrade", help="Item space to read in place of its modality's default; repeatable."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            file_okay=False,
            help="Train on this folder of Parquet files (docs/training-sets.md has the layout) in place of Feast's point-in-time join.",
        ),
    ] = None,
    protocol: Annotated[
        str,
        typer.Option(
            help="Which labels are the test's: time (the last fifth), leave-one-out (each user's last), ratio (each user's last tenth), cold-items or "
            "cold-users (a fifth of them, drawn by the seed)."
        ),
    ] = "time",
    tensorboard: Annotated[
        Path | None,
        typer.Option(
            help="Write the loss of each step and NDCG of each look into this folder, for `tensorboard --logdir`."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a training that was stopped: the same command, and this.")
    ] = False,
    promote: Annotated[bool, typer.Option("--promote", help="Make it the stable model, which serving takes.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Train a fusion ranker on what users did, and measure it on what they did later.

    The training set is joined point-in-time: a label sees only what was true strictly before it. The first 70 % of labels train,
    the next 10 % decide when to stop, the last 20 % are the test, on which popularity and random are judged in the same way; --protocol
    takes another test (docs/evaluation.md). A split that leaks is refused.

    A training that was killed has lost what came after its last look at validation: the same command with --resume goes on from there, to
    the same model that it would have been.

    The checkpoint goes to models/MODEL_ID and never changes. Its own vectors of items and users are written as the space
    fused_MODEL_ID: `triptych materialize` loads them for retrieval. The first model becomes stable by itself; later ones with
    --promote, or `triptych model promote`.

    Of several spaces of one modality it reads, unless told otherwise, the one that the stable model reads: a space that was added
    takes over only when --upgrade names it.

    Needs interactions (`triptych users build`) and applied definitions (`triptych materialize`). With --data it needs nothing but the
    folder, whose meta.json names its embedding spaces; where they are none of this home's, the model is trained and measured, but neither
    exported nor promoted.
    """
    from encoders.space import SpaceError, check_model_id
    from feature_store.errors import FeatureStoreError
    from feature_store.home import find_home
    from ranker import checkpoint, config
    from ranker.data import TrainingSet
    from ranker.errors import RankerError
    from ranker.splits import check_protocol
    from ranker.train import check_unfinished
    from triptych.verbs.train_run import Order, curves_in, run_training

    if data and (space or upgrade):
        fail(
            "--space and --upgrade choose what is joined, but the folder of --data names its spaces itself", EXIT_USAGE
        )
    home = find_home()
    try:
        settings = config.of_kind(model, preset)
        check_protocol(protocol)
    except RankerError as error:
        fail(error, EXIT_USAGE)
    try:
        checkpoint.refuse_overwrite(home.models / check_model_id(model_id))
        check_unfinished(home.models, model_id, resume=resume)
        _refuse_used_name(home, model_id)
        curves = curves_in(tensorboard)
        kept = data or (home.training / model_id if resume else None)  # what a training began with is still there
        ts = TrainingSet.load(kept or _training_set(home, model_id, choose_spaces(home, space or [], upgrade or [])))
        foreign = _foreign_spaces(home, ts, promote=promote) if kept else []  # what is joined is the home's
        result = run_training(home, Order(ts, settings, model_id, seed, protocol, resume, data), curves)
    except (RankerError, FeatureStoreError, SpaceError) as error:
        fail(error)
    if foreign:
        err.print(
            f"no fused vectors were written and nothing was promoted: this home has no space {', '.join(foreign)}"
        )
    promoted = not foreign and _put_to_use(home, result.folder, promote=promote)
    _print(result, _STATES[bool(foreign), promoted], promoted, as_json)


_STATES: Final = {  # (its spaces are not this home's, it was promoted)
    (False, True): "is the stable model",
    (False, False): "is not stable yet: `triptych model promote` makes it so",
    (True, False): "can be measured here, but not served",
}


def _put_to_use(home: "Home", folder: Path, *, promote: bool) -> bool:
    """Export, and promote if told to or if it is the first model; whether it was."""
    from encoders.space import SpaceError
    from feature_store.errors import FeatureStoreError
    from ranker import checkpoint
    from ranker.errors import RankerError

    model_id = folder.name
    try:
        export(home, folder)
        promoted = promote or checkpoint.stable(home) is None
        if promoted:
            checkpoint.promote(home, model_id)
    except (RankerError, FeatureStoreError, SpaceError, OSError) as error:
        fail(
            f"{model_id} is trained and kept in {folder}, but what follows failed: {error}. Once that is mended, run "
            f"`triptych model export {model_id}`, then `triptych materialize`, then `triptych model promote {model_id}`"
        )
    return promoted


def _foreign_spaces(home: "Home", ts: "TrainingSet", *, promote: bool) -> list[str]:
    """Spaces of a folder that this home does not have; raises `TrainingSetError` where such a model is to be promoted."""
    from feature_store.spaces import foreign_spaces
    from ranker.errors import TrainingSetError

    foreign = foreign_spaces(home, [space.space_id for space in ts.spaces.values()])
    if foreign and promote:
        raise TrainingSetError(
            f"a model of {', '.join(foreign)} cannot be promoted: this home has no vectors of such a space; leave out --promote, or ingest "
            "with the encoder of that space first"
        )
    return foreign


def _refuse_used_name(home: "Home", model_id: str) -> None:
    """Raise `SpaceRegistryError` where a model of this name was removed: its vectors are still there, under the name."""
    from feature_store.errors import SpaceRegistryError
    from feature_store.spaces import read_entries

    if any(entry.space.space_id == f"fused_{model_id}" for entry in read_entries(home, retired=True)):
        raise SpaceRegistryError(
            f"there was a model {model_id!r}, and its vectors are still there: take another model_id"
        )


def choose_spaces(home: "Home", wanted: Sequence[str], upgrades: Sequence[str] = ()) -> list["EmbeddingSpace"]:
    """The item spaces to read, one per modality: those `wanted`, else those in service, with `upgrades` in their modality's place.

    Raises `TrainingSetError` where that is ambiguous or there is none.
    """
    from feature_store.errors import SpaceRegistryError
    from ranker import checkpoint
    from ranker.data import spaces_by_modality
    from ranker.errors import TrainingSetError
    from triptych.verbs.spaces_choice import spaces_in_service

    named, new = [_in_use(home, s) for s in wanted], spaces_by_modality([_in_use(home, s) for s in upgrades])
    try:
        base = named or spaces_in_service(home, checkpoint.stable(home), except_for=new)
    except SpaceRegistryError as error:
        raise TrainingSetError(str(error)) from error
    spaces = [*new.values(), *(space for space in base if space.modality not in new)]
    if not spaces:
        raise TrainingSetError("there is no item space to train on: run `triptych ingest` first")
    try:
        return list(spaces_by_modality(spaces).values())
    except TrainingSetError as error:
        raise TrainingSetError(f"{error}; name one per modality with --space") from None


def _in_use(home: "Home", space_id: str) -> "EmbeddingSpace":
    """An item space that may be trained on."""
    from encoders.space import MODALITIES
    from feature_store.spaces import find_entry
    from ranker.errors import TrainingSetError

    entry = find_entry(home, space_id, "item")
    if entry.retired:
        raise TrainingSetError(f"space {space_id} is retired, and has no view: `triptych spaces add` brings it back")
    if entry.space.modality not in MODALITIES:
        raise TrainingSetError(f"a ranker reads spaces of {', '.join(MODALITIES)}, not {space_id}")
    return entry.space


def _training_set(home: "Home", model_id: str, spaces: Sequence["EmbeddingSpace"]) -> Path:
    import sys
    from contextlib import redirect_stdout

    from feature_store.spaces import read_spaces

    with err.status("joining the training set point-in-time"), redirect_stdout(sys.stderr):
        from feature_store.feast_training import build_training_set

        users = {space.space_id for space in read_spaces(home, "user")}
        profile = next((s.space_id for s in spaces if s.modality == "text" and s.space_id in users), None)
        ids = [space.space_id for space in spaces]
        info = build_training_set(home, home.training / model_id, spaces=ids, text_profile_space=profile)
    err.print(
        f"training set: {info.labels:,} labels of {info.users:,} users over {info.items:,} items "
        f"({info.versions:,} versions; {info.dropped_labels:,} events before their item was known)"
    )
    return info.folder


def export(home: "Home", folder: Path) -> None:
    """Write the fused vectors of the model in `folder`, and say how many there are and what loads them."""
    from feature_store.tables import Tables
    from ranker.export import export_fused
    from ranker.scorer import Ranker

    exported = export_fused(home, Ranker.load(folder), Tables(home))
    err.print(f"fused vectors: {exported.items:,} items, {exported.users:,} users; `triptych materialize` loads them")


def _print(result: "TrainResult", state: str, promoted: bool, as_json: bool) -> None:
    if as_json:
        print_json({**result.metrics, "seconds": result.seconds, "epochs": result.epochs, "promoted": promoted})
        return
    console.print(metrics_table(result.metrics))
    console.print(f"{result.folder.name}: {result.epochs} epochs in {result.seconds:.0f} s; it {state}")


def metrics_table(report: dict[str, Any]) -> Any:
    """A rich table of an evaluation report: a row per scorer and slice."""
    from rich.table import Table

    table = Table(
        "scorer",
        "items",
        "NDCG@10",
        "Recall@20",
        "AUC",
        "labels",
        title=f"{report['model_id']} on its test ({report['protocol']})",
    )
    for scorer, slices in report["scorers"].items():
        for name, found in slices.items():
            values = [f"{found[m]:.3f}" if m in found else "-" for m in ("ndcg_at_10", "recall_at_20", "auc")]
            table.add_row(scorer, name.replace("_", " "), *values, f"{found['labels']:,}")
        table.add_section()
    return table
