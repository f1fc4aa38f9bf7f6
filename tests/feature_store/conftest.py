"""Feast in the test's own process: imported once, its own warnings kept out of ours."""

import warnings

import pytest
from standalone import standalone_server

from feature_store.connection import connect


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
    """Address of a Milvus standalone server that lives as long as the test run; skipped where its package is not installed."""
    with standalone_server(tmp_path_factory.mktemp("standalone")) as uri:
        yield uri
