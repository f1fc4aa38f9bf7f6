"""MovieLens-100K all the way, with the project's own commands: `make example-movielens`.

Store, ingestion, users, Feast and Milvus, training, evaluation and a served ranking, each in a process of its own and on a root folder of
its own; what the commands print is shown at the end. What they do is theirs: this calls them in order, and checks that what reached the
training set is what the benchmarks read from the file.
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table
from rich.text import Text

from examples.movielens import VARIABLE, DataError, MovieLens, find_folder, read, write
from examples.movielens_paths import compare
from triptych.console import EXIT_PARTIAL
from triptych.demo.walk import StageError, Walk

MODEL_ID: Final = "movielens"
TOP_N: Final = 10
SHOWN_HISTORY: Final = 8
PARTS: Final = ("data", "home", "logs", "summary.json")
MARKER: Final = (
    ".movielens-example"  # says that what bears the names in PARTS beside it was made here, and may be removed
)
WIDTH: Final = 120  # of what is shown where there is no terminal
QUERY: Final = "a spaceship crew far from home"


@dataclass(frozen=True)
class Outcome:
    """What the commands printed, by stage, and what the server answered for one user."""

    printed: Mapping[str, str]
    user: str
    ranking: Mapping[str, Any]
    found: Mapping[str, Any]


def run(data: MovieLens, out: Path, preset: str, seed: int, user: str, console: Console) -> Outcome:
    """Walk through all stages; whatever was started is stopped. Raises `StageError` naming the stage's log."""
    clear(out)
    with Walk(out / "home", out / "logs", console) as walk:
        with walk.stage(
            "data", f"{len(data.films):,} films, {len(data.ratings):,} ratings, {len(data.people):,} people"
        ):
            files = write(data, out / "data")
        printed = fill(walk, *files)
        printed |= learn(walk, preset, seed)
        with walk.stage("check", "the training set against the file"):
            printed["check"] = check(out / "home" / "training" / MODEL_ID, data)
            if data.is_whole:
                printed["check"] += f"\n{compare(out / 'home' / 'training' / MODEL_ID)}"
        ranking, found = ask(walk, user)
        with walk.stage("down", "stop the server and the store"):
            walk.stop()
        seconds = dict(walk.seconds)
    outcome = Outcome(printed, user, ranking, found)
    summary = {"seconds": seconds, "user": user, "ranking": ranking, "found": found}
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return outcome


def clear(out: Path) -> None:
    """Remove what an earlier run left in `out`; refuse where it is somebody else's, or still has a store running."""
    there = [name for name in PARTS if os.path.lexists(out / name)]
    if there and not (out / MARKER).is_file():
        raise StageError(f"{out} has {', '.join(there)}, which this example did not make: choose another --out")
    if (out / "home" / "milvus.json").exists():
        raise StageError(f"an earlier run's store may still run: `TRIPTYCH_HOME={out / 'home'} triptych down` first")
    out.mkdir(parents=True, exist_ok=True)
    (out / MARKER).write_text("`make example-movielens` made this folder, and replaces what it made.\n")
    for name in there:
        shutil.rmtree(out / name) if (out / name).is_dir() else (out / name).unlink()


def fill(walk: Walk, films: Path, ratings: Path, people: Path) -> dict[str, str]:
    """Store, ingestion, users, first materialization."""
    printed = {}
    with walk.stage("up", "start the embedded vector store"):
        walk.start_store()
    with walk.stage("ingest", "check and encode plots and posters, load the ratings"):
        printed["ingest"] = walk.triptych("ingest", str(films), "--interactions", str(ratings), ok=(0, EXIT_PARTIAL))
    with walk.stage("users", "histories, interests, encoded words"):
        printed["users"] = walk.triptych("users", "build", "--profiles", str(people))
    with walk.stage("materialize", "apply the feature definitions, load the store"):
        printed["materialize"] = walk.triptych("materialize")
    return printed


def learn(walk: Walk, preset: str, seed: int) -> dict[str, str]:
    """Train, load the ranker's own vectors, measure."""
    printed = {}
    with walk.stage("train", f"join the training set, train the fusion ranker ({preset})"):
        walk.triptych("train", "--model-id", MODEL_ID, "--preset", preset, "--seed", str(seed), "--promote")
    with walk.stage("fused", "load the ranker's own vectors"):
        walk.triptych("materialize")
    with walk.stage("evaluate", "rank all films for the test's labels"):
        printed["evaluate"] = walk.triptych("evaluate", MODEL_ID)
    return printed


