"""What a sound's vector knows, by linear probes: logistic regressions on frozen clip vectors, fitted on items that others test.

Log-mel statistics (mean and deviation per band) are what such probes must beat: they tell a speaker and a microphone apart with
ease. So languages are also probed across sources, where speakers and microphones are others than those of the fit.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from encoders.bundled.sounds import UNHEARD_SOURCE, Sound

PENALTIES: Final = (
    0.001,
    0.01,
    0.1,
    1.0,
)  # of the regression, C; the validation items choose, for every kind of vector alike
MAX_FIT: Final = 4000  # clips
RESAMPLES: Final = 1000
SHARED_LANGUAGES: Final = ("es", "fr", "it", "ru")
MEL_BANDS: Final = 80
TELEPHONE: Final = "/telephone"  # ends the source of a sound that was sent over one
LEAST_TESTED: Final = 8  # clips of a class that can be tested
Array = NDArray[Any]


@dataclass(frozen=True)
class Probe:
    """A question: the labels [clips] (None: not asked) and which clips fit it, choose its penalty and test it."""

    name: str
    labels: Sequence[str | None]
    fit: NDArray[np.bool_]
    choose: NDArray[np.bool_]
    test: NDArray[np.bool_]


@dataclass(frozen=True)
class Outcome:
    """Balanced accuracy (the mean of the classes' recalls) on the tested clips, with its 95 % interval over items."""

    accuracy: float
    low: float
    high: float
    clips: int
    classes: int


def probes(sounds: Sequence[Sound], *, final: bool) -> Iterator[Probe]:
    """The questions; unless `final`, validation items stand in for test items, so that choices never see those."""
    splits = np.array([sound.split for sound in sounds])
    sources = np.array([sound.source for sound in sounds])
    clean = ~np.char.endswith(sources, TELEPHONE)
    fit, choose = clean & (splits == "train"), clean & (splits == "validation")
    test = clean & (splits == "test") if final else choose
    speech = ["effect" if sound.language is None else "speech" for sound in sounds]
    yield Probe("effect or speech", speech, fit, choose, test)
    yield Probe("kind of effect", [effect_kind(sound) for sound in sounds], fit, choose, test)
    languages = [sound.language for sound in sounds]
    stamps = sources == "stamps"
    common = _frequent(languages, fit & stamps)
    yield Probe("language, same speakers", common, fit & stamps, choose & stamps, test & stamps)
    yield Probe("language, same speakers over a telephone", common, fit & stamps, choose & stamps, ~clean)
    yield Probe("language, all sources", _frequent(languages, fit, 60), fit, choose, test)
    shared = [name if name in SHARED_LANGUAGES else None for name in languages]
    for left_out in ("stamps", "asterisk", "ktuberling"):
        inside = sources == left_out
        yield Probe(
            f"language, speakers new to the probe: {left_out}", shared, fit & ~inside, choose & ~inside, test & inside
        )
    if final:
        yield Probe(f"language, speakers never heard: {UNHEARD_SOURCE}", shared, fit, choose, splits == "unheard")


def askable(probe: Probe) -> bool:
    """Whether there are two classes or more to fit, to choose by and to test on."""
    labels = np.array([label or "" for label in probe.labels])
    counts = [
        np.unique(labels[mask & (labels != "")], return_counts=True)[1]
        for mask in (probe.fit, probe.choose, probe.test)
    ]
    return all(len(found) > 1 for found in counts[:2]) and (counts[2] >= LEAST_TESTED).sum() > 1


def _frequent(labels: Sequence[str | None], where: NDArray[np.bool_], least: int = 150) -> list[str | None]:
    counts: dict[str, int] = {}
    for label, used in zip(labels, where, strict=True):
        if label is not None and used:
            counts[label] = counts.get(label, 0) + 1
    return [label if label is not None and counts.get(label, 0) >= least else None for label in labels]


_KINDS: Final[Mapping[str, tuple[str, ...]]] = {
    "animal": ("stamps/animals",),
    "drum": ("sonic-pi/bd", "sonic-pi/drum", "sonic-pi/sn", "sonic-pi/perc", "sonic-pi/tabla", "lmms/drums", "lmms/latin"),
    "bass": ("sonic-pi/bass", "lmms/basses"),
    "loop": ("sonic-pi/loop", "lmms/beats", "lmms/bassloops"),
    "instrument": ("lmms/instruments", "lmms/stringsnpads", "sonic-pi/guit"),
    "event": ("wesnoth",),
}  # fmt: skip


def effect_kind(sound: Sound) -> str | None:
    """A coarse kind of effect, from where it lies: animal, drum, bass, loop, instrument or a game's event."""
    if sound.language is not None:
        return None
    place = f"{sound.source}/{sound.category}"
    return next((kind for kind, starts in _KINDS.items() if place.startswith(starts)), None)


def run_probe(probe: Probe, vectors: Array, items: Sequence[str], seed: int = 0) -> Outcome:
    """Fit on `probe.fit`, choose the penalty on `probe.choose`, and answer on `probe.test`; vectors are [clips, dim]."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    random = np.random.default_rng(seed)
    labels = np.array([label or "" for label in probe.labels])
    fit, choose, test = (np.flatnonzero(mask & (labels != "")) for mask in (probe.fit, probe.choose, probe.test))
    rare = {label for label in set(labels[test]) if (labels[test] == label).sum() < LEAST_TESTED}
    test = test[~np.isin(labels[test], sorted(rare))]
    fit = np.sort(random.permutation(fit)[:MAX_FIT])
    scaled = StandardScaler().fit(vectors[fit]).transform(vectors)
    models = [
        LogisticRegression(C=penalty, class_weight="balanced", max_iter=300).fit(scaled[fit], labels[fit])
        for penalty in PENALTIES
    ]
    best = max(models, key=lambda model: balanced_accuracy(labels[choose], model.predict(scaled[choose])))
    answers = best.predict(scaled[test])
    low, high = _interval(labels[test], answers, [items[int(row)] for row in test], random)
    return Outcome(balanced_accuracy(labels[test], answers), low, high, len(test), len(set(labels[test])))


def balanced_accuracy(truth: Array, answers: Array) -> float:
    """Mean over the classes in `truth` of the share of their clips that are answered right."""
    right = truth == answers
    return float(np.mean([right[truth == label].mean() for label in sorted(set(truth))]))


def _interval(truth: Array, answers: Array, items: Sequence[str], random: np.random.Generator) -> tuple[float, float]:
    """A 95 % bootstrap interval; whole items are drawn, since an item's clips in several languages are alike."""
    labels, classes = np.unique(truth, return_inverse=True)
    _, owners = np.unique(items, return_inverse=True)
    right = np.zeros((owners.max() + 1, len(labels)))
    total = np.zeros_like(right)
    np.add.at(right, (owners, classes), truth == answers)
    np.add.at(total, (owners, classes), 1)
    draws = random.integers(len(right), size=(RESAMPLES, len(right)))
    sums, counts = right[draws].sum(1), total[draws].sum(1)
    with np.errstate(invalid="ignore"):
        scores = np.nanmean(sums / counts, axis=1)
    low, high = np.percentile(scores, [2.5, 97.5])
    return float(low), float(high)


def log_mel_statistics(clips: Sequence[Array]) -> Array:
    """Mean and deviation over time of every log-mel band [clips, 2 x bands], of clips at 16 kHz normalised as for the encoder."""
    import torch
    from torchaudio.functional import melscale_fbanks

    banks = melscale_fbanks(201, 0.0, 8000.0, MEL_BANDS, 16_000, norm="slaney", mel_scale="slaney")
    window, rows = torch.hann_window(400), []
    for clip in clips:
        wave = torch.from_numpy(np.asarray(clip, np.float32))
        wave = (wave - wave.mean()) / (wave.var(correction=0) + 1e-7).sqrt()
        power = torch.stft(wave, 400, 160, window=window, return_complex=True).abs() ** 2
        mel = (banks.T @ power).clamp_min(1e-6).log()
        rows.append(torch.cat([mel.mean(1), mel.std(1)]).numpy())
    return np.stack(rows)


def over_telephone(clip: Array) -> Array:
    """The clip as an analogue telephone and an 8 kHz line with mu-law samples (ITU-T G.711) would carry it, at 16 kHz again."""
    import torch
    from torchaudio.functional import resample

    narrow = resample(torch.from_numpy(np.array(clip, np.float32)), 2, 1).numpy()
    spectrum = np.fft.rfft(narrow)
    hertz = np.linspace(0, 4000, len(spectrum))
    narrow = np.fft.irfft(spectrum * ((hertz > 300) & (hertz < 3400)), len(narrow))
    peak = np.abs(narrow).max() + 1e-9
    coded = np.round(127 * np.sign(narrow) * np.log1p(255 * np.abs(narrow) / peak) / np.log(256)) / 127
    decoded = np.sign(coded) * np.expm1(np.abs(coded) * np.log(256)) / 255
    wide: Array = resample(torch.from_numpy(decoded.astype(np.float32)), 1, 2).numpy()
    return wide[: len(clip)]
