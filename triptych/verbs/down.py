"""`triptych down`: stop the embedded Milvus of this root; its data stays."""

import typer

from triptych.console import console

app = typer.Typer(add_completion=False)


@app.command()
def down() -> None:
    """Stop the embedded Milvus.

    What was materialized stays in the root folder and is there again after `triptych up`. A Milvus named by TRIPTYCH_MILVUS_URI is
    not touched. Stopping what does not run is no error.
    """
    from feature_store.embedded import stop
    from feature_store.home import find_home

    home = find_home()
    console.print(
        "milvus stopped" if stop(home) else f"no Milvus was running for {home.root}", highlight=False, soft_wrap=True
    )
