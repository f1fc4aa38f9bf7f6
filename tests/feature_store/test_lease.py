import time

import pytest

from feature_store.errors import LeaseError
from feature_store.lease import LATE_SECONDS, Leases
from feature_store.watermarks import Watermark, Watermarks


def test_one_writer_at_a_time(tmp_path):
    """A second writer is told who writes; after the release it may."""
    leases = Leases(tmp_path / "leases.db")
    with leases.hold("view") as lease:
        with pytest.raises(LeaseError, match="being written by"):
            leases.take("view")
        leases.take("another_view").release()
        lease.check()
    assert leases.take("view").token > lease.token


def test_a_paused_writer_finds_out_before_its_next_write(tmp_path):
    """A lease that ran out and was taken over cannot be renewed, and its token is the smaller one."""
    slow, quick = Leases(tmp_path / "leases.db", lease_seconds=-1), Leases(tmp_path / "leases.db")
    old = slow.take("view")
    new = quick.take("view")
    assert new.token > old.token
    with pytest.raises(LeaseError, match="taken over"):
        old.check()
    old.release()
    new.check()


def test_a_lease_that_ran_out_is_kept_while_nobody_wants_it(tmp_path):
    """Slowness alone is no reason to lose a load."""
    lease = Leases(tmp_path / "leases.db", lease_seconds=-1).take("view")
    lease.check()


def test_a_lease_that_was_not_given_back_is_remembered(tmp_path):
    """Its owner may be paused in the middle of a write: the view is loaded in full, until a minute later too. One that was given back leaves nothing."""
    leases = Leases(tmp_path / "leases.db")
    with leases.hold("view"):
        pass
    leases.take("view").release()
    assert not leases.has_late("view")
    Leases(leases.path, lease_seconds=-1).take("view")
    assert not leases.has_late("view")
    leases.take("view")
    assert leases.has_late("view")
    leases.forget_late("view", time.time())
    assert leases.has_late("view")
    leases.forget_late("view", time.time() + LATE_SECONDS + 1)
    assert not leases.has_late("view")


def test_a_watermark_never_goes_back(tmp_path):
    """Two loads that end in the wrong order leave the later mark; forgetting is by project."""
    marks = Watermarks(tmp_path / "leases.db")
    assert marks.read("p", "v") is None
    marks.write("p", "v", Watermark(10, 20))
    marks.write("p", "v", Watermark(5, 30))
    marks.write("other", "v", Watermark(1, 1))
    assert marks.read("p", "v") == Watermark(10, 30)
    marks.forget("p")
    assert (marks.read("p", "v"), marks.read("other", "v")) == (None, Watermark(1, 1))


def test_a_watermark_is_of_one_store(tmp_path):
    """What one Milvus has loaded says nothing of another; a reader that names no store sees the furthest."""
    path = tmp_path / "leases.db"
    one, other = Watermarks(path, "embedded"), Watermarks(path, "http://other:19530/")
    one.write("p", "v", Watermark(10, 20))
    assert other.read("p", "v") is None
    other.write("p", "v", Watermark(30, 5))
    assert (one.read("p", "v"), Watermarks(path).read("p", "v")) == (Watermark(10, 20), Watermark(30, 20))
    other.forget("p")
    assert (one.read("p", "v"), other.read("p", "v")) == (Watermark(10, 20), None)
