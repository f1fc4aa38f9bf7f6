"""Small models and catalogues for tests of ingestion into several spaces."""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from encoders import ImageEncoder, TextEncoder
from feature_store.home import Home
from feature_store.tables import Tables
from tests.serving.live import tiny_bert, tiny_clip

COLUMNS = ("item_id", "title", "description", "price", "image", "available_at")
DAY_US = 86_400_000_000


@dataclass(frozen=True)
class Models:
    """Folders of checkpoints, and two versions of a text and of an image encoder made from them."""

    bert: Path
    clip: Path

    def text(self, **options) -> TextEncoder:
        """The text encoder; `pooling="cls"` makes another space of it."""
        return TextEncoder(self.bert, device="cpu", dtype="float32", **options)

    def image(self, slug: str = "old") -> ImageEncoder:
        """The image encoder, under a name of one's own, which makes another space of it."""
        return ImageEncoder(self.clip, slug=slug, device="cpu", dtype="float32")


def make_models(folder: Path) -> Models:
    """Save the checkpoints."""
    return Models(tiny_bert(folder / "tiny-bert"), tiny_clip(folder / "tiny-clip"))


def picture(path: Path, seed: int) -> str:
    """A picture of noise; its name."""
    pixels = np.random.default_rng(seed).integers(0, 255, (24, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path.name


def manifest(path: Path, *rows: dict[str, str], columns: tuple[str, ...] = COLUMNS) -> Path:
    """A CSV of rows, which need not have all columns."""
    with path.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
    return path


def rows_of(home: Home, space_id: str, entity: str = "item") -> set[tuple[str, int, str | None, bool]]:
    """What an embedding table holds: (id, valid time, content hash, deleted) of every row."""
    table = Tables(home).embedding_rows(entity, space_id)
    times = table["event_timestamp"].cast("int64").to_pylist()
    columns = (
        table[f"{entity}_id"].to_pylist(),
        times,
        table["content_sha256"].to_pylist(),
        table["deleted"].to_pylist(),
    )
    return set(zip(*columns, strict=True))
