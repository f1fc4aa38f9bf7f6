"""Captioned pictures from Debian and npm packages: where they lie, what they say, and which split each belongs to.

A split is decided by a hash of the picture's group (one object, however often it is drawn), so that it is the same on every machine,
for every seed, and whatever else is read beside it.
"""

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from encoders.errors import WeightsError

Split = Literal["train", "validation", "test"]
# Of 100 groups: chosen, before any was measured, as the smallest round shares that leave more than 99 objects to the test.
TEST_PERCENT: Final = 25
VALIDATION_PERCENT: Final = 15
PICTURE_ENDINGS: Final = (".png", ".svg", ".webp")
# Letters, coins, road marks: signs that a tower trained on photographs of things knows nothing of.
SIGNS: Final = "symbols"
STAMPS: Final = "stamps"
_ARTICLE: Final = re.compile(r"^(a|an|the|some|our|two)\s+", re.IGNORECASE)
# Emoji that are flags, letters and logos, or the same drawing in another skin.
_LEFT_OUT_GROUPS: Final = frozenset({"flags", "component"})
_LEFT_OUT_SUBGROUPS: Final = frozenset({
    "alphanum", "brand", "country-flag", "flag", "flags", "hair-style", "keycap", "regional-indicator", "skin-tone", "subdivision-flag",
})  # fmt: skip
_WHO: Final = frozenset(
    {"man", "men", "woman", "women", "person", "people", "boy", "girl", "man:", "woman:", "person:"}
)


@dataclass(frozen=True, slots=True)
class Captioned:
    """A picture file, what may be said of it (first the caption proper), and the group that no split divides."""

    picture: Path
    captions: tuple[str, ...]
    group: str
    source: str
    category: str

    @property
    def split(self) -> Split:
        """`train`, `validation` or `test`."""
        return split_of(self.group)


def split_of(group: str) -> Split:
    """The split of a group, by the first four bytes of its sha256."""
    percent = int.from_bytes(hashlib.sha256(group.encode()).digest()[:4]) % 100
    if percent < TEST_PERCENT:
        return "test"
    return "validation" if percent < TEST_PERCENT + VALIDATION_PERCENT else "train"


def plain_caption(caption: str) -> str:
    """A caption as it is compared: lower-case words, without its article."""
    words = re.sub(r"[^\w\s-]", " ", _ARTICLE.sub("", caption.strip())).lower()
    return " ".join(words.split())


def read_stamps(folder: Path) -> list[Captioned]:
    """Tux Paint's stamps: every PNG and SVG with a text beside it, whose first line says in English what it shows.

    Raises:
        WeightsError: there are none under `folder`.
    """
    packaged = folder / "usr" / "share" / "tuxpaint" / "stamps"
    root = packaged if packaged.is_dir() else folder
    found = [stamp for text in sorted(root.rglob("*.txt")) if (stamp := _read_stamp(text, root))]
    if not found:
        raise WeightsError(
            f"no stamps under {folder}: expected pictures with a .txt of the same name beside them, as in Debian's "
            "tuxpaint-stamps-default (apt-get download tuxpaint-stamps-default; dpkg-deb -x tuxpaint-stamps-default_*.deb DIR)"
        )
    return join_groups(found)


def _read_stamp(text: Path, root: Path) -> Captioned | None:
    picture = next((path for ending in (".png", ".svg") if (path := text.with_suffix(ending)).is_file()), None)
    lines = text.read_text(encoding="utf-8", errors="replace").splitlines()
    if picture is None or not lines or not lines[0].strip():
        return None
    caption, folder = lines[0].strip(), text.parent.relative_to(root)
    return Captioned(
        picture, (caption,), f"{folder.as_posix()}/{_object_name(text.stem)}", STAMPS, (folder.parts or ("",))[0]
    )


