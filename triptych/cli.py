"""The `triptych` command: a table of verbs, each in a file of its own that is imported only when it is called.

Exit codes: 0 all well, 1 failed with nothing half-done, 2 wrong usage, 3 done with quarantined or degraded parts.
"""

import importlib
import sys
from typing import Annotated, Final

import click
import typer
from typer.core import TyperGroup
from typer.main import get_command

from triptych import __version__
from triptych.console import err

# verb -> the line `triptych --help` shows for it, so that help costs no import of the verbs.
VERBS: Final = {
    "up": "Start the embedded Milvus and prepare the root folder.",
    "down": "Stop the embedded Milvus.",
    "status": "Show what runs, what is stored and which model is stable.",
    "doctor": "Check this machine: packages, encoders, disk, ports, the store.",
    "ingest": "Read a catalogue manifest, check and encode its media, write the offline tables.",
    "users": "Turn interactions into histories and user vectors.",
    "materialize": "Apply the Feast definitions and load what is new into Milvus.",
    "train": "Train a fusion ranker on a point-in-time training set.",
    "evaluate": "Measure a trained ranker against popularity and random.",
    "model": "List, promote and undo ranker checkpoints.",
    "serve": "Serve embeddings, retrieval, ranking and feedback over gRPC.",
    "client": "Call a running server: rank, retrieve, embed, record events.",
    "search": "Find items by words, a picture or a sound.",
    "spaces": "List the embedding spaces.",
    "demo": "Run everything end to end on a generated catalogue and show the result.",
}
# What the optional packages of a missing import are installed with.
EXTRA_OF: Final = {
    "torch": "encode",
    "torchaudio": "encode",
    "open_clip": "encode",
    "transformers": "encode",
    "PIL": "encode",
    "soundfile": "encode",
    "av": "encode",
    "pyarrow": "store",
    "duckdb": "store",
    "feast": "store",
    "pymilvus": "store",
    "yaml": "store",
    "structlog": "serve",
    "grpc_reflection": "serve",
    "pydantic_settings": "serve",
    "matplotlib": "train",
    "sklearn": "train",
}


class LazyGroup(TyperGroup):
    """A command group that imports a verb's module when the verb is run or asked for help."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """The verbs in the order in which data meets them."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one verb; when the whole list is shown, a stand-in that carries only its help line."""
        if cmd_name not in VERBS:
            return None
        if _only_listing(ctx):
            return click.Command(cmd_name, help=VERBS[cmd_name])
        return _load(cmd_name)


def _only_listing(ctx: click.Context) -> bool:
    return not ctx.protected_args and not ctx.args and ctx.resilient_parsing is False and ctx.invoked_subcommand is None and _asks_group_help()


def _asks_group_help() -> bool:
    return len(sys.argv) < 2 or sys.argv[1] in {"--help", "-h"}


def _load(name: str) -> click.Command:
    try:
        module = importlib.import_module(f"triptych.verbs.{name}")
    except ModuleNotFoundError as error:
        explain_missing(error)
    command = get_command(module.app)
    command.name = name
    return command


def explain_missing(error: ModuleNotFoundError) -> None:
    """Say which extra holds a missing package, and exit with 1."""
    package = (error.name or "").split(".")[0]
    extra = EXTRA_OF.get(package, "all")
    err.print(f"[bold red]error:[/] this needs the package {package!r}, which is not installed.")
    err.print(f"Install it with: pip install 'triptych[{extra}]'", markup=False)
    raise SystemExit(1) from error


app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


def _version(value: bool) -> None:
    if value:
        print(f"triptych {__version__}")
        raise typer.Exit


@app.callback()
def root(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False) -> None:
    """Triptych: a multimodal feature store and embedding service for recommender systems.

    Catalogue media become vectors (`ingest`), vectors become features (`materialize`), features train a ranker (`train`),
    and the ranker answers over gRPC (`serve`). Everything lives under one root: TRIPTYCH_HOME, else the nearest `.triptych`.

    Start with `triptych demo`, or with `triptych up`.
    """


def main() -> None:
    """Run the command; a missing optional package is explained rather than traced."""
    try:
        app()
    except ModuleNotFoundError as error:
        explain_missing(error)
