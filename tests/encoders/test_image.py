import io

import numpy as np
import pytest
from PIL import ExifTags, Image

from encoders import ImageEncoder
from encoders.errors import EncoderError, MediaError, WeightsError
from encoders.image import MAX_ASPECT, trim_aspect
from encoders.media import decode_image
from tests.encoders.conftest import TINY_CLIP
from tests.encoders.media_files import noise_picture, picture


def textured(kind, seed):
    """Pictures of three plain kinds (stripes, checks, blobs), each with its own phase, colours and noise."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:96, 0:96] + random.uniform(0, 16, 2)[:, None, None]
    wave = {
        "stripes": np.sin(x / 3),
        "checks": np.sign(np.sin(x / 6) * np.sin(y / 6)),
        "blob": np.exp(-((x - 50) ** 2 + (y - 50) ** 2) / 400),
    }[kind]
    low, high = random.uniform(0, 100, 3), random.uniform(155, 255, 3)
    pixels = low + (high - low) * (wave[..., None] + 1) / 2 + random.normal(0, 8, (96, 96, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def test_vectors_equal_open_clips_own(clip_folder):
    """A folder's model through this encoder is open_clip's own transform and towers, pictures and queries alike."""
    import open_clip
    import torch

    from encoders.weights import quiet

    encoder = ImageEncoder(clip_folder, dtype="float32")
    pictures = [noise_picture(1, (50, 40)), noise_picture(2, (32, 90)), picture()]
    texts = ["a red bird", "stone"]
    with quiet(), torch.inference_mode():
        model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{clip_folder}")
        tokenize = open_clip.get_tokenizer(f"local-dir:{clip_folder}")
        expected = (
            model.eval().encode_image(torch.stack([transform(image) for image in pictures]), normalize=True).numpy()
        )
        expected_texts = model.encode_text(tokenize(texts), normalize=True).numpy()
    assert (encoder.encode(pictures) * expected).sum(1).min() > 0.99999
    assert (encoder.encode_query(texts) * expected_texts).sum(1).min() > 0.99999
    assert encoder.space.dim == TINY_CLIP["embed_dim"]
    assert (encoder.space.kind, encoder.space.query_modality) == ("encoder", "text")


def test_the_towers_features_begin_as_the_reference_began():
    """The five largest of the normalised features that timm gave for a picture of plain gradients."""
    import timm
    import torch

    from encoders.bundled.clip import load_efficientnet

    trunk = timm.create_model("tf_efficientnet_lite0", num_classes=0)
    load_efficientnet(trunk)
    y, x = np.mgrid[0:224, 0:224]
    pixels = np.stack([x, y, (x + y) // 2]).astype(np.float32)[None] / 255 * 2 - 1
    with torch.inference_mode():
        features = trunk.eval()(torch.from_numpy(pixels))[0].numpy()
    features /= np.linalg.norm(features)
    np.testing.assert_allclose(
        features[[113, 897, 930, 689, 747]], [0.383029, 0.377610, 0.315701, 0.213835, 0.211707], atol=1e-4
    )


def test_bfloat16_gives_the_same_space_and_nearly_the_same_vectors(clip_folder):
    """A Transformer tower at half the precision agrees to a cosine of 0.999, pictures and queries."""
    exact, fast = (ImageEncoder(clip_folder, device="cpu", dtype=dtype) for dtype in ("float32", "bfloat16"))
    pictures = [noise_picture(seed) for seed in range(6)]
    assert (exact.encode(pictures) * fast.encode(pictures)).sum(1).min() > 0.999
    assert (exact.encode_query(["a bird"]) * fast.encode_query(["a bird"])).sum() > 0.999


@pytest.mark.parametrize("mode", ["RGBA", "L", "LA", "P", "I;16", "CMYK"])
def test_a_pil_image_of_any_mode_has_the_vector_of_its_file(clip_folder, mode):
    """It is laid on white, and scaled to 8 bits, as a file is."""
    encoder = ImageEncoder(clip_folder, dtype="float32")
    drawn = noise_picture(size=(40, 30)).convert("L" if mode == "I;16" else mode)
    if mode == "I;16":
        drawn = Image.fromarray(np.asarray(drawn).astype(np.uint16) * 200)
    if mode in {"RGBA", "LA"}:
        drawn.putalpha(Image.linear_gradient("L").resize(drawn.size))
    file = io.BytesIO()
    drawn.save(file, "TIFF" if mode == "CMYK" else "PNG")
    opened = encoder.encode([Image.open(io.BytesIO(file.getvalue()))])
    np.testing.assert_allclose(opened, encoder.encode([decode_image(file.getvalue())]), atol=1e-6)


def test_a_pil_image_is_turned_upright_and_left_as_it_is(clip_folder):
    """By its EXIF orientation."""
    encoder, file = ImageEncoder(clip_folder, dtype="float32"), io.BytesIO()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    noise_picture(size=(60, 20)).save(file, "JPEG", exif=exif)
    opened = Image.open(file)
    np.testing.assert_allclose(encoder.encode([opened]), encoder.encode([decode_image(file.getvalue())]), atol=1e-6)
    assert opened.size == (60, 20)


def test_a_pil_image_that_cannot_be_read_is_refused(clip_folder):
    """One that was opened from a file that breaks off."""
    file = io.BytesIO()
    noise_picture().save(file, "JPEG")
    opened = Image.open(io.BytesIO(file.getvalue()[:1500]))
    with pytest.raises(MediaError, match="item 0: the picture cannot be read as RGB") as caught:
        ImageEncoder(clip_folder).encode([opened])
    assert caught.value.code == "undecodable"


@pytest.mark.parametrize(
    ("item", "complaint"),
    [
        ("a.png", "a picture must be a PIL image, not the str 'a.png'; encoders.media.decode_image makes one"),
        (b"bytes", "not the bytes"),
        (np.zeros((4, 4, 3), np.uint8), "not the ndarray"),
        (Image.new("RGB", (0, 0)), "no pixels: it is 0 x 0"),
    ],
)
def test_what_is_no_picture_is_named(clip_folder, item, complaint):
    """With the remedy."""
    with pytest.raises(EncoderError, match=complaint):
        ImageEncoder(clip_folder).encode([item])


def test_one_pixel_is_a_picture(clip_folder):
    """1 x 1 is resized like any other."""
    encoder = ImageEncoder(clip_folder)
    encoder.space.check(encoder.encode([picture((1, 1))]))


def test_the_bundled_tower_is_efficientnet(bundled):
    """Before the projection, the bundled model's features are those of timm's EfficientNet-Lite0 with the package's weights."""
    import timm
    import torch

    from encoders.bundled.clip import load_efficientnet

    trunk = timm.create_model("tf_efficientnet_lite0", num_classes=0)
    load_efficientnet(trunk)
    loaded = bundled.image._source.load()
    pixels = torch.stack([loaded.transform(noise_picture(seed)) for seed in range(2)])
    with torch.inference_mode():
        expected, features = trunk.eval()(pixels), loaded.model.eval().visual.trunk(pixels)
    np.testing.assert_allclose(features, expected, atol=1e-5)


