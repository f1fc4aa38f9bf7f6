"""The small wav2vec 2.0 that is trained, as it is before training, and the synthetic sounds that it also hears.

Its first convolution starts as a mel-spaced Gabor filter bank (as in LEAF, Zeghidour et al. 2021): a good ear that training then
bends. All else is transformers' own random initialisation.
"""

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

SAMPLE_RATE_HZ: Final = 16_000
BANDS: Final = 48
PHASES: Final = 4  # cos, sin, -cos, -sin: their rectified sum is a band's envelope, whatever the phase
LOWEST_HZ, HIGHEST_HZ = 60.0, 7600.0
# Without a bias, the layer norm after the first convolution would hide how loud a frame is.
LOUDNESS_BIAS: Final = 0.1
# 25 frames a second, half of wav2vec2-base's: a clip's vector is a mean over them, and the layers cost half.
CONFIG: Final[dict[str, Any]] = {
    "model_type": "wav2vec2",
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 1024,
    "conv_dim": [BANDS * PHASES, 256, 256],
    "conv_kernel": [400, 5, 3],
    "conv_stride": [160, 2, 2],
    "num_feat_extract_layers": 3,
    "conv_bias": True,
    # Layer norm rather than wav2vec2-base's group norm over time: a frame then depends on no padding.
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 16,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "feat_proj_dropout": 0.0,
    "layerdrop": 0.0,
    "apply_spec_augment": False,
    "vocab_size": 32,
}
HOP: Final = 640  # samples between two frames


def build(seed: int, *, filter_bank: bool = True) -> Any:
    """A `Wav2Vec2Model` in float32, to be trained; without `filter_bank` it is wholly random (what probes compare with)."""
    import torch
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Wav2Vec2Model(Wav2Vec2Config(**CONFIG))
        first = model.feature_extractor.conv_layers[0].conv
        with torch.no_grad():
            if filter_bank:
                first.weight.copy_(torch.from_numpy(gabor_filters(first.weight.shape[-1]))[:, None])
                first.bias.normal_(0, LOUDNESS_BIAS)
    return model


def frames_of(samples: int) -> int:
    """Frames that the model makes of a clip."""
    for kernel, stride in zip(CONFIG["conv_kernel"], CONFIG["conv_stride"], strict=True):
        samples = (samples - kernel) // stride + 1
    return samples


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


def synthetic_sounds(count: int, seed: int) -> list[NDArray[np.float32]]:
    """Sounds [samples] of 1 to 2 s: harmonic, inharmonic and noisy, steady, gliding, beating and struck, at any pitch."""
    random = np.random.default_rng([seed, 1])
    return [_synthetic_sound(random) for _ in range(count)]


def _synthetic_sound(random: np.random.Generator) -> NDArray[np.float32]:
    time = np.arange(int(random.uniform(1, 2) * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    pitch, stretch = 50 * 2 ** random.uniform(0, 6), random.choice([1.0, random.uniform(1, 1.3)])
    glide = random.choice([0.0, 0.0, random.uniform(-0.4, 1)]) * pitch / 2
    orders = np.arange(1, 17) ** stretch if random.random() < 0.7 else np.arange(1.0, 17, 2)
    orders = orders[orders * (pitch + 2 * max(glide, 0)) < HIGHEST_HZ]
    slopes = orders ** -random.uniform(0.3, 4)
    phase = 2 * math.pi * (pitch * time + glide * time**2)
    tone = (slopes[:, None] * np.sin(orders[:, None] * phase + random.uniform(0, 7, (len(orders), 1)))).sum(0)
    spectrum = np.fft.rfft(random.standard_normal(len(time)))
    tilt = np.linspace(1, 100, len(spectrum)) ** -random.uniform(0, 1.5)
    noise = np.fft.irfft(spectrum * tilt, len(time))
    sound = tone / (tone.std() + 1e-9) + random.choice([0.01, 0.05, 0.3, 3.0]) * noise / noise.std()
    beat = random.choice([0, random.uniform(1, 12)])
    sound *= 1 - random.uniform(0, 0.95) * (np.sin(2 * math.pi * beat * time + 1.5) < 0) * (beat > 0)
    period = random.choice([9.0, random.uniform(0.1, 0.6)])
    sound *= np.exp(-random.choice([0.0, random.uniform(2, 20)]) * (time % period))
    return np.asarray(0.5 * sound / np.abs(sound).max(), np.float32)
