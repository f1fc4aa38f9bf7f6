"""`triptych client`: call a running server from a shell."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Column, Table
from rich.text import Text

from triptych.console import EXIT_PARTIAL, console, err, fail, print_json

if TYPE_CHECKING:
    from triptych.client import Client, Degraded, Ranking

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Call a running server: rank, retrieve, embed, record."
)

Target = Annotated[
    str | None,
    typer.Option(
        help="host:port. [default: TRIPTYCH_TARGET, else the running server of this root, else 127.0.0.1:50051]"
    ),
]
Timeout = Annotated[float, typer.Option(help="Seconds to wait for an answer.", min=0.001)]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
ModelId = Annotated[str, typer.Option("--model-id", help="A loaded model. [default: the stable one]")]


class Priority(StrEnum):
    """Lanes of Embed."""

    interactive = "interactive"
    bulk = "bulk"


def find_target(target: str | None) -> str:
    """The address to call."""
    from feature_store.home import find_home
    from triptych.client import DEFAULT_TARGET

    chosen = target or os.environ.get("TRIPTYCH_TARGET")
    if chosen:
        return chosen
    try:
        return str(json.loads((find_home().root / "serve.json").read_text())["address"])
    except (OSError, ValueError, KeyError):
        return DEFAULT_TARGET


@contextmanager
def connected(target: str | None, timeout: float) -> Iterator["Client"]:
    """A client; failed calls become messages and exit code 1."""
    from triptych.client import Client, ClientError

    address = find_target(target)
    with Client(address, timeout=timeout) as client:
        try:
            yield client
        except ClientError as error:
            hint = (
                f"\nis a server running on {address}? start one with: triptych serve"
                if error.code == "UNAVAILABLE"
                else ""
            )
            fail(f"{error}{hint}")
        except OSError as error:
            fail(error)


@app.command()
def rank(
    user: Annotated[str, typer.Argument(help="The user's id; an unknown one is ranked cold.")],
    items: Annotated[list[str] | None, typer.Argument(help="Candidates. Default: the server retrieves them.")] = None,
    top_n: Annotated[int, typer.Option("--top", "--top-n", "-n", min=1, help="How many results.")] = 10,
    query: Annotated[str, typer.Option(help="What the user searches for right now.")] = "",
    keep_seen: Annotated[bool, typer.Option(help="Keep items of the user's history among retrieved ones.")] = False,
    model_id: ModelId = "",
    target: Target = None,
    timeout: Timeout = 10.0,
    as_json: AsJson = False,
) -> None:
    """Rank items for a user, with the part of each modality in the score and the history items that mattered.

    Exit code 3 if the reply is degraded; items without a picture or a sound, which is common, do not count as that.
    """
    with connected(target, timeout) as client:
        ranking = client.rank(
            user, items or (), top_n=top_n, query=query or None, keep_seen=keep_seen, model_id=model_id
        )
    if as_json:
        print_json(plain(ranking))
    else:
        show_ranking(user, ranking)
    leave(ranking.degraded)


def show_ranking(user: str, ranking: "Ranking") -> None:
    """Print a table of results, and what they were made of."""
    table = Table("#", "item", "score", *map(escape, ranking.share_groups), "because of")
    table.title = Text(f"for {user}, by {ranking.model_id}")
    for i, item_id in enumerate(ranking.item_ids):
        because = ", ".join(f"{item} {weight:.0%}" for item, weight in ranking.influences[i][:3])
        shares = [f"{share:+.2f}" for share in ranking.shares[i]]
        add(table, str(i + 1), item_id, f"{ranking.scores[i]:.3f}", *shares, because)
    console.print(table)
    if ranking.share_groups:
        console.print(
            f"a score is {ranking.base_score:+.2f}, that of an item of which nothing is known, plus its shares"
        )
    source, total = ranking.candidate_source.lower(), ranking.timings_ms.get("total", 0.0)
    console.print(f"{ranking.candidates} candidates ({source}), {ranking.history_events} events read, {total:.1f} ms")


@app.command()
def retrieve(
    user: Annotated[str, typer.Option(help="Whose neighbours; with a query, whose seen items are left out.")] = "",
    query: Annotated[str, typer.Option(help="Words to search with.")] = "",
    image: Annotated[Path | None, typer.Option(help="A picture to search with.")] = None,
    audio: Annotated[Path | None, typer.Option(help="A sound to search with.")] = None,
    space: Annotated[str, typer.Option(help="Space to search in. Default: the query's own, or the model's.")] = "",
    k: Annotated[int, typer.Option("-k", help="How many items.")] = 10,
    keep_seen: Annotated[bool, typer.Option(help="Keep items of the user's history.")] = False,
    target: Target = None,
    timeout: Timeout = 10.0,
    as_json: AsJson = False,
) -> None:
    """Find the items nearest to words, a picture or a sound, or to a user. Exit code 3 if the reply is degraded."""
    with connected(target, timeout) as client:
        found = client.retrieve(user, query=_query(query, image, audio), space=space, k=k, keep_seen=keep_seen)
    if as_json:
        print_json(plain(found))
    else:
        table = Table("#", "item", "cosine")
        table.title = Text(f"in {found.space_id}")
        for i, item_id in enumerate(found.item_ids):
            add(table, str(i + 1), item_id, f"{found.scores[i]:.3f}")
        console.print(table)
    leave(found.degraded)


@app.command()
def embed(
    text: Annotated[list[str] | None, typer.Option(help="A text; may be repeated.")] = None,
    image: Annotated[list[Path] | None, typer.Option(help="A picture; may be repeated.")] = None,
    audio: Annotated[list[Path] | None, typer.Option(help="A sound; may be repeated.")] = None,
    space: Annotated[str, typer.Option(help="Target space. [default: each input's own modality's]")] = "",
    expected_space: Annotated[str, typer.Option(help="Fail where a vector would be of another space.")] = "",
    priority: Annotated[
        Priority, typer.Option(help="`bulk` leaves the way to those who wait for an answer.")
    ] = Priority.interactive,
    target: Target = None,
    timeout: Timeout = 30.0,
    as_json: AsJson = False,
) -> None:
    """Embed texts, pictures and sounds, any number of them. `--json` prints whole vectors.

    A server that is full is asked again when it says so, within `--timeout` for each 64 inputs. Exit code 3 if some input could not be
    used.
    """
    with connected(target, timeout) as client:
        results = client.embed(
            texts=text or (),
            images=image or (),
            audio=audio or (),
            space=space,
            expected_space=expected_space,
            priority=priority.name.upper(),
        )
    if as_json:
        print_json([plain(result) for result in results])
    else:
        table = Table("input", "space", "vector, or what is wrong")
        for name, result in zip([*(text or ()), *(image or ()), *(audio or ())], results, strict=True):
            add(table, str(name), result.space_id, _short(result))
        console.print(table)
    if any(result.vector is None for result in results):
        raise typer.Exit(EXIT_PARTIAL)


@app.command()
def event(
    user: Annotated[str, typer.Argument(help="Who.")],
    item: Annotated[str, typer.Argument(help="What.")],
    event_type: Annotated[str, typer.Option("--type", help="view, click, like, purchase, rating ...")] = "click",
    value: Annotated[float | None, typer.Option(help="A rating's stars, for instance.")] = None,
    event_id: Annotated[str, typer.Option(help="Repeating an id records nothing new. [default: a new one]")] = "",
    target: Target = None,
    timeout: Timeout = 10.0,
    as_json: AsJson = False,
) -> None:
    """Record one event; it is on the server's disk when this returns."""
    from triptych.client import make_event

    with connected(target, timeout) as client:
        made = make_event(item, event_type, user_id=user, value=value, event_id=event_id)
        recorded = client.record_events([made])
    if as_json:
        print_json(plain(recorded))
    else:
        console.print(f"{'recorded' if recorded.recorded else 'known already'}: {recorded.event_ids[0]}", markup=False)


