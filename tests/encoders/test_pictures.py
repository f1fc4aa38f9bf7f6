import contextlib
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from encoders.errors import MediaError
from encoders.media import MediaLimits, decode_image
from tests.encoders.media_files import GREEN, RED, file_of, noise_picture, picture


def colour_of(image):
    assert image.mode == "RGB"
    return image.getpixel((image.width // 2, image.height // 2))


def code_of(source, **limits):
    with pytest.raises(MediaError) as caught:
        decode_image(source, MediaLimits(**limits))
    assert str(caught.value)
    return caught.value.code


@pytest.mark.parametrize(
    ("data", "tolerance"),
    [
        (file_of(picture()), 0),
        (file_of(picture(mode="P")), 0),
        (file_of(picture(), "JPEG", quality=95), 3),
        (file_of(picture(mode="CMYK"), "JPEG", quality=95), 3),
        (file_of(picture(), "WEBP", lossless=True), 0),
        (file_of(picture(), "GIF"), 0),
        (file_of(picture(), "BMP"), 0),
        (file_of(picture(), "TIFF"), 0),
        (file_of(picture(), "AVIF", quality=95), 8),
    ],
    ids=["png", "palette png", "jpeg", "cmyk jpeg", "webp", "gif", "bmp", "tiff", "avif"],
)
def test_every_format_gives_the_colour_that_was_saved(data, tolerance):
    """Whatever the file's format and mode, the decoded picture is RGB in the colours that were put in."""
    image = decode_image(data)
    assert image.size == (48, 32)
    assert np.abs(np.subtract(colour_of(image), RED)).max() <= tolerance


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_on_white(mode):
    """A fully transparent black picture is white, not black; an opaque one keeps its colour."""
    clear = Image.new(mode, (8, 8), 0)
    assert colour_of(decode_image(file_of(clear))) == (255, 255, 255)
    opaque = Image.new("RGB", (8, 8), GREEN).convert(mode)
    expected = GREEN if mode == "RGBA" else (opaque.getpixel((0, 0))[0],) * 3
    assert colour_of(decode_image(file_of(opaque))) == expected


def test_half_transparency_is_mixed_with_white():
    """Half-transparent black is the grey between black and white."""
    assert colour_of(decode_image(file_of(Image.new("RGBA", (8, 8), (0, 0, 0, 128))))) == (127, 127, 127)


def test_a_transparent_palette_colour_is_white():
    """A palette's transparent index counts as transparency too."""
    image = Image.new("P", (8, 8), 0)
    image.putpalette([255, 0, 0, 0, 255, 0])
    assert colour_of(decode_image(file_of(image, transparency=0))) == (255, 255, 255)


def test_16_bit_grey_is_scaled_not_clipped():
    """A 16-bit ramp becomes an 8-bit ramp; Pillow's own conversion would make nearly all of it white."""
    ramp = np.linspace(0, 65_535, 64).astype(np.uint16)[None].repeat(4, 0)
    decoded = np.asarray(decode_image(file_of(Image.fromarray(ramp))))[0, :, 0]
    assert np.abs(decoded - np.linspace(0, 255, 64)).max() <= 1


def test_floating_point_tiff_is_scaled():
    """Floating-point samples in 0 .. 1 span black to white, and samples that are not numbers are black."""
    samples = np.array([[0, 0.5, 1, np.nan]], dtype=np.float32)
    assert np.asarray(decode_image(file_of(Image.fromarray(samples), "TIFF")))[0, :, 0].tolist() == [0, 128, 255, 0]


def test_exif_rotation_is_applied():
    """A photo stored sideways comes out upright: orientation 6 turns width into height."""
    photo = picture((40, 20))
    photo.paste(GREEN, (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = decode_image(file_of(photo, "JPEG", exif=exif, quality=95))
    assert upright.size == (20, 40)
    assert np.abs(np.subtract(upright.getpixel((10, 5)), GREEN)).max() <= 3, "the stored left is the upright top"


def test_damaged_exif_does_not_cost_the_picture():
    """EXIF that cannot be read is ignored; the pixels are fine."""
    assert decode_image(file_of(picture(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")).size == (48, 32)


def test_of_an_animation_the_first_frame_counts():
    """An animated GIF is its first frame."""
    data = file_of(picture(colour=GREEN), "GIF", save_all=True, append_images=[picture(colour=RED)])
    assert colour_of(decode_image(data)) == GREEN


def test_content_decides_not_the_name(tmp_path):
    """A PNG that is called .mp3 is a picture, and a text that is called .png is not."""
    path = tmp_path / "song.mp3"
    path.write_bytes(file_of(picture()))
    assert decode_image(path).size == (48, 32)
    text = tmp_path / "picture.png"
    text.write_text("not a picture")
    assert code_of(text) == "unsupported_format"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
@pytest.mark.parametrize("part", [0.3, 0.7])
def test_a_file_cut_short_is_refused(kind, part):
    """A picture that breaks off never decodes to half a picture."""
    data = file_of(noise_picture(), kind)
    assert code_of(data[: int(len(data) * part)]) in {"truncated", "undecodable"}


def test_missing_and_empty_files_and_folders(tmp_path):
    """Nothing there, nothing in it, and no file at all have their own codes."""
    (tmp_path / "empty.png").touch()
    assert code_of(tmp_path / "none.png") == "not_found"
    assert code_of(tmp_path / "empty.png") == "empty"
    assert code_of(tmp_path) == "unsupported_format"
    assert code_of(tmp_path / "bad\0name.png") == "not_found"


@pytest.mark.parametrize(
    "svg",
    [
        b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        b'\xef\xbb\xbf<?xml version="1.0"?>\n<!-- drawn -->\n<svg width="3"/>',
        b'<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" ""><svg/>',
    ],
)
def test_svg_is_refused_with_advice(svg):
    """A drawing is refused in words that say what to do."""
    with pytest.raises(MediaError, match="SVG is a vector drawing; export it as PNG") as caught:
        decode_image(svg)
    assert caught.value.code == "unsupported_format"


@pytest.mark.parametrize(
    ("data", "named"), [(b"%PDF-1.7", "a PDF document"), (b"ID3\x04", "an MP3 sound"), (b"\0\1\2\3", "unknown data")]
)
def test_what_is_no_picture_is_named(data, named):
    """The refusal says what the file holds instead."""
    with pytest.raises(MediaError, match=named) as caught:
        decode_image(data)
    assert caught.value.code == "unsupported_format"


def bomb(width, height):
    """A PNG of a few bytes that claims width x height pixels."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [8_000, 10_000, 20_000, 2_000_000_000])
def test_a_decompression_bomb_is_refused_before_decoding(side):
    """A small file that claims too many pixels costs nothing, below and above Pillow's own two limits."""
    assert code_of(bomb(side, side)) == "too_many_pixels"


def test_limits_are_the_callers():
    """The limits given are the limits kept."""
    data = file_of(picture((100, 100)))
    assert code_of(data, max_image_pixels=9_999) == "too_many_pixels"
    assert code_of(data, max_bytes=len(data) - 1) == "too_large"
    assert decode_image(data, MediaLimits(max_image_pixels=10_000, max_bytes=len(data))).size == (100, 100)


def test_random_damage_is_a_media_error_or_a_picture():
    """Flipped bytes end in a picture or in a `MediaError`, never in another exception or a warning."""
    random = np.random.default_rng(7)
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "AVIF"):
        data = file_of(noise_picture(), kind)
        for _ in range(60):
            damaged = bytearray(data)
            for position in random.integers(0, random.choice([64, len(data)]), random.choice([1, 8])):
                damaged[position] = random.integers(256)
            with contextlib.suppress(MediaError):
                assert decode_image(bytes(damaged)).mode == "RGB"
