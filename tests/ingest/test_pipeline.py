import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import soundfile
from PIL import Image

from encoders.profiles import load_profile
from encoders.space import MODALITIES
from feature_store.home import Home
from feature_store.tables import Tables
from ingest.errors import ManifestError
from ingest.pipeline import ingest_manifest

COLUMNS = ("item_id", "title", "description", "category", "price", "image", "audio", "available_at")
JAN_1997_US = 852076800_000000


@pytest.fixture(scope="module")
def encoders():
    return load_profile("bundled")


@pytest.fixture
def place(tmp_path):
    return Home(tmp_path / "home")


def picture(path, colour):
    Image.new("RGB", (40, 30), colour).save(path)


def sound(path, hertz):
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * hertz * np.arange(16_000) / 16_000), 16_000)


def manifest(folder, *rows):
    """A CSV of `rows`, dictionaries of the columns that matter, beside two pictures and two sounds."""
    for name, colour in (("red", "red"), ("blue", "blue")):
        picture(folder / f"{name}.png", colour)
    for name, hertz in (("low", 220), ("high", 1760)):
        sound(folder / f"{name}.flac", hertz)
    path = folder / "m.csv"
    with path.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, COLUMNS, restval="")
        writer.writeheader()
        writer.writerows(rows)
    return path


FULL = {
    "item_id": "full",
    "title": "Fire engine",
    "image": "red.png",
    "audio": "low.flac",
    "available_at": "1997-01-01",
}
WORDS = {"item_id": "words", "title": "Whale", "description": "A large sea animal", "available_at": "1997-01-02"}


def stored(home, encoders, modality):
    return Tables(home).read_embeddings("item", encoders.by_modality(modality).space.space_id)


def test_good_rows_reach_every_table(tmp_path, place, encoders):
    """Vectors of each modality and the item rows are there, dated by the catalogue, equal to what the encoder gives."""
    report = ingest_manifest(place, manifest(tmp_path, FULL, WORDS), encoders)
    assert (report.rows, report.items_written, report.quarantined) == (2, 2, 0)
    assert report.modalities["text"]["encoded"] == 2
    assert stored(place, encoders, "image").ids == ["full"]
    assert stored(place, encoders, "audio").ids == ["full"]
    texts = stored(place, encoders, "text")
    assert texts.ids == ["full", "words"]
    assert texts.event_timestamp.tolist() == [JAN_1997_US, JAN_1997_US + 86_400_000_000]
    direct = encoders.text.encode(["Fire engine", "Whale. A large sea animal"])
    np.testing.assert_allclose(texts.vectors, direct, atol=1e-3)
    assert Tables(place).read_items()["title"].to_pylist() == ["Fire engine", "Whale"]


def test_a_second_run_encodes_nothing(tmp_path, place, encoders):
    """An unchanged manifest is recognised: no vector and no row is written again."""
    path = manifest(tmp_path, FULL, WORDS)
    ingest_manifest(place, path, encoders)
    before = sorted(place.tables.rglob("*.parquet"))
    again = ingest_manifest(place, path, encoders)
    assert (again.items_written, again.items_unchanged) == (0, 2)
    assert again.modalities["image"]["unchanged"] == 1
    assert sorted(place.tables.rglob("*.parquet")) == before


def test_bad_parts_are_quarantined_and_the_item_keeps_the_rest(tmp_path, place, encoders):
    """A missing file, a picture that is none, a silent file without samples and a text of 100,000 characters each get a reason."""
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16_000)
    rows = [
        {"item_id": "missing", "title": "one", "image": "nowhere.png"},
        {"item_id": "broken", "title": "two", "image": "broken.png"},
        {"item_id": "silent", "title": "three", "audio": "empty.wav"},
        {"item_id": "long", "title": "four", "description": "word " * 20_000, "image": "red.png"},
    ]
    report = ingest_manifest(place, manifest(tmp_path, *rows), encoders)
    assert report.items_written == 4
    assert report.refused == {"image": 2, "audio": 1, "text": 1}
    lines = {line["record_id"]: line for line in map(json.loads, report.quarantine_file.read_text().splitlines())}
    assert set(lines) == {"missing", "broken", "silent", "long"}
    assert "nowhere.png" in lines["missing"]["value"]
    assert all(len(line["reason"]) > 10 for line in lines.values())
    assert stored(place, encoders, "text").ids == ["broken", "missing", "silent"]
    assert stored(place, encoders, "image").ids == ["long"]


