import os
from collections.abc import Iterator

import pytest

from feature_store import embedded
from feature_store.home import Home
from tests.serving.world import Running, World, make_world, new_client, running
from triptych.client import Client

DATA = "TRIPTYCH_DATA"


@pytest.fixture(scope="session", autouse=True)
def plain_environment() -> Iterator[None]:
    """Server processes see neither the root folder, nor the Milvus, nor the encoders of the person who runs the tests.

    Where the data sets lie stays: this lasts to the end of the run, and tests of other folders may come after.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("TRIPTYCH_") and name != DATA]:
            patch.delenv(name)
        yield


@pytest.fixture(scope="session")
def world(tmp_path_factory, plain_environment) -> Iterator[World]:
    """A filled home with a running Milvus Lite."""
    root = tmp_path_factory.mktemp("serving") / "home"
    try:
        yield make_world(root)
    finally:
        embedded.stop(Home(root))


@pytest.fixture(scope="session")
def server(world) -> Iterator[Running]:
    """One server process for all tests; `-X importtime` lists on stderr everything that it imports."""
    command = ("-X", "importtime", "-m", "triptych", "serve")
    quick = {"TRIPTYCH_SERVE_REFRESH_SECONDS": "0.5", "TRIPTYCH_SERVE_STORE_RETRY_SECONDS": "0.3"}
    with running(world.home, "server", *command, **quick) as one:
        yield one


@pytest.fixture(scope="session")
def client(server) -> Iterator[Client]:
    """A client of the shared server."""
    with new_client(server) as one:
        yield one
