"""A small wav2vec 2.0 with a fixed initialisation: no checkpoint of this architecture comes in a Python package.

Its first convolution is a mel-spaced Gabor filter bank (as in LEAF, Zeghidour et al. 2021), the next ones smooth and contrast the
bands over time, the Transformer starts near the identity, and its last layer norm is calibrated on synthetic sounds (data-dependent
initialisation, Kraehenbuehl et al. 2016). So timbre, pitch and rhythm stay apart; it has learnt nothing.
"""

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

SAMPLE_RATE_HZ: Final = 16_000
SEED: Final = 20_240_602
BANDS: Final = 64
PHASES: Final = 4  # cos, sin, -cos, -sin: their rectified sum is a band's envelope, whatever the phase
# Changes of loudness are small beside loudness; with this gain plucked, beating and steady sounds part best.
ONSET_GAIN: Final = 8.0
LOWEST_HZ, HIGHEST_HZ = 60.0, 7600.0
HIDDEN: Final = 256
CONFIG: Final[dict[str, Any]] = {
    "model_type": "wav2vec2",
    "hidden_size": HIDDEN,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 512,
    "conv_dim": [BANDS * PHASES, HIDDEN],
    "conv_kernel": [400, 9],
    "conv_stride": [160, 2],
    "num_feat_extract_layers": 2,
    "conv_bias": True,
    # Layer norm rather than wav2vec2-base's group norm over time: a frame then depends on no padding.
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "feat_proj_dropout": 0.0,
    "layerdrop": 0.0,
    "apply_spec_augment": False,
}
# What the space's digest covers: change `initialisation` with any change to this file that changes a vector.
RECIPE: Final[dict[str, Any]] = {
    "initialisation": "gabor filter bank, calibrated on synthetic sounds; version 1",
    "seed": SEED,
}
_CALIBRATION_CLIPS: Final = 96
_DEVIATION_FLOOR: Final = 1e-2


def build() -> Any:
    """The model in float32, set to inference."""
    import torch
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    with torch.random.fork_rng(devices=[]):
        model = Wav2Vec2Model(Wav2Vec2Config(**CONFIG)).eval()
    random = np.random.RandomState(SEED)
    state = model.state_dict()
    for name in sorted(state):
        state[name] = torch.from_numpy(_initial(name, tuple(state[name].shape), random)).to(state[name].dtype)
    model.load_state_dict(state)
    _calibrate(model)
    return model


def _initial(name: str, shape: tuple[int, ...], random: Any) -> Array:
    """The initial value of one parameter; every random one takes its share of the stream in the order of names."""
    if name.startswith("feature_extractor.conv_layers.0.conv.weight"):
        return gabor_filters(shape[-1])[:, None, :]
    if name.startswith("feature_extractor.conv_layers.1.conv.weight"):
        return band_mixers(shape, random)
    if name.startswith("feature_projection.projection.weight"):
        return _orthogonal(shape, random)
    if name.endswith("bias") or ("pos_conv_embed" in name and "original0" in name):
        return np.zeros(shape)
    if "norm" in name:
        return np.ones(shape)
    return np.asarray(random.standard_normal(shape) * 0.02)


def gabor_filters(length: int) -> Array:
    """Filters [bands x phases, length] whose centres are equally spaced in mel, of unit norm."""
    mel = np.linspace(_mel(LOWEST_HZ), _mel(HIGHEST_HZ), BANDS)
    centres = 700 * (10 ** (mel / 2595) - 1)
    time = (np.arange(length) - (length - 1) / 2) / SAMPLE_RATE_HZ
    width = np.minimum(length / SAMPLE_RATE_HZ / 4, 1.5 / centres**0.75)[:, None]
    envelope = np.exp(-0.5 * (time / width) ** 2)
    phases = np.arange(PHASES) * 2 * math.pi / PHASES
    carrier = np.cos(2 * math.pi * centres[:, None, None] * time + phases[:, None])
    filters = (envelope[:, None, :] * carrier).reshape(BANDS * PHASES, length)
    return np.asarray(filters / np.linalg.norm(filters, axis=1, keepdims=True))


def _mel(hertz: float) -> float:
    return 2595 * math.log10(1 + hertz / 700)


def band_mixers(shape: tuple[int, ...], random: Any) -> Array:
    """Filters [out, bands x phases, taps] over time: a quarter each smooth a band, find its onsets, its ends, and contrast bands."""
    out, _, taps = shape
    smooth = np.hanning(taps + 2)[1:-1] / np.hanning(taps + 2).sum()
    onset = ONSET_GAIN * np.linspace(-1, 1, taps) / taps
    bands = np.eye(BANDS)
    contrasts = _orthogonal((out - 3 * BANDS, BANDS), random)
    kernels = ((bands, smooth), (bands, onset), (bands, -onset), (contrasts, smooth))
    filters = np.concatenate([mix[:, :, None] * kernel for mix, kernel in kernels])
    return np.asarray(np.repeat(filters, PHASES, axis=1))


def _orthogonal(shape: tuple[int, ...], random: Any) -> Array:
    normal = random.standard_normal((max(shape), min(shape)))
    q, r = np.linalg.qr(normal)
    q = q * np.sign(np.diag(r))
    return np.asarray(q if shape[0] >= shape[1] else q.T)


def _calibrate(model: Any) -> None:
    """Set the last layer norm so that, over synthetic sounds, a clip's mean output is centred and its parts are of equal size."""
    import torch

    clips = torch.from_numpy(calibration_clips())
    with torch.no_grad():
        means = model(clips).last_hidden_state.mean(1).double()  # [clips, hidden]
        deviation = means.std(0).clamp_min(_DEVIATION_FLOOR)
        norm = model.encoder.layer_norm
        norm.weight.copy_(1 / deviation)
        norm.bias.copy_(-means.mean(0) / deviation)


def calibration_clips() -> NDArray[np.float32]:
    """Synthetic sounds [clips, samples] of zero mean and unit variance: harmonic, inharmonic and noisy, steady and decaying."""
    random = np.random.RandomState(SEED + 1)
    time = np.arange(SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ
    clips = np.stack([_synthetic_sound(time, random) for _ in range(_CALIBRATION_CLIPS)])
    clips -= clips.mean(1, keepdims=True)
    return np.asarray(clips / clips.std(1, keepdims=True), dtype=np.float32)


def _synthetic_sound(time: Array, random: Any) -> Array:
    pitch, stretch, tilt = 80 * 2 ** random.uniform(0, 5), random.uniform(1, 1.1), random.uniform(0, 3)
    partials = np.arange(1, 13) ** stretch
    partials = partials[partials * pitch < HIGHEST_HZ]
    phases = random.uniform(0, 2 * math.pi, (len(partials), 1))
    tone = (partials[:, None] ** -tilt * np.sin(2 * math.pi * pitch * partials[:, None] * time + phases)).sum(0)
    spectrum = np.fft.rfft(random.standard_normal(len(time)))
    noise = np.fft.irfft(spectrum * np.linspace(1, 100, len(spectrum)) ** -random.uniform(0, 1), len(time))
    mixed = tone / tone.std() + random.choice([0.05, 0.3, 3.0]) * noise / noise.std()
    beats = 1 + random.choice([0.0, 0.9]) * np.sin(2 * math.pi * random.uniform(1, 8) * time)
    return np.asarray(mixed * beats * np.exp(-random.choice([0.0, 4.0]) * time))