def test_a_damaged_replacement_does_not_lose_what_is_stored(tmp_path, place, encoders):
    """When a stored item's picture is damaged in a later manifest, its vector stays."""
    path = manifest(tmp_path, FULL)
    ingest_manifest(place, path, encoders)
    before = stored(place, encoders, "image").vectors
    (tmp_path / "red.png").write_bytes(b"not a picture")
    report = ingest_manifest(place, path, encoders)
    assert report.refused == {"image": 1}
    np.testing.assert_array_equal(stored(place, encoders, "image").vectors, before)


def test_a_changed_part_is_encoded_again_and_a_removed_one_deleted(tmp_path, place, encoders):
    """A new picture replaces the old vector; a part that the manifest no longer gives is deleted; the others are left alone."""
    ingest_manifest(place, manifest(tmp_path, FULL), encoders)
    before = stored(place, encoders, "image").vectors
    changed = {**FULL, "image": "blue.png", "audio": "", "available_at": "1997-06-01"}
    report = ingest_manifest(place, manifest(tmp_path, changed), encoders)
    assert report.modalities["text"]["unchanged"] == 1
    assert report.modalities["image"]["encoded"] == 1
    assert report.modalities["audio"]["deleted"] == 1
    assert stored(place, encoders, "audio").ids == []
    assert not np.allclose(stored(place, encoders, "image").vectors, before, atol=1e-3)


def test_a_column_that_is_absent_deletes_nothing(tmp_path, place, encoders):
    """A manifest without an image column says nothing about pictures."""
    ingest_manifest(place, manifest(tmp_path, FULL), encoders)
    path = tmp_path / "titles.csv"
    path.write_text("item_id,title,available_at\nfull,Fire truck,1997-07-01\n")
    ingest_manifest(place, path, encoders)
    assert stored(place, encoders, "image").ids == ["full"]
    assert Tables(place).read_items()["title"].to_pylist() == ["Fire truck"]


def test_tags_are_stored_with_the_item_and_a_change_is_a_version(tmp_path, place, encoders):
    """New tags give a new row and encode nothing; bad ones, or a manifest without them, leave the stored; an empty list removes them."""
    path = tmp_path / "m.jsonl"

    def ingest(**row):
        path.write_text(json.dumps({"item_id": "a", "title": "Cléo", "available_at": "1997-01-01", **row}))
        report = ingest_manifest(place, path, encoders)
        return report, Tables(place).read_items()["tags"].to_pylist()

    report, tags = ingest(tags=["director:Agnès Varda", "year:1962"])
    assert (report.items_written, tags) == (1, [["director:Agnès Varda", "year:1962"]])
    report, tags = ingest(tags=["director:Agnès Varda"])
    assert (report.items_written, report.modalities["text"]["unchanged"]) == (1, 1)
    assert tags == [["director:Agnès Varda"]]
    report, tags = ingest(tags=["director"])
    assert (report.items_unchanged, report.refused, tags) == (1, {"tags": 1}, [["director:Agnès Varda"]])
    report, tags = ingest()
    assert (report.items_unchanged, tags) == (1, [["director:Agnès Varda"]])
    assert ingest(tags=[])[1] == [None]


def test_an_unreadable_manifest_stores_nothing(tmp_path, place, encoders):
    """A file that is not what its ending says ends the run before anything is written."""
    path = tmp_path / "m.parquet"
    path.write_text("item_id,title\na,b\n")
    with pytest.raises(ManifestError):
        ingest_manifest(place, path, encoders)
    assert not place.root.exists()


