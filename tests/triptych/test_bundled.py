import json
import os
import subprocess
import sys

from tests.encoders.test_bundled_image import drawn

__all__ = ["drawn"]


def triptych(*arguments):
    environment = {**os.environ, "NO_COLOR": "1", "COLUMNS": "160", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "triptych", "bundled", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=280)


def test_training_makes_words_find_held_out_pictures(drawn, tmp_path):
    """From a few captioned shapes, colour and shape are learnt well enough to find combinations that training never saw."""
    stamps, openmoji = drawn
    out = tmp_path / "checkpoint"
    arguments = ("--stamps", stamps, "--openmoji", openmoji, "--json")
    done = triptych("train-image", *arguments, "--out", out)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["pictures"]["stamps test"] >= 5
    assert json.loads((out / "recipe.json").read_text())["seed"] == 0
    judged = triptych("evaluate", *arguments, "--image", out)
    assert judged.returncode == 0, judged.stderr
    figures = json.loads(judged.stdout)["image"]
    trained, untrained = (figures[name]["objects"] for name in ("trained", "untrained"))
    assert trained["recall_at_1"] >= 0.8
    assert untrained["recall_at_1"] <= 0.4
    assert trained == {key: value for key, value in report["test"][0]["objects"].items() if key in trained}


def test_a_wrong_folder_is_refused_with_the_remedy(tmp_path):
    """A folder without stamps is refused in one line, which says where stamps come from."""
    done = triptych("evaluate", "--stamps", tmp_path)
    assert done.returncode == 1
    assert "apt-get download tuxpaint-stamps-default" in done.stderr
    assert "Traceback" not in done.stderr


def test_evaluating_nothing_is_wrong_usage(tmp_path):
    """Without --stamps and --sounds there is nothing to measure."""
    done = triptych("evaluate")
    assert done.returncode == 2
    assert "--stamps" in done.stderr
