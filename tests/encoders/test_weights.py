import json
import shutil
import time

import pytest

from encoders import AudioEncoder, ImageEncoder, TextEncoder
from encoders.errors import WeightsError
from encoders.weights import config_digest, quiet, weights_digest


@pytest.fixture
def no_hub(monkeypatch):
    """The hub as a machine without network sees it."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("encoder", [TextEncoder, ImageEncoder, AudioEncoder])
def test_a_model_that_the_hub_cannot_give_is_an_error_with_a_remedy(encoder, no_hub):
    """Without network the error names the id and three ways out, and comes at once."""
    began = time.monotonic()
    with pytest.raises(WeightsError) as caught:
        encoder("nobody/no-such-model")
    assert time.monotonic() - began < 20
    for part in ("'nobody/no-such-model'", "hf download nobody/no-such-model", "TRIPTYCH_ENCODERS=bundled"):
        assert part in str(caught.value)


def test_what_is_neither_folder_nor_id_is_refused(tmp_path):
    """A path that is not there is not looked up on the hub."""
    with pytest.raises(WeightsError, match="neither a folder here nor a hub id"):
        TextEncoder(tmp_path / "missing")
    with pytest.raises(WeightsError, match="neither a folder here nor a hub id"):
        TextEncoder("some/deep/path/missing")


def test_digests_follow_tensors_not_files(bert_folder, tmp_path):
    """The same weights as a pickle, or in two shards, have the same digest; one changed number has another."""
    import torch
    from safetensors.torch import load_file, save_file

    digest = weights_digest(bert_folder)
    tensors = load_file(bert_folder / "model.safetensors")
    pickled, sharded, changed = (tmp_path / name for name in ("pickled", "sharded", "changed"))
    for folder in (pickled, sharded, changed):
        folder.mkdir()
    torch.save(dict(reversed(tensors.items())), pickled / "pytorch_model.bin")
    names = sorted(tensors)
    for shard, part in enumerate((names[::2], names[1::2])):
        save_file({name: tensors[name] for name in part}, sharded / f"model-{shard}.safetensors")
    tensors[names[0]] = tensors[names[0]] + 1
    save_file(tensors, changed / "model.safetensors")
    assert weights_digest(pickled) == weights_digest(sharded) == digest
    assert weights_digest(changed) != digest


def test_a_space_changes_with_what_changes_a_vector(bert_folder, tmp_path):
    """Weights, tokenizer, architecture, template, length and pooling name the space; notes in config.json do not."""
    base = TextEncoder(bert_folder).space.space_id
    folder = shutil.copytree(bert_folder, tmp_path / "tiny-bert")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "transformers_version": "0.0.1"}))
    assert TextEncoder(folder).space.space_id == base
    (folder / "config.json").write_text(json.dumps({**config, "layer_norm_eps": 1e-5}))
    ids = {
        base,
        TextEncoder(folder).space.space_id,
        TextEncoder(bert_folder, template="a {text}").space.space_id,
        TextEncoder(bert_folder, query_prefix="q ").space.space_id,
        TextEncoder(bert_folder, max_length=20).space.space_id,
        TextEncoder(bert_folder, pooling="cls").space.space_id,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text().replace("stone", "rocky"))
    ids.add(TextEncoder(folder).space.space_id)
    assert len(ids) == 7


def test_device_and_precision_do_not_name_a_space(bert_folder):
    """Where and how fast a vector is computed is not what it means."""
    assert TextEncoder(bert_folder, device="cpu", dtype="bfloat16").space == TextEncoder(bert_folder).space


def test_damaged_weights_are_named(bert_folder, tmp_path):
    """A cut-off safetensors file, a config that is no JSON and a folder without weights are errors that name the file."""
    folder = shutil.copytree(bert_folder, tmp_path / "damaged")
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    for data in (b"", whole[:5], whole[:100]):
        weights.write_bytes(data)
        with pytest.raises(WeightsError, match="cannot be read as safetensors"):
            weights_digest(folder)
    weights.unlink()
    with pytest.raises(WeightsError, match="holds no weights"):
        weights_digest(folder)
    (folder / "config.json").write_text("not json")
    with pytest.raises(WeightsError, match=r"config\.json cannot be read as JSON"):
        TextEncoder(folder)


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    """Weights never execute: a pickle with anything but tensors in it is an error."""
    import os
    import pickle

    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "attacked"),)

    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": Attack()}))
    with pytest.raises(WeightsError, match="cannot be read as weights"):
        weights_digest(tmp_path)
    assert not (tmp_path / "attacked").exists()


def test_config_digest_ignores_order():
    """A configuration is the same in any order of keys."""
    assert config_digest({"a": 1, "b": 2}) == config_digest({"b": 2, "a": 1}) != config_digest({"a": 1, "b": 3})


def test_quiet_leaves_no_trace(capfd):
    """What loaders say is swallowed; afterwards logging, warnings and handlers are as before."""
    import logging
    import warnings

    handlers, filters = list(logging.root.handlers), list(warnings.filters)
    with quiet():
        logging.warning("noise")  # noqa: LOG015
        warnings.warn("noise", stacklevel=1)
    assert capfd.readouterr().err == ""
    assert (logging.root.handlers, list(warnings.filters)) == (handlers, filters)
    assert logging.root.manager.disable == logging.NOTSET