def test_a_note_is_counted_over_files(tmp_path, place, encoders):
    """Animations of several lengths make one warning with their number, not one each."""
    for count in (2, 3, 4):
        frames = [Image.new("RGB", (8, 8), (60 * i, 10 * count, 0)) for i in range(count)]
        frames[0].save(tmp_path / f"{count}.gif", save_all=True, append_images=frames[1:])
    rows = [{"item_id": f"i{count}", "title": "one", "image": f"{count}.gif"} for count in (2, 3, 4)]
    report = ingest_manifest(place, manifest(tmp_path, *rows, FULL), encoders)
    assert report.modalities["image"]["encoded"] == 4
    assert report.warnings == ["3 x the GIF picture has several frames: only the first counts"]


def test_progress_counts_every_part_once(tmp_path, place, encoders):
    """Progress adds up to rows times modalities, whatever is missing, refused or unchanged."""
    done = []
    path = manifest(
        tmp_path, FULL, WORDS, {"item_id": "full", "title": "again"}, {"item_id": "x", "title": "y", "image": "no.png"}
    )
    ingest_manifest(place, path, encoders, progress=done.append)
    assert sum(done) == 4 * len(MODALITIES)


def second_space(encoders):
    """The same text encoder under another template: a space of its own."""
    from encoders import TextEncoder

    return replace(encoders, text=TextEncoder("bundled", slug="other", template="about {text}"))


def test_a_new_space_keeps_the_old_valid_times(tmp_path, place, encoders):
    """Backfilling a second space dates its vectors as the first has them, although the manifest gives no dates any more."""
    ingest_manifest(place, manifest(tmp_path, FULL, WORDS), encoders)
    undated = [{**row, "available_at": ""} for row in (FULL, WORDS)]
    other = second_space(encoders)
    ingest_manifest(place, manifest(tmp_path, *undated), other)
    assert (
        stored(place, other, "text").event_timestamp.tolist()
        == stored(place, encoders, "text").event_timestamp.tolist()
    )


def test_columns_that_are_absent_stay_as_they_are_stored(tmp_path, place, encoders):
    """A manifest of titles changes titles: category, price and description stay, and the text is made with the latter."""
    row = {**WORDS, "category": "animals", "price": "3.5"}
    ingest_manifest(place, manifest(tmp_path, row), encoders)
    path = tmp_path / "titles.csv"
    path.write_text("item_id,title,price,available_at\nwords,Blue whale,cheap,1997-07-01\n")
    ingest_manifest(place, path, encoders)
    (item,) = Tables(place).read_items().to_pylist()
    assert (item["title"], item["category"], item["price"]) == ("Blue whale", "animals", 3.5)
    assert item["description"] == "A large sea animal"
    direct = encoders.text.encode(["Blue whale. A large sea animal"])
    np.testing.assert_allclose(stored(place, encoders, "text").vectors, direct, atol=1e-3)


def test_a_json_row_without_a_key_deletes_nothing(tmp_path, place, encoders):
    """In JSON Lines each row says for itself which parts it describes."""
    ingest_manifest(place, manifest(tmp_path, FULL, {**FULL, "item_id": "other"}), encoders)
    path = tmp_path / "later.jsonl"
    rows = [{"item_id": "full", "title": "A", "image": ""}, {"item_id": "other", "title": "B"}]
    path.write_text("".join(json.dumps({**row, "available_at": "1998-01-01"}) + "\n" for row in rows))
    ingest_manifest(place, path, encoders)
    assert stored(place, encoders, "image").ids == ["other"]


def test_a_corrected_date_is_stored_once(tmp_path, place, encoders):
    """An earlier date for content that is stored adds the older version; running it again adds nothing."""
    ingest_manifest(place, manifest(tmp_path, FULL), encoders)
    path = manifest(tmp_path, {**FULL, "available_at": "1996-01-01"})
    first = ingest_manifest(place, path, encoders)
    again = ingest_manifest(place, path, encoders)
    assert (first.items_written, again.items_written) == (1, 0)
    assert [again.modalities[m]["encoded"] for m in MODALITIES] == [0, 0, 0]
