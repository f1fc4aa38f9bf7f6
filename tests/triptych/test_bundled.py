import json

from tests.encoders.test_bundled_image import drawn
from tests.triptych.in_process import triptych

__all__ = ["drawn"]


def bundled(home, *arguments):
    return triptych(home, "bundled", *arguments, COLUMNS="160")


def test_training_makes_words_find_held_out_pictures(drawn, tmp_path):
    """From a few captioned shapes, colour and shape are learnt well enough to find combinations that training never saw."""
    stamps, openmoji = drawn
    out = tmp_path / "checkpoint"
    arguments = ("--stamps", stamps, "--openmoji", openmoji, "--json")
    done = bundled(tmp_path, "train-image", *arguments, "--out", out)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["pictures"]["stamps test"] >= 5
    assert json.loads((out / "recipe.json").read_text())["seed"] == 0
    judged = bundled(tmp_path, "evaluate", *arguments, "--image", out)
    assert judged.returncode == 0, judged.stderr
    figures = json.loads(judged.stdout)["image"]
    trained, untrained = (figures[name]["objects"] for name in ("trained", "untrained"))
    assert trained["recall_at_1"] >= 0.8
    assert untrained["recall_at_1"] <= 0.4
    assert trained == {key: value for key, value in report["test"][0]["objects"].items() if key in trained}


def test_a_wrong_folder_is_refused_with_the_remedy(tmp_path):
    """A folder without stamps is refused in one line, which says where stamps come from."""
    done = bundled(tmp_path, "evaluate", "--stamps", tmp_path)
    assert done.returncode == 1
    assert "apt-get download tuxpaint-stamps-default" in done.stderr
    assert "Traceback" not in done.stderr


def test_evaluating_nothing_is_wrong_usage(tmp_path):
    """Without --stamps and --sounds there is nothing to measure."""
    done = bundled(tmp_path, "evaluate")
    assert done.returncode == 2
    assert "--stamps" in done.stderr
