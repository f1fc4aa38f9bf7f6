"""Several spaces of one modality: new items go to all, and what is stored already is backfilled with its old times."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from encoders.errors import WeightsError
from encoders.profiles import Encoders
from encoders.recorded import in_use
from feature_store.errors import SpaceRegistryError
from feature_store.home import Home
from feature_store.space_check import covered
from feature_store.spaces import ADDED, SpaceEntry, read_entries, register_entries, retire_spaces
from feature_store.tables import Tables
from ingest.backfill import backfill
from ingest.chunks import MAX_DESCRIPTION_CHARS
from ingest.pipeline import ingest_manifest
from ingest.users import encode_profiles
from tests.ingest.small import make_models, manifest, picture, rows_of

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def place(tmp_path):
    home = Home(tmp_path / "home").create()
    home.spaces.write_text("spaces: []\n")
    return home


def added(home, encoder, **options):
    """Add the encoder's space to the home, as `triptych spaces add` does."""
    register_entries(home, [SpaceEntry(encoder.space, "item", ADDED, options)])
    return encoder


@pytest.fixture
def shop(tmp_path, place, models):
    """A catalogue with a history in the old text and image spaces: words and pictures changed, and one picture was taken away."""
    old = Encoders(text=models.text(), image=models.image())
    one, two = picture(tmp_path / "one.png", 1), picture(tmp_path / "two.png", 2)
    first = manifest(
        tmp_path / "first.csv",
        {"item_id": "a", "title": "a red bird", "image": one, "available_at": "2020-01-01"},
        {"item_id": "b", "title": "a blue stone", "image": two, "available_at": "2020-01-01"},
        {"item_id": "c", "title": "very old", "available_at": "2020-01-01"},
    )
    second = manifest(
        tmp_path / "second.csv",
        {"item_id": "a", "title": "the red bird sings", "image": one, "price": "2", "available_at": "2020-02-01"},
        {"item_id": "b", "title": "a blue stone", "image": "", "price": "3", "available_at": "2020-03-01"},
    )
    ingest_manifest(place, first, old)
    ingest_manifest(place, second, old)
    return place, old


def test_a_backfill_gives_every_row_of_the_old_space_its_time(shop, models):
    """Ids, times, contents and deletions are those of the old space, older versions too; nothing is refused."""
    home, old = shop
    for encoder, before in ((models.text(pooling="cls"), old.text), (models.image("new"), old.image)):
        new = added(home, encoder)
        report = backfill(home, new)
        rows = rows_of(home, before.space.space_id)
        assert rows_of(home, new.space.space_id) == rows
        assert (report.encoded + report.deleted, report.done, report.quarantined) == (len(rows), 0, 0)
    texts = Tables(home).read_embeddings("item", models.text(pooling="cls").space.space_id)
    direct = models.text(pooling="cls").encode(["the red bird sings", "a blue stone", "very old"])
    np.testing.assert_allclose(texts.vectors, direct, atol=1e-4)


def test_old_labels_join_in_the_new_space_as_in_the_old(shop, models):
    """Label by label, at every instant around every change, the new space has a vector exactly where the old one has."""
    home, old = shop
    for encoder, before in ((models.text(pooling="cls"), old.text), (models.image("new"), old.image)):
        new = added(home, encoder)
        backfill(home, new)
        tables = Tables(home)
        instants = sorted({t + d for _, t, *_ in rows_of(home, before.space.space_id) for d in (-1, 0, 1)})
        labels = [(item, t) for item in ("a", "b", "c", "nobody") for t in instants]
        items, times = [item for item, _ in labels], np.array([t for _, t in labels])
        joined = [covered(tables.embedding_rows("item", s.space.space_id), items, times) for s in (before, new)]
        assert joined[0].any()
        assert not joined[0].all()
        np.testing.assert_array_equal(joined[0], joined[1])


def test_a_second_backfill_does_nothing(shop, models):
    """Rows are recognised by content and time, whatever wrote them."""
    home, _ = shop
    new = added(home, models.text(pooling="cls"))
    first = backfill(home, new)
    progress = []
    again = backfill(home, new, progress=lambda rows, total: progress.append((rows, total)))
    assert (again.encoded, again.deleted, again.done) == (0, 0, first.encoded + first.deleted)
    assert sum(rows for rows, _ in progress) == progress[0][1]


