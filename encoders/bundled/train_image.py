"""Train the projections of the bundled image space, and measure them on stamps that training never saw.

The towers are frozen, so that what is trained reads features. No setting here was chosen by the test split; the checkpoint's card says how
often it was looked at.
"""

import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np

from encoders.bundled.captions import STAMPS, imagenet_names, plain_caption, read_emoji, read_stamps
from encoders.bundled.clip import CHECKPOINT, PROJECTIONS_FILE, BundledClip, imagenet_classifier
from encoders.bundled.contrastive import Fitted, Settings, fit, refit
from encoders.bundled.image_features import Bars, Corpus, Towers, encode_corpus, is_object, no_bars, with_classes
from encoders.bundled.projections import Projections
from encoders.bundled.recall import chance, retrieval
from encoders.errors import EncoderError

RECIPE_FILE: Final = "recipe.json"
Report = dict[str, Any]


def train(
    stamps: Path,
    openmoji: Path,
    out: Path,
    *,
    seed: int = 0,
    repeats: int = 1,
    settings: Settings = Settings(),  # noqa: B008  (frozen)
    bars: Bars = no_bars,
) -> Report:
    """Train on the stamps and emoji of the training split, stop early on validation, and write a checkpoint folder to `out`.

    Args:
        stamps: unpacked `tuxpaint-stamps-default`.
        openmoji: unpacked npm package `openmoji`.
        out: gets `projections.safetensors` and `recipe.json`.
        seed: of the checkpoint; with `repeats`, the following seeds are trained and measured too.
        repeats: how many seeds.
        settings: hyper-parameters.
        bars: opens progress bars.

    Returns:
        What `recipe.json` holds: settings, data, history, and the figures of every seed on the test split.
    """
    started = time.monotonic()
    if out.exists() and any(out.iterdir()):
        raise EncoderError(f"{out} is not empty: give a new folder")
    items = [*read_stamps(stamps), *read_emoji(openmoji)]
    towers = Towers()
    corpus = encode_corpus(items, towers, bars)
    report, projections = train_on(corpus, towers, seed=seed, repeats=repeats, settings=settings, bars=bars)
    out.mkdir(parents=True, exist_ok=True)
    projections.save(out / PROJECTIONS_FILE)
    report = {**report, "towers": BundledClip().towers_recipe()}
    (out / RECIPE_FILE).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return {**report, "folder": str(out), "seconds": round(time.monotonic() - started, 1)}


def train_on(
    corpus: Corpus,
    towers: Towers,
    *,
    seed: int,
    repeats: int = 1,
    settings: Settings = Settings(),  # noqa: B008  (frozen)
    bars: Bars = no_bars,
) -> tuple[Report, Projections]:
    """What `train` does once the features are there."""
    seeds = range(seed, seed + repeats)
    with bars("training", settings.epochs * repeats) as advance:
        trained = [train_once(corpus, towers, number, settings, advance) for number in seeds]
    first, fitted = trained[0]
    report = {
        "seed": seed,
        "settings": asdict(settings),
        "pictures": dict(Counter(f"{item.source} {item.split}" for item in corpus.items)),
        "best_epoch": fitted.best_epoch,
        "validation_reciprocal_rank": [round(value, 4) for value in fitted.history],
        "test": [
            {"seed": number, **measure(corpus, projections)} for number, (projections, _) in enumerate(trained, seed)
        ],
    }
    return report, first


def train_once(
    corpus: Corpus, towers: Towers, seed: int, settings: Settings, advance: Callable[[int], None] | None = None
) -> tuple[Projections, Fitted]:
    """Find the best number of epochs on validation, then train for as many on training and validation together."""
    known = encoded_classes(towers)

    def pairs(part: Corpus) -> Any:
        return with_classes(part.pairs(settings), *known, settings.class_weight)

    validation = corpus.chosen(lambda item: item.split == "validation" and (is_object(item) or item.source != STAMPS))
    fitted = fit(pairs(corpus.chosen(lambda item: item.split == "train")), validation.pairs(), settings, seed, advance)
    everything = pairs(corpus.chosen(lambda item: item.split != "test"))
    return refit(everything, settings, seed, fitted.best_epoch), fitted


def encoded_classes(towers: Towers) -> tuple[Any, Any]:
    """EfficientNet's classifier [1000, 1280] and the features of its classes' names [1000, 384]."""
    return imagenet_classifier(), towers.texts(imagenet_names())


def measure(corpus: Corpus, projections: Projections) -> Report:
    """Retrieval among the held-out pictures of each kind, each picture as it is, by its caption proper."""
    held_out = corpus.chosen(lambda item: item.split == "test")
    kinds: dict[str, Callable[[Any], bool]] = {
        "objects": is_object,
        "all_png_stamps": lambda item: item.source == STAMPS and item.picture.suffix == ".png",
        "emoji": lambda item: item.source != STAMPS,
    }
    parts = {name: held_out.chosen(keep) for name, keep in kinds.items()}
    return {name: asdict(_retrieve(part, projections)) for name, part in parts.items() if part.items}


def _retrieve(part: Corpus, projections: Projections) -> Any:
    captions = [plain_caption(item.captions[0]) for item in part.items]
    spoken = {caption: item.captions[0] for caption, item in zip(captions, part.items, strict=True)}
    images = projections.images(np.stack([views[0] for views in part.images]))
    texts = projections.texts(np.stack([part.texts[spoken[caption]] for caption in sorted(spoken)]))
    return retrieval(images, texts, captions)


def evaluate(
    stamps: Path, openmoji: Path | None = None, *, checkpoint: Path = CHECKPOINT, bars: Bars = no_bars
) -> Report:
    """The figures of a checkpoint on the held-out stamps (and emoji), beside those of untrained projections and of chance."""
    projections = Projections.read(checkpoint / PROJECTIONS_FILE)
    items = [*read_stamps(stamps), *(read_emoji(openmoji) if openmoji else ())]
    towers = Towers()
    corpus = encode_corpus([item for item in items if item.split == "test"], towers, bars, views=False)
    captions = [plain_caption(item.captions[0]) for item in corpus.items if is_object(item)]
    return {
        "trained": measure(corpus, projections),
        "untrained": measure(corpus, towers.untrained),
        "chance": {"objects": asdict(chance(captions))} if captions else {},
    }
