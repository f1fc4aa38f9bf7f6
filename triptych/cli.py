"""The `triptych` command: a table of verbs, each in a file of its own that is imported only when it is called.

Exit codes: 0 all well, 1 failed with nothing half-done, 2 wrong usage, 3 done with quarantined or degraded parts.
"""

import importlib
from typing import TYPE_CHECKING, Annotated, Final, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from triptych import __version__
from triptych.console import fail

if TYPE_CHECKING:
    from typer._click import Command, Context

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
    "model": "List, export, promote and undo ranker checkpoints.",
    "serve": "Serve embeddings, retrieval, ranking and feedback over gRPC.",
    "client": "Call a running server: rank, retrieve, embed, record events.",
    "search": "Find items by words, a picture or a sound.",
    "spaces": "List, add, backfill, check and retire embedding spaces: how an encoder is changed.",
    "index": "Measure the vector indexes: recall against exact search, latency, memory.",
    "bundled": "Train the encoders that the project ships, and judge them.",
    "demo": "Run everything end to end on a generated catalogue and show the result.",
}
ROOMS: Final = frozenset({"encoders", "feature_store", "ingest", "ranker", "serving", "triptych"})
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
    "cachetools": "serve",
    "grpc_reflection": "serve",
    "prometheus_client": "serve",
    "simplejpeg": "encode",
    "pydantic_settings": "serve",
    "sklearn": "train",
    "matplotlib": "report",
}


class LazyGroup(TyperGroup):
    """A command group that imports a verb's module only when that verb is called; listing them costs no import."""

    def list_commands(self, ctx: "Context") -> list[str]:  # noqa: ARG002 - the framework's signature
        """The verbs in the order in which data meets them."""
        return list(VERBS)

    def get_command(self, ctx: "Context", cmd_name: str) -> TyperCommand | None:  # noqa: ARG002 - the framework's signature
        """A stand-in that carries the verb's help line, for the list of verbs."""
        return TyperCommand(cmd_name, help=VERBS[cmd_name]) if cmd_name in VERBS else None

    def resolve_command(self, ctx: "Context", args: list[str]) -> "tuple[str | None, Command | None, list[str]]":
        """Import the verb that is called."""
        if args and args[0] in VERBS:
            return args[0], _load(args[0]), args[1:]
        return super().resolve_command(ctx, args)


def _load(name: str) -> "Command":
    try:
        module = importlib.import_module(f"triptych.verbs.{name}")
    except ModuleNotFoundError as error:
        explain_missing(error)
    command = get_command(module.app)
    command.name = name
    return command


def explain_missing(error: ModuleNotFoundError) -> NoReturn:
    """Say which extra holds a missing package and exit with 1; a missing module of our own is a bug and is raised."""
    package = (error.name or "").split(".")[0]
    if package not in EXTRA_OF:
        raise error
    fail(
        f"this needs the package {package!r}, which is not installed; in the project's folder run: pip install '.[{EXTRA_OF[package]}]'"
    )


app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


def _version(value: bool) -> None:
    if value:
        print(f"triptych {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Triptych: a multimodal feature store and embedding service for recommender systems.

    Catalogue media become vectors (`ingest`), vectors become features (`materialize`), features train a ranker (`train`),
    and the ranker answers over gRPC (`serve`). Everything lives under one root: TRIPTYCH_HOME, else the nearest `.triptych`.

    Start with `triptych demo`, or with `triptych up`.
    """


def main() -> None:
    """Run the command.

    Errors of our own rooms are messages for people and are printed as such; any other exception is a bug and keeps its
    traceback.
    """
    try:
        app()
    except ModuleNotFoundError as error:
        explain_missing(error)
    except Exception as error:
        if type(error).__module__.split(".")[0] not in ROOMS:
            raise
        fail(error)
