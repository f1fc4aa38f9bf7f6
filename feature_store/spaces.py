"""The embedding spaces of an installation, as `spaces.yaml` lists them, and the views that they give.

The file in the home is the one in use; the committed `feature_repo/spaces.yaml` is only what a new home starts with.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from encoders.space import EmbeddingSpace, SpaceError
from feature_store.errors import SpaceRegistryError
from feature_store.files import locked, write_whole
from feature_store.home import Home
from feature_store.parts import ensure_zero_rows
from feature_store.schemas import ENTITIES, embeddings_schema

# By path, since a folder of Feast definitions is no package to import: the committed defaults live beside them.
DEFAULT_SPACES: Final = Path(__file__).resolve().parent.parent / "feature_repo" / "spaces.yaml"
_HEADER: Final = (
    "# The embedding spaces in use, and whose view each gives. Written by the project's commands; ids are digests.\n"
)


@dataclass(frozen=True)
class SpaceEntry:
    """One line of `spaces.yaml`: a space, and whether it describes items or users."""

    space: EmbeddingSpace
    entity: str = "item"

    def __post_init__(self) -> None:
        if self.entity not in ENTITIES:
            raise SpaceRegistryError(f"entity {self.entity!r} of {self.space.space_id} must be one of {ENTITIES}")

    @property
    def key(self) -> tuple[str, str]:
        """What makes an entry: the same text space may describe items and users."""
        return (self.entity, self.space.space_id)

    @property
    def view(self) -> str:
        """Name of its Feast view and Milvus collection."""
        return view_name(*self.key)


def view_name(entity: str, space_id: str) -> str:
    """Name of the view of `entity` in a space."""
    return f"{entity}_{space_id}"


def embeddings_folder(home: Home, entity: str, space_id: str) -> Path:
    """Where the embedding table of `entity` in a space lies."""
    return home.tables / "embeddings" / entity / space_id


def read_entries(home: Home) -> list[SpaceEntry]:
    """The entries in use; the committed default where the home has no list yet."""
    path = home.spaces if home.spaces.exists() else DEFAULT_SPACES
    return _parse(path) if path.exists() else []


def _parse(path: Path) -> list[SpaceEntry]:
    try:
        return [_entry(row) for row in yaml.safe_load(path.read_text())["spaces"] or []]
    except (yaml.YAMLError, SpaceError, AttributeError, KeyError, TypeError, ValueError) as error:
        detail = " ".join(str(error).split())
        raise SpaceRegistryError(
            f"{path} is not a list of embedding spaces under the key 'spaces': {detail}"
        ) from error


def _entry(row: dict[str, Any]) -> SpaceEntry:
    fields = {name: value for name, value in row.items() if name != "entity"}
    return SpaceEntry(EmbeddingSpace.from_dict(fields), row.get("entity", "item"))


def read_spaces(home: Home, entity: str | None = None) -> list[EmbeddingSpace]:
    """The spaces in use, of one entity or of both; each once."""
    spaces = {e.space.space_id: e.space for e in read_entries(home) if entity in (None, e.entity)}
    return list(spaces.values())


def find_space(home: Home, space_id: str) -> EmbeddingSpace:
    """The registered space of that id. Raises `SpaceRegistryError` naming those there are."""
    spaces = {s.space_id: s for s in read_spaces(home)}
    if space_id not in spaces:
        raise SpaceRegistryError(f"no space {space_id!r} is registered; there are {sorted(spaces)}")
    return spaces[space_id]


def register_spaces(home: Home, spaces: Sequence[EmbeddingSpace], entity: str = "item") -> list[EmbeddingSpace]:
    """Add spaces to the home's list and give each a zero-row table; return those that were new.

    Raises `SpaceRegistryError` where an id is registered already with another dim or kind.
    """
    home.create()
    with locked(home.root / ".spaces.lock"):
        entries = {entry.key: entry for entry in read_entries(home)}
        wanted = [SpaceEntry(space, entity) for space in spaces]
        added = {entry.key: entry for entry in wanted if _is_new(entry, entries)}
        if added or not home.spaces.exists():
            _write(home.spaces, [*entries.values(), *added.values()])
    for entry in wanted:
        ensure_embeddings(home, entry)
    return [entry.space for entry in added.values()]


def _is_new(entry: SpaceEntry, entries: dict[tuple[str, str], SpaceEntry]) -> bool:
    known = entries.get(entry.key)
    if known is None:
        return True
    if (known.space.dim, known.space.kind) != (entry.space.dim, entry.space.kind):
        raise SpaceRegistryError(
            f"space {entry.space.space_id} is registered as {known.space.kind} with dim {known.space.dim}, "
            f"not {entry.space.kind} with dim {entry.space.dim}: a changed space needs another id"
        )
    return False


def ensure_embeddings(home: Home, entry: SpaceEntry) -> None:
    """Give the entry's table a part without rows, so that no job fails on an empty space."""
    folder = embeddings_folder(home, entry.entity, entry.space.space_id)
    ensure_zero_rows(folder / "dt=1970-01-01", embeddings_schema(entry.entity))


def _write(path: Path, entries: Sequence[SpaceEntry]) -> None:
    rows = [{**_plain(entry.space), "entity": entry.entity} for entry in entries]
    write_whole(path, _HEADER + yaml.safe_dump({"spaces": rows}, sort_keys=False, allow_unicode=True))


def _plain(space: EmbeddingSpace) -> dict[str, Any]:
    data = space.to_dict()
    return {**data, "recipe": dict(space.recipe)} if "recipe" in data else data
