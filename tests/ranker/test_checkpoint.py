"""Checkpoints are whole, never overwritten, and come back as they were."""

import json
import subprocess
import sys

import numpy as np
import pytest

from encoders.space import SpaceError
from feature_store.history import Events
from feature_store.home import Home
from ranker import checkpoint
from ranker.errors import CheckpointError, NoStableModelError
from ranker.scorer import Context, Ranker, UserState
from tests.ranker.factories import example_spaces, random_items, tiny_checkpoint

NOW = Context(1_700_000_000_000_000)


@pytest.fixture
def models(home):
    return home.models


def scores(ranker):
    tokens = ranker.item_tokens(random_items(example_spaces(), [f"item{i}" for i in range(8)]))
    history = Events(["e"], ["item1"], ["click"], np.asarray([np.nan]), np.asarray([NOW.now_us - 10**9]))
    return ranker.score(UserState(history, tokens.take([1])), tokens, range(8), NOW).scores


def test_a_loaded_checkpoint_scores_identically(models, tmp_path):
    """Saving what was loaded and loading it again changes no bit of a score."""
    first = checkpoint.load(tiny_checkpoint(models))
    about = {k: v for k, v in first.manifest.items() if k not in {"format", "model_id", "config", "dims", "files"}}
    again = checkpoint.save(tmp_path, "copy", first.model, first.vocabulary, about)
    assert (scores(Ranker(first)) == scores(Ranker.load(again))).all()


def test_the_manifest_pins_what_the_model_reads(models):
    """Space ids by modality, feature service, config, seed and digests of the other files are in the manifest."""
    manifest = checkpoint.read_manifest(tiny_checkpoint(models, "pinned", seed=4))
    assert manifest["space_ids"] == {m: s.space_id for m, s in example_spaces().items()}
    assert manifest["feature_service"] == "ranker_pinned"
    assert manifest["seed"] == 4
    assert set(manifest["files"]) == {"model.safetensors", "vocab.json"}
    assert checkpoint.fused_space(manifest).space_id == "fused_pinned"


def test_a_checkpoint_is_never_overwritten(models):
    """A taken name is refused before and after training, and the folder stays as it was; nothing is left beside it."""
    folder = tiny_checkpoint(models, "taken", seed=1)
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match="take another model_id"):
        tiny_checkpoint(models, "taken", seed=2)
    assert (folder / "model.safetensors").read_bytes() == before
    assert sorted(p.name for p in models.iterdir()) == ["taken"]


@pytest.mark.parametrize("model_id", ["Upper", "a/b", "../up", "", "x" * 41, "ends_v2"])
def test_a_bad_name_is_refused(models, model_id):
    """A model_id must be usable as a folder and a Feast name."""
    with pytest.raises(SpaceError, match="model_id"):
        tiny_checkpoint(models, model_id)


@pytest.mark.parametrize("name", ["model.safetensors", "vocab.json"])
@pytest.mark.parametrize("harm", ["flip", "truncate", "remove"])
def test_a_damaged_file_is_refused(models, name, harm):
    """One changed byte, a cut file or a missing one is an error that names the file and what to do."""
    file = tiny_checkpoint(models) / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    if harm == "remove":
        file.unlink()
    else:
        file.write_bytes(data if harm == "flip" else data[:-10])
    with pytest.raises(CheckpointError, match=rf"{name}.*(restore|train again)"):
        checkpoint.load(file.parent)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "damaged"),
        ("{", "damaged"),
        ("[]", "lacks"),
        ('{"format": 1}', "lacks model_id"),
    ],
)
def test_a_damaged_manifest_is_refused(models, content, message):
    """A manifest that is not one is an error of this room, not a KeyError."""
    folder = tiny_checkpoint(models)
    (folder / "manifest.json").write_text(content)
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(folder)


def test_another_format_is_refused(models):
    """A checkpoint of a later version says so."""
    folder = tiny_checkpoint(models)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"format": 99}))
    with pytest.raises(CheckpointError, match="format 99"):
        checkpoint.load(folder)


def test_a_missing_checkpoint_says_how_to_list_models(models):
    """Asking for a model that is not there names the command that lists those that are."""
    with pytest.raises(CheckpointError, match="triptych model list"):
        checkpoint.load(models / "nothing")


def test_promote_and_undo_switch_the_stable_model(home):
    """Promotion returns what was stable; undo goes back, and undo again returns."""
    for name in ("one", "two"):
        tiny_checkpoint(home.models, name)
    assert checkpoint.stable(home) is None
    assert checkpoint.promote(home, "one") is None
    assert checkpoint.promote(home, "two") == "one"
    assert checkpoint.promote(home, "two") == "two"
    assert checkpoint.undo(home) == "one"
    assert checkpoint.stable_folder(home) == home.models / "one"
    assert checkpoint.undo(home) == "two"


def test_what_cannot_be_promoted_leaves_the_stable_model(home):
    """A missing or damaged checkpoint is refused before anything switches."""
    tiny_checkpoint(home.models, "good")
    checkpoint.promote(home, "good")
    broken = tiny_checkpoint(home.models, "broken")
    (broken / "vocab.json").write_text("{}")
    for name in ("broken", "missing"):
        with pytest.raises(CheckpointError):
            checkpoint.promote(home, name)
    assert checkpoint.stable(home) == "good"
    with pytest.raises(CheckpointError, match="nothing to undo"):
        checkpoint.undo(home)


def test_without_a_promotion_the_error_says_how_to_make_one(home):
    """No stable model is a state with a remedy."""
    with pytest.raises(NoStableModelError, match="triptych train"):
        checkpoint.stable_folder(home)


def test_a_damaged_pointer_says_what_to_do(home):
    """A pointer file that is not one is not taken for `no model`."""
    (home.models / "stable.json").write_text("nonsense")
    with pytest.raises(CheckpointError, match="promote a model again"):
        checkpoint.stable(home)


def test_a_damaged_checkpoint_is_listed_with_its_error(home):
    """Listing models shows what is wrong with one and still lists the others."""
    tiny_checkpoint(home.models, "good")
    (tiny_checkpoint(home.models, "worse") / "manifest.json").write_text("{")
    listed = checkpoint.list_models(home)
    assert [row["model_id"] for row in listed] == ["good", "worse"]
    assert "damaged" in listed[1]["error"]


SWITCH = """
import sys
from pathlib import Path
from feature_store.home import Home
from ranker import checkpoint
home = Home(Path(sys.argv[1]))
for _ in range(10):
    checkpoint.promote(home, sys.argv[2])
    checkpoint.promote(home, sys.argv[3])
"""


def test_the_pointer_is_whole_whenever_it_is_read(home):
    """While two processes promote at once, a reader always finds one of the models, with another before it."""
    for name in ("one", "two"):
        tiny_checkpoint(home.models, name)
    checkpoint.promote(home, "one")
    command = [sys.executable, "-c", SWITCH, str(home.root)]
    running = [subprocess.Popen([*command, *names]) for names in (("one", "two"), ("two", "one"))]
    seen = set()
    while any(p.poll() is None for p in running):
        seen.add(checkpoint.stable(Home(home.root)))
    assert [p.returncode for p in running] == [0, 0]
    assert seen <= {"one", "two"}
    assert not list(home.models.glob(".stable.json.*"))
