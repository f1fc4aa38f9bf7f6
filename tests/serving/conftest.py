from collections.abc import Iterator

import pytest

from feature_store import embedded
from tests.serving.world import Running, World, make_world, new_client, running
from triptych.client import Client


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> Iterator[World]:
    """A filled home with a running Milvus Lite."""
    made = make_world(tmp_path_factory.mktemp("serving") / "home")
    yield made
    embedded.stop(made.home)


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
