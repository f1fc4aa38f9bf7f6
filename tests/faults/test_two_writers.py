"""Two writers of one view, in processes of their own: newest wins, and what a paused one can still do is noticed and mended.

What is promised, and what is not, is said in `docs/decisions/014-one-writer-per-view.md`.
"""

import signal
import threading
import time
import warnings
from dataclasses import replace

import numpy as np
import pytest
from fault_bench import VIEW, write_versions
from fault_process import Worker
from fault_rows import check_holds, check_newest_vectors, fault_schema, make_load, stored

from feature_store import embedded, writing
from feature_store.errors import LeaseError, RefusedRowsError
from feature_store.lease import Leases
from feature_store.spaces import read_entries
from feature_store.tables import Tables
from feature_store.writing import ViewWriter

ROWS, KEYS = 6_000, 3_000


@pytest.fixture
def small(bench):
    """The bench with a load of 6,000 rows."""
    object.__setattr__(bench, "rows", ROWS)
    return bench


def small_load(bench):
    return make_load(bench.seed, ROWS, KEYS)


def worker(bench, what="load", **order):
    return bench.worker(what, load=[bench.seed, ROWS, KEYS], **order)


@pytest.mark.timeout(300)
def test_interleaved_writers_end_with_the_newest_of_both(small):
    """Two processes take turns with rows of the same ids and mixed times: the newest version of each is there, and no late write is noted."""
    with worker(small, part=[0, None, 2], turns=True) as one, worker(small, part=[1, None, 2], turns=True) as other:
        done = [one.result(), other.result()]
    assert sum(each["stored"] for each in done) >= KEYS
    with small.core() as core:
        check_holds(core, VIEW, small_load(small).newest())
    assert not small.leases.has_late(VIEW)


def paused_past_its_lease(bench, point, at, let_the_lease_end, **order):
    """A writer that pauses at a point; once its lease is over a second one writes newer rows; then the first is resumed. Its end."""
    with worker(bench, pause=[point, at], **order) as first:
        first.wait_stopped()
        let_the_lease_end()
        with worker(bench, round=1) as second:
            second.result()
        bench.leases.forget_late(VIEW)  # that the lease was not given back is another test's matter
        first.resume()
        first.process.wait(60.0)
        return first.process.returncode, first.lines[-1]


def test_a_writer_paused_before_its_check_writes_nothing(small, rng, let_the_lease_end):
    """It finds that its lease was taken over, and every row is the second writer's."""
    at = int(rng.integers(1, 6))
    code, last = paused_past_its_lease(small, "check", at, let_the_lease_end)
    assert (code, "LeaseError" in last, "taken over" in last) == (1, True, True)
    with small.core() as core:
        check_holds(core, VIEW, small_load(small).later(1).newest())
    assert not small.leases.has_late(VIEW)


def test_a_writer_paused_between_check_and_send_is_told_and_the_view_is_marked(small, rng, let_the_lease_end):
    """Its request cannot be stopped any more: it puts older rows over newer ones, says so, and leaves a mark for a full load."""
    at = int(rng.integers(1, 6))
    code, last = paused_past_its_lease(small, "send", at, let_the_lease_end)
    assert (code, "LateWriteError" in last, VIEW in last) == (1, True, True)
    assert small.leases.has_late(VIEW)
    wanted = small_load(small).later(1).newest()
    with small.core() as core:
        found = stored(core, VIEW)
        np.testing.assert_array_equal(found.key, wanted.key)
        assert (found.event < wanted.event).any()
        core.upsert(VIEW, wanted.table())  # what a full load does
        check_holds(core, VIEW, wanted)


def test_a_writer_paused_after_its_write_is_told_too(small, rng, let_the_lease_end):
    """Its rows came before those of the second writer, which it cannot know: the same error, and no harm."""
    at = int(rng.integers(1, 6))
    code, last = paused_past_its_lease(small, "confirm", at, let_the_lease_end)
    assert (code, "LateWriteError" in last) == (1, True)
    assert small.leases.has_late(VIEW)
    with small.core() as core:
        check_holds(core, VIEW, small_load(small).later(1).newest())


