"""Encoders beyond the profile: loaded again from what was recorded of them, and checked to be those that were recorded.

Who keeps the records is not known here: a record says which space it is of, in which state, and which options make its encoder.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from encoders.errors import EncoderError, ProfileError, WeightsError
from encoders.profiles import OPTIONS, Encoders, build_encoder, checked_options
from encoders.space import MODALITIES, EmbeddingSpace

if TYPE_CHECKING:
    from encoders.profiles import Encoder

ADDED: Final = "added"
RETIRED: Final = "retired"


class Record(Protocol):
    """One recorded space: its state is `active`, `added` or `retired`; `encoder` is empty where it has none."""

    @property
    def space(self) -> EmbeddingSpace:
        """The space."""

    @property
    def entity(self) -> str:
        """Whose vectors: `item` or `user`."""

    @property
    def state(self) -> str:
        """Whether it is in use."""

    @property
    def encoder(self) -> Mapping[str, Any]:
        """Options of its encoder."""


def given_options(modality: str, source: str, options: Iterable[str], folder: Path) -> dict[str, Any]:
    """The options of an encoder as a command line gives them: a source, and `name=value` for each other one.

    Raises:
        ProfileError: an option is unknown or makes no sense; folders are looked for from `folder`.
    """
    if modality not in MODALITIES:
        raise ProfileError(f"modality {modality!r} must be one of {', '.join(MODALITIES)}")
    given: dict[str, Any] = {"source": source}
    for option in options:
        name, equals, value = option.partition("=")
        if not (name and equals):
            raise ProfileError(f"option {option!r} must be NAME=VALUE, such as pooling=cls")
        given[name] = value if OPTIONS[modality].get(name, str) is str else _parsed(value)
    return checked_options("--option", folder, modality, given)


def _parsed(value: str) -> Any:
    """A number or a switch, as YAML has it; else the words as they were written."""
    import yaml

    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        return value


def load_recorded(space: EmbeddingSpace, options: Mapping[str, Any]) -> "Encoder":
    """The encoder that a record describes.

    Raises:
        EncoderError: it cannot be loaded, or it is not the one that was recorded: its files have changed since.
    """
    try:
        encoder = build_encoder(space.modality, options)
    except TypeError as error:
        raise ProfileError(f"the recorded encoder of space {space.space_id} is not understood: {error}") from error
    except EncoderError as error:
        raise WeightsError(
            f"the recorded encoder of space {space.space_id} cannot be loaded: {error}. Bring it back, or give the space up with "
            f"`triptych spaces retire {space.space_id}`"
        ) from error
    if encoder.space.space_id != space.space_id:
        raise WeightsError(
            f"{options.get('source')} was recorded for space {space.space_id} and now gives {encoder.space.space_id}: its files or the "
            f"model's revision have changed. Bring the old ones back, or add the new one with `triptych spaces add` and retire the old"
        )
    return encoder


def in_use(
    profile: Encoders,
    records: Iterable[Record],
    *,
    wanted: Callable[[Record], bool] = lambda _: True,
    modalities: Collection[str] = MODALITIES,
) -> Encoders:
    """The profile's encoders without those of retired spaces, and those of spaces that were added beside them.

    Of the added ones of these modalities, those that are `wanted` are loaded, and those whose modality has no other.
    """
    items = [record for record in records if record.entity == "item"]
    encoders = profile.without({record.space.space_id for record in items if record.state == RETIRED})
    added = [record for record in items if record.state == ADDED and record.encoder]
    # The newest first: where the modality has lost its own encoder, that is its successor.
    for record in reversed([record for record in added if record.space.modality in modalities]):
        there = any(space.space_id == record.space.space_id for space in encoders.spaces)
        if not there and (encoders.by_modality(record.space.modality) is None or wanted(record)):
            encoders = encoders.joined(load_recorded(record.space, record.encoder), record.encoder)
    return encoders
