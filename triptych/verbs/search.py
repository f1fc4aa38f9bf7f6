"""`triptych search`: the items nearest to words, a picture or a sound."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from triptych.console import EXIT_USAGE, console, err, fail, print_json
from triptych.options import JsonOption

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from encoders.profiles import Encoders
    from encoders.space import EmbeddingSpace

# Endings that name a picture's file rather than end a sentence.
IMAGE_SUFFIXES = frozenset(
    {".avif", ".bmp", ".gif", ".heic", ".jpeg", ".jpg", ".png", ".svg", ".tif", ".tiff", ".webp"}
)
app = typer.Typer(add_completion=False, rich_markup_mode="markdown", no_args_is_help=True)
CountOption = Annotated[int, typer.Option("--count", "-k", min=1, max=1000, help="How many items to list.")]
EncodersOption = Annotated[
    str | None, typer.Option(help="`bundled`, `zh`, `hub` or a YAML file. Default: TRIPTYCH_ENCODERS, else bundled.")
]


@app.callback()
def search() -> None:
    """Find items by words, a picture or a sound. Needs `triptych up` and a materialized catalogue."""


@app.command()
def text(
    words: Annotated[str, typer.Argument(help='What to look for, such as "a loud bird".', show_default=False)],
    space: Annotated[
        str,
        typer.Option(help="`text` compares with descriptions, `image` with pictures, as `search image WORDS` does."),
    ] = "text",
    count: CountOption = 10,
    encoders: EncodersOption = None,
    json: JsonOption = False,
) -> None:
    """Find items by words."""
    from encoders.media import clean_text

    query = clean_text(words)
    _check_store()
    loaded = _load(encoders, _modality(space))
    encoder = loaded.by_modality(space)
    if encoder is None:
        fail(f"these encoders have none for {space}; choose others with --encoders", EXIT_USAGE)
    _show(encoder.space, loaded.query_encoder(encoder.space.space_id)([query]), count, json)


@app.command()
def image(
    query: Annotated[str, typer.Argument(help='A picture, or words such as "a red bird".', show_default=False)],
    count: CountOption = 10,
    encoders: EncodersOption = None,
    json: JsonOption = False,
) -> None:
    """Find items by what their pictures show: give a picture, or words (which go through CLIP's text tower)."""
    from encoders.media import decode_image

    if not _names_a_file(query):
        text(query, space="image", count=count, encoders=encoders, json=json)
        return
    media = decode_image(Path(query))
    _check_store()
    encoder = _load(encoders, "image").image
    if encoder is None:
        fail("these encoders have none for image; choose others with --encoders", EXIT_USAGE)
    _show(encoder.space, encoder.encode([media]), count, json)


def _names_a_file(query: str) -> bool:
    """Whether `query` is a file, or is spelt like a picture's that is missing."""
    path = Path(query)
    return path.is_file() or path.suffix.lower() in IMAGE_SUFFIXES


@app.command()
def audio(
    path: Annotated[Path, typer.Argument(help="A sound.", show_default=False)],
    count: CountOption = 10,
    encoders: EncodersOption = None,
    json: JsonOption = False,
) -> None:
    """Find items whose sounds are alike."""
    from encoders.media import decode_audio

    media = decode_audio(path)
    _check_store()
    encoder = _load(encoders, "audio").audio
    if encoder is None:
        fail("these encoders have none for audio; choose others with --encoders", EXIT_USAGE)
    _show(encoder.space, encoder.encode([media]), count, json)


def _check_store() -> None:
    """Fail at once where Milvus is down, rather than after seconds of loading encoders."""
    from feature_store.connection import connect
    from feature_store.home import find_home

    with connect(find_home(), timeout_seconds=10.0) as core:
        core.list_views()


def _load(profile: str | None, modality: str) -> "Encoders":
    """The modality's encoder: the profile's, or, where that one's space was retired, its successor's."""
    from encoders.profiles import load_profile
    from encoders.recorded import in_use
    from feature_store.home import find_home
    from feature_store.spaces import read_entries

    records = read_entries(find_home(), retired=True)
    return in_use(load_profile(profile, [modality]), records, wanted=lambda _: False, modalities=[modality])


def _modality(name: str) -> str:
    if name not in {"text", "image"}:
        fail(f"--space {name!r} must be text or image", EXIT_USAGE)
    return name


def _show(space: "EmbeddingSpace", query: "NDArray[np.float32]", count: int, json: bool) -> None:
    """Search the store with a query [1, dim] and print the items found, nearest first."""
    from feature_store.connection import connect
    from feature_store.home import find_home
    from feature_store.spaces import view_name

    core = connect(find_home())
    found = core.search(view_name("item", space.space_id), query, count)
    ids, scores = found.ids[0], [float(score) for score in found.scores[0]]
    profiles = core.read_columns("item_profile", ids, ["title", "category"])
    rows = [
        {"item_id": item_id, "score": round(score, 4), "title": title, "category": category}
        for item_id, score, title, category in zip(ids, scores, profiles["title"], profiles["category"], strict=True)
    ]
    if json:
        print_json({"space_id": space.space_id, "results": rows})
        return
    table = Table("item", "title", "category", title=f"nearest in {space.space_id}")
    table.add_column("cosine", justify="right")
    for row in rows:
        table.add_row(*(escape(row[name] or "") for name in ("item_id", "title", "category")), f"{row['score']:.4f}")
    console.print(table)
    if space.kind == "untrained":
        err.print(f"{space.space_id} is untrained: its neighbours mean little", style="yellow")
