"""Two writers of one view, in processes of their own: newest wins, and what a paused one can still do is noticed and mended.

What is promised, and what is not, is said in `docs/decisions/014-one-writer-per-view.md`.
"""

import numpy as np
import pytest
from conftest import VIEW
from fault_rows import check_holds, fault_schema, make_load, stored

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
