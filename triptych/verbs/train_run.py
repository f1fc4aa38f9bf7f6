"""The training that `triptych train` runs: progress with the time that is left, curves, and what to do once it was interrupted."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from triptych.console import err

if TYPE_CHECKING:
    from feature_store.home import Home
    from ranker.config import RankerConfig
    from ranker.curves import Curves
    from ranker.data import TrainingSet
    from ranker.train import Progress, TrainResult


@dataclass(frozen=True)
class Order:
    """What is to be trained, and how; `folder` where the set is a given folder."""

    ts: "TrainingSet"
    settings: "RankerConfig"
    model_id: str
    seed: int
    protocol: str
    resume: bool
    folder: Path | None


def curves_in(folder: Path | None) -> "Curves | None":
    """A writer of curves, if a folder is given for them."""
    from ranker.curves import Curves

    return Curves(folder) if folder else None


def run_training(home: "Home", order: Order, curves: "Curves | None") -> "TrainResult":
    """Train with a progress bar; where it is interrupted, say how it goes on."""
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    from ranker import train

    columns = (TextColumn("training"), BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with ExitStack() as stack:
        bar = stack.enter_context(Bar(*columns, console=err))
        if curves:
            stack.enter_context(curves)
        show = _shown(bar.add_task("", total=None), bar.update, curves)
        try:
            return train.train(
                order.ts,
                order.settings,
                home.models,
                order.model_id,
                seed=order.seed,
                protocol=order.protocol,
                progress=show,
                looked=curves.look if curves else None,
                resume=order.resume,
                folder=order.folder,
            )
        except KeyboardInterrupt:
            _tell_how_to_go_on(train.unfinished_file(home.models, order.model_id))
            raise


def _shown(task: int, update: Callable[..., None], curves: "Curves | None") -> "Callable[[Progress], None]":
    def show(p: "Progress") -> None:
        ndcg = f"NDCG@10 {p.ndcg:.3f}" if p.ndcg == p.ndcg else "NDCG@10 ..."
        text = f"epoch {p.epoch}  loss {p.loss:.3f}  {ndcg}  at most {p.eta_seconds:.0f} s more"
        update(task, total=p.steps, completed=p.step, description=text)
        if curves:
            curves.step(p)

    return show


def _tell_how_to_go_on(unfinished: Path) -> None:
    from ranker.resume import unfinished_epoch

    if unfinished.exists():
        err.print(
            f"interrupted; {unfinished_epoch(unfinished)} epochs are kept: the same command with --resume goes on after them"
        )
