"""`triptych model`: which rankers there are, which one is stable, and switching it with undo."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from triptych.console import console, fail, print_json

if TYPE_CHECKING:
    from feature_store.home import Home

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="List, export, promote, undo and remove ranker checkpoints. Checkpoints never change; what switches is which one is stable, at once and with undo.",
)


@app.command("list")
def list_models(as_json: Annotated[bool, typer.Option("--json", help="Print the list as JSON.")] = False) -> None:
    """List checkpoints with their test metrics; the stable one is marked."""
    from feature_store.home import find_home
    from ranker.errors import RankerError

    try:
        rows = describe(find_home())
    except RankerError as error:
        fail(error)
    if as_json:
        print_json(rows)
        return
    if not rows:
        console.print("no models yet; `triptych train --model-id NAME` makes one")
        return
    _print(rows)


@app.command()
def export(
    model_id: Annotated[
        str | None, typer.Argument(help="Checkpoint whose vectors to write; default: the stable one.")
    ] = None,
) -> None:
    """Write the model's own vectors of all items, and of all users with a history, as they are now.

    `triptych train` does it once; run it again, then `triptych materialize`, so that items ingested since can be retrieved too.
    """
    from encoders.space import SpaceError, check_model_id
    from feature_store.errors import FeatureStoreError
    from feature_store.home import find_home
    from ranker import checkpoint
    from ranker.errors import RankerError
    from triptych.verbs.train import export as write_vectors

    home = find_home()
    try:
        write_vectors(home, home.models / check_model_id(model_id) if model_id else checkpoint.stable_folder(home))
    except (RankerError, FeatureStoreError, SpaceError) as error:
        fail(error)


@app.command()
def artefact(
    out: Annotated[Path, typer.Argument(help="File to write, usually NAME.pt2.")],
    model_id: Annotated[str | None, typer.Argument(help="Checkpoint; default: the stable one.")] = None,
) -> None:
    """Write a model's scoring as one `torch.export` file, for servers that run none of this code.

    It takes tokens of the history's items and of candidates (ranker/artefact.py names them in order) and gives the scores that serving gives to users
    without words of their own and without a query.
    """
    from encoders.space import SpaceError, check_model_id
    from feature_store.home import find_home
    from ranker import checkpoint
    from ranker.artefact import export as write_file
    from ranker.errors import RankerError
    from ranker.scorer import Ranker

    home = find_home()
    try:
        folder = home.models / check_model_id(model_id) if model_id else checkpoint.stable_folder(home)
        path = write_file(Ranker.load(folder), out)
    except (RankerError, SpaceError) as error:
        fail(error)
    console.print(f"{folder.name}: scoring is in {path}")


@app.command()
def promote(model_id: Annotated[str, typer.Argument(help="Checkpoint to make stable.")]) -> None:
    """Make a checkpoint the stable model; a running server takes it over by itself."""
    from encoders.space import SpaceError, check_model_id
    from feature_store.errors import FeatureStoreError
    from feature_store.home import find_home
    from feature_store.spaces import foreign_spaces
    from ranker import checkpoint
    from ranker.errors import CheckpointError, RankerError

    home = find_home()
    try:
        reads = checkpoint.read_manifest(home.models / check_model_id(model_id))["space_ids"].values()
        if foreign := foreign_spaces(home, reads):
            raise CheckpointError(
                f"{model_id} reads {', '.join(foreign)}, and this home has no vectors of such a space: ingest with its encoder first, or promote another"
            )
        before = checkpoint.promote(home, model_id)
    except (RankerError, FeatureStoreError, SpaceError) as error:
        fail(error)
    console.print(f"{model_id} is stable (before: {before or 'none'})")
    console.print("if its vectors are not in the store yet, `triptych materialize` loads them")


@app.command()
def undo() -> None:
    """Go back to the model that was stable before the last promotion."""
    from feature_store.home import find_home
    from ranker import checkpoint
    from ranker.errors import RankerError

    try:
        console.print(f"{checkpoint.undo(find_home())} is stable again")
    except RankerError as error:
        fail(error)


@app.command()
def remove(model_id: Annotated[str, typer.Argument(help="Checkpoint to delete.")]) -> None:
    """Delete a checkpoint that is not stable, so that the spaces it pins can be retired.

    Where it was stable before the present one, `model undo` cannot go back to it any more. Its own vectors stay as the space
    fused_MODEL_ID until `triptych spaces retire` puts that out of use too; a server that has the model in memory keeps it until it is
    started again.
    """
    from encoders.space import SpaceError
    from feature_store.home import find_home
    from ranker import checkpoint
    from ranker.errors import RankerError

    try:
        checkpoint.remove(find_home(), model_id)
    except (RankerError, SpaceError) as error:
        fail(error)
    console.print(f"{model_id} is deleted; `triptych spaces retire fused_{model_id}` puts its own space out of use")


def describe(home: "Home") -> list[dict[str, Any]]:
    """What `list` shows of each checkpoint."""
    from ranker import checkpoint

    stable = checkpoint.stable(home)
    return [_row(manifest, stable) for manifest in checkpoint.list_models(home)]


def _row(manifest: dict[str, Any], stable: str | None) -> dict[str, Any]:
    found = manifest.get("metrics", {}).get("ranker", {}).get("all", {})
    return {
        "model_id": manifest["model_id"],
        "stable": manifest["model_id"] == stable,
        "created": manifest.get("created"),
        "ndcg_at_10": found.get("ndcg_at_10"),
        "auc": found.get("auc"),
        "space_ids": manifest.get("space_ids", {}),
        "error": manifest.get("error"),
    }


def _print(rows: list[dict[str, Any]]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table("model", "stable", "made", "NDCG@10", "AUC", "reads")
    for row in rows:
        numbers = [f"{row[name]:.3f}" if row[name] is not None else "-" for name in ("ndcg_at_10", "auc")]
        reads = row["error"] or ", ".join(row["space_ids"].values())
        cells = (row["model_id"], "yes" if row["stable"] else "", row["created"] or "", *numbers, reads)
        table.add_row(*(escape(str(cell)) for cell in cells))
    console.print(table)
