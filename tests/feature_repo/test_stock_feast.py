"""The stock `feast` command in `feature_repo/` of a fresh copy of the project, and the verbs around it."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from feature_store import embedded
from feature_store.connection import connect
from feature_store.home import Home
from feature_store.setup import feast_exports
from feature_store.spaces import read_entries
from feature_store.tables import Tables

ROOT = Path(__file__).resolve().parents[2]
# Feast's command, several times in one process, since importing Feast takes ten seconds. Without torch, which is Feast's to import,
# never ours.
DRIVER = """
import subprocess, sys
sys.modules["torch"] = None
from feast.cli.cli import cli

def feast(*arguments):
    print(">>", *arguments, flush=True)
    try:
        cli.main(list(arguments), prog_name="feast", standalone_mode=False)
    except Exception as error:
        print("failed:", error, flush=True)

feast("apply")
subprocess.run([sys.executable, "-m", "triptych", "up"], check=True)
feast("apply")
feast("materialize-incremental", sys.argv[1])
feast("feature-views", "list")
feast("feature-services", "list")
subprocess.run([sys.executable, "-m", "triptych", "down"], check=True)
feast("materialize-incremental", sys.argv[1])
"""


@pytest.fixture
def clone(tmp_path):
    """A copy of the packages, with items dated 1997 in its default root, and a checkpoint's manifest."""
    for name in ("encoders", "feature_repo", "feature_store", "triptych"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    yield tmp_path
    embedded.stop(Home(tmp_path / ".triptych"))


def run(clone, *arguments, cwd, **variables):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TRIPTYCH", "FEAST"))}
    environment |= {"PYTHONPATH": str(clone), "PYTHONWARNINGS": "ignore", "COLUMNS": "200", **variables}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=200, check=False
    )


def fill(home):
    """Two items of 1997 with their vectors, and a ranker's manifest."""
    tables = Tables(home)
    space = read_entries(home)[0].space
    at = np.array([852_076_800_000_000] * 2)
    times = pa.array(at).cast(pa.timestamp("us", "UTC"))
    tables.write_items(pa.table({"item_id": ["a", "b"], "title": ["A", "B"], "event_timestamp": times}))
    vectors = np.eye(2, space.dim, dtype=np.float32)
    tables.write_embeddings("item", space, ["a", "b"], vectors, content_sha256=["x", "y"], event_timestamp=at)
    folder = home.models / "first"
    folder.mkdir()
    manifest = {"model_id": "first", "space_ids": {space.modality: space.space_id}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return space


def parts_of(output):
    """What each of the driver's commands printed."""
    return [re.sub(r"\x1b\[[0-9;]*m", "", part) for part in output.split(">> ")[1:]]


@pytest.mark.timeout(240)
def test_the_stock_command_works_in_a_fresh_copy_and_says_when_milvus_is_missing(clone):
    """Before `triptych up` it names that command; after it, apply, materialize-incremental and the lists work; after `down`, again."""
    home = Home(clone / ".triptych").create()
    space = fill(home)
    shutil.move(home.root, clone / "kept")  # the first command meets a root that is not there
    (clone / "put_back.py").write_text(f"import shutil; shutil.move({str(clone / 'kept')!r}, {str(home.root)!r})\n")
    driver = DRIVER.replace('feast("apply")\n', 'feast("apply")\nexec(open("../put_back.py").read())\n', 1)
    result = run(clone, "-c", driver, "2026-11-22T00:00:00", cwd=clone / "feature_repo")
    assert result.returncode == 0, result.stderr
    missing, apply, materialize, views, services, down = parts_of(result.stdout)
    assert "failed" in missing
    assert "triptych up" in missing
    assert "failed" not in apply + materialize + views + services
    assert f"item_{space.space_id}: 2 rows stored" in materialize
    assert "item_profile: 2 rows stored" in materialize
    for name in ("user_history", "user_profile", "item_profile", *(entry.view for entry in read_entries(home))):
        assert name in views
    assert "catalogue" in services
    assert "ranker_first" in services
    assert "failed" in down
    assert "triptych up" in down


@pytest.mark.timeout(120)
def test_the_verbs_prepare_show_load_and_stop_a_root(clone, tmp_path):
    """`up` twice, `status`, `spaces list`, `materialize` and `down` on a root of its own, by their JSON."""
    root = tmp_path / "elsewhere"
    where = {"TRIPTYCH_HOME": str(root)}

    def verb(*arguments):
        result = run(clone, "-m", "triptych", *arguments, cwd=clone, **where)
        return result.returncode, (json.loads(result.stdout) if "--json" in arguments and result.stdout else result)

    code, failed = verb("materialize")
    assert (code, "triptych up" in failed.stderr) == (1, True)
    home = Home(root)
    try:
        _, first = verb("up", "--json")
        space = fill(home)
        _, second = verb("up", "--json")
        assert (first["milvus_uri"], first["pid"]) == (second["milvus_uri"], second["pid"])
        assert first["exports"] == feast_exports(home) == {"FEAST_FS_YAML_FILE_PATH": str(root / "feature_store.yaml")}
        result = run(clone, "-m", "triptych", "materialize", cwd=clone, **where)
        assert result.returncode == 0, result.stderr
        assert re.search(r"item_profile\W+2\W+0\W", result.stdout)
        assert not re.search(r"ttl|1 year|it/s|\x1b", result.stdout + result.stderr)
        assert "ttl is 0" in (home.logs / "feast.log").read_text()
        _, status = verb("status", "--json")
        assert (status["tables"]["items"], status["milvus"]["views"][f"item_{space.space_id}"]) == (2, 2)
        _, spaces = verb("spaces", "list", "--json")
        assert (spaces[0]["space_id"], spaces[0]["vectors"]) == (space.space_id, 2)
        with connect(home) as core:
            assert core.read_vectors(f"item_{space.space_id}", ["b"])[1].tolist() == [True]
    finally:
        code, _ = verb("down")
    assert (code, embedded.status(home)) == (0, None)
    code, status = verb("status", "--json")
    assert (code, status["milvus"]["running"]) == (0, False)