def test_what_is_not_noticed_is_a_writer_that_is_resumed_to_send_and_then_killed(small, let_the_lease_end):
    """The window that remains: it neither confirms nor is taken over again. The mark of the take-over is all that tells of it."""
    with worker(small, pause=["send", 2], die_before_confirm=2) as first:
        first.wait_stopped()
        let_the_lease_end()
        with worker(small, round=1) as second:
            second.result()
        assert small.leases.has_late(VIEW)
        first.resume()
        assert first.process.wait(60.0) == -9
    wanted = small_load(small).later(1).newest()
    with small.core() as core:
        assert (stored(core, VIEW).event < wanted.event).any()
        assert small.leases.has_late(VIEW)
        core.upsert(VIEW, wanted.table())
        check_holds(core, VIEW, wanted)


def test_a_rebuild_that_lost_its_lease_takes_nobodys_rows(small, let_the_lease_end):
    """Paused before its swap, while another writer stores newer rows in the old collection: that one stays, with them."""
    with worker(small) as first:
        first.result()
    code, last = paused_past_its_lease(small, "swap", 1, let_the_lease_end, what="rebuild")
    assert (code, "taken over before the swap" in last) == (1, True)
    with small.core() as core:
        assert core.describe_view(VIEW, refresh=True) == fault_schema(VIEW)
        check_holds(core, VIEW, small_load(small).later(1).newest())


def test_a_writer_that_fails_waits_for_what_it_sent_before_another_may_write(small, monkeypatch):
    """Rows are refused while a request is under way on a server that does not answer: the lease is kept until it has."""
    leases, rows = Leases(small.leases.where, lease_seconds=30.0), small_load(small).newest()
    bad = rows.take(np.flatnonzero(~rows.deleted)[-1:])
    bad.vectors[:] = np.nan
    # The first two of four requests are under way when the bad row comes.
    monkeypatch.setattr(writing, "WRITE_ROWS_PER_REQUEST", 250)
    failed = []

    def write():
        try:
            with (
                small.core() as core,
                leases.hold(VIEW) as lease,
                ViewWriter(core, VIEW, lease, distinct=True) as writer,
            ):
                small.server.signal(signal.SIGSTOP)
                writer.write(rows.take(slice(1_000)).table())
                writer.write(bad.table())
        except RefusedRowsError as error:
            failed.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    time.sleep(1.0)
    try:
        with pytest.raises(LeaseError, match="being written"):
            leases.take(VIEW)
    finally:
        small.server.signal(signal.SIGCONT)
    thread.join()
    assert len(failed) == 1
    with small.core() as core:
        check_holds(core, VIEW, rows.take(slice(500)))
    leases.take(VIEW).release()
    assert not leases.has_late(VIEW)


@pytest.fixture
def materialize():
    """`feast_cli.materialize` in the test's own process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from feature_store import feast_cli

        def run(home, view):
            return feast_cli.materialize(home, views=[view])[view]

        yield run


@pytest.mark.timeout(300)
@pytest.mark.parametrize("feast_bench", [(1_500, 1_000)], indirect=True)
def test_the_next_materialization_mends_a_late_write(feast_bench, materialize):
    """A paused materialization puts older rows over newer ones, and fails; the next one sees the mark, loads all, and every row is newest."""
    home, load, order = feast_bench
    view, leases = order["view"], Leases(home.leases)
    newest = replace(load.newest().later(1), created=len(load) + load.newest().created)
    # A request lives no longer than its lease had left: here long enough for a slow machine.
    with Worker(apply=True, pause=["send", 1], **{**order, "lease_seconds": 12.0}) as first:
        first.wait_for("ready")
        first.go()
        first.wait_stopped()
        write_versions(Tables(home), read_entries(home)[0].space, newest)
        assert materialize(home, view).total == len(newest)
        uri = embedded.status(home).uri
        check_newest_vectors(uri, view, newest)
        leases.forget_late(view)  # noted when the lease was taken over
        first.resume()
        assert first.result(code=1).startswith("LateWriteError")
    assert leases.has_late(view)
    mended = materialize(home, view)
    assert mended.stored > 0
    assert mended.stored + mended.unchanged == len(newest)
    check_newest_vectors(uri, view, newest)
    assert leases.has_late(view)  # for a minute: until no server can have such a request any more
    assert materialize(home, view).unchanged == len(newest)
