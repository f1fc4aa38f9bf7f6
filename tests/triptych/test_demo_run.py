"""The demo's walk: commands that fail are told with their log, everything started is stopped, metrics have the one form."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from triptych.demo.catalogue import make_catalogue
from triptych.demo.run import MARKER, Shop, _clear, _verdict, read_quarantine, run_demo, serve, write_metrics
from triptych.demo.story import METRICS, Story
from triptych.demo.truth import make_world
from triptych.demo.walk import StageError, Walk

KEYS = {*METRICS, "items", "quarantined", "seconds"}


def quiet() -> Console:
    return Console(stderr=True, quiet=True)


def made_up_story(folder: Path, quarantined: list[tuple[str, str]]) -> Story:
    return Story(
        people=[],
        metrics={**dict.fromkeys(METRICS, 0.5), "ndcg_at_10_unseen": 0.4},
        quarantined=quarantined,
        counts={"items": 300, "users": 400},
        seconds={"up": 1.5},
        media=folder,
        home=folder,
        corrupt=make_catalogue(7, end=datetime(2026, 6, 1, tzinfo=UTC)).corrupt,
    )


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_metrics_have_exactly_the_named_keys(tmp_path: Path):
    """metrics.json has the six metrics, items, quarantined and seconds by stage, and nothing else."""
    story = made_up_story(tmp_path, [("a.png", "cut")])
    numbers = json.loads(write_metrics(story, tmp_path / "metrics.json").read_text())
    assert set(numbers) == KEYS
    assert (numbers["items"], numbers["quarantined"], numbers["seconds"]) == (300, 1, {"up": 1.5})


def test_only_the_planted_files_may_be_quarantined(tmp_path: Path):
    """Exit code 0 for exactly the planted files; 1 for one too few, one too many, or another one."""
    picture, loop = made_up_story(tmp_path, []).corrupt
    for refused, code in (
        ([picture, loop], 0),
        ([picture], 1),
        ([picture, loop, "media/card-001.png"], 1),
        ([picture, "media/card-001.flac"], 1),
        ([picture, loop, loop], 1),
    ):
        story = made_up_story(tmp_path, [(file, "reason") for file in refused])
        assert _verdict(story, quiet()) == code


def test_quarantine_is_read_from_the_reports_file(tmp_path: Path):
    """Files are named as the manifest names them, with the reason for people; no file means nothing was refused."""
    refusal = {
        "row": 3,
        "part": "image",
        "value": f"{tmp_path}/media/a.png",
        "reason": f"{tmp_path}/media/a.png is cut",
    }
    (tmp_path / "q.jsonl").write_text(json.dumps(refusal) + "\n")
    report = {"quarantine_file": str(tmp_path / "q.jsonl")}
    assert read_quarantine(report, tmp_path) == [("media/a.png", "media/a.png is cut")]
    assert read_quarantine({"quarantine_file": None}, tmp_path) == []


def test_a_failed_command_is_told_with_its_log(tmp_path: Path):
    """The message names the command, its exit code and the last lines of its log; the stage has no time."""
    walk = Walk(tmp_path / "home", tmp_path / "logs", quiet())
    with (
        pytest.raises(StageError, match=r"`triptych ingest .*exit code 1[\s\S]*no such file"),
        walk,
        walk.stage("x", "y"),
    ):
        walk.triptych("ingest", str(tmp_path / "nothing.csv"))
    assert walk.seconds == {}


def test_commands_see_the_demos_own_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Whatever the shell points at, a stage's commands work on the demo's root and on its own store."""
    monkeypatch.setenv("TRIPTYCH_HOME", str(tmp_path / "other"))
    monkeypatch.setenv("TRIPTYCH_MILVUS_URI", "http://127.0.0.1:1")
    with Walk(tmp_path / "home", tmp_path / "logs", quiet()) as walk:
        status = walk.triptych_json("status")
    assert status["home"] == str(tmp_path / "home")
    assert "127.0.0.1:1" not in status["milvus"]["reason"]


def test_an_interrupted_walk_stops_what_it_started(tmp_path: Path):
    """SIGTERM in the middle of a stage: the store and the running command are gone when the walk has ended."""
    code = (
        "import sys, pathlib\n"
        "from rich.console import Console\n"
        "from triptych.demo.walk import Walk\n"
        "root = pathlib.Path(sys.argv[1])\n"
        "with Walk(root / 'home', root / 'logs', Console(stderr=True)) as walk:\n"
        "    walk.start_store()\n"
        "    walk.python('http.server', '0', '--bind', '127.0.0.1')\n"
    )
    walker = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stderr=subprocess.DEVNULL)
    store = pid_when_there(tmp_path / "home" / "milvus.json")
    command = child_when_there(walker.pid, "http.server")
    walker.send_signal(signal.SIGTERM)
    assert walker.wait(60) == 128 + signal.SIGTERM
    assert not alive(store)
    assert not alive(command)


def pid_when_there(path: Path) -> int:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if path.exists() and "pid" in (found := path.read_text()):
            return int(json.loads(found)["pid"])
        time.sleep(0.05)
    raise TimeoutError(path)


