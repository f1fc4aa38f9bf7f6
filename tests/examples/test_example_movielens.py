"""The MovieLens example: its files on made-up and on real data, and a small part of the real data through every room."""

import csv
import io
import json
import os
from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from benchmarks.rankers.sequences import movielens_100k
from examples import movielens, movielens_run
from examples.movielens import VARIABLE, DataError, MovieLens, find_folder, read, tags_of, write
from examples.movielens_run import MODEL_ID, StageError, Walk, ask, check, clear, fill, learn, middle_user, show
from feature_store.home import Home
from feature_store.tables import Tables
from ingest.catalogue import open_manifest, read_items
from ingest.events import load_interactions
from ingest.quarantine import Quarantine
from tests.triptych.in_process import triptych

REAL = Path(os.environ.get(VARIABLE, "/nonexistent"))
needs_data = pytest.mark.skipif(
    not (REAL / movielens.NAME).is_dir(), reason=f"{VARIABLE} has no {movielens.NAME}: set it to the folder that has"
)
FILM = {
    "item_id": 7,
    "title": "Cléo from 5 to 7 (1962)",
    "year": "1961",
    "genre": "Comedy, Drama",
    "director": "Agnès Varda",
    "actors": "Corinne Marchand, Agnès Varda",
    "writer": "Agnès Varda (screenplay), Agnès Varda (dialogue by)",
    "plot": "A singer waits.",
    "poster": 3,
}


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A data set of two films, two people and four ratings, three of them in one second."""
    folder = tmp_path / "data" / movielens.NAME
    (folder / "posters").mkdir(parents=True)
    (folder / "posters" / "3.jpg").write_bytes(b"")
    films = [FILM, {"item_id": 12, "title": "unknown", "poster": 4, "genre": None}]
    (folder / "items.jsonl").write_text("".join(json.dumps(film) + "\n" for film in films))
    (folder / "ml-100k.user").write_text(
        "user_id\tage\tgender\toccupation\tzip\n1\t24\tM\ttechnician\t0\n2\t53\tF\tother\t0\n"
    )
    ratings = ["2\t12\t3\t100", "1\t7\t5\t100", "1\t12\t1\t100", "2\t7\t4\t90"]
    (folder / "ml-100k.inter").write_text("\n".join(["user\titem\trating\ttimestamp", *ratings]) + "\n")
    return folder


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def test_tags_say_what_films_share():
    """Genres, people once and without their task, the title's own year and its decade; of a bare record there is nothing to say."""
    assert tags_of(FILM) == [
        "year:1962",
        "decade:1960",
        "genre:Comedy",
        "genre:Drama",
        "director:Agnès Varda",
        "cast:Corinne Marchand",
        "cast:Agnès Varda",
        "writer:Agnès Varda",
    ]
    assert tags_of({"title": "unknown", "year": "2007-2019"}) == ["year:2019", "decade:2010"]
    assert tags_of({"title": "unknown", "genre": None}) == []
    crowd = tags_of({"title": "x", "director": ", ".join(f"person {n}" for n in range(99)), "actors": "é" * 64})
    assert len(crowd) == 64
    assert not any(tag.startswith("cast:") for tag in crowd)


def test_the_files_are_what_the_commands_read(small: Path, tmp_path: Path):
    """A film has its first genre, its poster where there is one, and is there just before the first rating; nothing is refused."""
    films, ratings, people = write(read(small), tmp_path / "out")
    with Quarantine(tmp_path / "q", films) as quarantine:
        cleo, unknown = list(read_items(open_manifest(films), quarantine))
    assert len(quarantine) == 0
    assert (cleo.category, cleo.image, cleo.price) == ("Comedy", small / "posters" / "3.jpg", None)
    assert (unknown.category, unknown.image, unknown.tags) == ("", None, ())
    assert cleo.available_us == unknown.available_us == 89_000_000
    assert [row["text"] for row in rows_of(people)] == ["24 years old, technician", "53 years old, other"]
    assert rows_of(people)[0]["updated_at"] == datetime.fromtimestamp(89, UTC).isoformat()
    read_back = [(row["user_id"], row["item_id"], row["event_type"], row["value"]) for row in rows_of(ratings)]
    assert read_back == [
        ("2", "12", "rating", "3.0"),
        ("1", "7", "rating", "5.0"),
        ("1", "12", "rating", "1.0"),
        ("2", "7", "rating", "4.0"),
    ]


