"""Feast in the test's own process: imported once, its own warnings kept out of ours."""

import contextlib
import warnings
from pathlib import Path

import pytest
from standalone import standalone_server

from feature_store.connection import connect

HERE = Path(__file__).parent
SERVERS = contextlib.ExitStack()  # standalone servers that run


@pytest.fixture(scope="session")
def feast_package():
    """Feast, imported with its warnings off: they are about itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import feast

        from feature_store import feast_engine, feast_online, feast_training  # noqa: F401 - for their imports

        return feast


@pytest.fixture
def feast_home(live_home, feast_package):
    """A root whose definitions can be applied, on the embedded server."""
    return live_home


@pytest.fixture
def feast_core(feast_home, core):
    """The connection that the plug-in of `feast_home` uses too."""
    with connect(feast_home) as connection:
        yield connection


@pytest.fixture(scope="session")
def standalone_uri(tmp_path_factory):
    """Address of a Milvus standalone server that lives as long as the tests of this folder; skipped where its package is not installed."""
    # Reads of one's own writes wait for Milvus's clock to tick, in milliseconds: tests have many.
    server = standalone_server(tmp_path_factory.mktemp("standalone"), **{"proxy.timeTickInterval": 20})
    return SERVERS.enter_context(server)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(nextitem):
    """Stop the server with this folder's last test: idle, it takes half a core from all tests that come after."""
    if nextitem is None or HERE not in nextitem.path.parents:
        SERVERS.close()