def child_when_there(parent: int, word: str) -> int:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        for process in Path("/proc").glob("[0-9]*"):
            try:
                status = (process / "stat").read_text().rpartition(")")[2].split()
                if int(status[1]) == parent and word in (process / "cmdline").read_text():
                    return int(process.name)
            except OSError:
                continue
        time.sleep(0.05)
    raise TimeoutError(word)


def test_an_earlier_demo_is_replaced_but_not_under_its_feet(tmp_path: Path):
    """Leftovers are removed and foreign files stay; where the earlier demo still runs, the new one refuses and says how to stop it."""
    (tmp_path / "mine.txt").write_text("mine")
    _clear(tmp_path)
    (tmp_path / "catalogue").mkdir()
    (tmp_path / "report.html").write_text("old")
    _clear(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"mine.txt", MARKER}
    (tmp_path / "home").mkdir()
    running = subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()", "triptych serve"], stdin=subprocess.PIPE
    )
    while not Path(f"/proc/{running.pid}/cmdline").read_bytes():  # empty for a moment after exec
        time.sleep(0.01)
    try:
        (tmp_path / "home" / "serve.json").write_text(json.dumps({"pid": running.pid, "address": "127.0.0.1:1"}))
        with pytest.raises(StageError, match="triptych down"):
            _clear(tmp_path)
    finally:
        running.communicate()
    _clear(tmp_path)
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("name", ["home", "catalogue", "logs", "report.html", "metrics.json"])
def test_what_no_demo_made_is_never_removed(tmp_path: Path, name: str):
    """A folder with a file or folder of the demo's names, but not of a demo: exit code 1, its name and the remedy, nothing touched."""
    theirs = tmp_path / name / "precious.txt" if "." not in name else tmp_path / name
    theirs.parent.mkdir(exist_ok=True)
    theirs.write_text("years of work")
    said = io.StringIO()
    assert run_demo(tmp_path, seed=7, keep=False, console=Console(file=said, width=200)) == 1
    assert f"has {name}" in said.getvalue()
    assert "--out" in said.getvalue()
    assert theirs.read_text() == "years of work"
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_file_is_no_folder_to_write_into(tmp_path: Path):
    """`--out` naming a file, with brackets in its name: exit code 1 and the name as it is, no traceback."""
    (tmp_path / "taken[b]").write_text("mine")
    said = io.StringIO()
    assert run_demo(tmp_path / "taken[b]", seed=7, keep=False, console=Console(file=said, width=400)) == 1
    assert "taken[b]" in said.getvalue()
    assert (tmp_path / "taken[b]").read_text() == "mine"


def test_a_degraded_reply_is_a_reply(tmp_path: Path):
    """The demo takes what `triptych client rank` prints with exit code 3 as well, and no other failure."""

    class Answers(Walk):
        """A server that is there, and a command line that ends as told."""

        code = 3

        def start_server(self) -> str:
            return "127.0.0.1:1"

        def triptych(self, *arguments: str, ok: Collection[int] = (0,)) -> str:  # noqa: ARG002
            return self.python("code", f"import sys; print('{{}}'); sys.exit({self.code})", ok=ok)

        def _start(self, command: Sequence[str], log: Any, stdout: Any = subprocess.PIPE) -> subprocess.Popen[str]:
            return subprocess.Popen([sys.executable, "-c", command[1]], stdout=stdout, stderr=log, text=True)

    catalogue = make_catalogue(7, count=120, end=datetime(2026, 6, 1, tzinfo=UTC))
    shop = Shop(catalogue, make_world(catalogue, 7, users=30), tmp_path)
    with Answers(tmp_path / "home", tmp_path / "logs", quiet()) as walk:
        assert list(serve(walk, shop).values()) == [{}, {}, {}]
        walk.code = 1
        with pytest.raises(StageError, match="exit code 1"):
            serve(walk, shop)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_whole_demo_meets_its_bars(tmp_path: Path):
    """The demo ends with 0; the ranker learns at least half of what can be known, a third of that at most with shuffled content."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TRIPTYCH_")}
    done = subprocess.run(
        [sys.executable, "-m", "triptych", "demo", "--out", str(tmp_path)], env=environment, check=False
    )
    assert done.returncode == 0
    m = json.loads((tmp_path / "metrics.json").read_text())
    assert set(m) == KEYS
    known = m["ndcg_at_10_oracle"] - m["ndcg_at_10_popularity"]
    learned = (m["ndcg_at_10"] - m["ndcg_at_10_popularity"]) / known
    shuffled = (m["ndcg_at_10_shuffled_content"] - m["ndcg_at_10_popularity"]) / known
    assert learned >= 0.5
    assert shuffled <= learned / 3
    assert (m["items"], m["quarantined"]) == (300, 2)
    assert "<html" in (tmp_path / "report.html").read_text(encoding="utf-8")
    for name in ("milvus.json", "serve.json"):
        record = tmp_path / "home" / name
        assert not record.exists() or not alive(int(json.loads(record.read_text())["pid"]))
