"""`triptych status`: what runs, what lies in the tables and in Milvus, and which model is stable."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from triptych.console import console, print_json

if TYPE_CHECKING:
    from feature_store.home import Home

app = typer.Typer(add_completion=False)


@app.command()
def status(as_json: Annotated[bool, typer.Option("--json", help="Print the status as JSON.")] = False) -> None:
    """Show the root folder, the store, rows per table and per view, and the stable model.

    Reads only. A Milvus that does not answer is shown as such, and is no error.
    """
    from feature_store.home import find_home

    home = find_home()
    report = {
        "home": str(home.root),
        "milvus": _milvus(home),
        "tables": _tables(home),
        "stable_model": _stable(home),
        "server": _json(home.root / "serve.json"),
    }
    if as_json:
        print_json(report)
    else:
        _show(report)


def _milvus(home: "Home") -> dict[str, Any]:
    from feature_store.connection import connect
    from feature_store.errors import FeatureStoreError

    try:
        with connect(home, timeout_seconds=5.0) as core:
            views = {name: core.count(name) for name in core.list_views()}
            return {"uri": core.channel.uri, "running": True, "views": views}
    except FeatureStoreError as error:
        return {"uri": None, "running": False, "views": {}, "reason": str(error)}


def _tables(home: "Home") -> dict[str, int]:
    from feature_store.spaces import read_entries
    from feature_store.tables import Tables

    tables = Tables(home)
    counts = {
        "items": tables.read_items().num_rows,
        "users": tables.read_users().num_rows,
        "interactions": tables.read_interactions().num_rows,
        "user_history": tables.read_user_history().num_rows,
    }
    return counts | {e.view: len(tables.embedding_index(e.entity, e.space.space_id)) for e in read_entries(home)}


def _json(path: Any) -> Any:
    return json.loads(path.read_text()) if path.exists() else None


def _stable(home: "Home") -> str | None:
    stable = _json(home.models / "stable.json")
    return str(stable["stable"]) if stable and stable.get("stable") else None


def _show(report: dict[str, Any]) -> None:
    from rich.table import Table

    milvus = report["milvus"]
    console.print(f"home    {report['home']}", highlight=False, soft_wrap=True)
    state = f"[green]{milvus['uri']}[/]" if milvus["running"] else f"[red]down[/]  {milvus['reason']}"
    console.print(f"milvus  {state}", highlight=False, soft_wrap=True)
    console.print(f"model   {report['stable_model'] or 'none yet: run `triptych train`'}", highlight=False)
    table = Table("table or view", "rows in tables", "rows in Milvus")
    online = {"items": "item_profile", "users": "user_profile"}
    for name, rows in report["tables"].items():
        stored = milvus["views"].get(online.get(name, name))
        table.add_row(name, f"{rows:,}", "-" if stored is None else f"{stored:,}")
    console.print(table)
