"""Public data sets as the benchmarks of rankers use them: who met what, what is for training, validation and test, and items' content.

They are read from the folder that `TRIPTYCH_DATA` names, and nothing is copied.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from ranker.collaborative import interactions
from ranker.protocols import held_out

VARIABLE: Final = "TRIPTYCH_DATA"
VALIDATION_SHARE: Final = 0.1
Matrix = scipy.sparse.csr_matrix
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Interactions:
    """Who met what, without order: matrices [U, I] of ones, and content by modality, float32 [I, d] with rows of 0 where there is none.

    `fitted` is what models may learn from while they are compared on `validation`; the final ones learn from `train`, which is both where the
    set has no validation of its own.
    """

    name: str
    fitted: Matrix
    validation: Matrix
    train: Matrix
    test: Matrix
    content: Mapping[str, NDArray[np.float32]]


def data_folder(name: str) -> Path:
    """The folder of a data set. Raises `FileNotFoundError` where there is none."""
    folder = Path(os.environ.get(VARIABLE, "/nonexistent")) / name
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{VARIABLE} is {os.environ.get(VARIABLE)!r}, and names no folder with {name}: set it to the folder that holds the data sets"
        )
    return folder


def movielens_1m() -> Interactions:
    """The split in the files (80/20 by user); a tenth of the training interactions, drawn once, is for validation."""
    folder = data_folder("movielens-1m")
    pairs = {name: _adjacency(folder / f"{name}.txt") for name in ("train", "test")}
    shape = tuple(1 + max(int(found[:, axis].max()) for found in pairs.values()) for axis in (0, 1))
    held = np.random.default_rng(0).random(len(pairs["train"])) < VALIDATION_SHARE
    train, test = (matrix(pairs[name], shape) for name in ("train", "test"))
    fitted, validation = matrix(pairs["train"][~held], shape), matrix(pairs["train"][held], shape)
    return Interactions("movielens-1m", fitted, validation, train, test, _movie_content(folder, shape[1]))


def lastfm_2k() -> Interactions:
    """The split in the file: 0 training, 1 validation, 2 test. Validation is not given to the final models, and not masked."""
    folder = data_folder("lastfm-2k")
    rows = np.loadtxt(folder / "lfm2k.inter", np.int64, skiprows=1)
    shape = (1 + int(rows[:, 0].max()), 1 + int(rows[:, 1].max()))
    train, validation, test = (matrix(rows[rows[:, 3] == label], shape) for label in (0, 1, 2))
    files = {"text": "all-MiniLM-L6-v2", "sound": "vggish", "speech": "whisper"}
    content = {name: np.load(folder / f"{file}.npy").astype(np.float32) for name, file in files.items()}
    return Interactions("lastfm-2k", train, validation, train, test, content)


def cold_items(split: Interactions, seed: int) -> tuple[Matrix, Ints]:
    """(all interactions of both files, held-out items): a fifth of the items, drawn by the seed, is nobody's training."""
    everything = (split.train + split.test).minimum(1.0).tocsr()
    return everything, held_out(everything.shape[1], seed=seed)[0]


def subset(split: Interactions, users: int) -> Interactions:
    """The first users only, for a quick look."""
    parts = ("fitted", "validation", "train", "test")
    return replace(split, **{name: getattr(split, name)[:users] for name in parts})


def matrix(pairs: Ints, shape: tuple[int, ...]) -> Matrix:
    """Ones at (user, item) pairs [n, 2 or more]; pairs that come twice count once."""
    return interactions(pairs[:, 0], pairs[:, 1], (shape[0], shape[1]))


def _adjacency(path: Path) -> Ints:
    """Lines of a user and the user's items, as pairs."""
    lines = [np.fromstring(line, np.int64, sep=" ") for line in path.read_text().splitlines()]
    return np.concatenate([np.stack([np.full(len(line) - 1, line[0]), line[1:]], 1) for line in lines])


# ---- what is known of films ------------------------------------------------------------------------------------------


def _movie_content(folder: Path, items: int) -> dict[str, NDArray[np.float32]]:
    """Vectors of text and poster, and tags (genre, people, years) by rarity, in the order of the interactions' items."""
    films = [json.loads(line) for line in (folder / "items.jsonl").read_text().splitlines()]
    row_of = {film["item_id"]: row for row, film in enumerate(films)}
    rows = np.full(items, -1)
    for original, item in np.loadtxt(folder / "item_map.txt", np.int64):
        rows[item] = row_of.get(int(original), -1)
    files = {"text": "text_minilm_l6", "image": "image_efficientnet_lite0"}
    content = {name: _rows(np.load(folder / f"{file}.npy"), rows) for name, file in files.items()}
    return content | {"tags": tag_matrix([tags_of_film(films[row]) if row >= 0 else [] for row in rows])}


def _rows(vectors: NDArray[Any], rows: Ints) -> NDArray[np.float32]:
    return np.where(rows[:, None] >= 0, vectors[rows], 0).astype(np.float32)


def tags_of_film(film: Mapping[str, Any]) -> list[str]:
    """What a film's record says of it: genres, people, country, language, and years near its own."""
    kinds = ("genre", "director", "actors", "writer", "country", "language", "rated")
    said = [
        f"{kind}:{part.partition(' (')[0]}" for kind in kinds for part in str(film.get(kind) or "").split(", ") if part
    ]
    found = re.findall(r"\d{4}", f"{film.get('year') or ''} {film.get('title') or ''}")
    years = [f"year:{int(found[0]) + off}" for off in range(-2, 3)] if found else []
    return sorted({*said, *years, *(f"decade:{year[:3]}" for year in found[:1])})


def tag_matrix(tags: Sequence[Sequence[str]]) -> NDArray[np.float32]:
    """Tags [I, T] weighted by log inverse frequency; a tag that only one item has says nothing of others and is left out."""
    counts = Counter(tag for one in tags for tag in one)
    column = {tag: at for at, tag in enumerate(sorted(tag for tag, count in counts.items() if count > 1))}
    found = np.zeros((len(tags), len(column)), np.float32)
    for row, one in enumerate(tags):
        for tag in one:
            if tag in column:
                found[row, column[tag]] = np.log(len(tags) / counts[tag])
    return found
