"""`triptych spaces`: what each command answers, its exit codes, and what it leaves alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from encoders import TextEncoder
from encoders.space import EmbeddingSpace
from feature_store.history import interest_space
from feature_store.home import Home
from feature_store.schemas import timestamps
from feature_store.spaces import embeddings_folder, find_entry, read_entries, register_spaces, retire_spaces
from feature_store.tables import Tables
from ranker import checkpoint
from ranker.errors import CheckpointError, TrainingSetError
from tests.ranker.factories import tiny_checkpoint
from tests.serving.live import tiny_bert
from triptych.verbs import model, spaces, train, users

OLD = EmbeddingSpace.from_recipe("text", "old", 4, {"version": 1})
IMAGE = EmbeddingSpace.from_recipe("image", "old", 4, {"version": 1})
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return tiny_bert(tmp_path_factory.mktemp("models") / "tiny-bert")


def run(app, *arguments, code=0):
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "250"})
    assert done.exit_code == code, (done.output, done.exception)
    return done


def asked(*arguments, code=0):
    return json.loads(run(spaces.app, *arguments, "--json", code=code).stdout)


def write(home, space, ids, entity="item"):
    vectors = np.eye(space.dim, dtype=np.float32)[np.arange(len(ids)) % space.dim]
    shas, times = [f"sha of {i}" for i in ids], np.zeros(len(ids), np.int64)
    Tables(home).write_embeddings(entity, space, ids, vectors, content_sha256=shas, event_timestamp=times)


def pin(home, model_id, **space_ids):
    """The manifest of a checkpoint that reads these spaces."""
    (home.models / model_id).mkdir(parents=True)
    manifest = {"model_id": model_id, "space_ids": space_ids}
    (home.models / model_id / "manifest.json").write_text(json.dumps(manifest))


def test_adding_records_the_encoder_and_its_absolute_folder(home, bert, monkeypatch):
    """Relative folders are found again from anywhere; adding it a second time changes not a byte."""
    monkeypatch.chdir(bert.parent)
    done = asked("add", "text", "tiny-bert", "-o", "pooling=cls")
    entry = find_entry(home, done["space_id"])
    assert (entry.state, dict(entry.encoder)) == ("added", {"source": str(bert), "pooling": "cls"})
    assert entry.space == TextEncoder(bert, pooling="cls").space
    assert embeddings_folder(home, "item", entry.space.space_id).exists()
    before = home.spaces.read_bytes()
    assert asked("add", "text", "tiny-bert", "-o", "pooling=cls") == {**done, "added": False, "before": "added"}
    assert home.spaces.read_bytes() == before


def test_an_encoder_is_taken_from_a_profile_file(home, bert, tmp_path):
    """--profile takes the modality's entry of a YAML file; the file itself is not needed again."""
    profile = tmp_path / "next.yaml"
    profile.write_text(f"text: {{source: {bert}, slug: next, template: 'the {{text}}'}}\n")
    done = asked("add", "text", "--profile", profile)
    assert done["encoder"] == {"source": str(bert), "slug": "next", "template": "the {text}"}
    assert "has no image" in run(spaces.app, "add", "image", "--profile", profile, code=2).stderr


