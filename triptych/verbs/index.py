"""`triptych index`: how good the vector indexes in Milvus are."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from triptych.console import EXIT_PARTIAL, EXIT_USAGE, console, err, fail, print_json, progress
from triptych.options import JsonOption

if TYPE_CHECKING:
    from feature_store.home import Home
    from feature_store.index_queries import Queries
    from feature_store.index_report import IndexReport, Settings
    from feature_store.milvus_core import MilvusCore

app = typer.Typer(add_completion=False, rich_markup_mode="markdown", no_args_is_help=True)


NO_VECTOR = "it has no vector"


@app.callback()
def index() -> None:
    """How good the vector indexes in Milvus are. Needs `triptych up` and materialized views."""


@app.command()
def report(
    views: Annotated[
        list[str] | None, typer.Argument(help="Views to measure. [default: all that have vectors]", show_default=False)
    ] = None,
    k: Annotated[str, typer.Option("--k", metavar="K,K", help="Recall@k for these k.")] = "10,100",
    queries: Annotated[int, typer.Option(min=1, max=2_000, help="How many rows to query with.")] = 100,
    queries_from: Annotated[
        str | None,
        typer.Option(
            metavar="VIEW|FILE.npy",
            help="Query with rows of this view of the same space, or with floats [n, dim] from a NumPy file. "
            "[default: for item_SPACE the rows of user_SPACE where there are any; else rows of the view itself]",
            show_default=False,
        ),
    ] = None,
    ef: Annotated[
        str,
        typer.Option(metavar="EF,EF", help="Values of `ef` to try. [default: k and powers of two to 512]"),
    ] = "",
    wait: Annotated[float, typer.Option(min=0.0, help="Seconds to wait for an index that is being built yet.")] = 60.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the draw of the queries.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Where to write the plot: .html, .png or .svg. [default: index-report.html in the root folder; none with --json]",
            show_default=False,
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Measure recall@k against exact search, latency and memory of each view, and plot recall against latency by search parameter.

    Recall is judged against an exact pass over all rows (rows tied for the last place are all right; a query that is itself a row does
    not count as its own neighbour). Queries should be those that will come: a graph finds its own rows' neighbours more easily. Views with an HNSW or AUTOINDEX index are searched with each `ef`, and as searches go by
    themselves (`default`); a FLAT index scans all rows and has one point per k. Reads only. Ten searches warm each point up; then the points take turns, so that a busy moment slows all alike.

    Exit code 3: some view could not be measured, or its index was not in use yet and the numbers are of what answered instead.
    """
    from feature_store.connection import connect
    from feature_store.errors import IndexReportError
    from feature_store.home import find_home
    from feature_store.index_report import Settings

    home = find_home()
    try:
        settings = Settings(_numbers("--k", k), queries, _numbers("--ef", ef), seed, wait)
    except IndexReportError as error:
        fail(error, EXIT_USAGE)
    target = _target(home, out, json=json)
    with connect(home) as core:
        names, skipped = _chosen(core, views or [])
        done = _measure(core, names, settings, queries_from, skipped)
        memory = _server_memory(home, core)
        heading = f"Milvus at {core.channel.uri}"
    if not done:
        _nothing(skipped)
    if target:
        from triptych.index_page import write_page

        write_page(done, target, heading)
    _show(done, skipped, memory, heading, target, json=json)
    if any(one.index_used is False for one in done) or any(name in names for name in skipped):
        raise SystemExit(EXIT_PARTIAL)


def _numbers(option: str, text: str) -> tuple[int, ...]:
    """`"10,100"` as `(10, 100)`; wrong usage ends the command."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts) or (
        option == "--k" and not parts
    ):
        fail(f"{option} {text!r} must be whole numbers above 0 with commas between, such as 10,100", EXIT_USAGE)
    return tuple(sorted({int(part) for part in parts}))


def _target(home: "Home", out: Path | None, *, json: bool) -> Path | None:
    """The file to write, checked before minutes of measuring; None where none is wanted."""
    from triptych.index_page import SUFFIXES

    if out is None and json:
        return None
    path = out or home.root / "index-report.html"
    if path.suffix not in SUFFIXES:
        fail(f"--out {path} must end in {', '.join(sorted(SUFFIXES))}", EXIT_USAGE)
    if out is not None and not path.parent.is_dir():
        fail(f"--out {path}: there is no folder {path.parent}", EXIT_USAGE)

    return path


def _chosen(core: "MilvusCore", asked: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The views to measure, and the reasons of those that are left out. Wrong usage where a named one cannot be measured."""
    from feature_store.errors import SchemaDriftError

    with_vectors, skipped = [], {}
    stored = core.list_views()
    for name in stored:
        try:
            if core.describe_view(name).vector_field is not None:
                with_vectors.append(name)
            else:
                skipped[name] = NO_VECTOR
        except SchemaDriftError as error:
            skipped[name] = str(error)
    for name in asked:
        if name not in with_vectors:
            reason = skipped.get(name, "there is no such view")
            fail(f"view {name!r}: {reason}; views with vectors: {', '.join(with_vectors) or 'none'}", EXIT_USAGE)
    if asked:
        return list(dict.fromkeys(asked)), skipped
    empty = {name: "it has no rows" for name in with_vectors if core.count(name) == 0}
    return [name for name in with_vectors if name not in empty], skipped | empty


