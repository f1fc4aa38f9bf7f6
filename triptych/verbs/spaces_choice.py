"""Which of several spaces of one modality a command means when nobody says: the one that is in service."""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from encoders.space import EmbeddingSpace
    from feature_store.home import Home
    from feature_store.spaces import SpaceEntry


def stable_pins(home: "Home", stable: str | None) -> dict[str, str]:
    """The spaces that the stable model reads, by modality; none where no model is stable or its manifest is damaged."""
    from feature_store.pins import read_pins

    return next((dict(pins.space_ids) for pins in read_pins(home) if pins.model_id == stable), {})


def spaces_in_service(home: "Home", stable: str | None, *, except_for: Collection[str] = ()) -> "list[EmbeddingSpace]":
    """One item space per modality, but those `except_for`: what the stable model reads; else the only one, the only one with vectors, or the only active one.

    A space that was only added never takes a modality over by itself. Raises `SpaceRegistryError` where that leaves a choice.
    """
    from encoders.space import MODALITIES
    from feature_store.spaces import read_entries

    entries, pins = [e for e in read_entries(home) if e.entity == "item"], stable_pins(home, stable)
    of = {modality: [e for e in entries if e.space.modality == modality] for modality in MODALITIES}
    return [
        _one(home, there, pins.get(modality)).space
        for modality, there in of.items()
        if there and modality not in except_for
    ]


def _one(home: "Home", entries: "Sequence[SpaceEntry]", pinned: str | None) -> "SpaceEntry":
    from feature_store.errors import SpaceRegistryError
    from feature_store.spaces import ACTIVE
    from feature_store.tables import Tables

    tables = Tables(home)
    if len(entries) == 1:
        return entries[0]
    for entry in entries:
        if entry.space.space_id == pinned:
            return entry
    filled = [e for e in entries if tables.embedding_index("item", e.space.space_id)] or list(entries)
    for choice in (filled, [e for e in filled if e.state == ACTIVE]):
        if len(choice) == 1:
            return choice[0]
    raise SpaceRegistryError(
        f"there are several {entries[0].space.modality} spaces, and a ranker reads one per modality: "
        f"{', '.join(sorted(e.space.space_id for e in entries))}; name one per modality with --space"
    )
