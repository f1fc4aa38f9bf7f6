"""The verbs of the ranker: train, evaluate, model."""

import json
import shutil

import pytest
from typer.testing import CliRunner

from feature_store import feast_cli
from feature_store.spaces import read_entries, register_spaces
from feature_store.tables import Tables
from ranker import checkpoint
from ranker.scorer import Ranker
from tests.ranker.factories import START_US, example_spaces, planted, small_shop, tiny_checkpoint
from triptych.verbs import evaluate, model, train

run = CliRunner().invoke


@pytest.mark.filterwarnings("ignore::Warning")
def test_too_little_to_learn_from_is_told_in_numbers(live_home):
    """Three interactions: exit code 1, how many labels there are and what brings more, and no model folder."""
    small_shop(live_home)
    feast_cli.apply(live_home)
    done = run(train.app, ["--model-id", "few"])
    assert done.exit_code == 1
    assert "too few" in done.stderr
    assert "3 labels from 3 interactions of 2 users" in done.stderr
    assert "triptych users build --interactions" in done.stderr
    assert list(live_home.models.glob("*")) == []


@pytest.mark.filterwarnings("ignore::Warning")
def test_without_interactions_the_remedy_is_named(live_home):
    """Items alone: exit code 1, zero interactions, what loads them, and no model folder."""
    register_spaces(live_home, list(example_spaces().values()))
    feast_cli.apply(live_home)
    done = run(train.app, ["--model-id", "none"])
    assert done.exit_code == 1
    assert "0 labels from 0 interactions" in done.stderr
    assert "triptych users build --interactions" in done.stderr
    assert list(live_home.models.glob("*")) == []