@app.command()
def spaces(target: Target = None, timeout: Timeout = 10.0, as_json: AsJson = False) -> None:
    """List the embedding spaces that the server knows."""
    with connected(target, timeout) as client:
        listed = client.list_spaces()
    if as_json:
        print_json([plain(space) for space in listed])
        return
    table = Table(Column("space", no_wrap=True), "modality", "kind", "dim", "embeds here", "items in memory")
    for space in listed:
        embeds = "yes" if space.embeddable else "no"
        add(table, space.space_id, space.modality, space.kind, str(space.dim), embeds, str(space.items_loaded))
    console.print(table)


@app.command()
def models(target: Target = None, timeout: Timeout = 10.0, as_json: AsJson = False) -> None:
    """List the ranker checkpoints that the server knows."""
    with connected(target, timeout) as client:
        listed = client.list_models()
    if as_json:
        print_json([plain(model) for model in listed])
        return
    table = Table("model", "loaded", "stable", "created", "spaces")
    for model in listed:
        stable = "stable" if model.stable else "previous" if model.previous else ""
        created = f"{model.created:%Y-%m-%d %H:%M}" if model.created else ""
        add(table, model.model_id, "yes" if model.loaded else "no", stable, created, ", ".join(model.space_ids))
    console.print(table)


def plain(result: Any) -> Any:
    """A result as JSON takes it: arrays become lists."""
    return {name: value.tolist() if hasattr(value, "tolist") else value for name, value in asdict(result).items()}


def add(table: Table, *cells: str) -> None:
    """Add a row of data: brackets in it are no markup."""
    table.add_row(*map(Text, cells))


def leave(reasons: "list[Degraded]") -> None:
    """Say on stderr what the reply was made without, and leave with 3 where that is more than the catalogue's usual gaps."""
    for reason in reasons:
        count = f" ({reason.count})" if reason.count > 1 else ""
        err.print(f"degraded: {reason.reason}{count}: {reason.detail}", style="yellow", markup=False)
    if any(reason.reason != "MISSING_MODALITY" for reason in reasons):
        raise typer.Exit(EXIT_PARTIAL)


def _query(text: str, image: Path | None, audio: Path | None) -> Any:
    from protos.triptych.v1 import common_pb2

    if len([given for given in (text, image, audio) if given]) > 1:
        fail("give one of --query, --image and --audio", 2)
    if image:
        return common_pb2.Query(image=image.read_bytes())
    if audio:
        return common_pb2.Query(audio=audio.read_bytes())
    return text or None


def _short(result: Any) -> str:
    if result.vector is None:
        return f"{result.reason}: {result.message}"
    return f"[{result.vector[0]:.3f} {result.vector[1]:.3f} ... {result.vector[-1]:.3f}] ({len(result.vector)})"