def test_what_is_gone_or_changed_is_quarantined_with_the_reason(tmp_path, shop, models):
    """A picture that is gone, one that is another now, and a text longer than the tables keep; the rest is encoded."""
    home, old = shop
    long = "word " * MAX_DESCRIPTION_CHARS
    rows = [
        {"item_id": "d", "title": "d", "image": picture(tmp_path / "d.png", 5), "available_at": "2020-01-01"},
        {"item_id": "long", "title": "long", "description": long[:40_000], "available_at": "2020-01-01"},
    ]
    ingest_manifest(home, manifest(tmp_path / "more.csv", *rows), old)
    (tmp_path / "one.png").unlink()
    picture(tmp_path / "d.png", 6)
    report = backfill(home, added(home, models.image("new")))
    refused = [json.loads(line) for line in report.quarantine_file.read_text().splitlines()]
    assert {(row["record_id"], row["code"]) for row in refused} == {("a", "not_found"), ("d", "content_changed")}
    assert report.refused_current == 2
    assert "since 2020-01-01" in refused[0]["reason"]
    assert {row[0] for row in rows_of(home, models.image("new").space.space_id)} == {"b"}
    words = backfill(home, added(home, models.text(pooling="cls")))
    assert words.refused == {"content_cut": 1}


def test_what_the_old_space_never_had_comes_from_the_catalogue(tmp_path, place, models):
    """Without another space, the catalogue's own versions say what there was and when; unchanged text is no new version."""
    image = picture(tmp_path / "one.png", 1)
    words = {"item_id": "a", "title": "a red bird", "image": image}
    for price, day in (("1", "2020-01-01"), ("2", "2020-02-01")):
        row = {**words, "price": price, "available_at": day}
        ingest_manifest(place, manifest(tmp_path / "m.csv", row), Encoders(image=models.image()))
    new = added(place, models.text())
    report = backfill(place, new)
    assert report.encoded == 1
    [row] = rows_of(place, new.space.space_id)
    assert (row[0], row[1]) == ("a", 1_577_836_800_000_000)


def test_new_items_are_written_to_every_space_that_is_in_use(tmp_path, shop, models):
    """An added space gets new items and changes at the old one's times, dated or not; retired ones get nothing more."""
    home, old = shop
    new = added(home, models.text(pooling="cls"), source=str(models.bert), device="cpu", dtype="float32", pooling="cls")
    rows = [{"item_id": "e", "title": "loud"}, {"item_id": "c", "title": "very very old"}]
    columns = ("item_id", "title", "description")
    report = ingest_manifest(home, manifest(tmp_path / "new.csv", *rows, columns=columns), old)
    spaces = (old.text.space.space_id, new.space.space_id)
    assert [report.counts[space_id]["encoded"] for space_id in spaces] == [2, 2]
    late = [{row for row in rows_of(home, s) if row[1] > 1_600_000_000_000_000} for s in spaces]
    assert late[0] == late[1]
    assert {row[0] for row in late[0]} == {"c", "e"}
    retire_spaces(home, [old.text.space.space_id])
    before = rows_of(home, spaces[0])
    more = manifest(tmp_path / "more.csv", {"item_id": "f", "title": "of stone"}, columns=columns)
    report = ingest_manifest(home, more, old)
    assert {space.space_id for space in report.spaces} == {old.image.space.space_id, new.space.space_id}
    assert rows_of(home, spaces[0]) == before
    assert "f" in {row[0] for row in rows_of(home, spaces[1])}


def test_a_backfill_after_new_items_completes_the_space(tmp_path, shop, models):
    """What arrived meanwhile is there already; the old rows are added beside it."""
    home, old = shop
    new = models.text(pooling="cls")
    added(home, new, source=str(models.bert), device="cpu", dtype="float32", pooling="cls")
    arrived = manifest(tmp_path / "new.csv", {"item_id": "e", "title": "loud"})
    ingest_manifest(home, arrived, old)
    report = backfill(home, new)
    assert report.done == 1
    assert rows_of(home, new.space.space_id) == rows_of(home, old.text.space.space_id)


def test_a_price_that_changed_leaves_vectors_where_they_were(tmp_path, place, models):
    """A later date for the same words is no later validity in the new space, since it is none in the old one."""
    old, new = Encoders(text=models.text()), models.text(pooling="cls")
    row = {"item_id": "a", "title": "a red bird"}
    ingest_manifest(place, manifest(tmp_path / "m.csv", {**row, "available_at": "2020-01-01"}), old)
    both = replace(old, more=(new,))
    later = {**row, "price": "2", "available_at": "2020-06-01"}
    ingest_manifest(place, manifest(tmp_path / "m.csv", later), both)
    assert rows_of(place, new.space.space_id) == rows_of(place, old.text.space.space_id)


