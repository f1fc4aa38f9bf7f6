"""Checkpoints: one immutable folder per model, and the one pointer that says which model is stable.

A folder `models/<model_id>/` holds `model.safetensors`, `vocab.json` and `manifest.json` (with digests of the other two). It is
written beside its place and renamed, never changed after, and never a pickle. `models/stable.json` is the only thing that switches.
"""

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

from encoders.space import EmbeddingSpace, check_model_id
from feature_store.home import Home
from ranker.config import RankerConfig
from ranker.errors import CheckpointError, NoStableModelError, RankerError
from ranker.inputs import Shapes, Vocabulary
from ranker.model import FusionRanker

FORMAT: Final = 6
WEIGHTS, VOCABULARY, MANIFEST, STABLE = "model.safetensors", "vocab.json", "manifest.json", "stable.json"
_REQUIRED: Final = ("format", "model_id", "space_ids", "dims", "config", "files", "feature_service")


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint: the model in eval mode, its vocabulary and its manifest."""

    model: FusionRanker
    vocabulary: Vocabulary
    manifest: Mapping[str, Any]


# ---- writing and reading ------------------------------------------------------------------------------------------------


def save(models: Path, model_id: str, model: FusionRanker, vocabulary: Vocabulary, about: Mapping[str, Any]) -> Path:
    """Write checkpoint `model_id` and return its folder; raises `CheckpointError` where that name is taken.

    `about` goes into the manifest: `space_ids` (by modality), `feature_service`, `metrics`, `data`, `seed`, `versions` ...
    """
    folder = models / check_model_id(model_id)
    refuse_overwrite(folder)
    models.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{model_id}-", dir=models))
    try:
        _write_files(temporary, model_id, model, vocabulary, about)
        temporary.chmod(0o755)
        _rename_new(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def refuse_overwrite(folder: Path) -> None:
    """Raise `CheckpointError` if there is a checkpoint already: a name means one model for ever."""
    if folder.exists():
        raise CheckpointError(
            f"model {folder.name!r} exists already in {folder.parent}; checkpoints never change: take another model_id"
        )


def _rename_new(temporary: Path, folder: Path) -> None:
    try:
        temporary.rename(folder)
    except OSError:  # someone else was quicker
        refuse_overwrite(folder)
        raise


def _write_files(
    folder: Path, model_id: str, model: FusionRanker, vocabulary: Vocabulary, about: Mapping[str, Any]
) -> None:
    from safetensors.torch import save as to_bytes

    contents = {
        WEIGHTS: to_bytes({name: value.contiguous() for name, value in model.state_dict().items()}),
        VOCABULARY: _json_bytes(vocabulary.to_dict()),
    }
    files = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    manifest = {
        "format": FORMAT,
        "model_id": model_id,
        "config": model.config.to_dict(),
        "dims": {**asdict(model.shapes), "fused": model.fused_dim},
        **about,
        "files": files,
    }
    for name, data in {**contents, MANIFEST: _json_bytes(manifest)}.items():
        _write_synced(folder / name, data)


def load(folder: Path) -> Checkpoint:
    """Read a checkpoint; raises `CheckpointError` where it is missing or any byte of it is not what was written."""
    manifest = read_manifest(folder)
    weights, words = (_read_checked(folder, name, manifest["files"]) for name in (WEIGHTS, VOCABULARY))
    try:
        return _build(manifest, weights, words)
    except (RankerError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"checkpoint {folder} does not fit this version of triptych: {error}") from error


def _build(manifest: Mapping[str, Any], weights: bytes, words: bytes) -> Checkpoint:
    from safetensors.torch import load as from_bytes

    dims = manifest["dims"]
    shapes = Shapes(**{field.name: dims[field.name] for field in fields(Shapes)})
    model = FusionRanker(RankerConfig.from_dict(manifest["config"]), shapes)
    model.load_state_dict(from_bytes(weights))
    return Checkpoint(model.eval(), Vocabulary.from_dict(json.loads(words)), manifest)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest alone (cheap); raises `CheckpointError` where it is missing, damaged or of another format."""
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_bytes())
    except FileNotFoundError:
        raise CheckpointError(
            f"there is no checkpoint in {folder}; `triptych model list` names those that exist"
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"manifest of checkpoint {folder} is damaged ({error}); restore the folder or train again"
        ) from error
    missing = [name for name in _REQUIRED if not isinstance(manifest, dict) or name not in manifest]
    if missing:
        raise CheckpointError(
            f"manifest of checkpoint {folder} lacks {', '.join(missing)}; restore the folder or train again"
        )
    if manifest["format"] != FORMAT:
        raise CheckpointError(
            f"checkpoint {folder} has format {manifest['format']}; this version reads format {FORMAT}: train again with `triptych train`"
        )
    return manifest


