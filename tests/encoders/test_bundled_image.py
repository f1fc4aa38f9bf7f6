import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from encoders.bundled.captions import Captioned, join_groups, plain_caption, read_emoji, read_stamps, split_of
from encoders.bundled.clip import CHECKPOINT, PROJECTIONS_FILE, BundledClip
from encoders.bundled.projections import Projections, orthonormal
from encoders.bundled.recall import chance, ranks, retrieval
from encoders.bundled.views import make_views, on_paper, read_picture
from encoders.errors import MediaError, WeightsError

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 160, 60),
    "blue": (30, 60, 220),
    "yellow": (240, 220, 40),
    "black": (0, 0, 0),
}
WORDS = st.lists(
    st.sampled_from(["a dog", "A Dog.", "the dog", "a cat", "some cats", "a red cat"]), min_size=1, max_size=12
)


def draw(shape, colour, size=96):
    """A plain shape on transparent paper."""
    picture = Image.new("RGBA", (size, size))
    pen, (low, high) = ImageDraw.Draw(picture), (size // 8, size - size // 8)
    middle = size // 2
    if shape == "circle":
        pen.ellipse((low, low, high, high), fill=colour)
    elif shape == "square":
        pen.rectangle((low, low, high, high), fill=colour)
    elif shape == "triangle":
        pen.polygon([(middle, low), (high, high), (low, high)], fill=colour)
    elif shape == "cross":
        pen.rectangle((middle - 8, low, middle + 8, high), fill=colour)
        pen.rectangle((low, middle - 8, high, middle + 8), fill=colour)
    elif shape == "ring":
        pen.ellipse((low, low, high, high), outline=colour, width=10)
    else:
        points = [
            (middle + r * np.sin(k * np.pi / 5), middle - r * np.cos(k * np.pi / 5))
            for k, r in enumerate([middle - low, (middle - low) // 2.5] * 5)
        ]
        pen.polygon(points, fill=colour)
    return picture


SHAPES = ("circle", "square", "triangle", "cross", "ring", "star")


@pytest.fixture(scope="session")
def drawn(tmp_path_factory):
    """Stamps and emoji in the packages' layouts: every shape in every colour, with a caption."""
    folder = tmp_path_factory.mktemp("drawn")
    stamps, emoji = folder / "stamps", folder / "openmoji"
    for place in (stamps / "shapes", emoji / "color" / "618x618", emoji / "data"):
        place.mkdir(parents=True)
    entries = []
    for number, (shape, colour) in enumerate((s, c) for s in SHAPES for c in COLOURS):
        name = f"{colour}{shape}"
        draw(shape, COLOURS[colour]).save(stamps / "shapes" / f"{name}.png")
        (stamps / "shapes" / f"{name}.txt").write_text(f"A {colour} {shape}.\nfr.utf8=Une forme.\n")
        draw(shape, COLOURS[colour], 72).save(emoji / "color" / "618x618" / f"1F{number:03X}.png")
        entries.append({
            "hexcode": f"1F{number:03X}", "group": "symbols", "subgroups": "geometric", "annotation": f"{colour} {shape}",
            "tags": f"{shape}, {colour}", "openmoji_tags": "", "skintone": "",
        })  # fmt: skip
    (emoji / "data" / "openmoji.json").write_text(json.dumps(entries))
    return stamps, emoji


@given(WORDS, st.randoms(use_true_random=False))
def test_pictures_of_one_caption_are_never_in_two_splits(captions, random):
    """Equal captions, whatever their article and case, share a group; so do equal folders and names; order changes nothing."""
    items = [Captioned(Path(f"{n}.png"), (said,), f"g{n % 4}", "stamps", "x") for n, said in enumerate(captions)]
    joined = {item.picture: item.group for item in join_groups(items)}
    for one in items:
        for other in items:
            same = one.group == other.group or plain_caption(one.captions[0]) == plain_caption(other.captions[0])
            assert not same or joined[one.picture] == joined[other.picture]
    shuffled = random.sample(items, len(items))
    assert {item.picture: item.group for item in join_groups(shuffled)} == joined


def test_the_split_is_fixed_by_the_group():
    """A group's split is the same on every machine, for ever; about a quarter is held out and 15 % decide when to stop."""
    assert [split_of(name) for name in ("animals/birds/owl", "food/fruit/apple", "space/rocket")] == [
        "train",
        "train",
        "test",
    ]
    splits = [split_of(f"group {number}") for number in range(4000)]
    assert splits.count("test") == pytest.approx(1000, abs=100)
    assert splits.count("validation") == pytest.approx(600, abs=80)


def test_stamps_are_read_with_their_first_line(drawn, tmp_path):
    """A stamp is a picture with a text beside it, whose first line is its caption; names that begin alike are one group."""
    stamps = read_stamps(drawn[0])
    assert len(stamps) == len(SHAPES) * len(COLOURS)
    assert {stamp.captions[0] for stamp in stamps if stamp.picture.stem == "redstar"} == {"A red star."}
    for name in ("apple_fuji", "apple_red-2", "t_sock", "t_glove"):
        draw("circle", (0, 0, 0)).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(f"{name}\n")
    (tmp_path / "note.txt").write_text("no picture\n")
    groups = {item.picture.stem: item.group for item in read_stamps(tmp_path)}
    assert len(groups) == 4
    assert groups["apple_fuji"] == groups["apple_red-2"]
    assert groups["t_sock"] != groups["t_glove"]


def test_emoji_are_read_with_name_and_tags(drawn):
    """Names come first, then tags; a skin tone and a flag are left out."""
    stamps_folder, folder = drawn
    items = read_emoji(folder)
    assert items[0].captions == ("red circle", "circle", "red")
    assert {item.group for item in items} == {f"emoji/{colour} {shape}" for shape in SHAPES for colour in COLOURS}
    with pytest.raises(WeightsError, match="npm pack openmoji"):
        read_emoji(stamps_folder)
    with pytest.raises(WeightsError, match="apt-get download"):
        read_stamps(folder / "data")


def test_views_begin_with_the_picture_as_it_is(drawn):
    """The first view is what the encoder sees; the others differ, and are the same in every run."""
    from encoders.media import decode_image

    path = drawn[0] / "shapes" / "redstar.png"
    first, *others = make_views(read_picture(path), 4, np.random.default_rng(1))
    assert first.tobytes() == decode_image(path).tobytes() == on_paper(read_picture(path)).tobytes()
    again = make_views(read_picture(path), 4, np.random.default_rng(1))
    assert [view.tobytes() for view in again[1:]] == [view.tobytes() for view in others]
    assert len({view.tobytes() for view in (first, *others)}) == 4


def test_drawings_are_rendered(tmp_path):
    """An SVG drawing becomes a picture with its transparency."""
    pytest.importorskip("resvg_py", reason="rendering drawings needs resvg-py")
    path = tmp_path / "dot.svg"
    path.write_text(
        '<svg xmlns="http://www.w3.org/2000/svg" width="10" height="10"><circle cx="5" cy="5" r="4" fill="#f00"/></svg>'
    )
    picture = read_picture(path)
    assert picture.getpixel((0, 0))[3] == 0
    assert picture.getpixel((picture.width // 2, picture.height // 2)) == (255, 0, 0, 255)
    path.write_text('<svg xmlns="http://www.w3.org/2000/svg" width="0" height="0"/>')
    with pytest.raises(MediaError, match=r"dot\.svg"):
        read_picture(path)


def test_ranks_count_ties_against_the_model():
    """A rank is the number of others at least as near; a model that gives every picture one score finds none."""
    own = np.eye(3, dtype=bool)
    np.testing.assert_array_equal(ranks(np.array([[3, 1, 2], [3, 1, 2], [3, 1, 2.0]]), own), [0, 2, 1])
    np.testing.assert_array_equal(ranks(np.zeros((3, 3)), own), [2, 2, 2])


def test_retrieval_is_by_caption():
    """Any picture of a query's caption counts as found, and the exact chance is what random vectors reach on average."""
    captions = ["cat", "dog", "cat", "owl"] * 5
    perfect = np.eye(3, dtype=np.float32)
    found = retrieval(perfect[[sorted(set(captions)).index(c) for c in captions]], perfect, captions)
    assert (found.queries, found.pictures, found.recall_at_1, found.median_rank) == (3, 20, 1.0, 1.0)
    random = np.random.default_rng(5)
    draws = [
        retrieval(random.normal(size=(20, 6)), random.normal(size=(3, 6)), captions).recall_at_5 for _ in range(300)
    ]
    assert np.mean(draws) == pytest.approx(chance(captions).recall_at_5, abs=0.03)


def test_projections_survive_saving(tmp_path):
    """What is read back is what was saved, in half precision; a file of something else is refused by name."""
    from safetensors.numpy import save_file

    values = (orthonormal((512, 1280), 1), np.linspace(-1, 1, 512), orthonormal((512, 384), 2))
    saved = Projections(*(np.asarray(value, dtype=np.float32) for value in values))
    saved.save(tmp_path / "p.safetensors")
    read = Projections.read(tmp_path / "p.safetensors")
    np.testing.assert_allclose(read.image_weight, saved.image_weight, atol=1e-3)
    np.testing.assert_allclose(read.text_weight, saved.text_weight, atol=1e-3)
    save_file({"other": np.zeros(3, dtype=np.float16)}, tmp_path / "o.safetensors")
    with pytest.raises(WeightsError, match="not the projections"):
        Projections.read(tmp_path / "o.safetensors")
    with pytest.raises(WeightsError, match="cannot be read"):
        Projections.read(tmp_path / "missing.safetensors")


def test_the_space_covers_the_checkpoint(tmp_path):
    """Any other value in the projections is another space."""
    folder = shutil.copytree(CHECKPOINT, tmp_path / "copy")
    assert BundledClip(folder).recipe() == BundledClip().recipe()
    changed = Projections.read(folder / PROJECTIONS_FILE)
    changed.image_bias[0] += 0.5
    changed.save(folder / PROJECTIONS_FILE)
    assert BundledClip(folder).recipe() != BundledClip().recipe()


def test_the_checkpoint_is_what_its_card_says(bundled):
    """The checkpoint is small, in half precision, described, and its space is of a trained encoder."""
    assert (CHECKPOINT / PROJECTIONS_FILE).stat().st_size < 2_000_000
    assert "CC BY-SA" in (CHECKPOINT / "CARD.md").read_text()
    assert bundled.image.space.kind == "encoder"
    assert bundled.image.space.query_modality == "text"


def test_both_towers_of_the_product_are_those_that_training_saw(bundled):
    """The encoder's vectors of a picture and of words are the projections of the features that training computes."""
    from encoders.bundled.image_features import Towers

    towers, projections = Towers(), Projections.read(CHECKPOINT / PROJECTIONS_FILE)
    pictures = [on_paper(draw("star", COLOURS["red"])), on_paper(draw("ring", COLOURS["blue"]))]
    texts = ["a red star", "a much longer description of a ring that is blue"]
    images = projections.images(towers.images(pictures))
    assert (images * bundled.image.encode(pictures)).sum(1).min() > 0.99999
    assert (projections.texts(towers.texts(texts)) * bundled.image.encode_query(texts)).sum(1).min() > 0.99999


def test_words_find_pictures_drawn_here(bundled):
    """Of 30 plain shapes in five colours, words find the one they name among the first five more than half of the time (chance: 1 in 6)."""
    names = [(shape, colour) for shape in SHAPES for colour in COLOURS]
    images = bundled.image.encode([on_paper(draw(shape, COLOURS[colour], 200)) for shape, colour in names])
    words = bundled.image.encode_query([f"a {colour} {shape}" for shape, colour in names])
    found = ranks(words @ images.T, np.eye(len(names), dtype=bool))
    assert (found < 5).mean() > 0.5


@pytest.mark.skipif("TRIPTYCH_STAMPS" not in os.environ, reason="TRIPTYCH_STAMPS names no folder of unpacked stamps")
def test_words_find_held_out_stamps():
    """Over the held-out stamps, more than 99 of them, text-to-image R@5 is at least .50, and far above untrained projections."""
    from encoders.bundled.train_image import evaluate

    report = evaluate(Path(os.environ["TRIPTYCH_STAMPS"]))
    trained, untrained = report["trained"]["objects"], report["untrained"]["objects"]
    assert trained["pictures"] >= 99
    assert trained["recall_at_5"] >= 0.5
    assert trained["recall_at_5"] > untrained["recall_at_5"] + 0.3