def check(folder: Path, data: MovieLens) -> str:
    """Compare the training set's events with the file's, in the order of the benchmarks; `StageError` where they differ.

    Order is by (user, time), ties in the file's order: what a protocol holds out is then the same in both.
    """
    table = pq.read_table(folder / "events.parquet")
    table = table.sort_by([("user_id", "ascending"), ("timestamp_us", "ascending"), ("event_id", "ascending")])
    ordered = sorted(data.ratings, key=lambda rating: (rating.user_id, rating.timestamp))
    expected = {
        "user_id": pa.array([rating.user_id for rating in ordered], pa.string()),
        "item_id": pa.array([rating.item_id for rating in ordered], pa.string()),
        "timestamp_us": pa.array([rating.timestamp * 1_000_000 for rating in ordered], pa.int64()),
        "value": pa.array([rating.stars for rating in ordered], pa.float64()),
    }
    for name, column in expected.items():
        if table[name].combine_chunks() != column:
            raise StageError(f"column {name} of {folder / 'events.parquet'} is not what the file of ratings says")
    labels = pq.read_metadata(folder / "labels.parquet").num_rows
    if labels != len(ordered):
        raise StageError(f"{len(ordered) - labels:,} ratings are about films that were not known before them")
    return f"{len(ordered):,} ratings in the training set, in the order of the file, every film known before its first"


def ask(walk: Walk, user: str) -> tuple[Any, Any]:
    """Serve; rank for the user and search by words, from other processes."""
    with walk.stage("serve", "start the gRPC service"):
        target = ("--target", walk.start_server())
    with walk.stage("rank", f"rank for user {user}, search for {QUERY!r}"):
        ok = (0, EXIT_PARTIAL)  # a degraded reply is a reply, and says what it lacked
        ranking = walk.triptych_json("client", "rank", *target, "--top-n", str(TOP_N), user, ok=ok)
        found = walk.triptych_json("client", "retrieve", *target, "--query", QUERY, "-k", str(TOP_N), ok=ok)
    return ranking, found


def show(outcome: Outcome, data: MovieLens, console: Console) -> None:
    """Print what was stored and measured, and one user's history and recommendations."""
    for stage, text in outcome.printed.items():
        console.rule(stage)
        console.print(text.rstrip(), markup=False, highlight=False, soft_wrap=True)
    console.rule("served")
    console.print(history_table(outcome.user, data))
    console.print(ranking_table(outcome.user, outcome.ranking, data))
    table = Table("#", "film", "cosine", title=f"found by {QUERY!r} in {outcome.found['space_id']}")
    for place, (film, score) in enumerate(zip(outcome.found["item_ids"], outcome.found["scores"], strict=True), 1):
        table.add_row(str(place), _title(data, film), f"{score:.3f}")
    console.print(table)


def history_table(user: str, data: MovieLens) -> Table:
    """The user's newest ratings, newest first."""
    mine = sorted((r for r in data.ratings if r.user_id == user), key=lambda rating: rating.timestamp)
    table = Table("film", "stars", title=f"user {user} ({data.people[user]}): the newest of {len(mine)} ratings")
    for rating in reversed(mine[-SHOWN_HISTORY:]):
        table.add_row(_title(data, rating.item_id), f"{rating.stars:.0f}")
    return table


def ranking_table(user: str, ranking: Mapping[str, Any], data: MovieLens) -> Table:
    """What the server ranks highest, each score's parts, and the films of the history that mattered."""
    table = Table("#", "film", "score", *ranking["share_groups"], "because of")
    table.title = f"for user {user}, of {ranking['candidates']} candidates, by {ranking['model_id']}"
    for place, film in enumerate(ranking["item_ids"]):
        shares = [f"{share:+.2f}" for share in ranking["shares"][place]]
        because = "; ".join(str(_title(data, seen)) for seen, _ in ranking["influences"][place][:2])
        table.add_row(str(place + 1), _title(data, film), f"{ranking['scores'][place]:.2f}", *shares, Text(because))
    return table


def _title(data: MovieLens, film: str) -> Text:
    return Text(str(data.films[film]["title"]) if film in data.films else film)


def middle_user(data: MovieLens) -> str:
    """The user in the middle by number of ratings."""
    counts = dict.fromkeys(data.people, 0)
    for rating in data.ratings:
        counts[rating.user_id] += 1
    return sorted(counts, key=lambda user: (counts[user], user))[len(counts) // 2]


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line and run; return the exit code: 0, 1 where a stage failed, 2 where the data are not there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help=f"the data set's folder (default: in {VARIABLE})")
    parser.add_argument("--out", type=Path, default=Path("examples/out/movielens"), help="the folder to write to")
    parser.add_argument("--preset", default="small", help="size of the ranker (default small)")
    parser.add_argument("--seed", type=int, default=0, help="of the training (default 0)")
    parser.add_argument(
        "--user", default="", help="whom to recommend to (default: who has a middling number of ratings)"
    )
    parser.add_argument("--films", type=int, help="only so many films, the most rated")
    parser.add_argument("--people", type=int, help="only so many people, the first")
    given = parser.parse_args(arguments)
    console, told = Console(width=None if sys.stdout.isatty() else WIDTH), Console(stderr=True)
    try:
        data = read(find_folder(given.folder)).subset(given.films, given.people)
        user = given.user or middle_user(data)
        if user not in data.people:
            raise DataError(f"--user {user}: there is no such user; there are 1 to {len(data.people)}")
        outcome = run(data, given.out.resolve(), given.preset, given.seed, user, told)
    except (DataError, StageError) as error:
        told.print(str(error), style="bold red", markup=False, highlight=False, soft_wrap=True)
        return 2 if isinstance(error, DataError) else 1
    show(outcome, data, console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
