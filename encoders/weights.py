"""Where a model's files are, and the digests that name what is in them.

A source is a hub id or a local folder; either way the result is a folder. Digests cover tensors (sorted names, dtypes, shapes,
bytes), not files, so that the same weights saved twice, sharded or as a pickle, give the same embedding space.
"""

import contextlib
import hashlib
import json
import logging
import mmap
import re
import struct
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from encoders.errors import WeightsError

Tensor = tuple[str, str, list[int], Any]
BUNDLED: Final = "bundled"
DIGEST_LENGTH: Final = 16
WEIGHT_PATTERNS: Final = ("*.safetensors", "*.bin", "*.pt", "*.pth")
_HUB_ID: Final = re.compile(r"[\w.-]+/[\w.-]+|[\w.-]+")
_HUB_FILES: Final = ("*.json", "*.txt", "*.model", "*.safetensors", "*.safetensors.index.json")
_HUB_FILES_PICKLED: Final = ("*.json", "*.txt", "*.model", "pytorch_model*.bin", "open_clip_pytorch_model.bin")
# Names under which trainers and libraries note their own passing state; they change no vector.
_PASSING_CONFIG_KEYS: Final = frozenset({
    "_attn_implementation_autoset", "_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache",
})  # fmt: skip
_TOKENIZER_FILES: Final = (
    "merges.txt", "sentencepiece.bpe.model", "spiece.model", "tokenizer.json", "tokenizer.model", "tokenizer_config.json",
    "vocab.json", "vocab.txt",
)  # fmt: skip
_quiet_lock = threading.RLock()


def resolve_source(source: str | Path, *, revision: str | None = None) -> Path:
    """The folder of a model, downloaded from the hub first if `source` is a hub id.

    Raises:
        WeightsError: neither a folder nor a hub id, or the hub cannot give it.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    name = str(source).removeprefix("hf-hub:")
    if isinstance(source, Path) or not _HUB_ID.fullmatch(name):
        raise WeightsError(f"model {str(source)!r} is neither a folder here nor a hub id such as 'intfloat/e5-base-v2'")
    return _download(name, revision)


def _download(hub_id: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        with quiet():
            folder = Path(snapshot_download(hub_id, revision=revision, allow_patterns=list(_HUB_FILES)))
            if not weight_files(folder):
                folder = Path(snapshot_download(hub_id, revision=revision, allow_patterns=list(_HUB_FILES_PICKLED)))
    except Exception as error:  # huggingface_hub raises a dozen unrelated types: offline, no such id, gated, TLS, disk
        raise WeightsError(
            f"model {hub_id!r} could not be fetched from the hub ({_first_line(error)}). Check the id and the network; or fetch "
            f"it elsewhere with `hf download {hub_id} --local-dir FOLDER` and give that folder as the source; or use the "
            "encoders that need no network with TRIPTYCH_ENCODERS=bundled"
        ) from error
    return folder


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def read_config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """A model folder's JSON file.

    Raises:
        WeightsError: it is missing or is not a JSON object.
    """
    path = folder / name
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WeightsError(
            f"model folder {folder} holds no {name}; give a folder written by save_pretrained or hf download"
        ) from None
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(config, dict):
        raise WeightsError(f"{path} must hold a JSON object, not {type(config).__name__}")
    return config


def weight_files(folder: Path) -> list[Path]:
    """The files of one checkpoint in `folder`: safetensors if there are any, else torch pickles."""
    for pattern in WEIGHT_PATTERNS:
        if found := sorted(folder.glob(pattern)):
            return found
    return []


def weights_digest(folder: Path) -> str:
    """Digest of every tensor of the folder's checkpoint.

    Raises:
        WeightsError: there is no checkpoint, or it cannot be read.
    """
    files = weight_files(folder)
    if not files:
        raise WeightsError(f"model folder {folder} holds no weights ({', '.join(WEIGHT_PATTERNS)})")
    return tensors_digest(entry for file in files for entry in _read_tensors(file))


def tensors_digest(tensors: Iterable[Tensor]) -> str:
    """Digest of (name, dtype as safetensors names it, shape, bytes) in the order of names."""
    digest = hashlib.sha256()
    for name, dtype, shape, data in sorted(tensors, key=lambda entry: entry[0]):
        digest.update(json.dumps([name, dtype, shape]).encode())
        digest.update(data)
    return digest.hexdigest()[:DIGEST_LENGTH]


def _read_tensors(path: Path) -> Iterator[Tensor]:
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)


def _read_safetensors(path: Path) -> Iterator[Tensor]:
    """Tensors as views of the mapped file: neither torch nor a copy is needed."""
    try:
        with path.open("rb") as file:
            view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        (header_length,) = struct.unpack("<Q", view[:8])
        header = json.loads(bytes(view[8 : 8 + header_length]))
        body = view[8 + header_length :]
    except (OSError, ValueError, struct.error) as error:
        raise WeightsError(f"{path} cannot be read as safetensors: {error}") from error
    for name, entry in header.items():
        if name != "__metadata__":
            start, end = entry["data_offsets"]
            yield name, entry["dtype"], entry["shape"], body[start:end]


def _read_pickle(path: Path) -> Iterator[Tensor]:
    import torch

    names = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64"}
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling lies in as many ways as there are files
        raise WeightsError(f"{path} cannot be read as weights: {_first_line(error)}") from error
    state = state.get("state_dict", state)
    for name, tensor in state.items():
        data = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        yield name, names.get(tensor.dtype, str(tensor.dtype)), list(tensor.shape), data


def config_digest(config: Mapping[str, Any]) -> str:
    """Digest of an architecture's configuration, without the keys that libraries change in passing."""
    kept = {key: value for key, value in config.items() if key not in _PASSING_CONFIG_KEYS}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:DIGEST_LENGTH]


def tokenizer_digest(folder: Path) -> str:
    """Digest of a tokenizer's files; of nothing, if the folder has none."""
    present = [folder / name for name in _TOKENIZER_FILES if (folder / name).is_file()]
    return files_digest(present)


def files_digest(files: Iterable[Path]) -> str:
    """Digest of the names and bytes of `files`."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:DIGEST_LENGTH]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep third-party loaders from printing bars, reports and warnings; what they raise still comes through.

    They also log on the root logger, which installs a handler there where none is: a passing one prevents that. What is set is the
    process's, so that it is for one thread at a time: others wait.
    """
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    with _quiet_lock:
        root, guard, level = logging.getLogger(), logging.NullHandler(), logging.root.manager.disable
        bars_were_on = not are_progress_bars_disabled()
        disable_progress_bars()
        root.addHandler(guard)
        logging.disable(logging.ERROR)
        try:
            with warnings.catch_warnings(), _quiet_transformers():
                warnings.simplefilter("ignore")
                yield
        finally:
            logging.disable(level)
            root.removeHandler(guard)
            if bars_were_on:
                enable_progress_bars()


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    from transformers.utils import logging as transformers_logging

    was_on = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            transformers_logging.enable_progress_bar()
