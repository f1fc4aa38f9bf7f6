import json

import numpy as np
import pytest
import soundfile
from PIL import Image

from encoders.profiles import PROFILE_VARIABLE, PROFILES, load_profile
from feature_store.home import Home
from ingest.pipeline import MAX_UNKNOWN_SHARE, ingest_manifest
from tests.encoders.chinese import TITLES, save_profile
from tests.triptych.in_process import triptych


@pytest.fixture(scope="module")
def profile(tmp_path_factory):
    return save_profile(tmp_path_factory.mktemp("zh"))


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory):
    """Four items with Chinese titles, a picture and a sound each."""
    folder = tmp_path_factory.mktemp("catalogue")
    lines = ["item_id,title,image,audio"]
    for number, (name, title) in enumerate(TITLES.items()):
        Image.effect_noise((48, 48), 10 + 40 * number).convert("RGB").save(folder / f"{name}.png")
        tone = np.sin(2 * np.pi * 220 * (number + 1) * np.arange(8_000) / 16_000)
        soundfile.write(folder / f"{name}.flac", 0.3 * tone, 16_000)
        lines.append(f"{name},{title},{name}.png,{name}.flac")
    path = folder / "目录.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_the_profile_is_of_the_architectures_that_are_tested_here(profile):
    """`zh` names a hub model for each modality; folders of those architectures load, CLIP's text tower from its own folder."""
    assert {modality: "/" in options["source"] for modality, options in PROFILES["zh"].items()} == {
        "text": True, "image": True, "audio": True,
    }  # fmt: skip
    encoders = load_profile(profile)
    words, pictures = list(TITLES.values()), [Image.new("RGB", (40, 40), "red")]
    encoders.text.space.check(encoders.text.encode(words))
    encoders.image.space.check(encoders.image.encode(pictures))
    queries = encoders.image.encode_query(words)
    assert np.abs(queries @ queries.T - np.eye(4)).max() < 1.0
    assert encoders.text.count_tokens(words).unknown == encoders.image.count_tokens(words).unknown == 0


def test_a_tokenizer_that_cannot_read_the_catalogue_is_warned_of(tmp_path, catalogue, profile):
    """An English tokenizer answers Chinese with [UNK]: the report says how much, and names the remedy; the Chinese one is silent."""
    report = ingest_manifest(Home(tmp_path / "en"), catalogue, load_profile("bundled", ["text"]))
    (counts,) = report.tokens.values()
    assert counts.unknown_share > MAX_UNKNOWN_SHARE
    (warning,) = report.to_dict()["warnings"]
    assert f"{counts.unknown_share:.0%}" in warning
    assert "`zh` for Chinese" in warning
    assert report.to_dict()["tokens"][report.spaces[0].space_id]["texts"] == 4
    assert ingest_manifest(Home(tmp_path / "zh"), catalogue, load_profile(profile)).warnings == []


def test_texts_that_were_cut_are_counted(tmp_path, profile):
    """Of two titles one is longer than the model reads."""
    path = tmp_path / "long.csv"
    path.write_text("item_id,title\nlong," + "树" * 90 + "\nshort,树\n", encoding="utf-8")
    report = ingest_manifest(Home(tmp_path / "home"), path, load_profile(profile, ["text"]))
    (counts,) = report.tokens.values()
    assert (counts.texts, counts.cut) == (2, 1)


def test_a_chinese_catalogue_goes_the_whole_way(tmp_path, catalogue, profile):
    """Ingested, materialized by Feast into Milvus, and found again: by its own words, and by its own picture."""
    home, variables = tmp_path / "home", {PROFILE_VARIABLE: str(profile)}
    assert triptych(home, "up", **variables).returncode == 0
    try:
        ingested = triptych(home, "ingest", catalogue, "--json", **variables)
        assert ingested.returncode == 0, ingested.stderr
        assert [counts["encoded"] for counts in json.loads(ingested.stdout)["modalities"].values()] == [4, 4, 4]
        materialized = triptych(home, "materialize", "--json", **variables)
        assert materialized.returncode == 0, materialized.stderr
        for arguments in (("text", TITLES["violin"]), ("image", catalogue.parent / "violin.png")):
            found = triptych(home, "search", *arguments, "--json", **variables)
            assert found.returncode == 0, found.stderr
            first = json.loads(found.stdout)["results"][0]
            assert (first["item_id"], first["title"]) == ("violin", TITLES["violin"])
            assert first["score"] == pytest.approx(1.0, abs=2e-3)
    finally:
        triptych(home, "down", **variables)