def test_the_projection_keeps_geometry(bundled):
    """Unlike pictures are apart and like ones near: each one's nearest is of its own kind, and the mean cosine is near zero."""
    kinds = ["stripes", "checks", "blob"] * 4
    vectors = bundled.image.encode([textured(kind, seed) for seed, kind in enumerate(kinds)])
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -1)
    assert [kinds[row] for row in similarity.argmax(1)] == kinds


def test_projection_matrices_are_orthonormal_and_fixed():
    """The same seed gives the same matrix, whose shorter side is orthonormal."""
    from encoders.bundled.projections import orthonormal

    wide, tall = orthonormal((8, 20), 1), orthonormal((20, 8), 1)
    np.testing.assert_allclose(wide @ wide.T, np.eye(8), atol=1e-12)
    np.testing.assert_allclose(tall.T @ tall, np.eye(8), atol=1e-12)
    np.testing.assert_array_equal(wide, orthonormal((8, 20), 1))
    assert np.abs(wide - orthonormal((8, 20), 2)).max() > 0.1


def test_moments_of_clipped_features_are_right():
    """The closed-form mean and deviation of a batch norm's clipped output agree with a million samples."""
    import torch

    from encoders.bundled.projections import pooled_feature_statistics

    norm = torch.nn.BatchNorm2d(4)
    norm.bias.data, norm.weight.data = torch.tensor([-1.0, 0.5, 5.0, 2.0]), torch.tensor([1.0, 2.0, -3.0, 0.1])
    samples = np.random.default_rng(0).normal(norm.bias.detach(), norm.weight.detach().abs(), (1_000_000, 4)).clip(0, 6)
    mean, deviation = pooled_feature_statistics(norm)
    np.testing.assert_allclose(mean, samples.mean(0), atol=0.01)
    np.testing.assert_allclose(deviation, samples.std(0), atol=0.01)


def test_order_is_kept_and_a_vector_does_not_depend_on_its_batch():
    """Neither batch mates nor their number change a vector, on an encoder's very first call too."""
    encoder = ImageEncoder("bundled")
    pictures = [textured(kind, seed) for seed, kind in enumerate(["stripes", "checks", "blob"] * 2)]
    together, backwards = encoder.encode(pictures), encoder.encode(pictures[::-1])[::-1]
    alone = np.concatenate([encoder.encode([image]) for image in pictures])
    assert (together * backwards).sum(1).min() > 0.99999
    assert (together * alone).sum(1).min() > 0.99999


def test_form_of_the_result(bundled):
    """float32, contiguous, unit norm; nothing in, nothing out; progress adds up; queries lie in the same space."""
    done = []
    vectors = bundled.image.encode([picture()] * 3, progress=done.append)
    assert vectors.dtype == np.float32
    assert vectors.flags.c_contiguous
    assert sum(done) == 3
    bundled.image.space.check(vectors)
    bundled.image.space.check(bundled.image.encode_query(["a bird", "a stone"]))
    assert bundled.image.encode([]).shape == bundled.image.encode_query([]).shape == (0, bundled.image.space.dim)


def test_a_long_thin_picture_costs_no_memory(bundled):
    """A picture of 1 x 200,000 pixels is trimmed to its middle before it would be resized to 224 x 45 million."""
    thin = Image.new("RGB", (1, 200_000), (10, 200, 30))
    assert trim_aspect(thin).size == (1, MAX_ASPECT)
    assert trim_aspect(Image.new("RGB", (3, 40))).size == (3, 40)
    bundled.image.space.check(bundled.image.encode([thin]))


def test_folders_that_are_not_clip_are_refused(bert_folder, tmp_path):
    """A wrong folder is named in the error, with what it lacks."""
    with pytest.raises(WeightsError, match=r"tiny-bert holds no open_clip_config\.json"):
        ImageEncoder(bert_folder)
    (tmp_path / "open_clip_config.json").write_text("{}")
    with pytest.raises(WeightsError, match="embed_dim"):
        ImageEncoder(tmp_path)
