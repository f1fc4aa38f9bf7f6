"""`triptych serve`: the gRPC server, in the foreground."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from triptych.console import EXIT_USAGE, console, fail

if TYPE_CHECKING:
    from serving.server import Server

app = typer.Typer(add_completion=False)


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on. [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 lets the system choose. [default: 50051]")] = None,
    admin_port: Annotated[
        int | None, typer.Option(help="Port of AdminService. [default: chosen by the system]")
    ] = None,
    metrics_port: Annotated[
        int | None, typer.Option(help="Port of the metrics for Prometheus. [default: chosen by the system]")
    ] = None,
    metrics: Annotated[
        bool | None, typer.Option("--metrics/--no-metrics", help="Tell metrics at all. [default: --metrics]")
    ] = None,
    encoders: Annotated[
        str | None,
        typer.Option(help="`bundled`, `zh`, `hub` or a YAML file. [default: TRIPTYCH_ENCODERS, else bundled]"),
    ] = None,
    home: Annotated[Path | None, typer.Option(help="Root folder. [default: as TRIPTYCH_HOME says]")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error. [default: info]")] = None,
) -> None:
    """Serve embeddings, retrieval, ranking and feedback over gRPC, until SIGTERM or Ctrl-C.

    Prints its addresses once it is SERVING and writes them to `serve.json` in the root folder. Starts without a model or
    a vector store too: it embeds and records then, and ranks as soon as both are there. Every setting is also an environment
    variable, `TRIPTYCH_SERVE_PORT` and so on; options win. Logs go to stderr.

    Check it with `triptych client models`, or `grpcurl -plaintext 127.0.0.1:50051 list`.
    """
    import asyncio

    from pydantic import ValidationError

    from feature_store.home import Home, find_home
    from serving.errors import ServingError
    from serving.logs import configure
    from serving.server import serve as run
    from serving.settings import ServeSettings

    given: dict[str, Any] = {
        "host": host,
        "port": port,
        "admin_port": admin_port,
        "metrics_port": metrics_port,
        "metrics": metrics,
        "encoders": encoders,
        "log_level": log_level,
    }
    try:
        settings = ServeSettings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        wrong = (f"{'.'.join(map(str, one['loc']))}: {one['msg']}, not {one['input']!r}" for one in error.errors())
        fail("; ".join(wrong), EXIT_USAGE)
    configure(settings.log_level)
    root = Home(home.expanduser().resolve()) if home else find_home()
    try:
        asyncio.run(run(root.create(), settings, announce))
    except ServingError as error:
        fail(error)


def announce(server: "Server") -> None:
    """Print where the server listens, for people and for scripts."""
    metrics = f", metrics on {server.metrics_address}" if server.metrics_address else ""
    console.print(f"serving on {server.address} (admin on {server.admin_address}{metrics})", highlight=False)
    if not server.models.ready:
        console.print("no model is stable yet, or no vectors are loaded: Rank will say what is missing", style="yellow")
