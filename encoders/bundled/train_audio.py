"""Training and judging the bundled audio encoder, from folders of sounds to a checkpoint folder with its figures."""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from encoders.bundled.distil import Distillation, Progress, Recipe, calibrate
from encoders.bundled.distil_data import Heard, Report, examples, hear, known_sounds
from encoders.bundled.distil_student import CONFIG, SAMPLE_RATE_HZ, build
from encoders.bundled.distil_teacher import whisper_file
from encoders.bundled.sounds import Sound, read_sounds
from encoders.bundled.sounds_probe import (
    TELEPHONE,
    Outcome,
    askable,
    log_mel_statistics,
    over_telephone,
    probes,
    run_probe,
)
from encoders.errors import EncoderError

Array = NDArray[Any]
CALIBRATION_CLIPS: Final = 3000
FITTED_PERCENT: Final = 45  # of the training speech, for probes
# Clips are cut to whole tenths of a second before they are judged, so that many are of one length and go through together.
LENGTH_GRID: Final = SAMPLE_RATE_HZ // 10
PREPROCESSOR: Final = {
    "feature_extractor_type": "Wav2Vec2FeatureExtractor",
    "feature_size": 1,
    "sampling_rate": SAMPLE_RATE_HZ,
    "padding_value": 0.0,
    "padding_side": "right",
    "do_normalize": True,
    "return_attention_mask": True,
}


@dataclass(frozen=True)
class Trained:
    """A finished training run: losses are means over the first and the last twentieth of the steps."""

    folder: Path
    first_loss: float
    last_loss: float
    seconds: float
    clips: dict[str, int]
    hours: float

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "folder": str(self.folder)}


def train_audio(
    folders: Sequence[Path],
    out: Path,
    *,
    whisper: str | Path = "auto",
    recipe: Recipe = Recipe(),  # noqa: B008  (frozen)
    seed: int = 0,
    cache: Path | None = None,
    report: Report = lambda *_: None,
    progress: Callable[[Progress], object] | None = None,
) -> Trained:
    """Distil the teacher into a small wav2vec 2.0 and write it to `out`.

    `folders` hold unpacked packages; `whisper` is a CTranslate2 file or folder, or `auto` for the teacher's package. Recipe and
    seed fix the result on one machine. `cache` keeps decoded sounds and the teacher's frames (2 GB). `report` is told of the
    preparation, `progress` of every step.

    Raises:
        EncoderError: `out` holds something else, or there is nothing to learn from; `WeightsError`: the teacher is not there.
    """
    started = time.monotonic()
    teacher_file = whisper_file(whisper)
    if out.exists() and any(out.iterdir()):
        raise EncoderError(f"{out} is not empty: give a new folder")
    heard = hear(known_sounds(folders), teacher_file, cache, report)
    lessons = examples(heard, teacher_file, seed, report)
    student = build(seed)
    losses = Distillation(student, lessons, recipe, seed).run(progress)
    calibrate(student, _clip_means(student, heard, seed))
    save_checkpoint(student, out)
    part = max(1, len(losses) // 20)
    hours = sum(len(lesson.samples) for lesson in lessons) / SAMPLE_RATE_HZ / 3600
    clips = Counter(entry.sound.split for entry in heard)
    seconds = time.monotonic() - started
    return Trained(out, float(np.mean(losses[:part])), float(np.mean(losses[-part:])), seconds, dict(clips), hours)


def _clip_means(student: Any, heard: Sequence[Heard], seed: int) -> Array:
    """Mean frames [clips, hidden] of training clips, half of them effects as far as there are so many."""
    import torch

    random = np.random.default_rng([seed, 3])
    pool = [entry for entry in heard if entry.sound.split == "train"]
    groups = [[e for e in pool if (e.sound.language is None) == effect] for effect in (True, False)]
    chosen = [group[row] for group in groups for row in random.permutation(len(group))[: CALIBRATION_CLIPS // 2]]
    rows = []
    with torch.inference_mode():
        for entry in chosen:
            clip = entry.samples[: 2 * SAMPLE_RATE_HZ].astype(np.float32)
            clip = np.resize((clip - clip.mean()) / np.sqrt(clip.var() + 1e-7), max(len(clip), 1680))
            rows.append(student(torch.from_numpy(clip)[None]).last_hidden_state[0].mean(0).numpy())
    return np.stack(rows)


def save_checkpoint(student: Any, folder: Path) -> None:
    """Write `folder` as `save_pretrained` does, in float16: config.json, preprocessor_config.json, model.safetensors."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.to(torch.float16).contiguous() for name, value in student.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config = {**CONFIG, "architectures": ["Wav2Vec2Model"], "torch_dtype": "float16"}
    for name, value in (("config.json", config), ("preprocessor_config.json", PREPROCESSOR)):
        (folder / name).write_text(json.dumps(value, indent=2) + "\n")


@dataclass(frozen=True)
class Row:
    """One probe of one kind of vector."""

    probe: str
    vectors: str
    outcome: Outcome


def evaluate_audio(
    folders: Sequence[Path],
    checkpoint: Path | str = "bundled",
    *,
    seed: int = 0,
    final: bool = True,
    report: Report = lambda *_: None,
) -> list[Row]:
    """Probe a checkpoint's vectors beside log-mel statistics and the same network before training, wholly random and as a filter bank.

    `final` judges on the held-out items, else on validation items, for choices.

    Raises:
        EncoderError: there are no sounds.
    """
    sounds, clips = clips_to_judge(known_sounds(folders), report, final=final)
    vectors = {"trained": _encode(checkpoint, clips, report), "log-mel": log_mel_statistics(clips)}
    with TemporaryDirectory() as scratch:
        for name, bank in (("random", False), ("filter bank", True)):
            folder = Path(scratch) / name.replace(" ", "-")
            save_checkpoint(build(seed, filter_bank=bank), folder)
            vectors[name] = _encode(folder, clips, report)
    items = [sound.item for sound in sounds]
    return [
        Row(probe.name, name, run_probe(probe, found, items, seed))
        for probe in probes(sounds, final=final)
        if askable(probe)
        for name, found in vectors.items()
    ]


def clips_to_judge(sounds: Sequence[Sound], report: Report, *, final: bool) -> tuple[list[Sound], list[Array]]:
    """Sounds and their clips; what is tested is there once more as a telephone would carry it, with `/telephone` in its source.

    Of speech that only fits probes, `FITTED_PERCENT` is kept.
    """
    tested = "test" if final else "validation"
    read = list(
        read_sounds(list(filter(_is_judged, sounds)), progress=lambda done: report("decoding", done, len(sounds)))
    )
    read = [(sound, samples[: max(LENGTH_GRID, len(samples) // LENGTH_GRID * LENGTH_GRID)]) for sound, samples in read]
    read += [
        (replace(sound, source=f"{sound.source}{TELEPHONE}"), over_telephone(samples))
        for sound, samples in read
        if sound.split == tested and sound.language is not None and sound.source == "stamps"
    ]
    return [sound for sound, _ in read], [samples for _, samples in read]


def _is_judged(sound: Sound) -> bool:
    if sound.split != "train" or sound.language is None:
        return True
    told = f"{sound.source} {sound.language} {sound.path.name}"
    return int(hashlib.sha256(told.encode()).hexdigest()[:8], 16) % 100 < FITTED_PERCENT


def _encode(source: Path | str, clips: Sequence[Array], report: Report) -> Array:
    from encoders import AudioEncoder

    def tell(done: int) -> None:
        report("encoding", done, len(clips))

    return AudioEncoder(source).encode(clips, progress=tell)
