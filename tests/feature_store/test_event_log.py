import contextlib
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from feature_store.event_log import EventLog, LoggedEvent

REPOSITORY = Path(__file__).resolve().parents[2]


def event(event_id: str, user_id: str = "u", timestamp_us: int = 1, **more) -> LoggedEvent:
    return LoggedEvent(event_id, user_id, "i", "click", more.pop("value", None), timestamp_us, **more)


@pytest.fixture
def log(tmp_path):
    with contextlib.closing(EventLog(tmp_path / "events.db")) as one:
        yield one


def test_an_event_id_is_recorded_once(log):
    """The first form of an event stays; repeats are counted as duplicates, within a call too."""
    assert log.append([event("a", value=1.0), event("b"), event("a", value=2.0)]) == (2, 1)
    assert log.append([event("a", value=3.0), event("c")]) == (1, 1)
    assert [(e.event_id, e.value) for e in log.read_after(0)] == [("a", 1.0), ("b", None), ("c", None)]
    assert len(log) == 3


def test_all_or_none(log):
    """A batch with a row that cannot be stored leaves nothing."""
    with pytest.raises(sqlite3.IntegrityError):
        log.append([event("a"), event("b", user_id=None)])
    assert len(log) == 0
    assert log.append([event("a")]) == (1, 0)


def test_everything_comes_back(log):
    """All fields of an event survive, with the time of recording and a rising place in the log."""
    shown = {"impression_id": "imp", "request_id": "req", "propensity": 0.25, "device": "phone", "position": 3}
    full = event("a", value=4.5, created_us=7, **shown)
    log.append([full, event("b")])
    first, second = log.read_after(0)
    assert {name: getattr(first, name) for name in shown} == shown
    assert first.created_us == 7
    assert (second.device, second.position) == (None, None)
    assert second.created_us > 7
    assert first.seq < second.seq


def test_a_log_of_before_a_column_is_opened(tmp_path):
    """What an earlier version recorded, without `device` and `position`, is kept and read beside newer events."""
    path = tmp_path / "old.db"
    with contextlib.closing(EventLog(path)) as old:
        old.append([event("a", value=1.5)])
    with contextlib.closing(sqlite3.connect(path)) as connection:
        for name in ("device", "position"):
            connection.execute(f"ALTER TABLE events DROP COLUMN {name}")
    with contextlib.closing(EventLog(path)) as log:
        log.append([event("b", device="phone", position=2)])
        assert [(e.event_id, e.value, e.device, e.position) for e in log.read_after(0)] == [
            ("a", 1.5, None, None),
            ("b", None, "phone", 2),
        ]


def test_the_newest_before_an_instant(log):
    """`newest_of` is strict about the instant, keeps the newest, and gives the oldest of them first."""
    log.append([event(str(t), timestamp_us=t) for t in (5, 1, 3, 2, 4)] + [event("other", user_id="v", timestamp_us=2)])
    assert [e.timestamp_us for e in log.newest_of("u", before_us=5, limit=3)] == [2, 3, 4]
    assert [e.timestamp_us for e in log.for_users(["u", "v"], since_us=4)] == [4, 5]


def test_draining_never_goes_back(log):
    """The mark of the drain survives and only rises; reading goes on from it in the order of recording."""
    log.append([event(str(i)) for i in range(5)])
    assert log.drained_until == 0
    log.mark_drained(3)
    log.mark_drained(2)
    assert log.drained_until == 3
    assert [e.seq for e in log.read_after(3)] == [4, 5]
    assert [e.seq for e in log.read_after(0, limit=2)] == [1, 2]


def test_writers_in_threads_lose_nothing(log):
    """Many threads append at once; every event is there, once."""
    with ThreadPoolExecutor(8) as pool:
        accepted = list(pool.map(lambda i: log.append([event(f"{i % 50}")])[0], range(100)))
    assert sum(accepted) == 50
    assert len(log) == 50


def test_a_commit_is_synced_before_it_is_acknowledged(log):
    """WAL with synchronous=FULL (2): acknowledged means on disk, not in the page cache."""
    assert log._connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    assert log._connection.execute("PRAGMA synchronous").fetchone()[0] == 2


def test_a_process_that_dies_at_once_has_recorded(tmp_path):
    """What `append` returned from is there after the process is gone without closing anything."""
    path = tmp_path / "events.db"
    code = (
        "import os, sys; from pathlib import Path; from feature_store.event_log import EventLog, LoggedEvent\n"
        "log = EventLog(Path(sys.argv[1])); log.append([LoggedEvent('a', 'u', 'i', 'click', None, 1)]); os._exit(9)"
    )
    run = subprocess.run([sys.executable, "-c", code, str(path)], cwd=REPOSITORY, check=False)
    assert run.returncode == 9
    with contextlib.closing(EventLog(path)) as log:
        assert [e.event_id for e in log.read_after(0)] == ["a"]
