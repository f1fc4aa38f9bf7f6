"""A repository that `feast init` made works with the plug-in: two lines of its YAML file change, and the stock CLI does the rest."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from feature_store.milvus_core import MilvusCore

# The stock command, several times in one process, since importing Feast takes longer than what it does here.
FEAST = """
import json, sys, warnings
warnings.simplefilter("ignore")
from feast.cli.cli import cli
for arguments in json.loads(sys.argv[1]):
    cli.main(arguments, standalone_mode=False)
"""
READ = """
import json, sys, warnings
warnings.simplefilter("ignore")
from feast import FeatureStore
store = FeatureStore(repo_path=".")
names = ["conv_rate", "avg_daily_trips", "driver_metadata", "driver_config", "driver_profile"]
features = [f"driver_hourly_stats:{name}" for name in names] + ["transformed_conv_rate:conv_rate_plus_val1"]
rows = [{"driver_id": i, "val_to_add": 1000, "val_to_add_2": 2000} for i in (1004, 9999, 1001)]
print("READ", json.dumps(store.get_online_features(features, rows).to_dict()))
"""
ROOT = Path(__file__).parents[3]


def run(folder, code, *arguments):
    """Run Python in a folder, as somebody who has this package installed and none of its variables; its output."""
    environment = {name: text for name, text in os.environ.items() if not name.startswith(("TRIPTYCH_", "FEAST_"))}
    environment |= {"PYTHONPATH": str(ROOT), "FEAST_USAGE": "False", "IS_TEST": "True"}
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def feast(folder, *commands):
    """Run commands of the stock CLI."""
    return run(folder, FEAST, json.dumps([list(command) for command in commands]))


@pytest.fixture
def repository(tmp_path, milvus_server):
    """The folder of a repository by `feast init`, with `online_store` changed to the plug-in and nothing else."""
    feast(tmp_path, ["init", "drivers"])
    folder = tmp_path / "drivers" / "feature_repo"
    config = yaml.safe_load((folder / "feature_store.yaml").read_text())
    config["online_store"] = {"type": "feature_store.feast_online.TriptychOnlineStore", "uri": milvus_server}
    (folder / "feature_store.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.mark.timeout(400)
def test_a_repository_by_feast_init_needs_two_lines_changed(repository, milvus_server):
    """Apply, materialize, materialize-incremental, read and teardown by the stock CLI, maps and structs among the features."""
    now = datetime.now(UTC)
    first, last = ((now - timedelta(days=days)).strftime("%Y-%m-%dT%H:%M:%S") for days in (14, 0))
    ahead = (now + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%S")
    told = feast(repository, ["plan"], ["apply"], ["materialize", first, last], ["materialize-incremental", ahead])
    assert "Milvus: driver_hourly_stats: create" in told
    with MilvusCore(milvus_server) as core:
        views = {"driver_hourly_stats", "driver_hourly_stats_fresh", "driver_quality_labels"}
        assert views <= set(core.list_views())
        assert core.count("driver_hourly_stats") == core.count("driver_hourly_stats_fresh") == 5
        assert core.count("driver_quality_labels") == 0
        told = run(repository, READ + FEAST, json.dumps([["teardown"]]))
        (line,) = (line for line in told.splitlines() if line.startswith("READ "))
        read = json.loads(line.removeprefix("READ "))
        assert read["driver_id"] == [1004, 9999, 1001]
        for name in ("conv_rate", "avg_daily_trips", "driver_metadata", "driver_config", "driver_profile"):
            assert [held is None for held in read[name]] == [False, True, False], name
        assert {type(read[name][0]) for name in ("driver_metadata", "driver_profile")} == {dict}
        assert read["conv_rate_plus_val1"][0] == pytest.approx(read["conv_rate"][0] + 1000)
        assert not views & set(core.list_views())
