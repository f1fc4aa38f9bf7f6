"""Real sounds in unpacked Debian packages: what each file says of itself by its place, and which part of training may hear it.

Nothing here downloads: `apt-get download` and `dpkg-deb -x` make the folders. Files that no rule knows are left out.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from encoders.errors import MediaError
from encoders.media import decode_audio

SAMPLE_RATE_HZ: Final = 16_000
MAX_SECONDS: Final = 10.0  # of a file; the rest is left out
# Shares of the items, in percent: what is left trains.
HELD_OUT_PERCENT: Final = 20
VALIDATION_PERCENT: Final = 10
SPLITS: Final = ("train", "validation", "test", "unheard")
# Telephone voices that training never hears, whatever they say.
UNHEARD_SOURCE: Final = "prompts"
_LANGUAGE: Final = r"(?P<language>[a-z]{2,3})(?:[_@][A-Za-z]+)*"
# (source, pattern of the path below .../share/); the first match counts. Without a language, a file is an effect.
_RULES: Final = tuple(
    (source, re.compile(rf"/{pattern}$"))
    for source, pattern in (
        ("stamps", rf"tuxpaint/stamps/(?P<category>.+)/(?P<item>[^/]+?)_desc_{_LANGUAGE}(?:\.ogg)+"),
        ("stamps", r"tuxpaint/stamps/(?P<category>.+)/(?P<item>[^/]+?)_desc(?P<english>)\.ogg"),
        ("stamps", rf"tuxpaint/stamps/(?P<category>symbols/math)/(?P<item>\d)_{_LANGUAGE}\.ogg"),
        ("stamps", r"tuxpaint/stamps/(?P<category>symbols/math)/(?P<item>\d)(?P<english>)\.ogg"),
        ("stamps", r"tuxpaint/stamps/(?P<category>symbols/alphabets/.+)/(?P<item>[^/]+)_en_GB(?P<english>)\.ogg"),
        ("stamps", r"tuxpaint/stamps/(?P<category>(?!symbols/(?:math|alphabets)).+)/(?P<item>[^/]+)\.ogg"),
        ("klettres", rf"klettres/{_LANGUAGE}/(?P<category>alpha|syllab)/(?P<item>[^/]+)\.ogg"),
        ("ktuberling", rf"ktuberling/sounds/{_LANGUAGE}/(?P<category>)(?P<item>[^/]+)\.(?:ogg|wav|opus)"),
        ("asterisk", r"asterisk/sounds/(?P<language>[a-z]{2})_[A-Z]{2}_[fm]_(?!Menardi)\w+/(?P<category>(?:\w+/)?)(?P<item>[^/]+)\.g722"),
        ("prompts", rf"asterisk/sounds/{_LANGUAGE}/(?P<category>(?:\w+/)?)(?P<item>[^/]+)\.(?:gsm|wav)"),
        ("sonic-pi", r"sonic-pi/(?:.+/)?samples/(?P<item>(?P<category>[^/_]+)_[^/]+)\.(?:flac|wav)"),
        ("lmms", r"lmms/samples/(?P<category>\w+)/(?P<item>[^/]+)\.(?:ogg|wav|flac)"),
        ("wesnoth", r"wesnoth/.+/sounds/(?P<category>(?:[\w-]+/)?)(?P<item>[^/]+)\.(?:ogg|wav)"),
        ("desktop", r"sounds/(?P<category>freedesktop)/stereo/(?P<item>[^/]+)\.oga"),
    )
)  # fmt: skip
# Tones and silence among the telephone voices, spoken letters among the effects.
_MISPLACED: Final = re.compile(
    r"asterisk/sounds/.*(?:silence|beep|tone|ring|busy|congestion|monkeys|weasels|tada)|/dreydl-\w+\.ogg"
)
# Headerless telephone codecs, which only their names tell.
_RAW_CODECS: Final = {".g722": "g722", ".gsm": "gsm"}
Samples = NDArray[np.float32]


@dataclass(frozen=True)
class Sound:
    """One file.

    Attributes:
        source: the package it is from, by which speakers and microphones change.
        item: what is said or heard, without language: all files of an item are in one split.
        language: of speech (`fr`); None for an effect.
        category: where in its package it lies.
    """

    path: Path
    source: str
    item: str
    language: str | None
    category: str

    @property
    def split(self) -> str:
        """One of `SPLITS`, by a digest of the item: no draw, so that it never changes."""
        if self.source == UNHEARD_SOURCE:
            return "unheard"
        percent = int(hashlib.sha256(f"item {self.item}".encode()).hexdigest()[:8], 16) % 100
        if percent < HELD_OUT_PERCENT:
            return "test"
        return "validation" if percent < HELD_OUT_PERCENT + VALIDATION_PERCENT else "train"


def find_sounds(folders: Iterable[Path]) -> list[Sound]:
    """The known sounds below `folders`, in the order of their names."""
    files = (path for folder in folders for path in sorted(folder.rglob("*.*")))
    return [sound for path in files if (sound := describe_sound(path)) is not None and path.is_file()]


def describe_sound(path: Path) -> Sound | None:
    """What the place of a file says of it; None if it is no sound that is known here."""
    place = path.as_posix()
    if _MISPLACED.search(place):
        return None
    for source, pattern in _RULES:
        if match := pattern.search(place):
            parts = match.groupdict()
            language = "en" if "english" in parts else parts.get("language")
            return Sound(path, source, item_name(parts["item"]), language, parts["category"].strip("/"))
    return None


def item_name(stem: str) -> str:
    """What files of one item have in common: `Cow_white2` and `cow-white` are both `cowwhite`, so that neither gives the other away."""
    name = re.sub(r"[^a-z0-9]", "", stem.lower().removesuffix("_filled").removesuffix("_outline"))
    return name.rstrip("0123456789") or name


def read_sound(path: Path) -> Samples:
    """The file's first `MAX_SECONDS` as float32 mono [samples] at 16 kHz.

    Raises:
        MediaError: as `decode_audio` does.
    """
    samples = _read_raw(path) if path.suffix in _RAW_CODECS else decode_audio(path)
    return samples[: int(MAX_SECONDS * SAMPLE_RATE_HZ)]


def _read_raw(path: Path) -> Samples:
    import av

    try:
        with av.open(str(path), format=_RAW_CODECS[path.suffix]) as container:
            resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE_HZ)
            frames = [part for frame in container.decode(audio=0) for part in resampler.resample(frame)]
            frames += resampler.resample(None)
    except (av.FFmpegError, IndexError) as error:
        raise MediaError("undecodable", f"{path} is damaged: {error}") from error
    if not frames:
        raise MediaError("empty", f"{path} holds no sound")
    return np.concatenate([frame.to_ndarray()[0] for frame in frames])


def read_sounds(
    sounds: Iterable[Sound], *, progress: Callable[[int], object] | None = None
) -> Iterator[tuple[Sound, Samples]]:
    """Each sound that can be read and is not silent, once: of equal sounds the first one, held-out ones before others.

    So no copy under another name teaches what is held out.
    """
    seen: set[str] = set()
    for sound in sorted(sounds, key=lambda sound: SPLITS.index(sound.split), reverse=True):
        if progress:
            progress(1)
        try:
            samples = read_sound(sound.path)
        except MediaError:
            continue
        digest = hashlib.sha256(samples.tobytes()).hexdigest()
        if digest not in seen and samples.std() > 1e-4:
            seen.add(digest)
            yield sound, samples
