"""One figure by both paths: from what went through ingestion, Feast and Milvus into the training set, and from the files, as the benchmarks read them.

The figure is NDCG@10 of the last event of each person, by item-to-item regression with the plots and posters in its Gram matrix: events, their
order, ties, vectors and items all have a part in it, and nothing random does.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.rankers.films import films
from benchmarks.rankers.sequences import LeaveOneOut, Sequences, gains_of_last, movielens_100k
from ranker.collaborative import EaseConfig, fit_ease
from ranker.data import TrainingSet
from triptych.demo.walk import StageError

SETTINGS: Final = EaseConfig(l2=100.0, content=20.0)
MOST_APART: Final = 1e-3  # 1 - cosine of two vectors of one item: in bfloat16, batches of other lengths round otherwise
Content = Mapping[str, NDArray[np.float32]]


def compare(folder: Path) -> str:
    """What both paths have in common, and the figure of each. Raises `StageError` where they differ."""
    stored = TrainingSet.load(folder)
    read = movielens_100k()
    content, _ = films(read.item_names, lambda _: None)
    return compared(stored, read, content)


def compared(stored: TrainingSet, read: Sequences, content: Content) -> str:
    """The same of a training set and of sequences with vectors [I, d] by modality (rows of 0: none)."""
    mine = content_of(stored, read.item_names)
    if sorted(mine) != sorted(content):
        raise StageError(f"the training set has {sorted(mine)}, the files {sorted(content)}")
    apart = {name: farthest(mine[name], content[name]) for name in content}
    if max(apart.values()) > MOST_APART:
        raise StageError(f"vectors through the store and from the files are apart by 1 - cosine of {apart}")
    figures = [figure(sequences_of(stored, read.item_names), mine), figure(read, content)]
    if abs(figures[0] - figures[1]) > 1e-4:
        raise StageError(f"NDCG@10 is {figures[0]:.4f} through the store and {figures[1]:.4f} from the files")
    told = ", ".join(f"{name} {value:.0e}" for name, value in apart.items())
    return f"NDCG@10 of each last event: {figures[0]:.4f} through the store, {figures[1]:.4f} from the files; 1 - cosine of their vectors is at most: {told}"


def farthest(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> float:
    """The largest 1 - cosine of two vectors of one item [I, d]; an item that has one on one side only is as far as can be."""
    there = [np.abs(side).sum(1) > 0 for side in (ours, theirs)]
    lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    cosines = (ours * theirs).sum(1) / np.maximum(lengths, 1e-12)
    return float(np.where(there[0] & there[1], 1.0 - cosines, np.where(there[0] == there[1], 0.0, 2.0)).max())


def content_of(stored: TrainingSet, names: tuple[str, ...]) -> Content:
    """Vectors [I, d] of the items' last versions, rows of 0 where there is none."""
    rows = stored.items.last_row_I[[stored.items.index[name] for name in names]]
    found = {}
    for modality, space in stored.spaces.items():
        there = stored.items.present[space.space_id][rows]
        if there.any():  # the store has a space for sounds, the films have none
            found[modality] = (stored.items.vectors[space.space_id][rows] * there[:, None]).astype(np.float32)
    return found


def sequences_of(stored: TrainingSet, names: tuple[str, ...]) -> Sequences:
    """All events of the training set, by person and time."""
    number = {name: at for at, name in enumerate(names)}
    users = sorted(stored.events)
    item = [number[name] for user in users for name in stored.events[user].item_ids]
    lengths = [len(stored.events[user]) for user in users]
    times = np.concatenate([stored.events[user].timestamps_us for user in users])
    ratings = np.concatenate([stored.events[user].values for user in users])
    return Sequences(
        "stored", np.repeat(np.arange(len(users)), lengths), np.asarray(item, np.int64), times, ratings, names
    )


def figure(sequences: Sequences, content: Content) -> float:
    """NDCG@10 of the last events."""
    split = LeaveOneOut.of(sequences)
    histories = sequences.matrix(sequences.from_last >= 1)
    weights = fit_ease(
        sequences.matrix(split.train), SETTINGS, np.concatenate([content[name] for name in sorted(content)], axis=1)
    )
    return float(gains_of_last(split, histories @ weights, split.test)["ndcg_10"].mean())
