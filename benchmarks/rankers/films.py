"""Plots and posters of MovieLens-100K's films, encoded by the project's own bundled encoders, and what their records say as tags."""

import json
from collections.abc import Sequence

import numpy as np

from benchmarks.rankers.fusion import Tell
from benchmarks.rankers.sets import data_folder, tags_of_film
from benchmarks.rankers.training_sets import Content
from encoders import load_profile
from encoders.media import decode_image
from ingest.catalogue import item_text


def films(item_names: Sequence[str], tell: Tell) -> tuple[Content, list[list[str]]]:
    """(text and image vectors of the items, rows of 0 where there is none; their tags), in the order of `item_names`."""
    folder = data_folder("movielens-100k")
    lines = (folder / "items.jsonl").read_text().splitlines()
    by_id = {str(film["item_id"]): film for film in map(json.loads, lines)}
    known = [by_id.get(name, {}) for name in item_names]
    profile = load_profile("bundled")
    tell("encoding plots")
    text = profile.text.encode([item_text(film.get("title") or "", film.get("plot") or "") for film in known])
    tell("encoding posters")
    shown = [row for row, film in enumerate(known) if film.get("poster")]
    pictures = profile.image.encode([decode_image(folder / "posters" / f"{known[row]['poster']}.jpg") for row in shown])
    image = np.zeros((len(known), pictures.shape[1]), np.float32)
    image[shown] = pictures
    return {"text": np.asarray(text, np.float32), "image": image}, [tags_of_film(film) for film in known]
