import json
import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from encoders import AudioEncoder, ImageEncoder, TextEncoder
from encoders.whitening import Whitening

KINDS = {"text": TextEncoder, "image": ImageEncoder, "audio": AudioEncoder}
PROPERTY = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def folders(bert_folder, clip_folder, wav2vec2_folder):
    return {"text": bert_folder, "image": clip_folder, "audio": wav2vec2_folder}


def space_id(modality, folder, **options):
    return KINDS[modality](folder, slug="same", **options).space.space_id


def weights(folder):
    (file,) = folder.glob("*.safetensors")
    return file


def edited(folder, target, name, change):
    """A copy of `folder` with one of its JSON files changed."""
    copy = shutil.copytree(folder, target, dirs_exist_ok=True)
    content = json.loads((copy / name).read_text())
    change(content)
    (copy / name).write_text(json.dumps(content))
    return copy


@PROPERTY
@given(st.sampled_from(sorted(KINDS)), st.data())
def test_any_byte_of_any_weight_changes_the_space(folders, tmp_path_factory, modality, data):
    """One bit of one number, in whichever tensor, of either tower, is another space."""
    folder = shutil.copytree(folders[modality], tmp_path_factory.mktemp("bit") / "model")
    tensors = load_file(weights(folder))
    name = data.draw(st.sampled_from(sorted(name for name, tensor in tensors.items() if tensor.size)))
    raw = bytearray(tensors[name].tobytes())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    tensors[name] = np.frombuffer(bytes(raw), tensors[name].dtype).reshape(tensors[name].shape)
    save_file(tensors, weights(folder), metadata={"format": "pt"})
    assert space_id(modality, folder) != space_id(modality, folders[modality])


@PROPERTY
@given(st.sampled_from(sorted(KINDS)), st.integers(1, 4), st.randoms())
def test_saving_the_same_weights_anew_changes_nothing(folders, tmp_path_factory, modality, shards, random):
    """In another order, in shards, with other metadata: it is the same space."""
    folder = shutil.copytree(folders[modality], tmp_path_factory.mktemp("anew") / "model")
    tensors = load_file(weights(folder))
    weights(folder).unlink()
    names = list(tensors)
    random.shuffle(names)
    for shard in range(shards):
        part = {name: tensors[name] for name in names[shard::shards]}
        save_file(part, folder / f"model-{shard}.safetensors", metadata={"saved": str(random.random())})
    assert space_id(modality, folder) == space_id(modality, folders[modality])


def test_every_ingredient_changes_the_space(folders, tmp_path):
    """Each thing that a vector depends on, changed alone, gives an id of its own; precision and device do not."""
    text, image, audio = folders["text"], folders["image"], folders["audio"]
    white = {}
    for name, seed in (("one", 0), ("other", 1)):
        white[name] = tmp_path / name
        Whitening.fit(np.random.default_rng(seed).normal(size=(99, 32)), method="pca").save(white[name])
    Whitening.fit(np.random.default_rng(0).normal(size=(99, 32)), method="pca", dim=8).save(tmp_path / "short")
    variants = [
        (("text", text), [
            {"template": "passage : {text}"}, {"query_prefix": "query : "}, {"max_length": 30}, {"pooling": "cls"},
            {"whitening": white["one"]}, {"whitening": white["other"]}, {"whitening": tmp_path / "short"},
        ]),
        (("audio", audio), [{"window_seconds": 3.0}, {"whitening": white["one"]}]),
        (("image", image), []),
    ]  # fmt: skip
    copies = {
        "text": [
            edited(text, tmp_path / "t1", "config.json", lambda c: c.update(layer_norm_eps=1e-6)),
            edited(text, tmp_path / "t2", "tokenizer.json", lambda c: c["model"]["vocab"].update(new=99)),
        ],
        "image": [
            edited(image, tmp_path / "i1", "open_clip_config.json", lambda c: c["preprocess_cfg"].update(mean=[0.4] * 3)),
            edited(image, tmp_path / "i2", "open_clip_config.json", lambda c: c["model_cfg"]["text_cfg"].update(heads=1)),
            edited(image, tmp_path / "i3", "open_clip_config.json", lambda c: c["model_cfg"]["vision_cfg"].update(head_width=8)),
        ],
        "audio": [
            edited(audio, tmp_path / "a1", "config.json", lambda c: c.update(layer_norm_eps=1e-6)),
            edited(audio, tmp_path / "a2", "preprocessor_config.json", lambda c: c.update(do_normalize=False)),
        ],
    }  # fmt: skip
    for (modality, folder), options in variants:
        base = space_id(modality, folder)
        ids = [space_id(modality, folder, **one) for one in options]
        ids += [space_id(modality, copy) for copy in copies[modality]]
        assert len({base, *ids}) == 1 + len(ids)
        assert space_id(modality, folder, dtype="bfloat16", device="cpu") == base


def test_the_normalisation_and_the_dimension_are_in_the_recipe(folders):
    """What no option changes is named all the same: the norm, the length, the pooling, the preprocessing."""
    for modality, folder in folders.items():
        recipe = KINDS[modality](folder).space.recipe
        assert recipe["normalisation"] == "l2"
        assert {"architecture", "weights", "dim", "modality"} <= set(recipe)
    assert KINDS["image"](folders["image"]).space.recipe["preprocessing"]["std"] == [0.25] * 3
