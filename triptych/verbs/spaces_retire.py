"""`triptych spaces retire`: a space that no model reads any more goes out of use."""

import time
from typing import TYPE_CHECKING, Annotated, Final

import typer

from triptych.console import console, err, fail, print_json
from triptych.options import JsonOption

if TYPE_CHECKING:
    from feature_store.home import Home

POLL_SECONDS: Final = 1.0


def retire(
    space: Annotated[str, typer.Argument(help="Id of the space.", show_default=False)],
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait until no model pins the space, rather than refuse.")
    ] = False,
    delete_table: Annotated[
        bool, typer.Option("--delete-table", help="Delete its offline table too: it can train no model ever again.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Put a space out of use, once no model pins it.

    While a checkpoint in models/ pins the space this is refused, and the models are named; with --wait it waits until they are gone
    (`triptych model remove NAME`). Then the space, and users' interests in it, are marked as retired: ingestion writes them no more, and
    the next `triptych materialize` or `feast apply` drops exactly their collections. The offline tables stay, and with them the training
    history; `triptych spaces add` takes the space into use again.
    """
    from feature_store.errors import SpaceInUseError
    from feature_store.home import find_home
    from feature_store.pins import check_unpinned
    from feature_store.spaces import find_space, read_entries, retire_spaces

    home = find_home()
    find_space(home, space)
    if wait:
        _wait(home, space)
    entries = read_entries(home, retired=True)
    together = {space, *(e.space.space_id for e in entries if e.space.base_space_id == space)}
    try:
        done = retire_spaces(home, together, lambda: check_unpinned(home, space))
    except SpaceInUseError as error:
        fail(error)
    deleted = _delete_tables(home, together) if delete_table else []
    if json:
        print_json({"space_id": space, "retired": [entry.view for entry in done], "tables_deleted": deleted})
        return
    if done:
        views = ", ".join(entry.view for entry in done)
        console.print(f"retired; the next `triptych materialize` drops {views}", highlight=False, soft_wrap=True)
    else:
        console.print(f"{space} is retired already", highlight=False)
    for folder in deleted:
        console.print(f"deleted {folder}", highlight=False, soft_wrap=True)


def _wait(home: "Home", space_id: str) -> None:
    """Wait until no model pins the space, saying which still do."""
    from feature_store.errors import SpaceInUseError
    from feature_store.pins import check_unpinned

    told: list[str] = []
    with err.status("") as status:
        while True:
            try:
                return check_unpinned(home, space_id)
            except SpaceInUseError as error:
                line = f"waiting for {', '.join(error.models)} to go"
                status.update(line)
                if error.models != told and not err.is_terminal:
                    err.print(line, markup=False, soft_wrap=True)
                told = error.models
            time.sleep(POLL_SECONDS)


def _delete_tables(home: "Home", space_ids: set[str]) -> list[str]:
    """Delete the spaces' offline tables; each disappears at once, whatever happens while its files go."""
    import shutil

    from feature_store.schemas import ENTITIES
    from feature_store.spaces import embeddings_folder

    folders = [embeddings_folder(home, entity, space_id) for entity in ENTITIES for space_id in sorted(space_ids)]
    there = [folder for folder in folders if folder.exists()]
    for folder in there:
        aside = folder.with_name(f".{folder.name}.deleted")
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
        shutil.rmtree(aside)
    return [str(folder) for folder in there]
