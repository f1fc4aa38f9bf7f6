"""The server, view and home that the tests of faults share."""

import time
from pathlib import Path

import pytest
from fault_bench import LEASE_SECONDS, Bench, KillableLite, write_versions
from fault_rows import DIM, make_load

from encoders.space import EmbeddingSpace
from feature_store import embedded
from feature_store.home import Home
from feature_store.lease import Leases
from feature_store.spaces import register_spaces, view_name
from feature_store.tables import Tables


@pytest.fixture(scope="session")
def lite(tmp_path_factory):
    """An embedded server for tests that kill it."""
    server = KillableLite(Home(tmp_path_factory.mktemp("killable")).create())
    yield server
    server.stop()


@pytest.fixture
def bench(lite, tmp_path, seed):
    """The view, empty, on the embedded server."""
    there = Bench(lite, Leases(Path(tmp_path) / "leases.db", LEASE_SECONDS), seed)
    there.create()
    yield there
    with there.core() as core:
        for name in core.list_views():
            core.drop_view(name)


@pytest.fixture
def let_the_lease_end():
    """Wait until the lease of a killed or paused writer has run out."""
    return lambda: time.sleep(LEASE_SECONDS + 0.2)


@pytest.fixture
def feast_bench(tmp_path, seed, request):
    """A home of its own with a space of 50,000 vectors (or so many rows of so many ids), its server, and the orders of its workers."""
    home = Home(tmp_path / "home").create()
    home.spaces.write_text("spaces: []\n")
    space = EmbeddingSpace.from_recipe("text", "faults", DIM, {"weights": "none"})
    register_spaces(home, [space])
    load = make_load(seed, *getattr(request, "param", ()))
    tables = Tables(home)
    tables.ensure()
    write_versions(tables, space, load)
    order = {"what": "feast", "home": str(home.root), "lease_seconds": LEASE_SECONDS}
    embedded.start(home)
    yield home, load, {**order, "view": view_name("item", space.space_id)}
    embedded.stop(home)
