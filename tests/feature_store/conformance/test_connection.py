"""The connection: who may connect and how, what is said when nobody answers, and that secrets stay secret."""

import asyncio
import logging
import time

import pytest
from proxies import Proxy, certificate, silence, tls_proxy
from pymilvus.grpc_gen import milvus_pb2
from standalone import standalone_server
from stores import MISSING, key, row, title, titles_of, triptych_store, types, view_of

from feature_store import embedded
from feature_store.errors import FeatureStoreError, StoreUnavailable
from feature_store.feast_online import store_of
from feature_store.home import Home
from feature_store.milvus_core import MilvusCore

SECRET = "swordfish"
WAYS = {
    "token": {"token": SECRET},
    "password": {"user": "root", "password": SECRET},
    "uri": {"uri": f"http://root:{SECRET}@HOST"},
    "token_of_two": {"token": f"root:{SECRET}"},
}


@pytest.fixture
def opened(tmp_path):
    """Make stores on an address, with settings, that are closed in the end."""
    made = []

    def make(uri, **settings):
        made.append(triptych_store("opened", tmp_path, **{"uri": uri, **settings}))
        return made[-1]

    yield make
    for store in made:
        asyncio.run(store.online.close())


def failures(store, view):
    """What every call says where the server does not answer."""
    calls = [
        lambda: store.read(view, ["a"]),
        lambda: asyncio.run(store.online.online_read_async(store.config, view, [key("a")], ["title"])),
        lambda: store.apply(view),
        lambda: store.online.teardown(store.config, [view], []),
        lambda: store.online.delete(store.config, view, ["a"]),
    ]
    for call in calls:
        with pytest.raises(StoreUnavailable) as failed:
            call()
        yield str(failed.value)


@pytest.mark.parametrize("way", WAYS)
def test_secrets_are_in_no_repr_log_or_error(opened, milvus_server, way, caplog, capfd):
    """However they are given: not in the settings' text, nor the store's, nor any error's, nor in what is logged or stored."""
    caplog.set_level(logging.DEBUG)
    settings = {name: text.replace("HOST", milvus_server.removeprefix("http://")) for name, text in WAYS[way].items()}
    store = opened(settings.pop("uri", milvus_server), **settings)
    view = view_of("never_there", {"title": types.String})
    core = store.online.core(store.config)
    # Not Feast's own `RepoConfig`, which keeps what the YAML file said as it was said.
    said = [repr(store.config.online_store), str(store.config.online_store)]
    said += [repr(store.online), repr(core), repr(core.channel), store_of(store.config)]
    with pytest.raises(FeatureStoreError) as missing:
        store.read(view, ["a"])
    with silence() as address:
        uri = address.replace("http://", f"http://root:{SECRET}@") if way == "uri" else address
        nobody = opened(uri, timeout_seconds=0.2, **settings)
        said += [str(missing.value), *failures(nobody, view)]
    with pytest.raises(StoreUnavailable) as wrong:
        opened(f"ftp://root:{SECRET}@nowhere", **settings).read(view, ["a"])
    said += [str(wrong.value), repr(wrong.value), caplog.text, *capfd.readouterr()]
    assert not [text for text in said if SECRET in text]


def test_settings_that_are_wrong_do_not_show_the_secret(tmp_path):
    """A mistake elsewhere in the settings is told without them."""
    with pytest.raises(Exception, match="channels") as wrong:
        triptych_store("wrong", tmp_path, "http://127.0.0.1:1", password=SECRET, channels="many")
    assert SECRET not in str(wrong.value)


def test_a_server_that_does_not_answer_is_named(opened):
    """Within the timeout, by every call, with what to do."""
    view = view_of("things", {"title": types.String})
    with silence() as address:
        store = opened(address, timeout_seconds=0.3)
        for said in failures(store, view):
            assert address in said
            assert "triptych up" in said


def test_an_address_where_nobody_listens_is_named(opened):
    """A refused connection is told at once."""
    with silence() as address:
        pass
    for said in failures(opened(address, timeout_seconds=5.0), view_of("things", {"title": types.String})):
        assert address in said


def test_channels_are_used_in_turn(opened, milvus_server):
    """`channels` is the number of connections."""
    with Proxy(milvus_server) as proxy:
        store = opened(f"http://{proxy.address}", channels=3)
        core = store.online.core(store.config)
        for _ in range(9):
            core.list_views()
        assert proxy.connections == 3
        core.close()


def test_tls_with_an_authority_of_ones_own(opened, milvus_server, tmp_path):
    """With the CA's file rows are written and read over TLS, by the event loop too; https alone, or another CA, is refused."""
    cert, cert_key, ca = certificate(tmp_path / "tls")
    _, _, other_ca = certificate(tmp_path / "tls", "other")
    with tls_proxy(milvus_server, cert, cert_key) as proxy:
        store = opened(f"https://{proxy.address}", ca_file=str(ca))
        view = store.made({"title": types.String})
        store.write(view, row("a", title("A")))
        assert titles_of(store, view, ["a"]) == ["A"]
        ((_, found),) = asyncio.run(store.online.online_read_async(store.config, view, [key("a")], ["title"]))
        assert found == title("A")
        store.online.teardown(store.config, [view], [])
        trusted = proxy.connections
        assert trusted > 0
        for settings in ({"ca_file": str(other_ca)}, {}):
            stranger = opened(f"https://{proxy.address}", timeout_seconds=2.0, **settings)
            with pytest.raises(StoreUnavailable, match=proxy.address):
                stranger.read(view, ["a"])
        assert proxy.connections == trusted


