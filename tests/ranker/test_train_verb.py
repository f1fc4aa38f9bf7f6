"""`triptych train` from a folder, by other protocols, stopped and resumed, and with curves; `triptych evaluate` finds it all again."""

import json
import shutil

import pytest
from typer.testing import CliRunner

from feature_store.spaces import register_spaces
from ranker import checkpoint
from ranker.train import unfinished_file
from tests.ranker.factories import planted
from tests.ranker.test_curves import read
from triptych.verbs import evaluate, train, train_run

run = CliRunner().invoke


@pytest.fixture
def shop(tmp_path):
    return planted(tmp_path / "hand", n_items=60, n_users=60)


def test_a_folder_is_trained_and_found_again(home, shop, tmp_path, monkeypatch):
    """Of spaces that the home does not know: a checkpoint and its measurement, but no vectors, no promotion, and that is said."""
    monkeypatch.chdir(tmp_path)
    done = run(train.app, ["--model-id", "hand", "--data", "hand", "--model", "ease", "--json"])
    assert done.exit_code == 0, done.stderr
    assert "no fused vectors were written and nothing was promoted: this home has no space" in " ".join(
        done.stderr.split()
    )
    assert json.loads(done.stdout)["promoted"] is False
    assert checkpoint.stable(home) is None
    assert not (home.training / "hand").exists()
    manifest = checkpoint.read_manifest(home.models / "hand")
    assert (manifest["data"]["folder"], manifest["description"]) == (str(shop.folder), "baseline ease hand")
    monkeypatch.chdir("/")
    again = run(evaluate.app, ["hand", "--json"])
    assert again.exit_code == 0, again.stderr
    assert json.loads(again.stdout)["scorers"] == json.loads(done.stdout)["scorers"]
    shutil.rmtree(shop.folder)
    gone = run(evaluate.app, ["hand"])
    assert gone.exit_code == 1
    assert f"{shop.folder} is gone" in gone.stderr


def test_a_folder_of_the_homes_own_spaces_is_exported_and_promoted(home, shop):
    """As with a set that was joined."""
    register_spaces(home, list(shop.spaces.values()))
    done = run(train.app, ["--model-id", "hand", "--data", str(shop.folder), "--model", "ease"])
    assert done.exit_code == 0, done.stderr
    assert checkpoint.stable(home) == "hand"
    assert "fused vectors:" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--data", "hand", "--seed", "-1"], 2, "Invalid value for '--seed'"),
        (["--data", "hand", "--seed", str(2**32)], 2, "Invalid value for '--seed'"),
        (["--data", "hand/items.parquet"], 2, "is a file"),
        (["--data", "hand", "--space", "text_x"], 2, "names its spaces itself"),
        (["--data", "nowhere"], 1, "nowhere is gone or incomplete (meta.json is missing)"),
        (["--data", "hand", "--promote"], 1, "cannot be promoted"),
        (["--data", "hand", "--protocol", "random"], 2, "choose one of time, leave-one-out"),
        (["--data", "hand", "--resume"], 1, "leave out --resume"),
    ],
)
def test_what_cannot_be_trained_is_told_before(home, shop, tmp_path, monkeypatch, arguments, code, message):
    """With the remedy, and no checkpoint."""
    monkeypatch.chdir(tmp_path)
    done = run(train.app, ["--model-id", "hand", *arguments])
    assert done.exit_code == code
    assert message in done.stderr
    assert not (home.models / "hand").exists()


def test_a_protocol_is_kept_and_reported(home, shop, tmp_path):
    """Trained by leave-one-out, judged by it, and the page says so."""
    arguments = ["--model-id", "loo", "--data", str(shop.folder), "--model", "ease", "--protocol", "leave-one-out"]
    done = run(train.app, [*arguments, "--seed", "4"])
    assert done.exit_code == 0, done.stderr
    assert "(leave-one-out)" in done.stdout
    made = checkpoint.read_manifest(home.models / "loo")["protocol"]
    assert (made["name"], made["seed"]) == ("leave-one-out", 4)
    done = run(evaluate.app, ["loo", "--report", str(tmp_path / "out"), "--json"])
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["labels"] == 60
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert "the last is the test's" in report["protocol"]
    assert report["labels"] == 60


def test_a_stopped_training_is_resumed_by_the_same_command(home, shop, tmp_path, monkeypatch):
    """The interruption says how, forgetting --resume loses nothing, and the weights are those of a training that never stopped."""
    common = ["--data", str(shop.folder), "--tensorboard", str(tmp_path / "runs")]
    assert run(train.app, ["--model-id", "whole", "--data", str(shop.folder)]).exit_code == 0
    shown = train_run._shown

    def interrupted(*given):
        show = shown(*given)

        def stop(told):
            show(told)
            if told.epoch == 3:
                raise KeyboardInterrupt

        return stop

    with monkeypatch.context() as patched:
        patched.setattr(train_run, "_shown", interrupted)
        stopped = run(train.app, ["--model-id", "cut", *common])
    assert stopped.exit_code != 0
    assert "2 epochs are kept: the same command with --resume" in " ".join(stopped.stderr.split())
    unfinished = unfinished_file(home.models, "cut")
    before = unfinished.read_bytes()
    forgotten = run(train.app, ["--model-id", "cut", *common])
    assert forgotten.exit_code == 1
    assert "2 epochs long: the same command with --resume" in forgotten.stderr
    other = run(train.app, ["--model-id", "cut", *common, "--seed", "9", "--resume"])
    assert other.exit_code == 1
    assert "seed was 0 and is 9" in other.stderr
    assert unfinished.read_bytes() == before
    shutil.copytree(shop.folder, home.training / "cut")  # as if it had been joined: it is not joined again
    resumed = run(train.app, ["--model-id", "cut", *common[2:], "--resume"])
    assert resumed.exit_code == 0, resumed.stderr
    one, two = ((home.models / name / "model.safetensors").read_bytes() for name in ("whole", "cut"))
    assert one == two
    assert not unfinished.exists()
    steps = [step for step, _ in read(tmp_path / "runs")["training/loss"]]
    assert steps == list(range(1, len(steps) + 1))
