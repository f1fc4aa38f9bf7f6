"""A real catalogue: MovieLens-100K, 1,682 films with plots, most with a poster, and 100,000 ratings by 943 people in 1997 and 1998.

Reads the folder `movielens-100k` of the data sets, and writes what `triptych ingest` and `triptych users build` read: a manifest, the
ratings and the users' own words. Posters are read where they lie. `make example-movielens` then goes all the way (`movielens_run.py`).

    python -m examples.movielens movielens-100k OUT
    triptych ingest OUT/films.jsonl --interactions OUT/ratings.csv
    triptych users build --profiles OUT/people.csv

The folder has `ml-100k.inter` and `ml-100k.user` as RecBole has them, `items.jsonl` with a film a line (item_id, title, plot, genre,
director, actors, writer, country, language, rated, year, poster) and `posters/`. Awards, votes and box office, which tell the future, are
not read.
"""

import argparse
import csv
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from ingest.records import MAX_TAG_BYTES, MAX_TAGS

VARIABLE: Final = "TRIPTYCH_DATA"
NAME: Final = "movielens-100k"
ALL_RATINGS: Final = 100_000
NEEDED: Final = ("ml-100k.inter", "ml-100k.user", "items.jsonl")
# The kinds of tags, and where a film's record has them. What most tells films apart comes first, since there is a most.
TAG_FIELDS: Final = {
    "genre": "genre",
    "director": "director",
    "cast": "actors",
    "rated": "rated",
    "country": "country",
    "language": "language",
    "writer": "writer",
}
SECONDS_BEFORE: Final = 1  # how long before the first rating all films are there


class DataError(Exception):
    """The data set is not there, or not what it should be."""


@dataclass(frozen=True)
class Rating:
    """One line of `ml-100k.inter`; `event_id` sorts as the lines do, which decides between ratings of one second."""

    event_id: str
    user_id: str
    item_id: str
    stars: float
    timestamp: int


@dataclass(frozen=True)
class MovieLens:
    """The data set in memory: films by id, ratings in the file's order, what people said of themselves by id."""

    folder: Path
    films: Mapping[str, Mapping[str, Any]]
    ratings: Sequence[Rating]
    people: Mapping[str, str]

    def subset(self, films: int | None, people: int | None) -> "MovieLens":
        """The first `people` of the file and the films that most have rated; None for all."""
        counts = Counter(rating.item_id for rating in self.ratings)
        kept = dict.fromkeys(sorted(self.films, key=lambda film: (-counts[film], int(film)))[:films])
        users = dict.fromkeys(list(self.people)[:people])
        return replace(
            self,
            films={film: record for film, record in self.films.items() if film in kept},
            ratings=[rating for rating in self.ratings if rating.item_id in kept and rating.user_id in users],
            people={user: words for user, words in self.people.items() if user in users},
        )

    @property
    def is_whole(self) -> bool:
        """Whether these are all ratings of the set that the benchmarks read."""
        named = os.environ.get(VARIABLE)
        return named is not None and (Path(named) / NAME).resolve() == self.folder and len(self.ratings) == ALL_RATINGS

    @cached_property
    def available(self) -> datetime:
        """When all films were there: no release dates are known, and the benchmarks rank all films from the start."""
        return datetime.fromtimestamp(min(rating.timestamp for rating in self.ratings) - SECONDS_BEFORE, UTC)


def find_folder(given: Path | None) -> Path:
    """The data set's folder: `given`, or the one in it, or the one in TRIPTYCH_DATA. Raises `DataError` saying what to set."""
    if given is None and not os.environ.get(VARIABLE):
        raise DataError(
            f"{VARIABLE} is not set: set it to the folder that holds {NAME}, or name that folder as an argument"
        )
    root = given or Path(os.environ[VARIABLE])
    folder = root if (root / NEEDED[0]).exists() else root / NAME
    if missing := [name for name in NEEDED if not (folder / name).is_file()]:
        raise DataError(f"{folder} has no {', '.join(missing)}: set {VARIABLE} to the folder that holds {NAME}")
    return folder.resolve()


