"""The manifest writer for Tux Paint's stamps, on a small tree laid out like the package."""

import csv
from pathlib import Path

import pytest

from examples.stamps import find_root, make_title, read_stamps, write_manifest


@pytest.fixture
def package(tmp_path: Path) -> Path:
    animals = tmp_path / "usr" / "share" / "tuxpaint" / "stamps" / "animals" / "birds"
    animals.mkdir(parents=True)
    files = {
        "crow.txt": "A crow.\nfr.utf8=Une corneille.\n",
        "crow.png": "",
        "crow.svg": "",
        "crow.ogg": "",
        "crow_desc.ogg": "",
        "owl.txt": "An owl!",
        "owl.svg": "",
        "owl_desc_de.ogg": "",
        "owl_desc_fr.ogg": "",
        "wren.txt": "The wren",
        "wren.png": "",
        "robin.txt": "A robin.",
        "robin.png": "",
        "robin_desc.ogg": "",
        "robin_desc_fr.ogg": "",
        "notes.txt": "no picture of this",
    }
    for name, text in files.items():
        (animals / name).write_text(text, encoding="utf-8")
    return tmp_path


def test_every_text_with_a_picture_is_a_stamp(package: Path):
    """PNG before SVG; a text without a picture is none; the category is the first folder."""
    stamps = {stamp.item_id: stamp for stamp in read_stamps(package, "fr")}
    assert list(stamps) == ["animals.birds.crow", "animals.birds.owl", "animals.birds.robin", "animals.birds.wren"]
    assert stamps["animals.birds.crow"].image.endswith("crow.png")
    assert stamps["animals.birds.owl"].image.endswith("owl.svg")
    assert {stamp.category for stamp in stamps.values()} == {"animals"}
    assert stamps["animals.birds.crow"].description == "A crow."


def test_sounds_are_chosen_in_order(package: Path):
    """Its own noise, else English speech, else the asked language, else none."""
    kinds = {s.item_id.rpartition(".")[2]: (s.audio_kind, s.audio_language) for s in read_stamps(package, "fr")}
    assert kinds == {"crow": ("effect", ""), "owl": ("speech", "fr"), "robin": ("speech", "en"), "wren": ("", "")}
    german = {s.item_id.rpartition(".")[2]: s.audio for s in read_stamps(package, "de")}
    assert german["owl"].endswith("owl_desc_de.ogg")


def test_titles_lose_article_and_full_stop():
    """What remains starts with a capital."""
    assert [make_title(said) for said in ("A crow.", "An owl!", "Some grapes", "ant")] == [
        "Crow",
        "Owl",
        "Grapes",
        "Ant",
    ]


def test_the_manifest_is_what_ingestion_reads(package: Path, tmp_path: Path):
    """The columns that `triptych ingest` knows are there, with absolute paths or nothing."""
    write_manifest(read_stamps(package, "fr"), tmp_path / "m.csv")
    with (tmp_path / "m.csv").open(encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert {"item_id", "title", "description", "category", "image", "audio"} <= set(rows[0])
    assert all(Path(row["image"]).is_absolute() for row in rows)
    assert [row["audio"] for row in rows if row["item_id"].endswith("wren")] == [""]


def test_the_stamps_folder_itself_will_do(package: Path):
    """Both the unpacked package and the folder inside it are understood."""
    assert find_root(package) == find_root(package / "usr" / "share" / "tuxpaint" / "stamps")
