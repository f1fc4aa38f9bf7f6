"""Which models pin which spaces, read from the checkpoints' manifests alone: no model is loaded."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from feature_store.errors import SpaceInUseError
from feature_store.home import Home


@dataclass(frozen=True)
class Pins:
    """What a checkpoint pins: item spaces by modality. `error` says why its manifest cannot be read."""

    model_id: str
    space_ids: Mapping[str, str] = field(default_factory=dict)
    error: str = ""

    @property
    def spaces(self) -> set[str]:
        """Ids of the spaces that go with the model: those that it reads, and its own."""
        return {*self.space_ids.values(), f"fused_{self.model_id}"}


def read_pins(home: Home) -> list[Pins]:
    """The pins of every checkpoint, by name; a checkpoint that is being written is not there yet."""
    files = sorted(home.models.glob("*/manifest.json"))
    return [_pins(file) for file in files if not file.parent.name.startswith(".")]


def _pins(file: Path) -> Pins:
    try:
        manifest = json.loads(file.read_text())
        spaces = {str(modality): str(space_id) for modality, space_id in manifest["space_ids"].items()}
        return Pins(str(manifest["model_id"]), spaces)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return Pins(file.parent.name, error=f"{file} is damaged: {error!r}")


def pinned_by(home: Home) -> dict[str, list[str]]:
    """Names of the models that pin a space, by space id; a space that none pins is not there."""
    models: dict[str, list[str]] = defaultdict(list)
    for pins in read_pins(home):
        for space_id in pins.spaces if not pins.error else ():
            models[space_id].append(pins.model_id)
    return dict(models)


def check_unpinned(home: Home, space_id: str) -> None:
    """Raise `SpaceInUseError` where a model pins the space, or one that cannot be read may do so."""
    holders = list(_holders(home, space_id))
    if holders:
        raise SpaceInUseError(
            f"space {space_id} is pinned by {', '.join(holders)}: pins never change, so a model that nobody needs any more has to go "
            "first (`triptych model remove NAME`)",
            holders,
        )


def _holders(home: Home, space_id: str) -> Iterator[str]:
    for pins in read_pins(home):
        if pins.error:
            yield f"{pins.model_id} (perhaps: {pins.error})"
        elif space_id in pins.spaces:
            yield pins.model_id
