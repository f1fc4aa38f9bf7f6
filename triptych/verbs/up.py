"""`triptych up`: start the embedded Milvus of this root and put in place whatever Feast needs beside it."""

from typing import Annotated

import typer

from triptych.console import console, print_json

app = typer.Typer(add_completion=False)


@app.command()
def up(
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Start the embedded Milvus and prepare the root folder.

    Writes spaces.yaml, empty tables and a Feast configuration where there are none, starts one Milvus Lite server on 127.0.0.1 (or
    finds the one that runs), and prints its address. Run it again at any time: it keeps what is there.

    With TRIPTYCH_MILVUS_URI set, no server is started and that one is checked instead. For a root other than `.triptych` it prints
    the one variable that the stock `feast` command needs.
    """
    import os

    from feature_store.connection import URI_VARIABLE, connect
    from feature_store.embedded import start
    from feature_store.errors import StoreUnavailable
    from feature_store.home import find_home
    from feature_store.setup import feast_exports, prepare

    home = find_home()
    prepare(home)
    if uri := os.environ.get(URI_VARIABLE):
        with connect(home, timeout_seconds=5.0) as core:
            if not core.healthy():
                raise StoreUnavailable(f"{URI_VARIABLE} is {uri}, and no Milvus answers there")
        pid = None
    else:
        server = start(home)
        uri, pid = server.uri, server.pid
    exports = feast_exports(home)
    if as_json:
        print_json({"home": str(home.root), "milvus_uri": uri, "pid": pid, "exports": exports})
        return
    console.print(f"home    {home.root}", highlight=False, soft_wrap=True)
    console.print(f"milvus  [bold green]{uri}[/]" + (f"  (process {pid})" if pid else "  (not ours)"), highlight=False)
    for name, value in exports.items():
        console.print("For the stock `feast` command in feature_repo/:", highlight=False)
        console.print(f"export {name}={value}", highlight=False, soft_wrap=True)