def test_a_space_of_the_profile_need_not_be_added(home, bert, tmp_path, monkeypatch):
    """What ingestion writes anyway stays as it is; an active space that the profile lacks is added."""
    profile = tmp_path / "mine.yaml"
    profile.write_text(f"text: {bert}\n")
    space = TextEncoder(bert).space
    register_spaces(home, [space])
    monkeypatch.setenv("TRIPTYCH_ENCODERS", str(profile))
    assert asked("add", "text", bert)["added"] is False
    assert find_entry(home, space.space_id).state == "active"
    profile.write_text(f"text: {{source: {bert}, pooling: cls}}\n")
    assert asked("add", "text", bert)["added"] is True
    assert find_entry(home, space.space_id).state == "added"


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (["add", "text"], 2, "give a SOURCE or --profile"),
        (["add", "smell", "bundled"], 2, "modality 'smell'"),
        (["add", "text", "bundled", "-o", "colour=red"], 2, "unknown options"),
        (["add", "text", "bundled", "--profile", "zh"], 2, "one of them"),
        (["backfill", "text_nobody_00000000"], 1, "no space 'text_nobody_00000000'"),
        (["check", "text_nobody_00000000"], 1, "no space"),
        (["retire", "text_nobody_00000000"], 1, "no space"),
        (["import", "Bad Name", "v.parquet", "--modality", "text"], 2, "try bad_name"),
        (["import", "name", "v.parquet", "--modality", "text", "--entity", "shop"], 2, "--entity 'shop'"),
        (["import", "name", "nowhere.parquet", "--modality", "text"], 1, "nowhere.parquet: no such file"),
    ],
)
def test_what_makes_no_sense_is_told(home, arguments, code, complaint):
    """Wrong usage is 2, what fails is 1, each with the value; nothing is registered."""
    environment = {**os.environ, "NO_COLOR": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "triptych", "spaces", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == code, done.stderr
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr
    assert read_entries(home, retired=True) == []


def test_the_list_shows_state_coverage_pins_and_encoders(home, bert):
    """Coverage is the share of what any space of the modality has; a retired space does not count into the whole."""
    register_spaces(home, [OLD, IMAGE])
    write(home, OLD, ["a", "b", "c", "d"])
    pin(home, "first", text=OLD.space_id)
    new = asked("add", "text", bert)["space_id"]
    write(home, find_entry(home, new).space, ["a"])
    rows = {row["space_id"]: row for row in asked("list")}
    told = [
        (r["state"], r["vectors"], r["coverage"], r["pinned_by"], r["encoder"].get("source")) for r in rows.values()
    ]
    assert told == [
        ("active", 4, 1.0, ["first"], None),
        ("active", 0, None, [], None),
        ("added", 1, 0.25, [], str(bert)),
    ]
    assert "25.0%" in run(spaces.app, "list").stdout


def test_ids_are_whole_on_a_narrow_terminal(home):
    """They are what the other commands need; what is left out is said."""
    register_spaces(home, [OLD, IMAGE])
    told = CliRunner().invoke(spaces.app, ["list"], env={"COLUMNS": "80"}).stdout
    assert all(space.space_id in told for space in (OLD, IMAGE))
    assert max(map(len, told.splitlines())) <= 80
    assert "--json" in told


def test_a_backfill_says_what_could_not_be_made(home, bert, tmp_path):
    """Exit code 3 with the reasons; without them 0. A space without an encoder of its own is refused."""
    register_spaces(home, [OLD])
    new = asked("add", "text", bert)["space_id"]
    at = timestamps(np.zeros(2, np.int64))
    Tables(home).write_items(pa.table({"item_id": ["a", "b"], "title": ["red", "blue"], "event_timestamp": at}))
    assert asked("backfill", new)["encoded"] == 2
    write(home, OLD, ["a", "z"])
    report = asked("backfill", new, code=3)
    assert report["refused"] == {"content_changed": 1, "content_gone": 1}
    shown = run(spaces.app, "backfill", new, code=3)
    assert "ingest its manifest again" in shown.stderr
    imported = EmbeddingSpace.from_recipe("text", "file", 4, {"imported": "x"}, kind="imported")
    register_spaces(home, [imported, interest_space(OLD)])
    for space_id, complaint in (
        (imported.space_id, "was imported"),
        (interest_space(OLD).space_id, "follows from others"),
    ):
        assert complaint in run(spaces.app, "backfill", space_id, code=1).stderr


def test_imported_vectors_are_reported(home, tmp_path):
    """One JSON document; unknown ids give exit code 3 and their reason on stderr."""
    register_spaces(home, [OLD])
    write(home, OLD, ["a", "b"])
    pq.write_table(pa.table({"sku": ["a", "nobody"], "v": [[1.0, 0.0], [0.0, 1.0]]}), tmp_path / "v.parquet")
    options = ("--modality", "text", "--id-column", "sku", "--vector-column", "v")
    done = run(spaces.app, "import", "elsewhere", tmp_path / "v.parquet", *options, "--json", code=3)
    report = json.loads(done.stdout)
    assert (report["stored"], report["refused"]) == (1, {"unknown_id": 1})
    assert "no item 'nobody' is stored" in done.stderr
    assert report["space"]["kind"] == "imported"


def test_a_check_prints_its_verdict_and_thresholds(home):
    """Not ready is exit code 3 with the reasons on stderr; the line names every threshold."""
    register_spaces(home, [OLD])
    newer = EmbeddingSpace.from_recipe("text", "newer", 4, {"version": 2})
    register_spaces(home, [newer])
    write(home, OLD, ["a", "b"])
    write(home, newer, ["a"])
    done = run(spaces.app, "check", newer.space_id, code=3)
    assert "not ready: coverage 0.5000 is below 0.999" in done.stderr
    assert "NOT READY (coverage and label coverage >= 0.999" in done.stdout
    assert asked("check", newer.space_id, code=3)["against"] == OLD.space_id
    write(home, newer, ["a", "b"])
    done = run(spaces.app, "check", newer.space_id)
    assert "READY" in done.stdout
    assert "Not in Milvus yet" in done.stdout


def test_retiring_takes_interests_along_and_adding_brings_all_back(home, bert):
    """While a model pins the space it is refused; then it and the interests in it go, tables stay unless they are to be deleted."""
    added = asked("add", "text", bert)["space_id"]
    entry = find_entry(home, added)
    interest = interest_space(entry.space)
    register_spaces(home, [interest], "user")
    write(home, entry.space, ["a"])
    pin(home, "first", text=added)
    assert "pinned by first" in run(spaces.app, "retire", added, code=1).stderr
    assert not find_entry(home, added).retired
    (home.models / "first" / "manifest.json").unlink()
    views = [f"item_{added}", f"user_{interest.space_id}"]
    assert asked("retire", added) == {"space_id": added, "retired": views, "tables_deleted": []}
    assert read_entries(home) == []
    run(users.app, "build")  # makes no new interests in it
    assert read_entries(home) == []
    assert asked("add", "text", bert)["added"] is True
    assert {e.view for e in read_entries(home)} == set(views)
    assert Tables(home).read_embeddings("item", added).ids == ["a"]
    gone = asked("retire", added, "--delete-table")["tables_deleted"]
    assert str(embeddings_folder(home, "item", added)) in gone
    assert not embeddings_folder(home, "item", added).exists()
    assert asked("retire", added) == {"space_id": added, "retired": [], "tables_deleted": []}


def test_training_reads_what_is_in_service(home):
    """Of two text spaces: what the stable model reads; else the only active one; what is asked for always; never a retired one."""
    newer, other = (EmbeddingSpace.from_recipe("text", name, 4, {"version": name}) for name in ("newer", "other"))
    register_spaces(home, [OLD, IMAGE, newer])

    def chosen(*wanted, upgrades=()):
        return {space.space_id for space in train.choose_spaces(home, wanted, upgrades)}

    with pytest.raises(TrainingSetError, match="several text spaces"):
        chosen()
    assert chosen(upgrades=[newer.space_id]) == {newer.space_id, IMAGE.space_id}
    assert chosen(newer.space_id) == {newer.space_id}
    write(home, OLD, ["a"])
    assert chosen() == {OLD.space_id, IMAGE.space_id}
    write(home, newer, ["a"])
    with pytest.raises(TrainingSetError, match="several text spaces"):
        chosen()
    tiny_checkpoint(home.models, "tiny", spaces={"text": newer, "image": IMAGE})
    checkpoint.promote(home, "tiny")
    assert chosen() == {newer.space_id, IMAGE.space_id}
    retire_spaces(home, [OLD.space_id])
    with pytest.raises(TrainingSetError, match="is retired"):
        chosen(OLD.space_id)
    register_spaces(home, [other])
    assert chosen() == {newer.space_id, IMAGE.space_id}


def test_a_space_that_was_only_added_takes_nothing_over(home, bert):
    """Filled and all, it is read only where it is named: a nightly training goes on as it was."""
    register_spaces(home, [OLD])
    write(home, OLD, ["a"])
    new = asked("add", "text", bert)["space_id"]
    write(home, find_entry(home, new).space, ["a"])
    assert [s.space_id for s in train.choose_spaces(home, [])] == [OLD.space_id]
    assert [s.space_id for s in train.choose_spaces(home, [], [new])] == [new]


def test_models_are_removed_but_never_the_stable_one(home):
    """The stable one is refused; the one before it goes and takes the way back with it; what is not there is named."""
    for name in ("one", "two"):
        tiny_checkpoint(home.models, name)
        checkpoint.promote(home, name)
    assert "two is the stable model" in run(model.app, "remove", "two", code=1).stderr
    run(model.app, "remove", "one")
    assert [row["model_id"] for row in model.describe(home)] == ["two"]
    assert checkpoint.stable(home) == "two"
    with pytest.raises(CheckpointError, match="nothing to undo"):
        checkpoint.undo(home)
    register_spaces(home, [EmbeddingSpace.fused("one", 4, {"model_sha256": "a"})])
    register_spaces(home, [OLD])
    assert "there was a model 'one'" in run(train.app, "--model-id", "one", code=1).stderr
    assert "no model 'one'" in run(model.app, "remove", "one", code=1).stderr
    assert "no model" in run(model.app, "remove", "nobody", code=1).stderr


def test_every_command_has_help_worth_reading():
    """Each says what it does in more than a line, and names its options."""
    for name in ("list", "add", "import", "backfill", "check", "retire"):
        shown = run(spaces.app, name, "--help").stdout
        assert len(shown) > 800, name
        assert "--json" in shown


def test_an_empty_root_lists_the_defaults(tmp_path, monkeypatch):
    """Listing makes nothing."""
    monkeypatch.setenv("TRIPTYCH_HOME", str(tmp_path / "new"))
    assert {row["modality"] for row in asked("list")} == {"text", "image", "audio"}
    assert not Home(tmp_path / "new").root.exists()
