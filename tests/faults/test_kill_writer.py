"""The writer is killed at random instants of a load, a rebuild or a materialization; the next run ends with every row in its newest version."""

import time
from contextlib import ExitStack

import numpy as np
import pytest
from fault_bench import LEASE_SECONDS, VIEW
from fault_process import Worker
from fault_rows import KEYS, ROWS, check_holds, check_newest_vectors, fault_schema, make_load, stored
from fault_worker import BATCH_ROWS

from feature_store import embedded
from feature_store.lease import Leases
from feature_store.rebuilding import recover
from feature_store.watermarks import Watermarks

BATCHES = ROWS // BATCH_ROWS


def check_kills(bench, rng, kills):
    """After each kill another writer takes over once the lease has ended, and completes the load."""
    for number in range(kills):
        at = int(rng.integers(0, BATCHES))
        with bench.worker(round=number) as worker:
            worker.wait_for(f"batch {at}" if at else "ready")
            time.sleep(rng.uniform(0, 0.2))
            worker.kill()
        with bench.worker(round=number) as again:
            again.result()
        with bench.core() as core:
            check_holds(core, VIEW, bench.load.later(number).newest())


@pytest.mark.timeout(600)
def test_no_row_is_lost_when_the_writer_is_killed(bench, rng):
    """Two kills during loads of 50,000 rows."""
    check_kills(bench, rng, 2)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_no_row_is_lost_in_a_series_of_kills_of_the_writer(bench, rng):
    """Eighteen kills, on a view that holds the rows of the rounds before."""
    check_kills(bench, rng, 18)


def check_feast_kills(feast_bench, rng, kills):
    """Kill materializations of a first load one after the other, then let one end: it goes on with what the others left."""
    home, load, order = feast_bench
    newest, marks = load.newest(), Watermarks(home.leases)
    with ExitStack() as workers:
        # All at once, since importing Feast takes longest; each is let go when the one before is dead.
        started = [workers.enter_context(Worker(apply=not number, **order)) for number in range(kills + 1)]
        for worker in started:
            worker.wait_for("ready")
        for worker in started[:-1]:
            at = int(rng.integers(1, 4))
            worker.go()
            worker.wait_for(f"batch {at}")
            time.sleep(rng.uniform(0, 0.05))
            worker.kill()
            mark = marks.read("triptych", order["view"])
            assert mark is None
        started[-1].go()
        done = started[-1].result()
    assert done["total"] == len(newest)
    assert done["stored"] + done["unchanged"] == len(newest)
    assert marks.read("triptych", order["view"]).created_us == load.created.max()
    check_newest_vectors(embedded.status(home).uri, order["view"], newest)


@pytest.mark.timeout(600)
def test_a_killed_materialization_is_completed_by_the_next(feast_bench, rng):
    """Feast's engine is killed in its first load: no watermark moves, and the next load stores what is missing and counts it."""
    check_feast_kills(feast_bench, rng, 1)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("number", range(3))
def test_materializations_killed_in_a_row_lose_nothing(feast_bench, rng, number):
    """Three kills in a row, three times."""
    check_feast_kills(feast_bench, rng, 3)


def check_rebuild(bench, before):
    """What a killed rebuild left is readable after `recover`, with every row; and the next rebuild completes."""
    with bench.core() as core:
        with bench.leases.hold(VIEW, 60.0):
            recover(core, VIEW)
        assert core.list_views() == [VIEW]
        check_holds(core, VIEW, before)
    with bench.worker("rebuild") as again:
        assert again.result()["rows"] == len(before)
    with bench.core() as core:
        assert sorted(core.describe_view(VIEW, refresh=True).fields) == ["more", "version"]
        check_holds(core, VIEW, before)


@pytest.fixture
def small_view(bench):
    """The view with 5,000 rows, and a way to make it so again."""
    newest = make_load(bench.seed, 6_000, 5_000).newest()

    def fill():
        with bench.core() as core:
            core.drop_view(VIEW)
            core.create_view(fault_schema(VIEW))
            core.upsert(VIEW, newest.table())
        return newest

    return fill


CALLS = range(1, 12)


def calls_of(rng, count):
    """Some of the calls by which a rebuild changes Milvus, so that runs together meet all of them."""
    return sorted(rng.choice(CALLS, count, replace=False).tolist())


def kill_rebuilds(bench, small_view, calls):
    ends = []
    for call in calls:
        before = small_view()
        with bench.worker("rebuild", die_before_call=call) as worker:
            ends.append(worker.process.wait(60.0))
        check_rebuild(bench, before)
    return ends


@pytest.mark.timeout(600)
def test_a_rebuild_killed_before_any_of_its_changes_leaves_a_readable_view(bench, small_view, rng):
    """A kill before a random one of the calls that create, fill, rename, load and drop."""
    kill_rebuilds(bench, small_view, calls_of(rng, 2))


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_rebuild_killed_before_each_of_its_changes_leaves_a_readable_view(bench, small_view):
    """A kill before every one of them; the last call that was tried is beyond the end."""
    ends = kill_rebuilds(bench, small_view, CALLS)
    assert ends[0] == -9
    assert ends[-1] == 0


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_rebuild_outlives_kills_of_milvus(bench, small_view, rng):
    """The server is killed at random instants of a rebuild: the worker rides over or fails, and `recover` has every row."""
    for _ in range(6):
        before = small_view()
        with bench.worker("rebuild", retry_seconds=0.3, timeout_seconds=2.0) as worker:
            worker.wait_for("ready")
            time.sleep(rng.uniform(0, 1.5))
            bench.server.kill()
            bench.server.restart()
            worker.process.wait(60.0)
        check_rebuild(bench, before)


def test_what_a_killed_writer_had_acknowledged_stays(bench, rng):
    """Rows of batches that were handed over and stored are there before any re-run."""
    at = int(rng.integers(2, 8))
    with bench.worker() as worker:
        worker.wait_for(f"batch {at}")
        worker.kill()
    with bench.core() as core:
        found = stored(core, VIEW)
    acknowledged = bench.load.take(slice(at * BATCH_ROWS)).newest()
    assert len(np.unique(found.key)) == len(found)
    kept = found.take(np.isin(found.key, acknowledged.key))
    assert (len(kept), len(found) <= KEYS) == (len(acknowledged), True)
    assert np.all((kept.event > acknowledged.event) | (kept.created >= acknowledged.created))


def test_the_lease_of_a_killed_writer_marks_the_view_for_a_full_load(bench):
    """A write of the dead may arrive late, so the next materialization compares everything."""
    with bench.worker() as worker:
        worker.wait_for("batch 1")
        worker.kill()
    leases = Leases(bench.leases.where, LEASE_SECONDS)
    assert not leases.has_late(VIEW)
    leases.take(VIEW, 60.0).release()
    assert leases.has_late(VIEW)
    assert not leases.has_late("another_view")
