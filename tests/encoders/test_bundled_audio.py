"""The bundled audio encoder: its checkpoint, its teacher's reader, the data's split, a small training run, the probes."""

import json
import os
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from encoders.bundled import distil, distil_data, sounds_probe, wav2vec2
from encoders.bundled.distil_student import CONFIG, HOP, build, frames_of, synthetic_sounds
from encoders.bundled.distil_teacher import Teacher, load_whisper, whisper_file
from encoders.bundled.sounds import Sound, describe_sound, read_sounds
from encoders.bundled.sounds_probe import Probe, over_telephone, run_probe
from encoders.errors import EncoderError, WeightsError
from encoders.weights import weights_digest

MAX_CHECKPOINT_MB = 12
WHISPER = {
    "vocab_size": 20, "d_model": 16, "num_mel_bins": 80, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_source_positions": 150, "max_target_positions": 10,
    "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0, "decoder_start_token_id": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def whisper():
    """A small Whisper with random weights."""
    import torch
    from transformers import WhisperConfig, WhisperModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return WhisperModel(WhisperConfig(**WHISPER)).eval()


def ctranslate2_tensors(model):
    """The model's tensors by CTranslate2's names, projections joined as it joins them."""
    import torch

    state = {name: tensor.float() for name, tensor in model.state_dict().items()}
    tensors = {"encoder/num_heads": np.array(model.config.encoder_attention_heads, np.int16)}

    def put(name, *sources):
        parts = []
        for source in sources:
            part = state.get(source)
            parts.append(torch.zeros(model.config.d_model) if part is None else part)
        tensors[name] = torch.cat(parts).half().numpy()

    def norm(name, source):
        put(f"{name}/gamma", f"{source}.weight")
        put(f"{name}/beta", f"{source}.bias")

    def linear(name, *sources):
        put(f"{name}/weight", *(f"{source}.weight" for source in sources))
        put(f"{name}/bias", *(f"{source}.bias" for source in sources))

    for conv in ("conv1", "conv2"):
        linear(f"encoder/{conv}", f"encoder.{conv}")
    put("decoder/embeddings/weight", "decoder.embed_tokens.weight")
    for side, layers in (("encoder", model.encoder.layers), ("decoder", model.decoder.layers)):
        put(f"{side}/position_encodings/encodings", f"{side}.embed_positions.weight")
        norm(f"{side}/layer_norm", f"{side}.layer_norm")
        for index in range(len(layers)):
            ours, theirs = f"{side}/layer_{index}", f"{side}.layers.{index}"
            heads = [f"{theirs}.self_attn.{kind}_proj" for kind in "qkv"]
            norm(f"{ours}/self_attention/layer_norm", f"{theirs}.self_attn_layer_norm")
            linear(f"{ours}/self_attention/linear_0", *heads)
            linear(f"{ours}/self_attention/linear_1", f"{theirs}.self_attn.out_proj")
            if side == "decoder":
                cross = f"{theirs}.encoder_attn"
                norm(f"{ours}/attention/layer_norm", f"{theirs}.encoder_attn_layer_norm")
                linear(f"{ours}/attention/linear_0", f"{cross}.q_proj")
                linear(f"{ours}/attention/linear_1", f"{cross}.k_proj", f"{cross}.v_proj")
                linear(f"{ours}/attention/linear_2", f"{cross}.out_proj")
            norm(f"{ours}/ffn/layer_norm", f"{theirs}.final_layer_norm")
            linear(f"{ours}/ffn/linear_0", f"{theirs}.fc1")
            linear(f"{ours}/ffn/linear_1", f"{theirs}.fc2")
    return tensors


def write_ctranslate2(path, tensors, kind="WhisperSpec"):
    """A model.bin as CTranslate2 writes it (version 6)."""
    numbers = {np.dtype(np.float32): 0, np.dtype(np.int16): 2, np.dtype(np.float16): 4}

    def text(value):
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    parts = [struct.pack("<I", 6), text(kind), struct.pack("<II", 3, len(tensors))]
    for name, tensor in tensors.items():
        data = tensor.tobytes()
        shape = struct.pack(f"<B{tensor.ndim}I", tensor.ndim, *tensor.shape)
        parts += [text(name), shape, struct.pack("<BI", numbers[tensor.dtype], len(data)), data]
    path.write_bytes(b"".join(parts) + struct.pack("<I", 0))
    return path


@pytest.fixture(scope="module")
def teacher_file(whisper, tmp_path_factory):
    """The small Whisper in CTranslate2's form."""
    return write_ctranslate2(tmp_path_factory.mktemp("teacher") / "model.bin", ctranslate2_tensors(whisper))


def test_the_checkpoint_is_a_whole_wav2vec2():
    """Its tensors are exactly those of transformers' Wav2Vec2Model, in float16, in few megabytes; a card lies beside it."""
    from safetensors.torch import load_file
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    config = json.loads((wav2vec2.CHECKPOINT / "config.json").read_text())
    state = load_file(wav2vec2.CHECKPOINT / "model.safetensors")
    Wav2Vec2Model(Wav2Vec2Config(**config)).load_state_dict(state, strict=True)
    assert {str(tensor.dtype) for tensor in state.values()} == {"torch.float16"}
    assert all(bool(tensor.isfinite().all()) for tensor in state.values())
    assert sum(path.stat().st_size for path in wav2vec2.CHECKPOINT.iterdir()) / 1e6 < MAX_CHECKPOINT_MB
    card = (wav2vec2.CHECKPOINT / "CARD.md").read_text()
    assert all(f"## {part}" in card for part in ("Data", "Recipe", "Quality", "Limits"))


def test_the_space_follows_the_checkpoint(tmp_path, monkeypatch):
    """The committed space is that of the shipped weights; one changed weight makes another space."""
    from encoders import AudioEncoder

    committed = yaml.safe_load(Path("feature_repo/spaces.yaml").read_text())["spaces"]
    space = AudioEncoder("bundled").space
    assert space.space_id in {entry["space_id"] for entry in committed}
    assert (space.kind, space.dim) == ("encoder", CONFIG["hidden_size"])
    changed = tmp_path / "changed"
    shutil.copytree(wav2vec2.CHECKPOINT, changed)
    data = bytearray((changed / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (changed / "model.safetensors").write_bytes(data)
    monkeypatch.setattr(wav2vec2, "CHECKPOINT", changed)
    assert AudioEncoder("bundled").space.space_id != space.space_id


def test_the_teacher_is_read_as_transformers_has_it(whisper, teacher_file):
    """What CTranslate2 stores joined and renamed comes back tensor by tensor."""
    import torch

    read = load_whisper(teacher_file).state_dict()
    for name, tensor in whisper.state_dict().items():
        torch.testing.assert_close(read[name], tensor.half().float(), msg=name)


def test_the_teachers_frames_are_whispers(teacher_file):
    """On a clip as long as the model is made for, log-mel input and last layer are transformers' own."""
    import torch
    from transformers import WhisperFeatureExtractor

    teacher, model = Teacher(teacher_file), load_whisper(teacher_file)
    clip = np.random.default_rng(0).normal(0, 0.1, 48_000).astype(np.float32)
    expected = WhisperFeatureExtractor(chunk_length=3)(clip, sampling_rate=16_000, return_tensors="pt").input_features
    mel = teacher.log_mel(torch.from_numpy(clip)[None])
    torch.testing.assert_close(mel, expected, rtol=0, atol=1e-4)
    with torch.inference_mode():
        last = model.encoder(expected).last_hidden_state
        torch.testing.assert_close(teacher._forward(expected)[..., 16:], last, rtol=1e-4, atol=1e-4)
    frames = teacher.frames([clip[:16_000], clip[:8_000]])
    assert [rows.shape for rows in frames] == [(50, 32), (25, 32)]


def test_files_that_are_no_teacher_are_refused(teacher_file, tmp_path):
    """A cut file, another kind of model, a missing tensor and a missing file each have their message."""
    cut = tmp_path / "cut.bin"
    cut.write_bytes(teacher_file.read_bytes()[:-4000])
    with pytest.raises(WeightsError, match="breaks off"):
        load_whisper(cut)
    with pytest.raises(WeightsError, match="not a Whisper"):
        load_whisper(write_ctranslate2(tmp_path / "other.bin", {}, kind="TransformerSpec"))
    with pytest.raises(WeightsError, match="not the Whisper model"):
        load_whisper(write_ctranslate2(tmp_path / "less.bin", {}))
    with pytest.raises(WeightsError, match="no Whisper model"):
        whisper_file(tmp_path / "nothing.bin")


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("usr/share/tuxpaint/stamps/animals/cow_white_desc_fr.ogg", ("stamps", "cowwhite", "fr", "animals")),
        ("usr/share/tuxpaint/stamps/animals/cow_white_desc.ogg", ("stamps", "cowwhite", "en", "animals")),
        ("usr/share/tuxpaint/stamps/animals/cow_white.ogg", ("stamps", "cowwhite", None, "animals")),
        ("usr/share/tuxpaint/stamps/symbols/math/7_en_GB.ogg", ("stamps", "7", "en", "symbols/math")),
        ("usr/share/klettres/pt_BR/syllab/ba-1.ogg", ("klettres", "ba", "pt", "syllab")),
        ("usr/share/ktuberling/sounds/sr@latin/ball.ogg", ("ktuberling", "ball", "sr", "")),
        ("usr/share/asterisk/sounds/fr_CA_f_June/digits/7.g722", ("asterisk", "7", "fr", "digits")),
        ("usr/share/asterisk/sounds/it_IT_f_Menardi/vm-intro.wav", ("prompts", "vmintro", "it", "")),
        ("usr/share/lmms/samples/drums/kick01.ogg", ("lmms", "kick", None, "drums")),
        ("usr/share/asterisk/sounds/fr_CA_f_June/beep.g722", None),
        ("usr/share/doc/readme.ogg", None),
    ],
)
def test_places_tell_what_a_sound_is(place, expected):
    """Source, item, language and category come from a file's place; tones among voices and unknown files are left out."""
    sound = describe_sound(Path("/somewhere") / place)
    assert (sound and (sound.source, sound.item, sound.language, sound.category)) == expected


@given(
    st.text("abcdefghijklmnopqrstuvwxyz", min_size=1),
    st.sampled_from(["fr", "ru", None]),
    st.sampled_from(["stamps", "klettres"]),
)
def test_an_item_is_in_one_split(item, language, source):
    """Neither language nor source moves an item between splits; the unheard voices are never trained on."""
    base = Sound(Path("x"), "stamps", item, "es", "")
    assert Sound(Path("y"), source, item, language, "animals").split == base.split
    assert Sound(Path("z"), "prompts", item, language, "").split == "unheard"


def test_the_split_has_its_shares():
    """A fifth of many items is held out and a tenth validates."""
    splits = [Sound(Path("x"), "stamps", f"item{index}", None, "").split for index in range(4000)]
    assert splits.count("test") / 4000 == pytest.approx(0.2, abs=0.02)
    assert splits.count("validation") / 4000 == pytest.approx(0.1, abs=0.02)


def item_of(split, start="item"):
    """A word whose sounds are in `split`."""
    names = (start + "abcdefghij"[i % 10] + "abcdefghij"[i // 10] for i in range(100))
    return next(name for name in names if Sound(Path("x"), "stamps", name, None, "").split == split)


def test_a_copy_of_a_held_out_sound_trains_nothing(tmp_path):
    """Of two equal files under names of different splits, the held-out one is kept."""
    folder = tmp_path / "tuxpaint/stamps/animals"
    folder.mkdir(parents=True)
    clip = np.random.default_rng(1).normal(0, 0.1, 8000)
    for split in ("train", "test"):
        soundfile.write(folder / f"{item_of(split)}.ogg", clip, 16_000)
    found = [describe_sound(path) for path in sorted(folder.iterdir())]
    assert [sound.split for sound, _ in read_sounds(found)] == ["test"]


@pytest.fixture(scope="module")
def noises(tmp_path_factory):
    """A folder as packages unpack: 24 effects and 24 spoken-like sounds of two languages, half a second or more each."""
    root = tmp_path_factory.mktemp("sounds")
    random = np.random.default_rng(7)
    clips = synthetic_sounds(48, seed=3)
    for index, clip in enumerate(clips):
        name = "".join(random.choice(list("abcdefgh"), 6))
        language = ("fr", "ru")[index % 2]
        place = f"tuxpaint/stamps/animals/{name}.ogg" if index < 24 else f"klettres/{language}/syllab/{name}.ogg"
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(root / place, clip[:12_000], 16_000)
    return root


def train(noises, teacher_file, out, seed):
    """What the real command prints as JSON."""
    from triptych.verbs.bundled import app

    arguments = [
        "train-audio",
        "--sounds",
        noises,
        "--whisper",
        teacher_file,
        "--out",
        out,
        "--steps",
        24,
        "--batch",
        8,
    ]
    done = CliRunner().invoke(app, [*map(str, arguments), "--seed", str(seed), "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_training_lowers_the_loss_and_is_reproducible(noises, teacher_file, tmp_path, monkeypatch):
    """The real command on a small teacher: the loss falls, a seed fixes the weights, another seed gives others, and they load."""
    from encoders import AudioEncoder

    monkeypatch.setattr(distil_data, "SYNTHETIC", 24)
    one, again, other = (
        train(noises, teacher_file, tmp_path / name, seed) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert one["last_loss"] < 0.9 * one["first_loss"]
    assert again["last_loss"] == one["last_loss"]
    digests = [weights_digest(tmp_path / name) for name in "abc"]
    assert digests[0] == digests[1] != digests[2]
    assert other["clips"]["train"] > 0
    encoder = AudioEncoder(tmp_path / "a")
    encoder.space.check(encoder.encode(synthetic_sounds(3, seed=1)))


def test_a_checkpoint_is_never_overwritten(noises, teacher_file, tmp_path):
    """A folder that holds something is refused before anything is computed; so is one without sounds."""
    from encoders.bundled.train_audio import train_audio

    (tmp_path / "something").touch()
    with pytest.raises(EncoderError, match="not empty"):
        train_audio([noises], tmp_path, whisper=teacher_file)
    with pytest.raises(EncoderError, match="no known sounds"):
        train_audio([tmp_path], tmp_path / "out", whisper=teacher_file)


def test_decoded_sounds_and_frames_are_kept(noises, teacher_file, tmp_path):
    """A second run with the same folder for them asks neither decoder nor teacher, and gets the same."""
    told = []
    known = distil_data.known_sounds([noises])
    runs = [distil_data.hear(known, teacher_file, tmp_path, lambda *what: told.append(what[0])) for _ in range(2)]
    assert told.count("decoding") == len(known)
    for one, two in zip(*runs, strict=True):
        assert one.sound == two.sound
        np.testing.assert_array_equal(one.frames, two.frames)
        np.testing.assert_array_equal(one.samples, two.samples)


def test_student_and_teacher_frames_are_aligned():
    """A frame of the student comes every 40 ms, and its centre is within 3 ms of the teacher's that it must answer with."""
    assert np.prod(CONFIG["conv_stride"]) == HOP == 640
    assert frames_of(16_000) == 23
    field, hop = 1, 1
    for kernel, stride in zip(CONFIG["conv_kernel"], CONFIG["conv_stride"], strict=True):
        field, hop = field + (kernel - 1) * hop, hop * stride
    teacher_centre_ms = 40 * distil.TEACHER_LEAD + 10
    assert field / 2 / 16 == pytest.approx(teacher_centre_ms, abs=3)
    assert build(0).config.hidden_size == CONFIG["hidden_size"]


def test_schedule_rises_and_falls():
    """From nothing to all at the end of the warm-up, to nothing at the end."""
    assert distil.schedule(0, 0.1) == 0
    assert distil.schedule(0.1, 0.1) == pytest.approx(1)
    assert distil.schedule(1, 0.1) == pytest.approx(0)


def test_a_probe_finds_what_is_there_and_nothing_else():
    """Planted classes are found in held-out items; on noise the interval holds one half."""
    random = np.random.default_rng(11)
    labels = ["fr" if index % 2 else "ru" for index in range(600)]
    items = [f"item{index // 2}" for index in range(600)]
    part = np.arange(600) // 200
    probe = Probe("language", labels, part == 0, part == 1, part == 2)
    noise = random.normal(size=(600, 8))
    planted = noise + np.array([[3.0 if label == "fr" else -3.0] + [0] * 7 for label in labels])
    assert run_probe(probe, planted, items).accuracy > 0.98
    outcome = run_probe(probe, noise, items)
    assert outcome.low < 0.5 < outcome.high
    assert (outcome.clips, outcome.classes) == (200, 2)


def test_a_telephone_keeps_its_band_only():
    """1 kHz comes through within a decibel; 100 Hz and 6 kHz do not."""
    time = np.arange(16_000) / 16_000
    for hertz, least, most in ((1000, 0.89, 1.12), (100, 0, 0.02), (6000, 0, 0.02)):
        tone = 0.5 * np.sin(2 * np.pi * hertz * time) + 0.5 * np.sin(2 * np.pi * 800 * time)
        sent = np.abs(np.fft.rfft(over_telephone(tone)))[hertz] / 4000
        assert least <= sent <= most, hertz


def test_effects_are_told_from_speech_better_than_by_loudness_and_colour():
    """As shipped, on all held-out sounds, the weights beat log-mel statistics and the untrained network, by five points at least."""
    stated = json.loads((wav2vec2.CHECKPOINT / "quality.json").read_text())["all"]
    found = {row["vectors"]: row["accuracy"] for row in stated if row["probe"] == "effect or speech"}
    assert found["trained"] > max(found["log-mel"], found["random"], found["filter bank"]) + 0.05


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.skipif(
    "TRIPTYCH_SOUNDS" not in os.environ, reason="TRIPTYCH_SOUNDS names no folders of all the sounds that the card lists"
)
def test_effects_are_told_from_speech_on_all_sounds():
    """Measured again, on the folders of TRIPTYCH_SOUNDS (separated as in PATH), that is so."""
    from encoders.bundled.train_audio import evaluate_audio

    rows = evaluate_audio([Path(folder) for folder in os.environ["TRIPTYCH_SOUNDS"].split(os.pathsep)])
    found = {row.vectors: row.outcome.accuracy for row in rows if row.probe == "effect or speech"}
    assert found["trained"] > found["log-mel"] + 0.03


@pytest.mark.long
@pytest.mark.skipif(
    "TRIPTYCH_STAMPS" not in os.environ, reason="TRIPTYCH_STAMPS names no unpacked tuxpaint-stamps-default"
)
def test_the_card_says_what_the_probes_find():
    """On held-out stamps the shipped weights tell effects from speech, and languages over a telephone, as the card says."""
    from encoders.bundled.train_audio import evaluate_audio

    rows = evaluate_audio([Path(os.environ["TRIPTYCH_STAMPS"])])
    found = {(row.probe, row.vectors): row.outcome.accuracy for row in rows}
    stated = json.loads((wav2vec2.CHECKPOINT / "quality.json").read_text())["stamps_only"]
    for entry in stated:
        assert found[entry["probe"], entry["vectors"]] == pytest.approx(entry["accuracy"], abs=0.03), entry
    telephone = "language, same speakers over a telephone"
    assert found[telephone, "trained"] > found[telephone, "log-mel"] + 0.15
    assert found["effect or speech", "trained"] > found["effect or speech", "random"] + 0.03
    assert sounds_probe.MEL_BANDS == 80
