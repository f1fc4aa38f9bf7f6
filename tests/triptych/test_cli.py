import json
import subprocess
import sys

import pytest

from triptych.cli import VERBS


def triptych(*arguments, home):
    environment = {"TRIPTYCH_HOME": str(home), "PATH": "/usr/bin:/bin", "NO_COLOR": "1", "COLUMNS": "120"}
    command = [sys.executable, "-m", "triptych", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=120)


def test_help_lists_every_verb_without_loading_them(tmp_path):
    """`triptych --help` names every verb and imports no heavy package."""
    code = "import sys\nsys.argv=['triptych','--help']\nfrom triptych.cli import main\ntry: main()\nexcept SystemExit: pass\n"
    code += "heavy={'torch','feast','pyarrow','pymilvus','grpc'} & set(sys.modules)\nassert not heavy, heavy"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for verb in VERBS:
        assert f" {verb} " in done.stdout


@pytest.mark.parametrize("verb", list(VERBS))
def test_every_verb_has_help(verb, tmp_path):
    """Each verb's own `--help` prints usage and options, and exits with 0."""
    done = triptych(verb, "--help", home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Usage:" in done.stdout


def test_an_unknown_verb_is_wrong_usage(tmp_path):
    """Wrong usage exits with 2 and names what was not understood."""
    done = triptych("teleport", home=tmp_path)
    assert done.returncode == 2
    assert "teleport" in done.stderr


@pytest.mark.parametrize("arguments", [["search", "text", "a bird"], ["materialize"]])
def test_without_a_store_the_remedy_is_named(arguments, tmp_path):
    """Verbs that need Milvus exit with 1 and say `triptych up`, without a traceback."""
    done = triptych(*arguments, home=tmp_path / "empty")
    assert done.returncode == 1
    assert "triptych up" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_manifest_is_an_error_with_its_path(tmp_path):
    """A manifest that is not there: exit code 1, the path, nothing stored."""
    done = triptych("ingest", tmp_path / "nowhere.csv", home=tmp_path / "home")
    assert done.returncode == 1
    assert "nowhere.csv: no such file" in done.stderr
    assert not (tmp_path / "home" / "tables").exists()


def test_status_of_nothing_is_json(tmp_path):
    """`status --json` of an empty root prints one JSON document and makes nothing."""
    done = triptych("status", "--json", home=tmp_path / "empty")
    assert done.returncode == 0, done.stderr
    assert isinstance(json.loads(done.stdout), dict)
    assert not (tmp_path / "empty").exists()


def test_an_unknown_view_is_wrong_usage_at_once(tmp_path):
    """A view that is not there ends with 2 and the list of those that are, before anything is applied."""
    done = triptych("materialize", "--view", "nope", home=tmp_path / "home")
    assert done.returncode == 2
    assert "item_profile" in done.stderr


def test_an_unknown_preset_is_refused_before_the_training_set_is_joined(tmp_path):
    """A preset that is not there is an error with the names of those that are, and makes nothing."""
    done = triptych("train", "--model-id", "a", "--preset", "huge", home=tmp_path / "home")
    assert done.returncode == 2
    assert "tiny" in done.stderr
    assert not (tmp_path / "home").exists()


def test_a_root_in_a_files_place_is_an_error_with_the_remedy(tmp_path):
    """`TRIPTYCH_HOME` naming a file is told without a traceback."""
    (tmp_path / "file").write_text("")
    done = triptych("up", home=tmp_path / "file")
    assert done.returncode == 1
    assert "TRIPTYCH_HOME" in done.stderr
    assert "Traceback" not in done.stderr


def test_searching_for_nothing_is_refused(tmp_path):
    """Empty words are an error, as they are for the server."""
    done = triptych("search", "text", " ", home=tmp_path / "home")
    assert done.returncode == 1
    assert "empty" in done.stderr