def _read_checked(folder: Path, name: str, files: Mapping[str, str]) -> bytes:
    try:
        data = (folder / name).read_bytes()
    except OSError as error:
        raise CheckpointError(f"checkpoint {folder} lacks {name}; restore the folder or train again") from error
    if hashlib.sha256(data).hexdigest() != files.get(name):
        raise CheckpointError(
            f"{name} of checkpoint {folder} is damaged (its sha256 is not the manifest's); restore it or train again"
        )
    return data


def fused_space(manifest: Mapping[str, Any]) -> EmbeddingSpace:
    """The space of this model's own item and user vectors."""
    return EmbeddingSpace.fused(
        manifest["model_id"], manifest["dims"]["fused"], {"model_sha256": manifest["files"][WEIGHTS]}
    )


# ---- which model is stable ----------------------------------------------------------------------------------------------


def list_models(home: Home) -> list[dict[str, Any]]:
    """Manifests of all readable checkpoints, by name; a damaged one is listed with its `error`."""
    folders = sorted(p for p in home.models.glob("*") if p.is_dir() and not p.name.startswith("."))
    return [_manifest_or_error(folder) for folder in folders]


def _manifest_or_error(folder: Path) -> dict[str, Any]:
    try:
        return read_manifest(folder)
    except CheckpointError as error:
        return {"model_id": folder.name, "error": str(error)}


def stable(home: Home) -> str | None:
    """The stable model's id, or None where nothing was promoted yet."""
    return _read_pointer(home)["stable"]


def stable_folder(home: Home) -> Path:
    """Folder of the stable model; raises `NoStableModelError` where there is none."""
    model_id = stable(home)
    if model_id is None:
        raise NoStableModelError("no model is stable yet; run `triptych train --model-id NAME --promote`")
    return home.models / model_id


def promote(home: Home, model_id: str) -> str | None:
    """Make `model_id` the stable model, and return the one that was; all of its files are checked first."""
    load(home.models / check_model_id(model_id))
    with _locked(home):
        pointer = _read_pointer(home)
        if pointer["stable"] != model_id:
            _write_pointer(home, {"stable": model_id, "previous": pointer["stable"]})
    return pointer["stable"]


def undo(home: Home) -> str:
    """Go back to the model that was stable before, and return its id; a second undo returns to where you were."""
    with _locked(home):
        pointer = _read_pointer(home)
        previous = pointer["previous"]
        if previous is None:
            raise CheckpointError("there is nothing to undo: at most one model was ever promoted")
        load(home.models / previous)
        _write_pointer(home, {"stable": previous, "previous": pointer["stable"]})
    return previous


def remove(home: Home, model_id: str) -> None:
    """Delete a checkpoint for good; raises `CheckpointError` where it is stable or not there. What cannot be read goes too."""
    folder = home.models / check_model_id(model_id)
    with _locked(home):
        pointer = _read_pointer(home)
        if pointer["stable"] == model_id:
            raise CheckpointError(f"{model_id} is the stable model: promote another one first")
        if not folder.is_dir():
            raise CheckpointError(f"there is no model {model_id!r}; `triptych model list` names those that exist")
        if pointer["previous"] == model_id:
            _write_pointer(home, {**pointer, "previous": None})
        gone = home.models / f".{model_id}.removed"
        shutil.rmtree(gone, ignore_errors=True)
        folder.rename(gone)  # from here on nobody finds it, whatever happens while its files go
        shutil.rmtree(gone)


@contextmanager
def _locked(home: Home) -> Iterator[None]:
    home.models.mkdir(parents=True, exist_ok=True)
    with (home.models / ".stable.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _read_pointer(home: Home) -> dict[str, str | None]:
    path = home.models / STABLE
    try:
        pointer = json.loads(path.read_bytes())
        return {"stable": pointer["stable"], "previous": pointer["previous"]}
    except FileNotFoundError:
        return {"stable": None, "previous": None}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); delete it and promote a model again") from error


def _write_pointer(home: Home, pointer: Mapping[str, str | None]) -> None:
    temporary = home.models / f".{STABLE}.{os.getpid()}"
    _write_synced(temporary, _json_bytes(pointer))
    temporary.replace(home.models / STABLE)


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _json_bytes(value: object) -> bytes:
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False).encode()
