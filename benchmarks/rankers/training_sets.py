"""Public data sets as the ranker's training sets: the same trainer, scorer and metrics as for data that came through the store.

Histories of sequences end strictly before each label; ties in time are broken by the file's order, by a microsecond each.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.rankers.sequences import LeaveOneOut, Sequences
from benchmarks.rankers.sets import Matrix
from encoders.space import EmbeddingSpace
from feature_store.history import Events
from ranker.data import Items, Labels, Split, TrainingSet

SECOND_US = 1_000_000
FOREVER_US = 2**62
Ints = NDArray[np.int64]
Content = Mapping[str, NDArray[np.float32]]


def items_of(names: Sequence[str], content: Content, tags: Sequence[Sequence[str]] = ()) -> Items:
    """Items that were always there, with content by modality [I, d] (rows of 0: none) and tags."""
    n = len(names)
    spaces = spaces_of(content)
    vectors = {spaces[m].space_id: values for m, values in content.items()}
    present = {space_id: np.abs(values).sum(1) > 0 for space_id, values in vectors.items()}
    always, never = np.full(n, -1, np.int64), np.full(n, FOREVER_US, np.int64)
    return Items(list(names), np.arange(n), always, never, [None] * n, np.full(n, np.nan), vectors, present, list(tags))


def spaces_of(content: Content) -> dict[str, EmbeddingSpace]:
    """A space for each modality, made elsewhere."""
    return {
        m: EmbeddingSpace.from_recipe(m, "benchmark", values.shape[1], {"made": "elsewhere"})
        for m, values in content.items()
    }


def of_sequences(sequences: Sequences, content: Content, tags: Sequence[Sequence[str]] = ()) -> TrainingSet:
    """Every event is a view, whatever its rating: the protocol asks what comes next, not what is liked."""
    items = items_of(sequences.item_names, content, tags)
    user, times = sequences.user, _untied(sequences)
    ids = [f"e{n}" for n in range(len(user))]
    names = [f"u{u}" for u in user.tolist()]
    labels = Labels(ids, names, sequences.item, ["view"] * len(ids), np.full(len(ids), np.nan), times)
    edges = np.searchsorted(user, np.arange(sequences.users + 1))
    events = {}
    for u in range(sequences.users):
        a, b = int(edges[u]), int(edges[u + 1])
        item_ids = [sequences.item_names[i] for i in sequences.item[a:b]]
        events[f"u{u}"] = Events(ids[a:b], item_ids, ["view"] * (b - a), np.full(b - a, np.nan), times[a:b])
    return TrainingSet(items, labels, events, {}, spaces_of(content), {})


def _untied(sequences: Sequences) -> Ints:
    """Times in us, where the n-th of a user's events of one second comes n us after it."""
    first = np.r_[True, (np.diff(sequences.user) != 0) | (np.diff(sequences.timestamp) != 0)]
    starts = np.flatnonzero(first)
    return sequences.timestamp * SECOND_US + np.arange(len(first)) - starts[np.cumsum(first) - 1]


def leave_one_out(ts: TrainingSet, split: LeaveOneOut) -> Split:
    """The same events as labels: training's are counted, and nothing else is."""
    parts = [ts.labels.take(rows) for rows in (np.flatnonzero(split.train), split.validation, split.test)]
    return Split(parts[0], parts[1], parts[2], FOREVER_US, FOREVER_US, by_time=False)


def of_sets(
    names: Sequence[str], content: Content, tags: Sequence[Sequence[str]], train: Matrix, held_out: Sequence[Matrix]
) -> tuple[TrainingSet, list[Labels]]:
    """(training set whose histories are `train`, labels of each held-out matrix), without an order: each matrix is an instant."""
    labels = [_labels(matrix, at, f"{at}") for at, matrix in enumerate((train, *held_out), start=1)]
    events = {}
    for u in range(train.shape[0]):
        a, b = int(train.indptr[u]), int(train.indptr[u + 1])
        item_ids = [names[i] for i in train.indices[a:b]]
        events[f"u{u}"] = Events(
            labels[0].event_ids[a:b], item_ids, ["view"] * (b - a), np.full(b - a, np.nan), np.full(b - a, 1)
        )
    items = items_of(names, content, tags)
    return TrainingSet(items, labels[0], events, {}, spaces_of(content), {}), labels[1:]


def _labels(matrix: Matrix, t_us: int, prefix: str) -> Labels:
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    n = len(rows)
    ids, users = [f"{prefix}-{k}" for k in range(n)], [f"u{u}" for u in rows.tolist()]
    return Labels(
        ids, users, matrix.indices.astype(np.int64), ["view"] * n, np.full(n, np.nan), np.full(n, t_us, np.int64)
    )


def set_split(ts: TrainingSet, validation: Labels, test: Labels) -> Split:
    """Training on all of the training set's labels."""
    return Split(ts.labels, validation, test, FOREVER_US, FOREVER_US, by_time=False)
