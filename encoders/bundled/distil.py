"""Distillation: the small wav2vec 2.0 learns, frame by frame and clip by clip, what Whisper's encoder makes of the same sound.

The student hears the sound through random channels and over other sounds, and must answer with the teacher's frames of the clean
one. Where a clip's language is known, its vector must also tell it. Nothing here reads files.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from encoders.bundled.distil_student import HOP, SAMPLE_RATE_HZ, frames_of
from encoders.device import choose_compute

# The student's first frame is centred 52.5 ms into a clip, the teacher's second one of 40 ms at 50 ms.
TEACHER_LEAD: Final = 1  # frames
STRETCH: Final = (0.87, 1.15)  # speech is played slower and lower, or faster and higher: as other speakers would say it
TELEPHONE_SHARE: Final = 0.4  # of random channels that are cut to such a band
IGNORED: Final = -100  # the label of a clip that has none
POOL_BATCHES: Final = 24  # batches whose clips are sorted by length, so that little is cut away
Array = NDArray[Any]


@dataclass(frozen=True)
class Recipe:
    """How long and how a student is trained; sizes that a card states.

    Attributes:
        clip_weight, label_weight: of the losses over pairs of clips and over labels, beside that over frames.
        noise_share, channel_share, stretch_share: of speech that is heard over another sound, through a random channel, or
            as another speaker's.
        average: decay of the weights' moving average, which is what is kept.
    """

    steps: int = 1000
    batch: int = 32
    max_seconds: float = 1.8
    learning_rate: float = 1.5e-3
    warm_up: float = 0.06
    weight_decay: float = 0.02
    clip_weight: float = 2.0
    label_weight: float = 1.0
    noise_share: float = 0.4
    channel_share: float = 0.6
    stretch_share: float = 0.5
    average: float = 0.995


@dataclass(frozen=True)
class Example:
    """A sound [samples] with its teacher's frames [frames, dim] every 40 ms, how often it is drawn, and its label, if any."""

    samples: Array
    target: Array
    weight: float
    speech: bool
    label: str | None = None


@dataclass(frozen=True)
class Progress:
    """Where a training is."""

    step: int
    steps: int
    loss: float
    eta_seconds: float


