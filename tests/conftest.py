"""Fixtures that several rooms share: a root folder of their own, a real Milvus, and a seed that a failure can be repeated with."""

import os
import secrets

import numpy as np
import prometheus_client  # noqa: F401 - before Feast, whose metrics make every registry of the process share files
import pytest

from feature_store import embedded
from feature_store.connection import DB_VARIABLE, TOKEN_VARIABLE, URI_VARIABLE
from feature_store.home import FEAST_YAML_VARIABLE, HOME_VARIABLE, Home
from feature_store.milvus_core import MilvusCore
from feature_store.tables import Tables

SEED_VARIABLE = "TRIPTYCH_TEST_SEED"
# The last is set by Feast when it is imported, and would reach every server that a test starts.
OTHERS = ("TRIPTYCH_ENCODERS", "TRIPTYCH_LEDGER_URL", "TRIPTYCH_REBUILD", "PROMETHEUS_MULTIPROC_DIR")
# Matrices of tests are small: two threads mostly wait for each other, and on a busy machine for long. Before torch is imported; processes inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
SEED = int(os.environ.get(SEED_VARIABLE) or secrets.randbelow(2**31))
os.environ[SEED_VARIABLE] = str(SEED)  # the processes that share the tests out have one seed


def pytest_report_header():
    """Print the seed; set it to repeat a run."""
    return f"random seed: {SEED} (repeat with {SEED_VARIABLE}={SEED})"


@pytest.fixture
def seed():
    """This run's random seed, printed in the report's header."""
    return SEED


@pytest.fixture
def rng(seed):
    """A generator from this run's seed."""
    return np.random.default_rng(seed)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    """No test sees the root folder, the Milvus or the encoders of the person who runs it."""
    for name in (HOME_VARIABLE, FEAST_YAML_VARIABLE, URI_VARIABLE, TOKEN_VARIABLE, DB_VARIABLE, *OTHERS):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def home(tmp_path, monkeypatch, clean_environment):
    """A root folder with no spaces and empty tables; TRIPTYCH_HOME names it."""
    root = Home(tmp_path / "home").create()
    root.spaces.write_text("spaces: []\n")
    Tables(root).ensure()
    monkeypatch.setenv(HOME_VARIABLE, str(root.root))
    return root


@pytest.fixture(scope="session")
def milvus_server(tmp_path_factory):
    """Address of an embedded Milvus Lite server that lives as long as the test run."""
    root = Home(tmp_path_factory.mktemp("milvus"))
    yield embedded.start(root).uri
    embedded.stop(root)


@pytest.fixture
def core(milvus_server):
    """A core on the embedded server; views that the test leaves behind are dropped."""
    with MilvusCore(milvus_server) as connection:
        before = set(connection.list_views())
        yield connection
        for name in set(connection.list_views()) - before:
            connection.drop_view(name)


@pytest.fixture
def live_home(home, core, milvus_server, monkeypatch):
    """`home`, with TRIPTYCH_MILVUS_URI naming the embedded server."""
    monkeypatch.setenv(URI_VARIABLE, milvus_server)
    return home


@pytest.fixture
def unit_vectors(rng):
    """Make random float32 vectors [count, dim] of unit norm."""

    def make(count, dim):
        vectors = rng.standard_normal((count, dim)).astype(np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    return make
