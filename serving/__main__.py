"""`python -m serving` starts the server with its settings from the environment; `triptych serve` does the same with options."""

import asyncio

from feature_store.home import find_home
from serving.logs import configure
from serving.server import Server, serve
from serving.settings import ServeSettings


def announce(server: Server) -> None:
    """Print where the server listens, for people and for scripts."""
    metrics = f", metrics on {server.metrics_address}" if server.metrics_address else ""
    print(f"serving on {server.address} (admin on {server.admin_address}{metrics})", flush=True)


def main() -> None:
    """Run until SIGTERM."""
    settings = ServeSettings()
    configure(settings.log_level)
    asyncio.run(serve(find_home().create(), settings, announce))


if __name__ == "__main__":
    main()
