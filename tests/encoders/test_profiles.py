import subprocess
import sys

import numpy as np
import pytest
import yaml

from encoders import load_profile
from encoders.errors import EncoderError, ProfileError
from encoders.profiles import PROFILE_VARIABLE, profile_spaces
from encoders.space import EmbeddingSpace

COMMITTED = "feature_repo/spaces.yaml"


def run(*arguments):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("module", ["encoders", "encoders.space", "encoders.errors", "encoders.profiles"])
def test_importing_costs_no_torch(module):
    """Naming the room, its spaces or its profiles loads neither torch nor transformers."""
    code = f"import sys, {module}; heavy = {{'torch', 'transformers', 'open_clip'}} & set(sys.modules); sys.exit(str(heavy) if heavy else 0)"
    result = run("-c", code)
    assert result.returncode == 0, result.stderr


def test_the_bundled_spaces_are_known_without_a_model():
    """Their ids come from the files alone: no torch is loaded to list them."""
    code = "import sys; from encoders.profiles import profile_spaces; profile_spaces('bundled'); sys.exit('torch' in sys.modules)"
    result = run("-c", code)
    assert result.returncode == 0, result.stderr


def test_the_committed_spaces_are_those_of_the_bundled_profile(tmp_path):
    """`--check` accepts the committed file, and refuses a changed one with the remedy; `--write` makes it again."""
    checked = run("-m", "encoders.profiles", "--check", COMMITTED)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
    path = tmp_path / "spaces.yaml"
    assert run("-m", "encoders.profiles", "--write", str(path)).returncode == 0
    entries = yaml.safe_load(path.read_text())["spaces"]
    assert {entry.pop("entity") for entry in entries} == {"item"}
    assert [EmbeddingSpace.from_dict(entry) for entry in entries] == profile_spaces("bundled")
    path.write_text(path.read_text().replace("384", "385"))
    stale = run("-m", "encoders.profiles", "--check", str(path))
    assert stale.returncode == 1
    assert f"--write {path}" in stale.stderr


def test_nothing_bundled_is_untrained(bundled):
    """Every space of the bundled profile is of a trained encoder, and says so."""
    assert [(space.modality, space.kind) for space in bundled.spaces] == [
        ("text", "encoder"),
        ("image", "encoder"),
        ("audio", "encoder"),
    ]


def test_encoders_are_found_by_modality_and_space(bundled):
    """Each encoder is found by both names, and an unknown one is an error that lists the known."""
    for space in bundled.spaces:
        assert bundled.by_space(space.space_id) is bundled.by_modality(space.modality)
    with pytest.raises(EncoderError, match=bundled.text.space.space_id):
        bundled.by_space("text_other_00000000")
    with pytest.raises(ProfileError, match="modality 'video'"):
        bundled.by_modality("video")


def test_query_encoders(bundled):
    """Text and image spaces take text queries, an audio space says that it does not."""
    for encoder in (bundled.text, bundled.image):
        vectors = bundled.query_encoder(encoder.space.space_id)(["a loud bird"])
        assert vectors.shape == (1, encoder.space.dim)
        assert np.linalg.norm(vectors) == pytest.approx(1, abs=1e-5)
    with pytest.raises(EncoderError, match="takes no text queries"):
        bundled.query_encoder(bundled.audio.space.space_id)


def test_only_the_modalities_asked_for_are_made():
    """What is not wanted is absent; what does not exist is an error."""
    encoders = load_profile("bundled", ["text"])
    assert [space.modality for space in encoders.spaces] == ["text"]
    assert encoders.image is encoders.by_modality("audio") is None
    with pytest.raises(ProfileError, match="smell"):
        load_profile("bundled", ["smell"])


def test_a_profile_file_chooses_sources_and_options(bert_folder, wav2vec2_folder, tmp_path, monkeypatch, bundled):
    """A YAML file mixes folders (relative to itself) and bundled encoders; the environment variable names it."""
    (tmp_path / "models").symlink_to(bert_folder.parent)
    profile = tmp_path / "mine.yaml"
    profile.write_text(
        "text: {source: models/tiny-bert, slug: mine, template: 'passage : {text}'}\n"
        f"image: bundled\naudio: {{source: {wav2vec2_folder}, window_seconds: 2}}\n"
    )
    monkeypatch.setenv(PROFILE_VARIABLE, str(profile))
    encoders = load_profile()
    assert encoders.text.space.space_id.startswith("text_mine_")
    assert encoders.text.space.recipe["template"] == "passage : {text}"
    assert encoders.image.space == bundled.image.space
    assert encoders.audio.space.recipe["window_samples"] == 32_000
    encoders.text.space.check(encoders.text.encode(["a red bird"]))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{video: bundled, text: bundled}", "names video; there are text, image, audio"),
        ("[text]", "must map some of"),
        ("", "must map some of"),
        ("text: [a, b]", "text must be a source"),
        ("text: {slug: x}", "text must be a source"),
        ("text: {source: }", "text must be a source"),
        ("text: {source: bundled, colour: red, 1: a}", r"unknown options \['1', 'colour'\]"),
        ("text: {", "cannot be read as YAML"),
        ("text: {source: bundled, max_length: abc}", "text's max_length must be a whole number, not 'abc'"),
        ("text: {source: bundled, max_length: true}", "text's max_length must be a whole number, not True"),
        ("image: {source: bundled, compile: 'yes please'}", "image's compile must be true or false, not 'yes please'"),
        ("audio: {source: bundled, window_seconds: [1]}", r"audio's window_seconds must be a number, not \[1\]"),
        ("text: {source: bundled, template: 3}", "text's template must be text, not 3"),
    ],
)
def test_profiles_that_make_no_sense_are_refused(tmp_path, content, complaint):
    """Every mistake in a profile file is told in words, with the file's name."""
    path = tmp_path / "profile.yaml"
    path.write_text(content)
    with pytest.raises(ProfileError, match=complaint) as caught:
        load_profile(path)
    assert "profile.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("text: {source: bundled, max_length: 5000}", "max_length 5000 must be 3 to 512"),
        ("text: {source: bundled, max_length: -3}", "max_length -3 must be"),
        ("text: {source: bundled, max_length: 0}", "max_length 0 must be"),
        ("image: {source: bundled, device: tpu}", "device 'tpu' must be auto, cpu, cuda"),
        ("audio: {source: bundled, dtype: int4}", "dtype 'int4' must be one of"),
        ("audio: {source: bundled, window_seconds: -1}", "window_seconds -1 is shorter"),
        ("audio: {source: bundled, window_seconds: .nan}", "window_seconds nan must be a finite number"),
        ("text: {source: nobody/there, device: gpu}", "device 'gpu' must be"),
    ],
)
def test_options_that_no_encoder_can_have_are_refused_at_once(tmp_path, content, complaint):
    """Not when the first long text comes."""
    path = tmp_path / "profile.yaml"
    path.write_text(content)
    with pytest.raises(EncoderError, match=complaint):
        load_profile(path)


def test_an_unknown_profile_is_refused():
    """The error lists the profiles that there are."""
    with pytest.raises(ProfileError, match="bundled, hub"):
        load_profile("bundeld")
