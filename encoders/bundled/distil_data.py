"""What a distillation learns from: sounds with their teacher's frames, made once and kept in a scratch folder if one is given."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from encoders.bundled.distil import Example, has_bf16
from encoders.bundled.distil_student import SAMPLE_RATE_HZ, synthetic_sounds
from encoders.bundled.distil_teacher import Teacher
from encoders.bundled.sounds import Sound, find_sounds, read_sounds
from encoders.errors import EncoderError

Array = NDArray[Any]
Report = Callable[[str, int, int], object]  # what is being done, how many are done, of how many
SECONDS_PER_BATCH: Final = 48
SHORTEST_SECONDS: Final = 0.4  # a shorter clip trains nothing
# How much of what is heard is speech, effects and synthetic sounds.
SHARES: Final = {"speech": 0.65, "effect": 0.25, "synthetic": 0.1}
SYNTHETIC: Final = 1500
EFFECT: Final = "effect"  # the label of what is no speech
LABELLED_FROM: Final = 40  # clips of a language; of a rarer one the label is left out


@dataclass(frozen=True)
class Heard:
    """A sound [samples] at 16 kHz, and the teacher's frames of it [frames, dim], one every 40 ms; both float16."""

    sound: Sound
    samples: Array
    frames: Array


def hear(sounds: Sequence[Sound], teacher_file: Path, cache: Path | None, report: Report) -> list[Heard]:
    """Decode `sounds` and ask the teacher about them, or read both from `cache`.

    Raises:
        EncoderError: nothing can be read.
    """
    folder = cache / _key(sounds, teacher_file) if cache else None
    if folder and (folder / "index.json").is_file():
        return _load(folder, sounds)
    decoded: list[tuple[Sound, Array]] = []
    for sound, samples in read_sounds(sounds, progress=lambda done: report("decoding", done, len(sounds))):
        decoded.append((sound, samples.astype(np.float16)))
    if not decoded:
        raise EncoderError("none of the sounds can be read")
    frames = ask(Teacher(teacher_file), [samples for _, samples in decoded], report)
    heard = [Heard(sound, samples, rows) for (sound, samples), rows in zip(decoded, frames, strict=True)]
    if folder:
        _save(folder, heard)
    return heard


def ask(teacher: Teacher, clips: Sequence[Array], report: Report) -> list[Array]:
    """The teacher's frames of every clip, two by two averaged to one every 40 ms."""
    import torch

    answers: list[Array] = [np.zeros(0)] * len(clips)
    for rows in _batches([len(clip) for clip in clips]):
        with torch.autocast("cpu", torch.bfloat16, enabled=has_bf16()):
            frames = teacher.frames([clips[row].astype(np.float32) for row in rows])
        for row, found in zip(rows, frames, strict=True):
            answers[row] = _halved(found)
        report("asking the teacher", len(rows), len(clips))
    return answers


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    rows: list[int] = []
    for row in np.argsort(lengths, kind="stable"):
        if rows and (len(rows) + 1) * lengths[row] > SECONDS_PER_BATCH * SAMPLE_RATE_HZ:
            yield rows
            rows = []
        rows.append(int(row))
    yield rows


def _halved(frames: Array) -> Array:
    even = np.concatenate([frames, frames[-1:]]) if len(frames) % 2 else frames
    halved: Array = even.astype(np.float32).reshape(-1, 2, frames.shape[1]).mean(1).astype(np.float16)
    return halved


def examples(heard: Sequence[Heard], teacher_file: Path, seed: int, report: Report) -> list[Example]:
    """What trains: the training split, every source and language about as loud as the root of its size, and synthetic sounds.

    Raises:
        EncoderError: no sound of the training split is long enough.
    """
    least = int(SHORTEST_SECONDS * SAMPLE_RATE_HZ)
    used = [entry for entry in heard if entry.sound.split == "train" and len(entry.samples) >= least]
    if not used:
        raise EncoderError(f"no sound of the training split lasts {SHORTEST_SECONDS} s or more")
    groups = Counter((entry.sound.source, entry.sound.language) for entry in used)
    weights = [groups[entry.sound.source, entry.sound.language] ** -0.5 for entry in used]
    kinds = ["effect" if entry.sound.language is None else "speech" for entry in used]
    totals = {kind: sum(w for w, k in zip(weights, kinds, strict=True) if k == kind) for kind in set(kinds)}
    spoken = Counter(entry.sound.language or EFFECT for entry in used)
    labels = [name if spoken[name := entry.sound.language or EFFECT] >= LABELLED_FROM else None for entry in used]
    real = [
        Example(entry.samples, entry.frames, SHARES[kind] * weight / totals[kind], kind == "speech", label)
        for entry, kind, weight, label in zip(used, kinds, weights, labels, strict=True)
    ]
    made = [clip.astype(np.float16) for clip in synthetic_sounds(SYNTHETIC, seed)]
    share = SHARES["synthetic"] / len(made)
    frames = ask(Teacher(teacher_file), made, report)
    return real + [Example(clip, rows, share, speech=False) for clip, rows in zip(made, frames, strict=True)]


def _key(sounds: Sequence[Sound], teacher_file: Path) -> str:
    named = [[str(sound.path), sound.path.stat().st_size, sound.item] for sound in sounds]
    told = json.dumps([named, str(teacher_file), teacher_file.stat().st_size])
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _save(folder: Path, heard: Sequence[Heard]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "samples.npy", np.concatenate([entry.samples for entry in heard]))
    np.save(folder / "frames.npy", np.concatenate([entry.frames for entry in heard]))
    index = [[str(entry.sound.path), len(entry.samples), len(entry.frames)] for entry in heard]
    (folder / "index.json").write_text(json.dumps(index))


def _load(folder: Path, sounds: Sequence[Sound]) -> list[Heard]:
    known = {str(sound.path): sound for sound in sounds}
    index = json.loads((folder / "index.json").read_text())
    samples, frames = (
        np.split(np.load(folder / f"{name}.npy", mmap_mode="r"), np.cumsum([entry[column] for entry in index])[:-1])
        for column, name in ((1, "samples"), (2, "frames"))
    )
    return [Heard(known[path], s, f) for (path, _, _), s, f in zip(index, samples, frames, strict=True)]


def known_sounds(folders: Sequence[Path]) -> list[Sound]:
    """The sounds below `folders`.

    Raises:
        EncoderError: there are none.
    """
    sounds = find_sounds(folders)
    if not sounds:
        raise EncoderError(
            f"no known sounds under {', '.join(map(str, folders))}: give folders into which Debian packages such as "
            "tuxpaint-stamps-default were unpacked (`apt-get download NAME`, `dpkg-deb -x NAME*.deb FOLDER`)"
        )
    return sounds
