"""Which encoder serves each modality: the `bundled`, `hub` and `zh` (Chinese) profiles, or a YAML file of one's own.

`python -m encoders.profiles --write FILE` regenerates the default list of embedding spaces from the bundled profile, and
`--check FILE` compares. A profile file reads, for any of the modalities:

    text: {source: intfloat/e5-base-v2, template: "passage: {text}", query_prefix: "query: "}
    image: {source: models/my-clip}
    audio: bundled

A source is a hub id, a folder (from the file's own), or `bundled`; the options are those of the encoders' constructors.
"""

import argparse
import os
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from encoders.errors import EncoderError, ProfileError
from encoders.space import MODALITIES, EmbeddingSpace
from encoders.weights import BUNDLED

if TYPE_CHECKING:
    from encoders.audio import AudioEncoder
    from encoders.image import ImageEncoder
    from encoders.text import TextEncoder
    from encoders.vectors import Vectors

    Encoder = TextEncoder | ImageEncoder | AudioEncoder

PROFILE_VARIABLE: Final = "TRIPTYCH_ENCODERS"
PROFILES: Final[Mapping[str, Mapping[str, Mapping[str, Any]]]] = {
    BUNDLED: {modality: {"source": BUNDLED} for modality in MODALITIES},
    "hub": {
        "text": {"source": "intfloat/e5-base-v2", "template": "passage: {text}", "query_prefix": "query: "},
        "image": {"source": "laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "slug": "clip_vit_b_32"},
        "audio": {"source": "facebook/wav2vec2-base"},
    },
    # Chinese: BERT's own, a CLIP whose text tower reads a hundred languages, and a wav2vec 2.0 that heard 53 of them.
    "zh": {
        "text": {"source": "google-bert/bert-base-chinese", "slug": "bert_base_chinese"},
        "image": {
            "source": "laion/CLIP-ViT-B-32-xlm-roberta-base-laion5B-s13B-b90k",
            "slug": "clip_xlm_roberta_vit_b_32",
        },
        "audio": {"source": "facebook/wav2vec2-large-xlsr-53", "slug": "wav2vec2_xlsr_53"},
    },
}
_COMMON_OPTIONS: Final[Mapping[str, type]] = dict.fromkeys(
    ("source", "slug", "device", "dtype", "revision", "whitening"), str
)
OPTIONS: Final[Mapping[str, Mapping[str, type]]] = {
    "text": {
        **_COMMON_OPTIONS,
        "compile": bool,
        "max_length": int,
        "template": str,
        "query_prefix": str,
        "pooling": str,
    },
    "image": {**_COMMON_OPTIONS, "compile": bool},
    "audio": {**_COMMON_OPTIONS, "window_seconds": float},
}
_KINDS: Final[Mapping[type, str]] = {str: "text", bool: "true or false", int: "a whole number", float: "a number"}


@dataclass(frozen=True)
class Encoders:
    """The encoders in use. Each knows its space at once and loads its model on first use.

    Attributes:
        text, image, audio: the modality's own encoder, if there is one.
        more: others beside those, such as the next version of one.
        options: by space id, what makes the encoder again (`encoders.recorded`), as far as it is known.
    """

    text: "TextEncoder | None" = None
    image: "ImageEncoder | None" = None
    audio: "AudioEncoder | None" = None
    more: "tuple[Encoder, ...]" = ()
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def all(self) -> "list[Encoder]":
        """Every encoder: in the order text, image, audio, then those beside them."""
        return [encoder for encoder in (self.text, self.image, self.audio, *self.more) if encoder is not None]

    @property
    def spaces(self) -> list[EmbeddingSpace]:
        """The spaces, in the order of `all`."""
        return [encoder.space for encoder in self.all]

    @property
    def texts(self) -> "list[TextEncoder]":
        """Every text encoder, the modality's own first."""
        from encoders.text import TextEncoder

        return [encoder for encoder in self.all_of("text") if isinstance(encoder, TextEncoder)]

    def all_of(self, modality: str) -> "list[Encoder]":
        """Every encoder of a modality, its own one first."""
        return [encoder for encoder in self.all if encoder.space.modality == modality]

    def joined(self, encoder: "Encoder", options: Mapping[str, Any]) -> "Encoders":
        """These and another one: its modality's own where there is none yet, else beside it. One whose space is there changes nothing."""
        space = encoder.space
        if any(there.space_id == space.space_id for there in self.spaces):
            return self
        known = {**self.options, space.space_id: options}
        if self.by_modality(space.modality) is None:
            own: dict[str, Any] = {space.modality: encoder}
            return replace(self, options=known, **own)
        return replace(self, options=known, more=(*self.more, encoder))

    def without(self, space_ids: Collection[str]) -> "Encoders":
        """These without the encoders of some spaces; the first of `more` takes the place of its modality's own."""
        kept = Encoders()
        for encoder in self.all:
            if encoder.space.space_id not in space_ids:
                kept = kept.joined(encoder, self.options.get(encoder.space.space_id, {}))
        return kept

    def by_modality(self, modality: str) -> "Encoder | None":
        """The modality's own encoder, if there is one."""
        if modality not in MODALITIES:
            raise ProfileError(f"modality {modality!r} must be one of {', '.join(MODALITIES)}")
        encoder: Encoder | None = getattr(self, modality)
        return encoder

    def by_space(self, space_id: str) -> "Encoder":
        """The encoder of a space.

        Raises:
            EncoderError: none is loaded.
        """
        for encoder in self.all:
            if encoder.space.space_id == space_id:
                return encoder
        loaded = ", ".join(space.space_id for space in self.spaces) or "none"
        raise EncoderError(f"no encoder of space {space_id!r} is loaded here; loaded: {loaded}")

    def query_encoder(self, space_id: str) -> Callable[[Sequence[str]], "Vectors"]:
        """What turns query texts into vectors of a space.

        Raises:
            EncoderError: the space has no text side.
        """
        encoder = self.by_space(space_id)
        if encoder.space.modality == "audio":
            raise EncoderError(f"space {space_id} takes no text queries; give a sound, or search a text or image space")
        query: Callable[[Sequence[str]], Vectors] = encoder.encode_query  # type: ignore[union-attr]
        return query


def load_profile(name_or_path: str | Path | None = None, modalities: Iterable[str] = MODALITIES) -> Encoders:
    """The encoders of a profile, for the modalities asked for.

    Args:
        name_or_path: `bundled`, `hub`, `zh` or a YAML file; by default what `TRIPTYCH_ENCODERS` says, else `bundled`.
        modalities: those wanted; others are left out and cost nothing.

    Raises:
        ProfileError: the profile is not understood.
        WeightsError: a model cannot be found or read.
    """
    wanted = set(modalities)
    if unknown := wanted.difference(MODALITIES):
        raise ProfileError(f"modalities {sorted(unknown)} must be among {', '.join(MODALITIES)}")
    loaded = Encoders()
    for modality, options in read_choices(name_or_path).items():
        if modality in wanted:
            loaded = loaded.joined(build_encoder(modality, options), options)
    return loaded


def profile_spaces(name_or_path: str | Path | None = None) -> list[EmbeddingSpace]:
    """The spaces of a profile; reads the weights to digest them, but builds no model."""
    return load_profile(name_or_path).spaces


def build_encoder(modality: str, options: Mapping[str, Any]) -> "Encoder":
    """An encoder from its constructor's arguments; raises `EncoderError` where they make none."""
    if modality == "text":
        from encoders.text import TextEncoder

        return TextEncoder(**options)
    if modality == "image":
        from encoders.image import ImageEncoder

        return ImageEncoder(**options)
    from encoders.audio import AudioEncoder

    return AudioEncoder(**options)


def read_choices(name_or_path: str | Path | None = None) -> dict[str, dict[str, Any]]:
    """Constructor arguments per modality, of the same profiles as `load_profile` takes. Raises `ProfileError`."""
    name_or_path = name_or_path or os.environ.get(PROFILE_VARIABLE) or BUNDLED
    if isinstance(name_or_path, str) and name_or_path in PROFILES:
        return {modality: dict(options) for modality, options in PROFILES[name_or_path].items()}
    path = Path(name_or_path).expanduser()
    if not path.is_file():
        raise ProfileError(
            f"encoders {str(name_or_path)!r} are neither one of {', '.join(PROFILES)} nor a YAML file here"
        )
    return _read_file(path)


def _read_file(path: Path) -> dict[str, dict[str, Any]]:
    import yaml

    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ProfileError(f"profile {path} cannot be read as YAML: {error}") from error
    if not isinstance(data, dict) or not data:
        raise ProfileError(f"profile {path} must map some of {', '.join(MODALITIES)} to their encoders")
    if unknown := [str(name) for name in data if name not in MODALITIES]:
        raise ProfileError(f"profile {path} names {', '.join(unknown)}; there are {', '.join(MODALITIES)}")
    return {
        modality: _read_entry(f"profile {path}", path.parent, modality, entry)
        for modality, entry in data.items()
        if entry is not None
    }


def _read_entry(where: str, folder: Path, modality: str, entry: Any) -> dict[str, Any]:
    options = {"source": entry} if isinstance(entry, str) else entry
    if not isinstance(options, dict) or options.get("source") is None:
        raise ProfileError(f"{where}: {modality} must be a source, or a mapping with a source")
    return checked_options(where, folder, modality, options)


def checked_options(where: str, folder: Path, modality: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """An encoder's options if they are known and of the right kinds, folders and files from `folder` as absolute paths.

    Raises:
        ProfileError: one is not; `where` says whose options they are.
    """
    if unknown := set(options) - set(OPTIONS[modality]):
        known = ", ".join(sorted(OPTIONS[modality]))
        raise ProfileError(f"{where}: {modality} has unknown options {sorted(map(str, unknown))}; known: {known}")
    options = {name: value for name, value in options.items() if value is not None}
    for name, value in options.items():
        if not _is_a(value, OPTIONS[modality][name]):
            raise ProfileError(f"{where}: {modality}'s {name} must be {_KINDS[OPTIONS[modality][name]]}, not {value!r}")
    source = folder / Path(options["source"]).expanduser()
    if options["source"] != BUNDLED and source.is_dir():
        options["source"] = str(source.absolute())
    if "whitening" in options:
        options["whitening"] = str((folder / Path(options["whitening"]).expanduser()).absolute())
    return options


def _is_a(value: Any, kind: type) -> bool:
    """Whether a YAML value is of that kind: true and false are no numbers, and a whole number is one."""
    return isinstance(value, (int, float) if kind is float else kind) and (kind is bool or not isinstance(value, bool))


def spaces_yaml() -> str:
    """The default `spaces.yaml`: the bundled profile's spaces, each as a view of items."""
    import yaml

    entries = [{**space.to_dict(), "entity": "item"} for space in profile_spaces(BUNDLED)]
    header = (
        "# The default embedding spaces, made by `python -m encoders.profiles --write` from the bundled encoders.\n"
    )
    return header + str(yaml.safe_dump({"spaces": entries}, sort_keys=False, width=120))


def main(arguments: Sequence[str] | None = None) -> int:
    """Write or check the default `spaces.yaml`; without an option, print it."""
    parser = argparse.ArgumentParser(prog="python -m encoders.profiles", description=main.__doc__)
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--write", type=Path, metavar="FILE", help="write the default spaces to FILE")
    action.add_argument("--check", type=Path, metavar="FILE", help="exit 1 if FILE is not what --write would write")
    options = parser.parse_args(arguments)
    text = spaces_yaml()
    if options.write:
        options.write.write_text(text, encoding="utf-8")
    elif options.check:
        return _check(options.check, text)
    else:
        print(text, end="")
    return 0


def _check(path: Path, text: str) -> int:
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return 0
    print(f"{path} is out of date; run: python -m encoders.profiles --write {path}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
