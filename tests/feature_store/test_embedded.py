import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from milvus_rows import DIM, VALUES, rows, schema

from feature_store import embedded
from feature_store.connection import connect, milvus_uri
from feature_store.errors import StoreUnavailable
from feature_store.home import Home
from feature_store.milvus_core import MilvusCore


def test_a_restart_keeps_the_data_and_loads_it_by_itself(tmp_path, unit_vectors):
    """After a stop and a start, the connection of before reads, searches and writes as if nothing had happened."""
    home = Home(tmp_path)
    vectors = unit_vectors(3, DIM)
    first = embedded.start(home)
    try:
        with connect(home) as core:
            core.create_view(schema())
            core.upsert("item_things", rows(["a", "b", "c"], vectors, 1, **VALUES))
            assert embedded.stop(home)
            assert embedded.status(home) is None
            with pytest.raises(StoreUnavailable, match="triptych up"):
                core.read_vectors("item_things", ["a"])
            second = embedded.start(home)
            assert (second.uri, second.pid != first.pid) == (first.uri, True)
            np.testing.assert_array_equal(core.read_vectors("item_things", ["c", "a"])[0], vectors[[2, 0]])
            assert core.read_columns("item_things", ["b"], ["tags"]) == {"tags": [VALUES["tags"]]}
        with MilvusCore(second.uri) as core:
            assert core.search("item_things", vectors[1:2], 1).ids == [["b"]]
            assert core.count("item_things") == 3
    finally:
        embedded.stop(home)


def test_starting_twice_is_one_server_and_stale_files_are_survived(tmp_path):
    """A second start finds the first; a file left by a dead or foreign process is not believed and harms nobody."""
    home = Home(tmp_path).create()
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as bystander:
        stale = {"uri": "http://127.0.0.1:1", "pid": bystander.pid, "started": 0.0}
        home.milvus_json.write_text(json.dumps(stale))
        assert embedded.status(home) is None
        try:
            server = embedded.start(home)
            assert embedded.start(home) == server == embedded.status(home)
            assert milvus_uri(home) == server.uri
        finally:
            assert embedded.stop(home)
        assert not embedded.stop(home)
        assert bystander.poll() is None
        bystander.terminate()
    with pytest.raises(ProcessLookupError):
        os.kill(server.pid, 0)


def test_a_server_that_cannot_start_shows_its_log(tmp_path):
    """The error carries the end of the server's own log."""
    home = Home(tmp_path).create()
    home.milvus_data.write_text("a file where a folder should be")
    with pytest.raises(StoreUnavailable, match=r"milvus\.log"):
        embedded.start(home)
    assert embedded.status(home) is None


def test_without_a_server_the_error_says_what_to_run(home):
    """Nobody has started Milvus for this root."""
    with pytest.raises(StoreUnavailable, match="triptych up"):
        connect(home)


def test_the_variable_wins(home, monkeypatch):
    """TRIPTYCH_MILVUS_URI points everything at a server of one's own."""
    home.milvus_json.write_text('{"uri": "http://127.0.0.1:1", "pid": 1, "started": 0}')
    monkeypatch.setenv("TRIPTYCH_MILVUS_URI", "http://milvus.example:19530")
    assert milvus_uri(home) == "http://milvus.example:19530"


def servers_on(home):
    """Process ids of servers on this home's data."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if str(home.milvus_data).encode() in entry.read_bytes().split(b"\0"):
                found.append(int(entry.parent.name))
    return found


def interrupted_start(home, number):
    """Start the server in a process of its own, and send that one a signal before the server is healthy."""
    # A shell that runs the tests in its background has them ignore SIGINT, and children inherit that.
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from pathlib import Path; from feature_store import embedded, home\n"
        f"embedded.start(home.Home(Path({str(home.root)!r})))"
    )
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL) as starter:
        while not (found := servers_on(home)):
            assert starter.poll() is None
            time.sleep(0.01)
        for server in found:  # else it could be healthy, and its starter done, before the signal is sent
            os.kill(server, signal.SIGSTOP)
        try:
            time.sleep(0.1)
            starter.send_signal(number)
            assert starter.wait(20) != 0
        finally:
            for server in found:
                with suppress(ProcessLookupError):
                    os.kill(server, signal.SIGCONT)


def test_ctrl_c_while_starting_leaves_no_server(tmp_path):
    """The server has a session of its own, so the terminal would not end it: we do."""
    home = Home(tmp_path)
    interrupted_start(home, signal.SIGINT)
    assert servers_on(home) == []
    assert not home.milvus_json.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_server_whose_starter_was_killed_is_found_and_stopped(tmp_path, number):
    """A starter that cannot clean up any more has written down what it started: the next start takes it over, stop ends it."""
    home = Home(tmp_path)
    interrupted_start(home, number)
    try:
        (left,) = servers_on(home)
        assert embedded.start(home).pid == left
    finally:
        embedded.stop(home)
    assert servers_on(home) == []
