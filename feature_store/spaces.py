"""The embedding spaces of an installation, as `spaces.yaml` lists them, and the views that they give.

The file in the home is the one in use; the committed `feature_repo/spaces.yaml` is only what a new home starts with. An entry says
too how its encoder is loaded again, as plain options that only `encoders` understands, and in which state it is.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
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


# In use because a profile, a command or a model brought it; in use because somebody added it beside those; out of use.
ACTIVE: Final = "active"
ADDED: Final = "added"
RETIRED: Final = "retired"
STATES: Final = (ACTIVE, ADDED, RETIRED)


@dataclass(frozen=True)
class SpaceEntry:
    """One line of `spaces.yaml`: a space, whether it describes items or users, and whether it is in use.

    Attributes:
        state: `active`, `added` (beside the encoders of the profile: ingestion loads its encoder from here), or `retired` (no view,
            nothing is written any more; its table is history).
        encoder: what makes its encoder again: `source`, and the options of the encoder's constructor. Empty where nobody knows.
    """

    space: EmbeddingSpace
    entity: str = "item"
    state: str = ACTIVE
    encoder: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if self.entity not in ENTITIES:
            raise SpaceRegistryError(f"entity {self.entity!r} of {self.space.space_id} must be one of {ENTITIES}")
        if self.state not in STATES:
            raise SpaceRegistryError(f"state {self.state!r} of {self.space.space_id} must be one of {STATES}")

    @property
    def retired(self) -> bool:
        """Whether it is out of use."""
        return self.state == RETIRED

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


def read_entries(home: Home, *, retired: bool = False) -> list[SpaceEntry]:
    """The entries in use, and those that were `retired` too where asked for; the committed default where the home has no list yet."""
    path = home.spaces if home.spaces.exists() else DEFAULT_SPACES
    entries = _parse(path) if path.exists() else []
    return [entry for entry in entries if retired or not entry.retired]


def _parse(path: Path) -> list[SpaceEntry]:
    try:
        return [_entry(row) for row in yaml.safe_load(path.read_text())["spaces"] or []]
    except (yaml.YAMLError, SpaceError, AttributeError, KeyError, TypeError, ValueError) as error:
        detail = " ".join(str(error).split())
        raise SpaceRegistryError(
            f"{path} is not a list of embedding spaces under the key 'spaces': {detail}"
        ) from error


def _entry(row: dict[str, Any]) -> SpaceEntry:
    own = ("entity", "state", "encoder")
    fields = {name: value for name, value in row.items() if name not in own}
    return SpaceEntry(EmbeddingSpace.from_dict(fields), **{name: row[name] for name in own if name in row})


def read_spaces(home: Home, entity: str | None = None, *, retired: bool = False) -> list[EmbeddingSpace]:
    """The spaces in use, of one entity or of both, and the `retired` ones too where asked for; each once."""
    entries = read_entries(home, retired=retired)
    return list({e.space.space_id: e.space for e in entries if entity in (None, e.entity)}.values())


def find_space(home: Home, space_id: str) -> EmbeddingSpace:
    """The registered space of that id, retired or not. Raises `SpaceRegistryError` naming those there are."""
    return find_entry(home, space_id).space


def find_entry(home: Home, space_id: str, entity: str | None = None) -> SpaceEntry:
    """The entry of a space, retired or not: that of `entity`, or the first. Raises `SpaceRegistryError` naming those there are."""
    entries = [e for e in read_entries(home, retired=True) if entity in (None, e.entity)]
    for entry in entries:
        if entry.space.space_id == space_id:
            return entry
    there_are = sorted({e.space.space_id for e in entries})
    raise SpaceRegistryError(f"no space {space_id!r} is registered; there are {there_are}")


def foreign_spaces(home: Home, space_ids: Iterable[str]) -> list[str]:
    """Those of the ids, sorted, that name no item space of this home: it has no vectors of them."""
    return sorted(set(space_ids) - {space.space_id for space in read_spaces(home, "item")})


def register_spaces(
    home: Home,
    spaces: Sequence[EmbeddingSpace],
    entity: str = "item",
    *,
    encoders: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[EmbeddingSpace]:
    """Add spaces to the home's list and give each a zero-row table; return those that were new.

    `encoders` says by space id how the encoder is loaded again; what is known already is brought up to date. A retired space stays
    so. Raises `SpaceRegistryError` where an id is registered already with another dim or kind.
    """
    known = encoders or {}
    wanted = [SpaceEntry(space, entity, encoder=known.get(space.space_id, {})) for space in spaces]
    return [entry.space for entry in register_entries(home, wanted)]


def register_entries(home: Home, wanted: Sequence[SpaceEntry], *, revive: bool = False) -> list[SpaceEntry]:
    """Add entries and give each a zero-row table; return those that were new, or with `revive` were retired."""
    changed: list[SpaceEntry] = []

    def change(entries: dict[tuple[str, str], SpaceEntry]) -> None:
        for entry in wanted:
            known = entries.get(entry.key)
            if _is_new(entry, entries) or (revive and known is not None and known.retired):
                entries[entry.key] = entry
                changed.append(entry)
            elif known is not None and entry.encoder and entry.encoder != known.encoder:
                entries[entry.key] = replace(known, encoder=entry.encoder)

    update_entries(home, change)
    for entry in wanted:
        ensure_embeddings(home, entry)
    return changed


def retire_spaces(home: Home, space_ids: Collection[str], check: Callable[[], None] = lambda: None) -> list[SpaceEntry]:
    """Put spaces out of use, for items and users, and return their entries that were in use.

    `check` is called while nobody else can change the list: what it raises is raised, and nothing is changed.
    """
    done: list[SpaceEntry] = []

    def change(entries: dict[tuple[str, str], SpaceEntry]) -> None:
        check()
        for key, entry in entries.items():
            if entry.space.space_id in space_ids and not entry.retired:
                entries[key] = replace(entry, state=RETIRED)
                done.append(entry)

    update_entries(home, change)
    return done


def update_entries(home: Home, change: Callable[[dict[tuple[str, str], SpaceEntry]], None]) -> None:
    """Let `change` edit the entries (by entity and space id), alone, and write them whole where it did."""
    home.create()
    with locked(home.root / ".spaces.lock"):
        before = {entry.key: entry for entry in read_entries(home, retired=True)}
        entries = dict(before)
        change(entries)
        if entries != before or not home.spaces.exists():
            _write(home.spaces, list(entries.values()))


def _is_new(entry: SpaceEntry, entries: dict[tuple[str, str], SpaceEntry]) -> bool:
    known = entries.get(entry.key)
    if known is None:
        return True
    if (known.space.dim, known.space.kind) != (entry.space.dim, entry.space.kind):
        raise SpaceRegistryError(
            f"space {entry.space.space_id} is registered as {known.space.kind} with dim {known.space.dim}, "
            f"not {entry.space.kind} with dim {entry.space.dim}: a changed space needs another id"
        )
    # Named by the model, not by a digest: a model that was removed leaves its vectors, which another one's must not join.
    if entry.space.kind == "fused" and known.space.recipe != entry.space.recipe:
        raise SpaceRegistryError(
            f"space {entry.space.space_id} is that of another model of this name, which was removed: take another model_id"
        )
    return False


def ensure_embeddings(home: Home, entry: SpaceEntry) -> None:
    """Give the entry's table a part without rows, so that no job fails on an empty space."""
    folder = embeddings_folder(home, entry.entity, entry.space.space_id)
    ensure_zero_rows(folder / "dt=1970-01-01", embeddings_schema(entry.entity))


def _write(path: Path, entries: Sequence[SpaceEntry]) -> None:
    rows = [_row(entry) for entry in entries]
    write_whole(path, _HEADER + yaml.safe_dump({"spaces": rows}, sort_keys=False, allow_unicode=True))


def _row(entry: SpaceEntry) -> dict[str, Any]:
    state = {"state": entry.state} if entry.state != ACTIVE else {}
    encoder = {"encoder": dict(entry.encoder)} if entry.encoder else {}
    return {**_plain(entry.space), "entity": entry.entity, **state, **encoder}


def _plain(space: EmbeddingSpace) -> dict[str, Any]:
    data = space.to_dict()
    return {**data, "recipe": dict(space.recipe)} if "recipe" in data else data
