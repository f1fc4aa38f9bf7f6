"""A repository that `feast init` made works with the plug-in: two lines of its YAML file change, and the stock CLI does the rest."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from feature_store.milvus_core import MilvusCore

# The stock command, several times in one process, since importing Feast takes longer than what it does here. What the extra
# `store` does not bring is not there.
FEAST = """
import json, os, sys, warnings
warnings.simplefilter("ignore")
others = "torch torchaudio torchvision transformers open_clip av soundfile simplejpeg safetensors sklearn matplotlib"
sys.modules.update(dict.fromkeys([*others.split(), "milvus", "pgserver", "psycopg"]))
import yaml
from feast.cli.cli import cli
def run(*arguments):
    cli.main(list(arguments), standalone_mode=False)
"""
# The only change to what `feast init` made: type and address of the online store.
INIT = """
run("init", "drivers")
os.chdir("drivers/feature_repo")
config = yaml.safe_load(open("feature_store.yaml"))
config["online_store"] = json.loads(sys.argv[1])
yaml.safe_dump(config, open("feature_store.yaml", "w"))
run("plan")
run("apply")
run("materialize", *sys.argv[2:4])
run("materialize-incremental", sys.argv[4])
"""
READ = """
from feast import FeatureStore
store = FeatureStore(repo_path=".")
names = ["conv_rate", "avg_daily_trips", "driver_metadata", "driver_config", "driver_profile"]
features = [f"driver_hourly_stats:{name}" for name in names] + ["transformed_conv_rate:conv_rate_plus_val1"]
rows = [{"driver_id": i, "val_to_add": 1000, "val_to_add_2": 2000} for i in (1004, 9999, 1001)]
print("READ", json.dumps(store.get_online_features(features, rows).to_dict()))
run("teardown")
"""
ROOT = Path(__file__).parents[3]


def run(folder, code, *arguments):
    """Run Python in a folder, as somebody who has `triptych[store]` installed and none of its variables; its output."""
    environment = {name: text for name, text in os.environ.items() if not name.startswith(("TRIPTYCH_", "FEAST_"))}
    environment |= {"PYTHONPATH": str(ROOT), "FEAST_USAGE": "False", "IS_TEST": "True"}
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.timeout(400)
def test_a_repository_by_feast_init_needs_two_lines_changed(tmp_path, milvus_server):
    """Plan, apply, materialize, materialize-incremental, read and teardown by the stock CLI, maps and structs among the features."""
    now = datetime.now(UTC)
    moments = [now - timedelta(days=14), now, now + timedelta(hours=1)]
    online = {"type": "feature_store.feast_online.TriptychOnlineStore", "uri": milvus_server}
    told = run(tmp_path, FEAST + INIT, json.dumps(online), *(f"{moment:%Y-%m-%dT%H:%M:%S}" for moment in moments))
    assert "Milvus: driver_hourly_stats: create" in told
    with MilvusCore(milvus_server) as core:
        views = {"driver_hourly_stats", "driver_hourly_stats_fresh", "driver_quality_labels"}
        assert views <= set(core.list_views())
        assert core.count("driver_hourly_stats") == core.count("driver_hourly_stats_fresh") == 5
        assert core.count("driver_quality_labels") == 0
        told = run(tmp_path / "drivers" / "feature_repo", FEAST + READ)
        assert not views & set(core.list_views())
    (line,) = (line for line in told.splitlines() if line.startswith("READ "))
    read = json.loads(line.removeprefix("READ "))
    assert read["driver_id"] == [1004, 9999, 1001]
    for name in ("conv_rate", "avg_daily_trips", "driver_metadata", "driver_config", "driver_profile"):
        assert [held is None for held in read[name]] == [False, True, False], name
    assert {type(read[name][0]) for name in ("driver_metadata", "driver_profile")} == {dict}
    assert read["conv_rate_plus_val1"][0] == pytest.approx(read["conv_rate"][0] + 1000)