class Distillation:
    """One training run of `student` (a `Wav2Vec2Model`) on `examples`."""

    def __init__(self, student: Any, examples: Sequence[Example], recipe: Recipe, seed: int) -> None:
        import torch

        self._student, self._examples, self._recipe = student, examples, recipe
        self._random = np.random.default_rng([seed, 2])
        self._centre, self._scale, self._whiten = _target_statistics(examples)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._labels = sorted({example.label for example in examples if example.label})
            self._head = torch.nn.Linear(student.config.hidden_size, len(self._centre))
            self._classifier = torch.nn.Linear(student.config.hidden_size, max(1, len(self._labels)))
        self._average = {name: value.detach().clone() for name, value in student.state_dict().items()}

    def run(self, progress: Callable[[Progress], object] | None = None) -> list[float]:
        """Train; afterwards the student holds the averaged weights. Returns the loss of every step."""
        import torch

        recipe, losses, started = self._recipe, [], time.monotonic()
        parameters = [*self._student.parameters(), *self._head.parameters(), *self._classifier.parameters()]
        optimizer = torch.optim.AdamW(parameters, recipe.learning_rate, (0.9, 0.98), weight_decay=recipe.weight_decay)
        self._student.train()
        for step, batch in zip(range(recipe.steps), self._batches(), strict=False):
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * schedule(step / recipe.steps, recipe.warm_up)
            loss = self._loss(*batch)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            self._follow(min(recipe.average, (1 + step) / (10 + step)))
            losses.append(loss.item())
            if progress:
                left = (recipe.steps - step - 1) * (time.monotonic() - started) / (step + 1)
                progress(Progress(step + 1, recipe.steps, losses[-1], left))
        self._student.load_state_dict(self._average)
        self._student.eval()
        return losses

    def _follow(self, decay: float) -> None:
        import torch

        state = self._student.state_dict()
        torch._foreach_lerp_([self._average[name] for name in state], list(state.values()), 1 - decay)

    def _batches(self) -> Iterator[tuple[Array, Array, Array]]:
        """Clips [batch, samples], normalised, targets [batch, frames, dim], labels; clips of a batch are cut to its shortest one."""
        recipe = self._recipe
        weights = np.array([example.weight for example in self._examples])
        limit = int(recipe.max_seconds * SAMPLE_RATE_HZ)
        while True:
            drawn = self._random.choice(len(weights), recipe.batch * POOL_BATCHES, p=weights / weights.sum())
            lengths = [min(len(self._examples[row].samples), limit) for row in drawn]
            rows = drawn[np.argsort(lengths, kind="stable")].reshape(POOL_BATCHES, recipe.batch)
            for chosen in rows[self._random.permutation(POOL_BATCHES)]:
                yield self._cut([self._examples[row] for row in chosen], limit)

    def _cut(self, examples: Sequence[Example], limit: int) -> tuple[Array, Array, Array]:
        samples = min(limit, *(len(example.samples) for example in examples))
        count = min(frames_of(samples), *(len(example.target) - TEACHER_LEAD for example in examples))
        parts = [self._part(example, samples, count) for example in examples]
        clips = [clip for clip, _ in parts]
        heard = np.stack([self._disturb(clip, e.speech, clips) for clip, e in zip(clips, examples, strict=True)])
        labels = [self._labels.index(e.label) if e.label else IGNORED for e in examples]
        return heard, np.stack([target for _, target in parts]), np.array(labels)

    def _part(self, example: Example, samples: int, count: int) -> tuple[Array, Array]:
        """A random stretch of an example: clip [samples] and target [count, dim]."""
        at = self._start(example, samples, count)
        clip, target = (
            part.astype(np.float32) for part in (example.samples[at * HOP :], example.target[at + TEACHER_LEAD :])
        )
        if not example.speech or self._random.random() >= self._recipe.stretch_share:
            return clip[:samples], target[:count]
        pace = min(self._random.uniform(*STRETCH), len(clip) / samples)
        return resampled(clip, samples, pace), resampled(target, count, pace)

    def _start(self, example: Example, samples: int, count: int) -> int:
        room = min((len(example.samples) - samples) // HOP, len(example.target) - TEACHER_LEAD - count)
        return int(self._random.integers(room + 1))

    def _disturb(self, clip: Array, speech: bool, others: Sequence[Array]) -> Array:
        """The clip, normalised as the encoder does it; speech through a random channel and over another sound."""
        if speech and self._random.random() < self._recipe.channel_share:
            clip = random_channel(clip, self._random)
        if speech and self._random.random() < self._recipe.noise_share:
            other = _standardised(others[int(self._random.integers(len(others)))])
            clip = _standardised(clip) + 10 ** (-self._random.uniform(5, 25) / 20) * other
        else:
            clip = _standardised(clip) + 10 ** (-self._random.uniform(25, 60) / 20) * self._random.standard_normal(
                len(clip)
            )
        return _standardised(clip).astype(np.float32)

    def _loss(self, clips: Array, targets: Array, labels: Array) -> Any:
        import torch

        wanted = (torch.from_numpy(targets) - self._centre) / self._scale
        with torch.autocast("cpu", torch.bfloat16, enabled=has_bf16()):
            frames = self._student(torch.from_numpy(clips)).last_hidden_state[:, : wanted.shape[1]]
            answer = self._head(frames).float()
        vectors = frames.float().mean(1)
        smooth = torch.nn.functional.smooth_l1_loss(answer, wanted)
        cosine = 1 - torch.nn.functional.cosine_similarity(answer, wanted, dim=-1).mean()
        loss = smooth + cosine + self._recipe.clip_weight * self._clip_loss(vectors, wanted.mean(1))
        if self._labels and (labels != IGNORED).any():
            guesses = self._classifier(vectors)
            loss = loss + self._recipe.label_weight * torch.nn.functional.cross_entropy(
                guesses, torch.from_numpy(labels)
            )
        return loss

    def _clip_loss(self, vectors: Any, wanted: Any) -> Any:
        """How far the cosines between the batch's clip vectors are from those between the teacher's, whitened."""
        import torch

        def cosines(rows: Any) -> Any:
            unit = torch.nn.functional.normalize(rows, dim=-1)
            return unit @ unit.T

        return (cosines(vectors) - cosines(wanted @ self._whiten)).square().mean().sqrt()


def schedule(done: float, warm_up: float) -> float:
    """Factor of the learning rate: a linear rise, then half a cosine to zero."""
    return min(1.0, done / warm_up) * (0.5 + 0.5 * math.cos(math.pi * max(0.0, done - warm_up) / (1 - warm_up)))


def resampled(rows: Array, count: int, pace: float) -> Array:
    """`count` rows of `rows` [rows, ...] at `pace` times their speed, by linear interpolation."""
    at = np.minimum(np.arange(count) * pace, len(rows) - 1)
    below = at.astype(int)
    above, share = np.minimum(below + 1, len(rows) - 1), (at - below).astype(np.float32)
    share = share.reshape(-1, *[1] * (rows.ndim - 1))
    return np.asarray(rows[below] * (1 - share) + rows[above] * share)


def random_channel(clip: Array, random: np.random.Generator) -> Array:
    """The clip through a random smooth filter (+- 12 dB between eight points), sometimes cut to a telephone's band."""
    spectrum = np.fft.rfft(clip)
    points = np.cumsum(random.normal(0, 4, 8))
    gain = np.interp(
        np.linspace(0, 1, len(spectrum)) ** 0.5, np.linspace(0, 1, 8), (points - points.mean()).clip(-12, 12)
    )
    hertz = np.linspace(0, SAMPLE_RATE_HZ / 2, len(spectrum))
    if random.random() < TELEPHONE_SHARE:
        gain = gain - 60 * ((hertz < random.uniform(50, 350)) | (hertz > random.uniform(3300, 6000)))
    return np.fft.irfft(spectrum * 10 ** (gain / 20), len(clip))


def _standardised(clip: Array) -> Array:
    return np.asarray((clip - clip.mean()) / np.sqrt(clip.var() + 1e-7))


def _target_statistics(examples: Sequence[Example]) -> tuple[Any, Any, Any]:
    """Mean and deviation [dim] of the teacher's frames, and what whitens [dim, dim] its standardised clip means."""
    import torch

    total = sum(len(example.target) for example in examples)
    centre = sum(example.target.sum(0, dtype=np.float64) for example in examples) / total
    square = sum(np.square(example.target, dtype=np.float64).sum(0) for example in examples) / total
    scale = np.sqrt(np.maximum(square - centre**2, 1e-8))
    means = np.stack([(example.target.mean(0, dtype=np.float64) - centre) / scale for example in examples])
    values, vectors = np.linalg.eigh(means.T @ means / len(means))
    # The weakest directions are noise; a floor keeps whitening from making them loud.
    whiten = vectors / np.sqrt(np.maximum(values, 0) + 0.01 * values.max())
    return tuple(torch.from_numpy(part.astype(np.float32)) for part in (centre, scale, whiten))  # type: ignore[return-value]


def has_bf16() -> bool:
    """Whether this processor multiplies bfloat16 itself; training then takes half the time."""
    return choose_compute("cpu").dtype == "bfloat16"


def calibrate(student: Any, means: Array) -> None:
    """Fold centring and scaling of clip vectors [clips, hidden] into the last layer norm, so that their cosines spread."""
    import torch

    values = torch.from_numpy(means).double()
    deviation = values.std(0).clamp_min(1e-3 * float(values.std()))
    norm = student.encoder.layer_norm
    with torch.no_grad():
        norm.weight.div_(deviation)
        norm.bias.sub_(values.mean(0)).div_(deviation)