@pytest.mark.filterwarnings("ignore::Warning")
def test_labels_before_their_items_point_to_the_dates(live_home):
    """Interactions older than the items they are about: how many, and how to date the items."""
    small_shop(live_home, events_from_us=START_US // 2)
    feast_cli.apply(live_home)
    done = run(train.app, ["--model-id", "early"])
    assert done.exit_code == 1
    assert "3 came before their item was known" in done.stderr
    assert "--available-at" in done.stderr
    assert list(live_home.models.glob("*")) == []


def test_a_model_whose_export_failed_is_not_lost(home, tmp_path, monkeypatch):
    """The trained model stays, the message names the commands that finish the work, and they do."""
    shop = planted(tmp_path / "ts", n_items=60, n_users=40)
    register_spaces(home, list(shop.spaces.values()))
    good = home.spaces.read_text()

    def joined(*_):
        home.spaces.write_text("spaces: 7\n")  # somebody's editor, while the model trains
        return shop.folder

    monkeypatch.setattr(train, "_training_set", joined)
    done = run(train.app, ["--model-id", "kept"])
    assert done.exit_code == 1
    assert "triptych model export kept" in done.stderr
    assert "triptych model promote kept" in done.stderr
    assert checkpoint.stable(home) is None
    home.spaces.write_text(good)
    assert run(model.app, ["export", "kept"]).exit_code == 0
    assert run(model.app, ["promote", "kept"]).exit_code == 0
    assert ("item", checkpoint.fused_space(checkpoint.read_manifest(home.models / "kept")).space_id) in {
        entry.key for entry in read_entries(home)
    }


def test_export_takes_in_what_came_later(home):
    """`triptych model export` writes vectors of items ingested after training too; by default of the stable model."""
    register_spaces(home, list(example_spaces().values()))
    fused = Ranker.load(tiny_checkpoint(home.models)).fused_space.space_id
    assert run(model.app, ["export", "tiny"]).exit_code == 0
    assert Tables(home).read_embeddings("item", fused).ids == []
    small_shop(home)
    checkpoint.promote(home, "tiny")
    assert run(model.app, ["export"]).exit_code == 0
    assert len(Tables(home).read_embeddings("item", fused).ids) == 12
    assert Tables(home).read_embeddings("user", fused).ids == ["anna", "bert"]


@pytest.mark.parametrize("arguments", [["export"], ["export", "missing"], ["export", "../models"]])
def test_nothing_to_export_is_told(home, arguments):
    """No stable model, an unknown one, or no name of a model: exit code 1 and a message, no traceback."""
    done = run(model.app, arguments)
    assert done.exit_code == 1
    assert done.stderr.startswith("error:")


def test_without_its_training_set_a_model_is_not_measured(home, tmp_path):
    """The training set's folder is gone: exit code 1, the folder, and what to do."""
    tiny_checkpoint(home.models)
    done = run(evaluate.app, ["tiny"])
    assert done.exit_code == 1
    assert f"{home.training / 'tiny'} is gone" in done.stderr
    assert "triptych train" in done.stderr


def test_the_list_is_never_read_as_markup(home):
    """A damaged checkpoint whose folder has rich's brackets in its name is listed with that name."""
    (home.models / "odd[b]").mkdir(parents=True)
    (home.models / "odd[b]" / "manifest.json").write_text("{")
    done = run(model.app, ["list"], env={"COLUMNS": "200"})
    assert done.exit_code == 0
    assert "odd[b]" in done.stdout


def test_the_model_verb_lists_promotes_and_undoes(home):
    """`triptych model` prints the list as JSON, switches the stable model and goes back; errors leave with code 1."""
    for name in ("one", "two"):
        tiny_checkpoint(home.models, name)
    refused = run(model.app, ["promote", "one"])
    assert refused.exit_code == 1
    assert "this home has no vectors of such a space" in refused.stderr
    register_spaces(home, list(example_spaces().values()))
    assert run(model.app, ["promote", "one"]).exit_code == 0
    assert run(model.app, ["promote", "two"]).exit_code == 0
    listed = {row["model_id"]: row["stable"] for row in json.loads(run(model.app, ["list", "--json"]).stdout)}
    assert listed == {"one": False, "two": True}
    assert run(model.app, ["undo"]).exit_code == 0
    assert checkpoint.stable(home) == "one"
    assert run(model.app, ["promote", "missing"]).exit_code == 1
    assert "one" in run(model.app, ["list"]).stdout


def test_a_baseline_trains_is_measured_and_reported(home, tmp_path, monkeypatch):
    """`train --model ease` makes a checkpoint like any other, and `evaluate --report` a page of it."""
    shop = planted(tmp_path / "ts", n_items=60, n_users=60)
    register_spaces(home, list(shop.spaces.values()))

    def joined(_home, model_id, *_):
        shutil.copytree(shop.folder, home.training / model_id)
        return home.training / model_id

    monkeypatch.setattr(train, "_training_set", joined)
    done = run(train.app, ["--model-id", "plain", "--model", "ease", "--json"])
    assert done.exit_code == 0, done.stderr
    assert checkpoint.read_manifest(home.models / "plain")["prior"]["settings"]["l2"] > 0
    done = run(evaluate.app, ["plain", "--report", str(tmp_path / "out")])
    assert done.exit_code == 0, done.stderr
    assert (tmp_path / "out" / "report.html").is_file()
    refused = run(train.app, ["--model-id", "other", "--model", "mlp"])
    assert refused.exit_code == 2
    assert "choose one of fusion, ease, svd" in refused.stderr


@pytest.mark.filterwarnings("ignore::Warning")
def test_the_artefact_of_a_model_is_written(home, tmp_path):
    """One file, of the model that is named; another name is refused with what lists those that exist."""
    tiny_checkpoint(home.models)
    done = run(model.app, ["artefact", str(tmp_path / "out" / "tiny.pt2"), "tiny"])
    assert done.exit_code == 0, done.stderr
    assert (tmp_path / "out" / "tiny.pt2").stat().st_size > 1000
    refused = run(model.app, ["artefact", str(tmp_path / "no.pt2"), "missing"])
    assert refused.exit_code == 1
    assert "triptych model list" in refused.stderr
