"""Something between a client and a server: a TLS end with a certificate of its own, a counter of connections, or silence."""

import socket
import ssl
import subprocess
import threading
from contextlib import contextmanager, suppress

CHUNK_BYTES = 1 << 16


def certificate(folder, name="server"):
    """(certificate, key, authority) as PEM files: a new authority, and a certificate for 127.0.0.1 that it signed."""
    folder.mkdir(parents=True, exist_ok=True)
    ca, ca_key = folder / f"{name}_ca.pem", folder / f"{name}_ca.key"
    cert, key, asked = folder / f"{name}.pem", folder / f"{name}.key", folder / f"{name}.csr"
    extensions = folder / f"{name}.ext"
    extensions.write_text("subjectAltName=IP:127.0.0.1\n")
    new = ["openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    _run(*new, "-x509", "-days", "2", "-subj", f"/CN={name} authority", "-keyout", ca_key, "-out", ca)
    _run(*new, "-subj", "/CN=127.0.0.1", "-keyout", key, "-out", asked)
    signed = ["openssl", "x509", "-req", "-days", "2", "-CAcreateserial", "-extfile", extensions]
    _run(*signed, "-in", asked, "-CA", ca, "-CAkey", ca_key, "-out", cert)
    return cert, key, ca


def _run(*command):
    subprocess.run([str(part) for part in command], check=True, capture_output=True)


class Proxy:
    """Passes bytes on to a server, and counts the connections; a `with` block long."""

    def __init__(self, target, context=None):
        self.connections = 0
        self._host, self._port = target.removeprefix("http://").split(":")
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets = [self._listener]
        self._threads = []

    @property
    def address(self):
        """host:port."""
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self):
        self._start(self._accept)
        return self

    def __exit__(self, *exc):
        for each in self._sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        for thread in self._threads:
            thread.join(timeout=5.0)

    def _start(self, work, *args):
        thread = threading.Thread(target=work, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self):
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._start(self._serve, client)

    def _serve(self, client):
        self._sockets.append(client)
        try:
            if self._context is not None:
                client = self._context.wrap_socket(client, server_side=True)
                self._sockets.append(client)
            server = socket.create_connection((self._host, int(self._port)))
        except OSError:  # a client that does not trust us
            client.close()
            return
        self.connections += 1
        self._sockets.append(server)
        self._start(_pump, client, server)
        _pump(server, client)


def _pump(source, target):
    with suppress(OSError, ValueError):
        while data := source.recv(CHUNK_BYTES):
            target.sendall(data)
    for each in (source, target):
        with suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)


def tls_proxy(target, cert, key):
    """A TLS end in front of a server that has none."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    context.set_alpn_protocols(["h2"])
    return Proxy(target, context)


@contextmanager
def silence():
    """Address of a server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
