import threading

import pytest
import sqlalchemy

from feature_store.errors import LeaseError, LedgerError
from feature_store.home import Home
from feature_store.lease import LATE_SECONDS, Leases
from feature_store.ledger import LEDGER_VARIABLE, Ledger, ledger_of
from feature_store.watermarks import Watermark, Watermarks


@pytest.fixture(scope="module")
def postgres(tmp_path_factory):
    """A real PostgreSQL of its own, by URL; skipped where its package is not installed."""
    package = pytest.importorskip("pgserver")
    server = package.get_server(tmp_path_factory.mktemp("postgres"), cleanup_mode="delete")
    yield server.get_uri().replace("postgresql://", "postgresql+psycopg://")
    server.cleanup()


@pytest.fixture(params=["sqlite", "postgresql"])
def where(request, tmp_path):
    """A ledger of each kind, empty."""
    if request.param == "sqlite":
        return tmp_path / "leases.db"
    url = request.getfixturevalue("postgres")
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.pool.NullPool)
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP SCHEMA public CASCADE")
        connection.exec_driver_sql("CREATE SCHEMA public")
    return url


def test_one_writer_at_a_time(where):
    """A second writer is told who writes; after the release it may."""
    leases = Leases(where)
    with leases.hold("view") as lease:
        with pytest.raises(LeaseError, match="being written by"):
            leases.take("view")
        leases.take("another_view").release()
        lease.check()
    assert leases.take("view").token > lease.token


def test_a_paused_writer_finds_out_before_its_next_write(where):
    """A lease that ran out and was taken over cannot be renewed, and its token is the smaller one."""
    slow, quick = Leases(where, lease_seconds=-1), Leases(where)
    old = slow.take("view")
    new = quick.take("view")
    assert new.token > old.token
    with pytest.raises(LeaseError, match="taken over"):
        old.check()
    old.release()
    new.check()


def test_a_lease_that_ran_out_is_kept_while_nobody_wants_it(where):
    """Slowness alone is no reason to lose a load."""
    lease = Leases(where, lease_seconds=-1).take("view")
    lease.check()


def test_a_lease_that_was_not_given_back_is_remembered(where):
    """Its owner may be paused in the middle of a write: the view is loaded in full next. One that was given back leaves nothing."""
    leases = Leases(where)
    with leases.hold("view"):
        pass
    leases.take("view").release()
    assert not leases.has_late("view")
    Leases(leases.where, lease_seconds=-1).take("view")
    assert not leases.has_late("view")
    leases.take("view")
    assert leases.has_late("view")
    leases.forget_late("view", leases.now())
    assert leases.has_late("view")
    leases.forget_late("view", leases.now() + LATE_SECONDS + 1)
    assert not leases.has_late("view")


def test_a_watermark_never_goes_back(where):
    """Two loads that end in the wrong order leave the later mark; forgetting is by project."""
    marks = Watermarks(where)
    assert marks.read("p", "v") is None
    marks.write("p", "v", Watermark(10, 20))
    marks.write("p", "v", Watermark(5, 30))
    marks.write("other", "v", Watermark(1, 1))
    assert marks.read("p", "v") == Watermark(10, 30)
    marks.forget("p")
    assert (marks.read("p", "v"), marks.read("other", "v")) == (None, Watermark(1, 1))


def test_a_watermark_is_of_one_store(where):
    """What one Milvus has loaded says nothing of another; a reader that names no store sees the furthest."""
    one, other = Watermarks(where, "embedded"), Watermarks(where, "http://other:19530/")
    one.write("p", "v", Watermark(10, 20))
    assert other.read("p", "v") is None
    other.write("p", "v", Watermark(30, 5))
    assert (one.read("p", "v"), Watermarks(where).read("p", "v")) == (Watermark(10, 20), Watermark(30, 20))
    other.forget("p")
    assert (one.read("p", "v"), other.read("p", "v")) == (Watermark(10, 20), None)


def test_of_many_writers_one_has_the_lease_at_a_time(where):
    """Twenty threads that open the ledger at once each get the view alone, with tokens that only grow."""
    tokens, inside = [], []

    def write():
        with Leases(where).hold("view", 60.0) as lease:
            inside.append(1)
            assert len(inside) == 1
            tokens.append(lease.token)
            inside.pop()

    threads = [threading.Thread(target=write) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert tokens == sorted(set(tokens))
    assert len(tokens) == 20


def test_the_variable_names_the_ledger(tmp_path, monkeypatch):
    """The variable wins over the home's file."""
    home = Home(tmp_path)
    assert ledger_of(home) == home.leases
    monkeypatch.setenv(LEDGER_VARIABLE, "postgresql://c/d")
    assert ledger_of(home) == "postgresql://c/d"


@pytest.mark.parametrize("url", ["nothing", "mysql://u:secret@h/d", "postgresql+psycopg://u:secret@127.0.0.1:1/d"])
def test_a_ledger_that_cannot_be_used_says_why_and_no_secret(url):
    """Another database, a URL that is none, a server that is not there."""
    with pytest.raises(LedgerError) as error:
        Ledger(url).run("SELECT 1")
    assert "secret" not in str(error.value)