def read(folder: Path) -> MovieLens:
    """Read the data set."""
    films = [json.loads(line) for line in (folder / "items.jsonl").read_text(encoding="utf-8").splitlines()]
    ratings = [
        Rating(f"rating_{line:06d}", user, item, float(stars), int(float(timestamp)))
        for line, (user, item, stars, timestamp) in enumerate(_rows(folder / "ml-100k.inter"), 1)
    ]
    people = {user: f"{age} years old, {occupation}" for user, age, _, occupation, _ in _rows(folder / "ml-100k.user")}
    return MovieLens(folder, {str(film["item_id"]): film for film in films}, ratings, people)


def _rows(path: Path) -> Iterator[list[str]]:
    yield from (line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()[1:])


def film_row(film: Mapping[str, Any], posters: Path, available: datetime) -> dict[str, Any]:
    """A film's row of the manifest."""
    poster = posters / f"{film['poster']}.jpg" if film.get("poster") else None
    return {
        "item_id": str(film["item_id"]),
        "title": film["title"],
        "description": film.get("plot") or "",
        "category": _parts(film, "genre")[0] if film.get("genre") else "",
        "price": None,
        "tags": tags_of(film),
        "image": str(poster) if poster and poster.exists() else "",
        "available_at": available.isoformat(),
    }


def tags_of(film: Mapping[str, Any]) -> list[str]:
    """What a film shares with others: genres, year, decade, people, countries, languages; at most as many as an item may have."""
    said = [f"{kind}:{part}" for kind, name in TAG_FIELDS.items() for part in _parts(film, name)]
    # The catalogue's own year is in the title; the record's may be that of a series.
    years = re.findall(r"\((\d{4})\)", film["title"]) or re.findall(r"\d{4}", film.get("year") or "")
    dated = [f"year:{years[-1]}", f"decade:{years[-1][:3]}0"] if years else []
    fitting = [tag for tag in dict.fromkeys([*dated, *said]) if len(tag.encode()) <= MAX_TAG_BYTES]
    return fitting[:MAX_TAGS]


def _parts(film: Mapping[str, Any], name: str) -> list[str]:
    """The comma-separated parts of a field, without what is in brackets: "Joss Whedon (screenplay by)" is Joss Whedon."""
    bare = re.sub(r"\([^)]*\)", "", film.get(name) or "")
    return [part.strip() for part in bare.split(",") if part.strip()]


def write(data: MovieLens, out: Path) -> tuple[Path, Path, Path]:
    """Write films.jsonl, ratings.csv and people.csv to the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    films, ratings, people = out / "films.jsonl", out / "ratings.csv", out / "people.csv"
    rows = (film_row(film, data.folder / "posters", data.available) for film in data.films.values())
    films.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    header = ("event_id", "user_id", "item_id", "event_type", "value", "event_timestamp")
    _write_csv(
        ratings, header, ((r.event_id, r.user_id, r.item_id, "rating", r.stars, r.timestamp) for r in data.ratings)
    )
    said = ((user, words, data.available.isoformat()) for user, words in data.people.items())
    _write_csv(people, ("user_id", "text", "updated_at"), said)
    return films, ratings, people


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows([header, *rows])


def main() -> None:
    """Read the command line, write the files, say what is in them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help=f"the folder {NAME}, or the one that holds it")
    parser.add_argument("out", type=Path, help="the folder to write to")
    given = parser.parse_args()
    try:
        data = read(find_folder(given.folder))
    except DataError as error:
        sys.exit(str(error))
    files = write(data, given.out)
    print(
        f"{len(data.films):,} films, {len(data.ratings):,} ratings by {len(data.people):,} people -> {files[0].parent}"
    )


if __name__ == "__main__":
    main()