def test_users_words_are_backfilled_with_their_times(tmp_path, place, models):
    """The users' side of a text space is made too; from then on both spaces are written with the same times."""
    old, new = models.text(), models.text(pooling="cls")
    words = tmp_path / "words.csv"
    words.write_text("user_id,text,updated_at\nu,a red bird,2020-01-01\nv,a blue stone,\n")
    encode_profiles(place, words, [old])
    added(place, new)
    assert backfill(place, new).encoded == 2
    assert {e.key for e in read_entries(place) if e.state == ADDED} == {
        ("item", new.space.space_id),
        ("user", new.space.space_id),
    }
    words.write_text("user_id,text,updated_at\nu,the red bird,\nw,loud,2020-01-05\n")
    report = encode_profiles(place, words, [old, new])
    assert report.texts == {old.space.space_id: 2, new.space.space_id: 2}
    assert rows_of(place, old.space.space_id, "user") == rows_of(place, new.space.space_id, "user")


def test_a_killed_backfill_is_continued(tmp_path, place, models):
    """Killed while it encodes, with whole parts on disk; run again, every row is there once."""
    rows = [
        {"item_id": f"i{n:04}", "title": f"a {word}", "available_at": "2020-01-01"}
        for n, word in enumerate(["red"] * 1500)
    ]
    ingest_manifest(place, manifest(tmp_path / "m.csv", *rows), Encoders(text=models.text()))
    new = models.text(pooling="cls")
    added(place, new)
    code = f"""
import os, signal
from pathlib import Path
from encoders import TextEncoder
from feature_store.home import Home
from feature_store.tables import Tables
from ingest.backfill import backfill
write, calls = Tables.write_embeddings, []
def once(*arguments, **named):
    if calls:
        os.kill(os.getpid(), signal.SIGKILL)  # between two chunks
    calls.append(write(*arguments, **named))
Tables.write_embeddings = once
backfill(Home(Path({str(place.root)!r})), TextEncoder({str(models.bert)!r}, device="cpu", dtype="float32", pooling="cls"))
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    killed = subprocess.run(
        [sys.executable, "-c", code], env=environment, check=False, capture_output=True, timeout=120
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(rows_of(place, new.space.space_id)) == 1024
    report = backfill(place, new)
    assert (report.done, report.encoded) == (1024, 476)
    table = Tables(place).embedding_rows("item", new.space.space_id)
    assert table.num_rows == len(rows)


def test_a_backfill_of_a_space_that_is_not_in_use_is_refused(place, models):
    """Neither an unknown nor a retired space is filled."""
    new = models.text()
    with pytest.raises(SpaceRegistryError, match="registered"):
        backfill(place, new)
    added(place, new)
    retire_spaces(place, [new.space.space_id])
    with pytest.raises(SpaceRegistryError, match="retired"):
        backfill(place, new)


def test_an_encoder_that_changed_on_disk_writes_nothing(tmp_path, shop, models):
    """Ingestion ends before anything is stored where a recorded encoder is another now, and names the remedy."""
    home, old = shop
    new = models.text(pooling="cls")
    added(home, new, source=str(models.bert), device="cpu", dtype="float32", pooling="mean")
    before = sorted(home.tables.rglob("*.parquet"))
    with pytest.raises(WeightsError, match="was recorded for space"):
        ingest_manifest(home, manifest(tmp_path / "x.csv", {"item_id": "x", "title": "x"}), old)
    assert sorted(home.tables.rglob("*.parquet")) == before
    assert in_use(old, read_entries(home), wanted=lambda _: False).all == old.all


def test_a_broken_picture_is_quarantined_once_for_all_spaces(tmp_path, place, models):
    """Both image spaces refuse it; the report names it once."""
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    both = Encoders(image=models.image(), more=(models.image("new"),))
    report = ingest_manifest(place, manifest(tmp_path / "m.csv", {"item_id": "a", "image": "bad.png"}), both)
    assert report.refused == {"image": 1}
    assert [counts["quarantined"] for counts in report.counts.values()] == [1, 1]


def test_progress_counts_every_part_of_every_space(tmp_path, place, models):
    """With two text spaces a row has one part more."""
    done = []
    both = Encoders(text=models.text(), image=models.image(), more=(models.text(pooling="cls"),))
    rows = [
        {"item_id": "a", "title": "red", "image": "nowhere.png"},
        {"item_id": "b", "title": "blue"},
        {"item_id": "a"},
    ]
    ingest_manifest(place, manifest(tmp_path / "m.csv", *rows), both, progress=done.append)
    assert sum(done) == 3 * 3


def test_items_without_a_user_table_are_enough(place, models):
    """An empty home is backfilled with nothing, and says so."""
    report = backfill(place, added(place, models.text()))
    assert (report.records, report.encoded) == (0, 0)
    assert isinstance(Tables(place).embedding_rows("item", report.space_id), pa.Table)