def _measure(
    core: "MilvusCore", names: Sequence[str], settings: "Settings", source: str | None, skipped: dict[str, str]
) -> list["IndexReport"]:
    """Measure the views one after another; those that cannot be measured are added to `skipped` with their reasons."""
    from feature_store.errors import IndexReportError, StoreRequestError, ViewNotFoundError

    done = []
    for name in names:
        try:
            done.append(_measure_one(core, name, settings, _queries(core, name, source, settings)))
        except (IndexReportError, StoreRequestError, ViewNotFoundError) as error:
            skipped[name] = str(error)
    return done


def _measure_one(core: "MilvusCore", name: str, settings: "Settings", queries: "Queries | None") -> "IndexReport":
    from feature_store.index_report import measure, prepare

    with progress(f"{name}: exact search", core.count(name)) as advance:
        prepared = prepare(core, name, settings, queries, advance)
    with progress(f"{name}: queries", len(prepared.queries.vectors)) as advance:
        return measure(core, prepared, settings, advance)


def _queries(core: "MilvusCore", view: str, source: str | None, settings: "Settings") -> "Queries | None":
    """The queries of `--queries-from`, else users' vectors for items; None where the view is queried with rows of its own."""
    from dataclasses import replace

    from feature_store.index_queries import load_queries, sample_queries

    source = source or _users_of(core, view)
    if source is None or source == view:
        return None
    if source.endswith(".npy"):
        return load_queries(Path(source))
    # Rows of another view: an equal id there is no row of this one.
    return replace(sample_queries(core, source, settings.queries, settings.seed), ids=None)


def _users_of(core: "MilvusCore", view: str) -> str | None:
    """The view of users in the space of a view of items, where there is such a view and it has rows."""
    users = f"user_{view.removeprefix('item_')}"
    there = view.startswith("item_") and users in core.list_views() and core.describe_view(users).dim
    return users if there and core.count(users) else None


def _server_memory(home: "Home", core: "MilvusCore") -> int | None:
    """Resident memory of the home's own server, where that is the one in use."""
    from feature_store.embedded import status
    from feature_store.index_report import resident_bytes

    server = status(home)
    return resident_bytes(server.pid) if server is not None and server.uri == core.channel.uri else None


def _nothing(skipped: dict[str, str]) -> NoReturn:
    reasons = "\n".join(f"{name}: {reason}" for name, reason in skipped.items())
    fail(f"no view could be measured; `triptych materialize` loads them\n{reasons}".rstrip())


def _show(
    done: Sequence["IndexReport"],
    skipped: dict[str, str],
    memory: int | None,
    heading: str,
    target: Path | None,
    *,
    json: bool,
) -> None:
    from triptych.index_page import MIB

    if json:
        document: dict[str, Any] = {
            "milvus": heading.removeprefix("Milvus at "),
            "server_resident_bytes": memory,
            "views": [one.to_dict() for one in done],
            "skipped": skipped,
            "written": target,
        }
        print_json(document)
        return
    for one in done:
        _show_view(one)
    for name, reason in skipped.items():
        if reason == NO_VECTOR:
            continue
        err.print(f"{name} is left out: {reason}", style="yellow", markup=False, soft_wrap=True)
    if memory is not None:
        console.print(
            f"the server occupies {memory / MIB:,.0f} MiB, all views and the process itself together", highlight=False
        )
    console.print(f"plot: {target}", markup=False, highlight=False, soft_wrap=True)


def _show_view(one: "IndexReport") -> None:
    from rich.table import Column, Table

    from triptych.index_page import cells, facts

    heads = ("recall", "5th pct", "p50 ms", "p95 ms", "p99 ms", "queries/s")
    table = Table(
        Column("k", justify="right"), "search", *(Column(name, justify="right") for name in heads), title=one.view
    )
    for point in one.points:
        table.add_row(*cells(point))
    console.print(table)
    console.print(facts(one), markup=False, highlight=False)
    for note in one.notes:
        err.print(note, style="yellow", markup=False, soft_wrap=True)
