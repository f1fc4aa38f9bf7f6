"""Curves of a training while it runs, for TensorBoard: the loss of each step and NDCG of each look at validation."""

from pathlib import Path
from types import TracebackType
from typing import Final, Self

from ranker.errors import RankerError
from ranker.loop import Progress
from ranker.resume import Look

LOSS, NDCG, EPOCH_LOSS = "training/loss", "validation/ndcg", "training/epoch_loss"
FLUSH_SECONDS: Final = 10


class Curves:
    """Writes into one folder; give `step` and `look` to `fit` as its callbacks. A context manager, whose end writes what is left.

    Raises `RankerError` where the package `tensorboard` is missing.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise RankerError(
                f"curves need the package tensorboard ({error}): pip install 'triptych[tensorboard]', or leave out --tensorboard"
            ) from error
        self._writer_of, self._folder = SummaryWriter, folder
        self._writer: SummaryWriter | None = None
        self._step = 0

    def step(self, told: Progress) -> None:
        """The loss of a step."""
        if self._writer is None:
            # Of a training that goes on, what was written after the look that it goes on from is no longer so.
            purge = told.step if told.step > 1 else None
            self._writer = self._writer_of(str(self._folder), purge_step=purge, flush_secs=FLUSH_SECONDS)
        self._step = told.step
        self._writer.add_scalar(LOSS, told.loss, told.step)

    def look(self, look: Look) -> None:
        """NDCG of a look, and the mean loss of its epoch, at the last step before it."""
        if self._writer is not None:
            self._writer.add_scalar(NDCG, look.ndcg, self._step)
            self._writer.add_scalar(EPOCH_LOSS, look.loss, self._step)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.close()