def _object_name(stem: str) -> str:
    """What a file's name says first: `apple_fuji` and `apple_red` are one object, `t_glove` and `t_sock` are two."""
    first = next(iter(re.split(r"[^a-z]+", stem.lower().lstrip("0123456789_-"))), "")
    return first if len(first) > 2 else stem.lower()


def join_groups(items: Sequence[Captioned]) -> list[Captioned]:
    """`items`, where groups that share a caption are one; the joined group is called by the first of its names."""
    parent = {item.group: item.group for item in items}

    def root(group: str) -> str:
        while parent[group] != group:
            group = parent[group]
        return group

    by_caption: dict[str, list[str]] = defaultdict(list)
    for item in items:
        by_caption[plain_caption(item.captions[0])].append(item.group)
    for first, *others in by_caption.values():
        for other in others:
            low, high = sorted((root(first), root(other)))
            parent[high] = low
    return [replace(item, group=root(item.group)) for item in items]


def read_emoji(openmoji: Path, drawings: Iterable[Path] = ()) -> list[Captioned]:
    """OpenMoji's drawings with their names and tags; and those of other sets, whose files are named by the same code points.

    Args:
        openmoji: the unpacked npm package `openmoji`.
        drawings: folders of pictures such as `1f600.svg`, of the unpacked npm packages `@twemoji/svg`, `@lobehub/fluent-emoji-3d` ...

    Raises:
        WeightsError: a folder is not what it should be.
    """
    listing = openmoji / "data" / "openmoji.json"
    try:
        entries = json.loads(listing.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"{listing} cannot be read ({error}); give the unpacked npm package (npm pack openmoji; tar xzf openmoji-*.tgz)"
        ) from error
    entries = [entry for entry in entries if _is_wanted(entry)]
    sets = [(openmoji / "color", "openmoji"), *((folder, folder.name) for folder in drawings)]
    found = [item for folder, name in sets for item in _read_set(folder, name, entries)]
    if not found:
        raise WeightsError(f"no drawings in {openmoji}: expected color/svg/*.svg or color/618x618/*.png")
    return found


def _is_wanted(entry: dict[str, Any]) -> bool:
    return not (
        entry["skintone"] or entry["group"] in _LEFT_OUT_GROUPS or entry["subgroups"] in _LEFT_OUT_SUBGROUPS
    )  # fmt: skip


def _read_set(folder: Path, name: str, entries: Sequence[dict[str, Any]]) -> Iterator[Captioned]:
    files = {_code_points(path.stem): path for path in sorted(folder.rglob("*.*")) if path.suffix in PICTURE_ENDINGS}
    if not files:
        raise WeightsError(f"no drawings under {folder}: expected files named by code points, such as 1f600.svg")
    for entry in entries:
        if path := files.get(_code_points(entry["hexcode"])):
            yield Captioned(path, _emoji_captions(entry), _emoji_group(entry), name, entry["group"])


def _code_points(stem: str) -> str:
    """A file's name in the form that all sets agree on: lower case, without variation selectors."""
    return "-".join(part for part in stem.lower().split("-") if part != "fe0f")


def _emoji_captions(entry: dict[str, Any]) -> tuple[str, ...]:
    tags = [tag.strip() for field in ("tags", "openmoji_tags") for tag in entry[field].split(",") if tag.strip()]
    tags = [tag for tag in dict.fromkeys(tags) if tag != entry["annotation"]]
    return (entry["annotation"], *tags)


def _emoji_group(entry: dict[str, Any]) -> str:
    """The name without who does it: a man, a woman and a person running are one."""
    words = [word for word in plain_caption(entry["annotation"]).split() if word not in _WHO]
    return "emoji/" + (" ".join(words) or entry["hexcode"].split("-")[0])


def imagenet_names() -> tuple[str, ...]:
    """The names of ImageNet's 1,000 classes, in the order of EfficientNet's classifier, as CLIP's authors cleaned them."""
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

    return tuple(IMAGENET_CLASSNAMES)