def test_ratings_of_one_second_keep_the_files_order(small: Path, tmp_path: Path):
    """In the tables they come by (user, time), and within a second as the file has them."""
    home = Home(tmp_path / "home").create()
    load_interactions(home, write(read(small), tmp_path / "out")[1])
    table = Tables(home).read_interactions()
    assert list(zip(table["user_id"].to_pylist(), table["item_id"].to_pylist(), strict=True)) == [
        ("1", "7"),
        ("1", "12"),
        ("2", "7"),
        ("2", "12"),
    ]


def test_a_subset_has_the_most_rated_films_and_no_ratings_of_others(small: Path):
    """Whoever and whatever is left out is left out everywhere."""
    data = read(small).subset(1, 1)
    assert (list(data.films), list(data.people)) == (["7"], ["1"])
    assert [(rating.user_id, rating.item_id) for rating in data.ratings] == [("1", "7")]


def test_absent_data_are_told_with_what_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """No variable, a folder without the set, or a set that is not whole: exit code 2, and nothing is written."""
    monkeypatch.delenv(VARIABLE, raising=False)
    out = tmp_path / "out"
    assert movielens_run.main(["--out", str(out)]) == 2
    assert f"{VARIABLE} is not set" in capsys.readouterr().err
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    assert movielens_run.main(["--out", str(out)]) == 2
    assert "has no ml-100k.inter, ml-100k.user, items.jsonl" in capsys.readouterr().err
    assert not out.exists()


def test_the_data_are_found_by_argument_and_by_variable(small: Path, monkeypatch: pytest.MonkeyPatch):
    """The set's own folder and the one above it will do; an argument wins over the variable."""
    assert find_folder(small) == find_folder(small.parent) == small
    monkeypatch.setenv(VARIABLE, str(small.parent))
    assert find_folder(None) == small
    with pytest.raises(DataError, match="nowhere"):
        find_folder(small / "nowhere")


def test_what_the_example_did_not_make_is_never_removed(tmp_path: Path):
    """A folder with somebody's `home` is refused; what an earlier run left is replaced, but not under a store that may run."""
    (tmp_path / "home").mkdir()
    with pytest.raises(StageError, match="choose another --out"):
        clear(tmp_path)
    (tmp_path / "home").rmdir()
    clear(tmp_path)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "milvus.json").touch()
    with pytest.raises(StageError, match="triptych down"):
        clear(tmp_path)
    (tmp_path / "home" / "milvus.json").unlink()
    clear(tmp_path)
    assert not (tmp_path / "home").exists()


def test_a_training_set_that_is_not_the_file_is_told(small: Path, tmp_path: Path):
    """Another order of tied ratings, another value, or a film that was not known before its first rating fail the check."""
    data = read(small)
    columns = {
        "user_id": ["1", "1", "2", "2"],
        "item_id": ["7", "12", "7", "12"],
        "timestamp_us": [100_000_000, 100_000_000, 90_000_000, 100_000_000],
        "value": [5.0, 1.0, 4.0, 3.0],
        "event_id": ["e1", "e2", "e3", "e0"],
    }
    labels = {"labels": pa.table(columns)}

    def checked(**changed: list[Any]) -> str:
        pq.write_table(pa.table({**columns, **changed}), tmp_path / "events.parquet")
        pq.write_table(labels["labels"], tmp_path / "labels.parquet")
        return check(tmp_path, data)

    assert checked().startswith("4 ratings")
    with pytest.raises(StageError, match="item_id"):
        checked(event_id=["e2", "e1", "e3", "e0"])
    with pytest.raises(StageError, match="value"):
        checked(value=[5.0, 2.0, 4.0, 3.0])
    labels["labels"] = labels["labels"].slice(1)
    with pytest.raises(StageError, match="1 ratings are about films"):
        checked()


