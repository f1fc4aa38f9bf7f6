"""An encoder is changed under traffic: from the old space to the new one and back, while a server that started before answers."""

import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from encoders.profiles import load_profile
from feature_store.connection import connect
from ranker import checkpoint
from tests.ingest.small import make_models, manifest, picture, rows_of
from tests.serving.live import WORDS
from tests.serving.world import new_client, reasons, running, until
from triptych.verbs import ingest, materialize, model, spaces, spaces_retire, train, users

# Feast and its SQL registry warn about themselves.
pytestmark = pytest.mark.filterwarnings("ignore::Warning")

ITEMS, USERS, EVENTS = 30, 16, 12
NOUNS = [word for word in WORDS if not word.startswith("[")]


def run(app, *arguments, code=0):
    """A verb in this process; what it printed."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == code, done.output
    return done


def asked(app, *arguments, code=0):
    """The same with `--json`, read."""
    return json.loads(run(app, *arguments, "--json", code=code).stdout)


def write_shop(folder, rng):
    """A catalogue with words and pictures, and clicks on it from 2021 on."""
    rows = [
        {
            "item_id": f"item{n:02}",
            "title": " ".join(rng.choice(NOUNS, 4)),
            "image": picture(folder / f"{n}.png", n),
            "available_at": "2020-01-01",
        }
        for n in range(ITEMS)
    ]
    manifest(folder / "catalogue.csv", *rows)
    lines = [
        f"user{u},item{item:02},2021-01-{1 + day:02}T{u:02}:00:00Z,click"
        for u in range(USERS)
        for day, item in enumerate(rng.choice(ITEMS, EVENTS, replace=False))
    ]
    (folder / "clicks.csv").write_text("user_id,item_id,event_timestamp,event_type\n" + "\n".join(lines) + "\n")


class Traffic:
    """Someone who asks all the time while things change; `failures` are replies that were none."""

    def __init__(self, client):
        self.client, self.failures, self.models = client, [], []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def _ask(self):
        while not self._stop.is_set():
            try:
                reply = self.client.rank("user1", query="a red bird", top_n=3)
                self.models.append(reply.model_id)
                if len(reply.item_ids) != 3 or "QUERY_IGNORED" in reasons(reply):
                    self.failures.append(reply)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is a failure
                self.failures.append(error)
            self._stop.wait(0.1)

    def wait_for(self, model_id):
        """Until a request that is sent from now on is answered by this model."""
        seen = len(self.models) + 1  # one may be under way
        until(lambda: model_id in self.models[seen:], seconds=60)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join(30)


@pytest.fixture
def shop(live_home, tmp_path, rng, monkeypatch):
    """A home whose stable model, `one`, reads the old text space and the image space, and the ids of these."""
    make_models(tmp_path)
    profile = tmp_path / "profile.yaml"
    profile.write_text(yaml.safe_dump({"text": {"source": "tiny-bert"}, "image": {"source": "tiny-clip"}}))
    monkeypatch.setenv("TRIPTYCH_ENCODERS", str(profile))
    monkeypatch.setattr(spaces_retire, "POLL_SECONDS", 0.1)
    encoders = load_profile()
    write_shop(tmp_path, rng)
    run(ingest.app, tmp_path / "catalogue.csv")
    run(users.app, "build", "--interactions", tmp_path / "clicks.csv")
    run(materialize.app)
    run(train.app, "--model-id", "one")
    run(materialize.app)
    return live_home, encoders.text.space.space_id, encoders.image.space.space_id


def test_an_encoder_is_changed_under_traffic_and_back(shop, tmp_path):
    """Add, backfill, check, train, promote, undo, retire: every request in between is answered, and nothing of the old is lost."""
    home, old, image = shop
    quick = {"TRIPTYCH_SERVE_REFRESH_SECONDS": "0.3"}
    with running(home, "change", **quick) as server, new_client(server) as client, Traffic(client) as traffic:
        new = add(home, tmp_path)
        fill(home, old, new)
        # Whoever trains without a word reads what is in service; --upgrade reads the new one.
        assert {space.space_id for space in train.choose_spaces(home, [])} == {old, image}
        run(train.app, "--model-id", "two", "--upgrade", new)
        assert checkpoint.read_manifest(home.models / "two")["space_ids"] == {"text": new, "image": image}
        run(materialize.app)
        assert "pinned by one" in run(spaces.app, "retire", old, code=1).stderr
        for arguments, stable in ((("promote", "two"), "two"), (("undo",), "one"), (("promote", "two"), "two")):
            run(model.app, *arguments)
            traffic.wait_for(stable)
        retire(home, old)
        traffic.wait_for("two")
        found = client.retrieve(query="a red bird", space=new, k=3)
        assert (len(found.item_ids), found.space_id) == (3, new)
    assert traffic.failures == []
    check_history(home, tmp_path, old, {"text": new, "image": image})


def add(home, folder):
    """The new version beside the old one; adding it again changes nothing; a new item reaches both."""
    command = ("add", "text", folder / "tiny-bert", "-o", "template=the {text}", "-o", "slug=new")
    done, again = asked(spaces.app, *command), asked(spaces.app, *command)
    new = done["space_id"]
    assert (done["added"], again["added"]) == (True, False)
    run(ingest.app, manifest(folder / "late.csv", {"item_id": "late", "title": "a loud stone", "image": "1.png"}))
    assert {row[0] for row in rows_of(home, new)} == {"late"}
    listed = {entry["space_id"]: entry for entry in asked(spaces.app, "list") if entry["entity"] == "item"}
    assert (listed[new]["state"], listed[new]["vectors"]) == ("added", 1)
    assert listed[new]["encoder"]["source"] == str(folder / "tiny-bert")
    assert not asked(spaces.app, "check", new, code=3)["ready"]
    return new


def fill(home, old, new):
    """What was there is backfilled: the same rows, so that old labels join alike; Milvus then finds what exact search finds."""
    asked(spaces.app, "backfill", new)
    assert rows_of(home, new) == rows_of(home, old)
    run(users.app, "build")
    run(materialize.app)
    checked = asked(spaces.app, "check", new)
    assert (checked["against"], checked["coverage"], checked["label_coverage"]) == (old, 1.0, 1.0)
    assert checked["recall"] >= 0.99
    compare_training_sets(home, old, new)


def retire(home, old):
    """`--wait` waits until no model needs the old space; then exactly its collections are dropped."""
    with ThreadPoolExecutor() as pool:
        (home.logs / "retire.err").touch()
        waiting = pool.submit(subprocess_run, home, "spaces", "retire", old, "--wait")
        until(lambda: "waiting for one" in (home.logs / "retire.err").read_text(), seconds=60)
        run(model.app, "remove", "one")
        assert waiting.result(60) == 0
    run(spaces.app, "retire", "fused_one")
    with connect(home) as core:
        before = set(core.list_views())
        run(materialize.app)
        gone = before - set(core.list_views())
    interests = {view for view in gone if "_interest_" in view}
    assert gone - interests == {f"item_{old}", "item_fused_one", "user_fused_one"}
    assert len(interests) == 1


def subprocess_run(home, *arguments):
    """The exit code of a command in a process of its own; its stderr goes to a log."""
    with (home.logs / "retire.err").open("w") as log:
        return subprocess.run([sys.executable, "-m", "triptych", *arguments], stderr=log, check=False).returncode


def check_history(home, folder, old, in_use):
    """The old table stays, nothing is written to it any more, and what is in use goes on."""
    there = rows_of(home, old)
    assert len(there) == ITEMS + 1
    report = asked(ingest.app, manifest(folder / "last.csv", {"item_id": "last", "title": "very old"}))
    assert report["spaces"] == in_use
    assert rows_of(home, old) == there
    assert "last" in {row[0] for row in rows_of(home, in_use["text"])}


def compare_training_sets(home, old, new):
    """Training sets joined with the one and with the other hold the same labels, each with a vector or each without."""
    from feature_store.feast_training import build_training_set

    found = {}
    for space_id in (old, new):
        folder = home.training / f"with_{space_id}"
        build_training_set(home, folder, spaces=[space_id])
        labels, items = (pq.read_table(folder / f"{name}.parquet") for name in ("labels", "items"))
        has = np.asarray(items[f"vec_{space_id}"].is_valid())[labels["item_row"].to_numpy()]
        found[space_id] = dict(zip(labels["event_id"].to_pylist(), has.tolist(), strict=True))
    assert found[old] == found[new]
    assert len(found[old]) == USERS * EVENTS
    assert all(found[old].values())
