"""What is counted rather than learned: vocabularies, projections of each space, popularity, scales; all from before the test.

Projections and scales are fitted on items and labels of the training window only.
"""

# Shapes are part of names: R reference items, M modalities, K directions.
# ruff: noqa: N806

from collections import Counter

import numpy as np
import torch

from ranker.config import RankerConfig
from ranker.data import Ints, Labels, Split, TrainingSet
from ranker.examples import Examples
from ranker.inputs import ItemInputs, Shapes, Vocabulary, tensor_of
from ranker.model import FusionRanker
from ranker.popularity import Popularity

MAX_REFERENCES = 512  # what histories are compared with; the cost of reading one grows with it
MAX_FIT_ITEMS = 20_000  # principal axes hardly move with more


def build_vocabulary(ts: TrainingSet, split: Split) -> Vocabulary:
    """Names that are known before the test: items available by then, their categories, event types met by then."""
    items = np.flatnonzero(ts.items.released_I < split.test_start_us)
    rows = np.flatnonzero(ts.items.valid_from_R < split.test_start_us)
    categories = {category for r in rows if (category := ts.items.category[r])}
    types = {
        kind
        for events in ts.events.values()
        for kind, t_us in zip(events.event_types, events.timestamps_us, strict=True)
        if t_us < split.test_start_us
    }
    tags = _items_with(ts, rows)
    shared = sorted(tag for tag, count in tags.items() if count > 1)  # one item's own tag says nothing of others
    return Vocabulary(
        tuple(ts.items.names[i] for i in items),
        tuple(sorted(categories)),
        tuple(sorted(types)),
        tuple(shared),
        tuple(sorted({device for device in split.train.devices if device})),
    )


def build_model(ts: TrainingSet, split: Split, config: RankerConfig, vocabulary: Vocabulary) -> FusionRanker:
    """A new model with everything fitted that is not learned; its random weights come from torch's current seed."""
    shapes = Shapes(
        {modality: space.dim for modality, space in ts.spaces.items()},
        len(vocabulary.items),
        len(vocabulary.categories),
        len(vocabulary.event_types),
        min(MAX_REFERENCES, len(set(split.train.item_row.tolist()))),
        len(vocabulary.tags),
        devices=len(vocabulary.devices),
        prices=bool(np.isfinite(ts.items.price[ts.items.valid_from_R < split.train_end_us]).any()),
    )
    model = FusionRanker(config, shapes)
    _fit_projections(model, ts, split)
    _fit_scales(model, ts, split)
    _fit_tags(model, ts, split, vocabulary)
    trained = set(ts.items.item_R[split.train.item_row].tolist())
    for index, name in enumerate(vocabulary.items, start=1):
        if ts.items.index[name] not in trained:
            model.id_row[index] = 0  # nothing was learned of it: it is read as unknown
    return model


def _fit_projections(model: FusionRanker, ts: TrainingSet, split: Split) -> None:
    rows = np.flatnonzero(ts.items.valid_from_R < split.train_end_us)
    for modality, space in ts.spaces.items():
        there = rows[ts.items.present[space.space_id][rows]]
        chosen = there[:: -(-len(there) // MAX_FIT_ITEMS) or 1]
        vectors = tensor_of(ts.items.vectors[space.space_id][chosen])
        model.projection(modality).fit(vectors, model.config.whitening)
    written = [profile.vector for profile in ts.profiles.values() if profile.from_us < split.train_end_us]
    if "text" in ts.spaces and written:
        model.profile_mean.copy_(tensor_of(np.mean(written, axis=0)))


def _fit_scales(model: FusionRanker, ts: TrainingSet, split: Split) -> None:
    rows = ts.items.valid_from_R < split.train_end_us
    with np.errstate(invalid="ignore"):
        _set_stats(model.price_stats, np.log1p(ts.items.price[rows]))
    _set_stats(model.rating_stats, ratings(split.train))


def _fit_tags(model: FusionRanker, ts: TrainingSet, split: Split, vocabulary: Vocabulary) -> None:
    """Log inverse frequency of each tag among the items of training."""
    rows = np.flatnonzero(ts.items.valid_from_R < split.train_end_us)
    counts, items = _items_with(ts, rows), len(np.unique(ts.items.item_R[rows]))
    for at, tag in enumerate(vocabulary.tags, start=1):
        model.tag_idf[at] = float(np.log(max(2, items) / max(1, counts[tag])))


def _items_with(ts: TrainingSet, rows: Ints) -> Counter[str]:
    """How many items have each tag in any of the versions `rows`."""
    tags, items = ts.items.tags, ts.items.item_R.tolist()
    return Counter(tag for _, tag in {(items[r], tag) for r in rows.tolist() for tag in (tags[r] if tags else ())})


def ratings(labels: Labels) -> np.ndarray:
    """The labels' ratings; NaN for labels that are none."""
    return np.where([kind == "rating" for kind in labels.event_types], labels.values, np.nan)


def _set_stats(buffer: torch.Tensor, values: np.ndarray) -> None:
    finite = values[np.isfinite(values)]
    if len(finite) > 1:
        buffer.copy_(torch.tensor([finite.mean(), max(float(finite.std()), 1e-3)]))


def set_popularity(
    model: FusionRanker, ts: TrainingSet, vocabulary: Vocabulary, counted: Popularity, t_us: int
) -> None:
    """Freeze popularity as it was at an instant."""
    items = np.asarray([ts.items.index[name] for name in vocabulary.items], np.int64)
    if len(items):
        model.popularity[1:] = tensor_of(counted.log_share(items, np.asarray([t_us]))[0])


def set_references(model: FusionRanker, inputs: ItemInputs, examples: Examples) -> None:
    """Fill in the reference items with what training's labels like, and start centres and prototypes from them.

    The most liked items are taken, where there are more than there is room for.
    """
    rows, likes = np.unique(examples.labels.item_row, return_counts=True)
    order = np.argsort(-likes, kind="stable")[: len(model.taste.share)]
    content_RMK = inputs.spaces_NMK[tensor_of(rows[order])]
    share_R = tensor_of(likes[order] / likes[order].sum()).float()
    model.taste.content[: len(order)] = content_RMK
    model.taste.share.zero_()[: len(order)] = share_R
    weight_RM = share_R[:, None] * (content_RMK != 0).any(-1)
    mean_MK = (weight_RM[..., None] * content_RMK).sum(0) / weight_RM.sum(0).clamp_min(1e-6)[:, None]
    model.gates.centre.data.copy_(mean_MK)
    for m in range(content_RMK.shape[1]):
        _set_prototypes(model.taste.prototypes.data[m], content_RMK[:, m])


def _set_prototypes(prototypes: torch.Tensor, content: torch.Tensor) -> None:
    """Start prototypes [P, K] at the centres of clusters of content [R, K]; where there is too little, some stay random."""
    from sklearn.cluster import KMeans

    there = np.unique(content[(content != 0).any(-1)].cpu().numpy(), axis=0)
    count = min(len(prototypes), len(there))
    if count:
        centres = KMeans(count, n_init=4, random_state=0).fit(there).cluster_centers_
        prototypes[:count] = torch.nn.functional.normalize(tensor_of(centres), dim=-1)