# ---- the real data -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real() -> MovieLens:
    return read(find_folder(REAL))


@needs_data
def test_every_film_of_the_real_set_is_accepted(real: MovieLens, tmp_path: Path):
    """1,682 films, 1,358 posters, all with tags but none refused; all are there before the first of 100,000 ratings."""
    films, *_ = write(real, tmp_path)
    with Quarantine(tmp_path / "q", films) as quarantine:
        items = [item for item in read_items(open_manifest(films), quarantine) if item]
    assert (len(items), len(quarantine)) == (1_682, 0)
    assert sum(item.image is not None for item in items) == 1_358
    assert sum(not item.description for item in items) == 11
    assert all(any(tag.startswith("year:") for tag in item.tags) for item in items)
    directors = {tag for item in items for tag in item.tags if tag.startswith("director:")}
    assert "director:Alfred Hitchcock" in directors
    first_us = min(rating.timestamp for rating in real.ratings) * 1_000_000
    assert {item.available_us for item in items} == {first_us - 1_000_000}


@needs_data
def test_the_tables_hold_what_the_benchmarks_read(real: MovieLens, tmp_path: Path):
    """User by user, film by film and tie by tie: what any protocol holds out is the same from the store and from the file."""
    home = Home(tmp_path / "home").create()
    report = load_interactions(home, write(real, tmp_path)[1])
    assert (report.written, report.quarantined) == (100_000, 0)
    stored, file = Tables(home).read_interactions(), movielens_100k()
    _, users = np.unique(np.asarray(stored["user_id"].to_pylist()), return_inverse=True)
    names, items = np.unique(np.asarray(stored["item_id"].to_pylist()), return_inverse=True)
    np.testing.assert_array_equal(users, file.user)
    assert tuple(names.tolist()) == file.item_names
    np.testing.assert_array_equal(items, file.item)
    np.testing.assert_array_equal(stored["value"].to_numpy(), file.rating)
    np.testing.assert_array_equal(stored["event_timestamp"].cast(pa.int64()).to_numpy() // 1_000_000, file.timestamp)


class InProcess(Walk):
    """A walk whose commands run in the tests' own process, but for the server."""

    def triptych(self, *arguments: str, ok: Collection[int] = (0,)) -> str:
        done = triptych(self._home, *arguments)
        assert done.returncode in ok, f"triptych {' '.join(arguments)}: {done.stderr}"
        return done.stdout


@needs_data
@pytest.mark.filterwarnings("ignore::Warning")  # Feast and its registry warn about themselves
def test_a_part_of_the_real_set_goes_through_every_room(real: MovieLens, tmp_path: Path):
    """150 films and 60 people: ingested with posters and tags, materialized, trained on, measured, and ranked over gRPC with reasons."""
    data = real.subset(150, 60)
    user = middle_user(data)
    with InProcess(tmp_path / "home", tmp_path / "logs", Console(quiet=True)) as walk:
        printed = fill(walk, *write(data, tmp_path / "data"))
        printed |= learn(walk, "tiny", 0)
        training = tmp_path / "home" / "training" / MODEL_ID
        printed["check"] = check(training, data)
        ranking, found = ask(walk, user)
    items = pq.read_table(training / "items.parquet", columns=["item_id", "tags"])
    assert dict(zip(*items.to_pydict().values(), strict=True)) == {
        key: tags_of(film) for key, film in data.films.items()
    }
    met = {rating.item_id for rating in data.ratings if rating.user_id == user}
    assert len(ranking["item_ids"]) == 10
    assert not met & set(ranking["item_ids"])
    assert set(ranking["share_groups"]) >= {"text", "image"}
    assert {seen for influences in ranking["influences"] for seen, _ in influences} <= met
    assert len(found["item_ids"]) == 10
    shown = io.StringIO()
    show(movielens_run.Outcome(printed, user, ranking, found), data, Console(file=shown, width=300))
    named = [ranking["item_ids"][0], ranking["influences"][0][0][0], found["item_ids"][0]]
    assert all(str(data.films[film]["title"]) in shown.getvalue() for film in named)
