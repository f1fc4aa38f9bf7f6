"""Nothing listens where Milvus should be, or it dies and does not come back: an error in time, no watermark, and nothing stored is lost."""

import pytest
from fault_bench import VIEW
from fault_process import Worker
from fault_rows import check_holds, check_newest_vectors, make_load, stored
from fault_worker import BATCH_ROWS

from feature_store import embedded
from feature_store.embedded import free_port
from feature_store.watermarks import Watermarks

SHORT = {"retry_seconds": 1.0, "timeout_seconds": 2.0}


def test_a_load_into_nothing_ends_with_what_to_run(bench):
    """The error says how to start a server, and the lease is given back."""
    with bench.worker(uri=f"http://127.0.0.1:{free_port()}", **SHORT) as worker:
        error = worker.result(code=1)
    assert error.startswith("StoreUnavailable")
    assert "triptych up" in error
    bench.leases.take(VIEW).release()
    assert not bench.leases.has_late(VIEW)


def test_a_server_that_dies_and_stays_away_ends_the_load(bench, rng):
    """The writer gives up once its time for retries is over; what it had stored is there after a restart, and a re-run completes."""
    rows = {"load": [bench.seed, 12_000, 6_000]}
    load, at = make_load(*rows["load"]), int(rng.integers(1, 9))
    with bench.worker(**rows, **SHORT) as worker:
        worker.wait_for(f"batch {at}")
        bench.server.kill()
        assert worker.result(code=1).startswith("StoreUnavailable")
        batches = sum(line.startswith("batch") for line in worker.lines)
    bench.server.restart()
    with bench.core() as core:
        assert set(load.take(slice(batches * BATCH_ROWS)).key) <= set(stored(core, VIEW).key)
    with bench.worker(**rows) as again:
        again.result()
    with bench.core() as core:
        check_holds(core, VIEW, load.newest())


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_materialization_without_a_server_moves_no_watermark(feast_bench):
    """Feast's engine fails in the middle of its first load; the one after the server's return loads everything."""
    home, load, order = feast_bench
    marks = Watermarks(home.leases)
    with Worker(apply=True, **SHORT, **order) as first:
        first.wait_for("ready")
        first.go()
        first.wait_for("batch 1")
        embedded.stop(home)
        assert "Milvus" in first.result(code=1)
    assert marks.read("triptych", order["view"]) is None
    embedded.start(home)
    with Worker(**order) as second:
        second.wait_for("ready")
        second.go()
        assert second.result()["total"] == len(load.newest())
    assert marks.read("triptych", order["view"]).created_us == load.created.max()
    check_newest_vectors(embedded.status(home).uri, order["view"], load.newest())