def test_a_ca_file_that_is_not_there_is_named(opened, tmp_path):
    """It is the file's fault, not the server's."""
    store = opened("https://127.0.0.1:1", ca_file=str(tmp_path / "nowhere.pem"))
    with pytest.raises(StoreUnavailable, match=r"CA file .*nowhere\.pem"):
        store.read(view_of("things", {"title": types.String}), ["a"])


def test_a_database_holds_views_of_its_own(opened, standalone_store):
    """The same view in two databases has different rows; a database that is not there is an error that names it."""
    uri, view = standalone_store.config.online_store.uri, standalone_store.views["titles"]
    core = standalone_store.online.core(standalone_store.config)
    core.channel.call("CreateDatabase", milvus_pb2.CreateDatabaseRequest(db_name="other"))
    other = opened(uri, db_name="other")
    other.apply(view)
    standalone_store.write(view, row("in_default", title("default")))
    other.write(view, row("in_other", title("other")))
    assert other.read(view, ["in_default"]) == [MISSING]
    assert titles_of(other, view, ["in_other"]) == ["other"]
    assert standalone_store.read(view, ["in_other"]) == [MISSING]
    with pytest.raises(FeatureStoreError, match="nowhere"):
        opened(uri, db_name="nowhere").read(view, ["a"])
    other.online.teardown(other.config, [view], [])
    assert view.name in core.list_views()
    core.channel.call("DropDatabase", milvus_pb2.DropDatabaseRequest(db_name="other"))


def test_views_are_found_and_loaded_again_after_a_restart(opened, tmp_path):
    """The embedded server stops and starts: the same store goes on, rows are there, reads, writes and searches work."""
    home = Home(tmp_path / "restarted")
    uri = embedded.start(home).uri
    try:
        store = opened(uri)
        view = store.made({"title": types.String})
        store.write(view, row("a", title("A")))
        embedded.stop(home)
        assert embedded.start(home).uri == uri
        assert titles_of(store.reopened(), view, ["a"]) == ["A"]
        embedded.stop(home)
        embedded.start(home)
        deadline = time.monotonic() + 20.0
        while not store.online.core(store.config).healthy():  # gRPC tries a lost connection again within a second
            assert time.monotonic() < deadline
        assert titles_of(store, view, ["a", "b"]) == ["A", None]
        store.write(view, row("b", title("B")))
        assert titles_of(store, view, ["a", "b"]) == ["A", "B"]
    finally:
        embedded.stop(home)


def wait_for_login(token, ca):
    """A wait until the server answers somebody whom it knows."""

    def answers(uri):
        with MilvusCore(uri.replace("http://", "https://"), token=token, ca_file=str(ca), timeout_seconds=2.0) as core:
            return core.healthy()

    def wait(uri, seconds):
        deadline = time.monotonic() + seconds
        while not answers(uri):
            assert time.monotonic() < deadline, f"{uri} did not come up"
            time.sleep(0.2)

    return wait


@pytest.mark.long
def test_a_server_with_accounts_and_tls(opened, tmp_path):
    """Milvus's own accounts and TLS: the right name and password, in three ways, may; the wrong or none may not.

    And after a restart the rows are there without anybody loading them.
    """
    cert, cert_key, ca = certificate(tmp_path / "tls")
    settings = {
        "authorization_enabled": True,
        "tls_mode": 1,
        "server_pem_path": str(cert),
        "server_key_path": str(cert_key),
        "ca_pem_path": str(ca),
    }
    data, token = tmp_path / "server", "root:Milvus"
    data.mkdir()
    view = view_of("things", {"title": types.String})
    with standalone_server(data, wait_for_login(token, ca), **settings) as uri:
        address = uri.removeprefix("http://")
        ways = [
            {"uri": f"https://{address}", "token": token},
            {"uri": f"https://{address}", "user": "root", "password": "Milvus"},
            {"uri": f"https://{token}@{address}"},
        ]
        for number, way in enumerate(ways):
            store = opened(**way, ca_file=str(ca))
            store.apply(view)
            store.write(view, row(f"i{number}", title(str(number))))
            assert titles_of(store, view, [f"i{number}"]) == [str(number)]
        for wrong in ({}, {"token": f"root:{SECRET}"}, {"user": "nobody", "password": SECRET}):
            with pytest.raises(FeatureStoreError) as refused:
                opened(f"https://{address}", ca_file=str(ca), **wrong).read(view, ["i0"])
            assert SECRET not in str(refused.value)
        store.online.core(store.config).flush(view.name)
    with standalone_server(data, wait_for_login(token, ca), **settings) as uri:
        # Milvus brings a collection back in its own time; here other tests have the machine too.
        again = opened(uri.replace("http://", "https://"), token=token, ca_file=str(ca), timeout_seconds=60.0)
        assert titles_of(again, view, ["i2", "i0", "none"]) == ["2", "0", None]
