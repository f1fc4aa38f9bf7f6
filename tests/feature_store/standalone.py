"""A real Milvus standalone server (PyPI `milvus`) for tests: its own folder and ports, stopped by the process that started it."""

import subprocess
import warnings
from contextlib import contextmanager

import pytest
import yaml

from feature_store.embedded import free_port, wait_until_healthy

START_SECONDS = 120.0  # 10 where nothing else runs


def etcd_config(folder, client_port):
    """Ports of its own for the etcd inside the server, whose usual ones another server on this machine may have."""
    peer = f"http://127.0.0.1:{free_port()}"
    client = f"http://127.0.0.1:{client_port}"
    settings = {
        "name": "default",
        "data-dir": str(folder / "etcd"),
        "listen-client-urls": client,
        "advertise-client-urls": client,
        "listen-peer-urls": peer,
        "initial-advertise-peer-urls": peer,
        "initial-cluster": f"default={peer}",
    }
    path = folder / "etcd.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@contextmanager
def standalone_server(folder, wait=wait_until_healthy, **settings):
    """Address of a server on `folder` for the length of a `with` block; the data stay there. `settings` are its template's.

    Skips the test where the package is not installed.
    """
    package = pytest.importorskip("milvus")
    config = package.MilvusServerConfig()
    # Ports of its own for every part: the package's usual ones may be those of another server on this machine.
    ports = {name: free_port() for name in config.configurable_items if name.endswith("_port")}
    server = package.MilvusServer(config, wait_for_started=False, **ports)
    server.webservice_port = free_port()
    for name, value in settings.items():
        server.config.set(name, value)
    server.set_base_dir(str(folder))
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # the package leaves its probes of ports to the collector
        patch.setenv("ETCD_CONFIG_PATH", str(etcd_config(folder, ports["etcd_port"])))
        server.start()
    uri = f"http://127.0.0.1:{server.listen_port}"
    try:
        wait(uri, START_SECONDS)
        yield uri
    finally:
        process = server.server_proc
        try:
            server.stop()
        except subprocess.TimeoutExpired:  # the package waits for four seconds, and a busy machine takes longer
            process.kill()
            process.wait(START_SECONDS)
