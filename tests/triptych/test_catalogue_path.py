import json

import numpy as np
import pytest
import soundfile
from PIL import Image

from tests.triptych.in_process import triptych

ITEMS = {
    "blackbird": "A blackbird sings loudly in a tree",
    "rooster": "A rooster crows at sunrise",
    "tractor": "A red tractor on a farm",
    "violin": "A wooden violin with four strings",
}


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A home with a materialized catalogue of four items, one of whose pictures is damaged, and what ingestion answered."""
    folder = tmp_path_factory.mktemp("shop")
    home = folder / "home"
    lines = ["sku,title,image,audio"]
    for number, (name, title) in enumerate(ITEMS.items()):
        Image.effect_noise((48, 48), 10 + 40 * number).convert("RGB").save(folder / f"{name}.png")
        tone = np.sin(2 * np.pi * 220 * (number + 1) * np.arange(8_000) / 16_000)
        soundfile.write(folder / f"{name}.flac", 0.3 * tone, 16_000)
        lines.append(f"{name},{title},{name}.png,{name}.flac")
    (folder / "tractor.png").write_bytes((folder / "tractor.png").read_bytes()[:100])
    (folder / "catalogue.csv").write_text("\n".join(lines) + "\n")
    assert triptych(home, "up").returncode == 0
    try:
        ingested = triptych(home, "ingest", folder / "catalogue.csv", "--map", "sku=item_id", "--json")
        materialized = triptych(home, "materialize", "--json")
        yield home, folder, ingested, materialized
    finally:
        triptych(home, "down")


def test_a_quarantined_part_is_in_the_exit_code(shop):
    """Ingestion with one damaged picture ends with 3, counts it, and names it on stderr."""
    _, _, ingested, _ = shop
    assert ingested.returncode == 3, ingested.stderr
    report = json.loads(ingested.stdout)
    assert report["quarantined_by_part"] == {"image": 1}
    assert report["modalities"]["image"]["encoded"] == 3
    assert "tractor" in ingested.stderr


def test_everything_that_was_ingested_is_materialized(shop):
    """Each view in the store has as many rows as ingestion wrote."""
    _, _, _, materialized = shop
    assert materialized.returncode == 0, materialized.stderr
    stored = {view: rows["stored"] for view, rows in json.loads(materialized.stdout).items()}
    counts = {
        name: rows
        for view, rows in stored.items()
        for name in ("profile", "text", "image", "audio")
        if view.startswith(f"item_{name}")
    }
    assert counts == {"profile": 4, "text": 4, "image": 3, "audio": 4}


def test_words_find_items_with_their_scores(shop):
    """A text search lists all four items, nearest first, the birds before the rest."""
    home, *_ = shop
    done = triptych(home, "search", "text", "a loud bird", "--json")
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)["results"]
    assert {r["item_id"] for r in results[:2]} == {"blackbird", "rooster"}
    assert {r["item_id"] for r in results} == set(ITEMS)
    scores = [r["score"] for r in results]
    assert scores == sorted(scores, reverse=True)
    assert results[0]["title"] == ITEMS[results[0]["item_id"]]


def test_words_are_compared_with_pictures(shop):
    """Words given to `search image` go through CLIP's text tower; a missing file is refused, not searched for as words."""
    home, *_ = shop
    done = triptych(home, "search", "image", "a violin", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["space_id"].startswith("image_")
    assert len(found["results"]) == 3
    same = triptych(home, "search", "text", "a violin", "--space", "image", "--json")
    assert json.loads(same.stdout) == found
    missing = triptych(home, "search", "image", "no-such-picture.png")
    assert missing.returncode == 1
    assert "no-such-picture.png" in missing.stderr


@pytest.mark.parametrize(("modality", "ending"), [("image", "png"), ("audio", "flac")])
def test_a_stored_picture_or_sound_finds_itself(shop, modality, ending):
    """Searching with an item's own media lists that item first, with a cosine of 1; a damaged one is not in the list."""
    home, folder, *_ = shop
    done = triptych(home, "search", modality, folder / f"violin.{ending}", "--json")
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)["results"]
    assert results[0]["item_id"] == "violin"
    assert results[0]["score"] == pytest.approx(1.0, abs=2e-3)
    assert len(results) == (3 if modality == "image" else 4)
