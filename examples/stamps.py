"""A real catalogue: Tux Paint's stamps, 950 objects with a picture, an English description and mostly a sound.

Debian ships them; no root is needed to fetch and unpack them:

    apt-get download tuxpaint-stamps-default
    dpkg-deb -x tuxpaint-stamps-default_*.deb stamps
    python examples/stamps.py stamps stamps.csv
    triptych ingest stamps.csv

About a sixth of the pictures are SVG drawings, which ingestion sets aside with the reason; their texts and sounds stay. The stamps
are under the GPL-2: this reads them where they lie.
"""

import argparse
import csv
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Final

PICTURES: Final = ("png", "svg")  # in order of preference
SOUNDS: Final = ("ogg", "wav")
SPOKEN: Final = "_desc"  # NAME_desc.ogg is read out in English, NAME_desc_fr.ogg in French
ARTICLES: Final = ("A ", "An ", "The ", "Some ")

Files = Mapping[str, Path]  # by file name, of one folder


@dataclass(frozen=True)
class Stamp:
    """One row of the manifest; `audio_kind` is `effect` (the thing's own noise), `speech` (its name read out) or empty."""

    item_id: str
    title: str
    description: str
    category: str
    image: str
    audio: str
    audio_kind: str
    audio_language: str


def read_stamps(folder: Path, language: str) -> Iterator[Stamp]:
    """All stamps under `folder`, by path; texts without a picture beside them are notes, and no stamps."""
    root = find_root(folder)
    by_folder: dict[Path, dict[str, Path]] = defaultdict(dict)
    for path in root.rglob("*.*"):
        by_folder[path.parent][path.name] = path
    for place in sorted(by_folder):
        files = by_folder[place]
        for name in sorted(name for name in files if name.endswith(".txt")):
            stamp = read_stamp(files, name.removesuffix(".txt"), place.relative_to(root), language)
            if stamp:
                yield stamp


def find_root(folder: Path) -> Path:
    """The `stamps` folder in an unpacked package, or `folder` itself where that is it."""
    packaged = folder / "usr" / "share" / "tuxpaint" / "stamps"
    return (packaged if packaged.is_dir() else folder).resolve()


def read_stamp(files: Files, name: str, place: Path, language: str) -> Stamp | None:
    """The stamp called `name`, or None where it has no picture."""
    picture = _first(files, name, PICTURES)
    if picture is None:
        return None
    lines = files[f"{name}.txt"].read_text(encoding="utf-8", errors="replace").splitlines()
    said = lines[0].strip() if lines else name
    sound, kind, spoken_in = find_sound(files, name, language)
    return Stamp(
        item_id=".".join([*place.parts, name]),
        title=make_title(said),
        description=said,
        category=place.parts[0],
        image=str(picture),
        audio=str(sound or ""),
        audio_kind=kind,
        audio_language=spoken_in,
    )


def _first(files: Files, stem: str, endings: Iterable[str]) -> Path | None:
    return next((files[name] for ending in endings if (name := f"{stem}.{ending}") in files), None)


def find_sound(files: Files, name: str, language: str) -> tuple[Path | None, str, str]:
    """The stamp's own noise, else its description read out: in English, else in `language`, else in any."""
    if effect := _first(files, name, SOUNDS):
        return effect, "effect", ""
    spoken = {"": _first(files, name + SPOKEN, SOUNDS)}
    prefix = f"{name}{SPOKEN}_"
    for file in sorted(files):
        stem, _, ending = file.rpartition(".")
        if stem.startswith(prefix) and ending in SOUNDS:
            spoken.setdefault(stem.removeprefix(prefix), files[file])
    for code in ("", language, *spoken):
        if path := spoken.get(code):
            return path, "speech", code or "en"
    return None, "", ""


def make_title(description: str) -> str:
    """The description without its article and full stop."""
    for article in ARTICLES:
        description = description.removeprefix(article)
    title = description.rstrip(" .!")
    return title[:1].upper() + title[1:]


def write_manifest(stamps: Iterable[Stamp], path: Path) -> None:
    """One CSV row for each stamp."""
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow([column.name for column in fields(Stamp)])
        writer.writerows(astuple(stamp) for stamp in stamps)


def main() -> None:
    """Read the command line, write the manifest, say what is in it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the package was unpacked")
    parser.add_argument("manifest", type=Path, help="the CSV file to write")
    parser.add_argument("--language", default="fr", help="second choice for spoken descriptions, after English")
    given = parser.parse_args()
    stamps = list(read_stamps(given.folder, given.language))
    if not stamps:
        sys.exit(f"no stamps under {given.folder}: expected pictures with a .txt of the same name beside them")
    write_manifest(stamps, given.manifest)
    pictures = sum(stamp.image.endswith(".png") for stamp in stamps)
    sounds = sum(bool(stamp.audio) for stamp in stamps)
    print(
        f"{len(stamps)} stamps: {pictures} PNG, {len(stamps) - pictures} SVG, {sounds} with a sound -> {given.manifest}"
    )


if __name__ == "__main__":
    main()
