import contextlib
import gzip
import io
import struct
import sys
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from encoders.errors import MediaError
from encoders.media import MediaLimits, decode_image, describe_media
from tests.encoders.media_files import (
    GREEN,
    RED,
    file_of,
    gif_frames,
    noise_picture,
    picture,
    png_chunk,
    png_file,
    sound_file,
    tone,
)
from tests.encoders.picture_checks import code_of, colour_of, reason_of, smooth_picture


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


# EXIF 2.32, 4.6.4, orientation: what turns the upright picture into the stored one.
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_rotation_is_applied(kind, orientation):
    """A photo stored in any of the eight orientations comes out upright."""
    upright = picture((48, 32))
    upright.paste(GREEN, (0, 0, 16, 16))
    stored = upright if STORED[orientation] is None else upright.transpose(STORED[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}.get(kind, {})
    decoded = decode_image(file_of(stored, kind, exif=exif, **options))
    assert decoded.size == (48, 32)
    assert np.abs(np.subtract(decoded, upright, dtype=np.int16)).max() <= 3


def test_damaged_exif_does_not_cost_the_picture():
    """EXIF that cannot be read is ignored; the pixels are fine."""
    assert decode_image(file_of(picture(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")).size == (48, 32)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "AVIF"])
def test_of_an_animation_the_first_frame_counts_and_is_said_to(kind):
    """An animated picture is its first frame, and a note says how many others do not count."""
    others = [picture(colour=(10 * i, 0, 0)) for i in range(4)]
    data = file_of(picture(colour=GREEN), kind, save_all=True, append_images=others)
    assert np.abs(np.subtract(colour_of(decode_image(data)), GREEN)).max() <= 4
    (note,) = describe_media(data)
    assert note.endswith("has 5 frames: only the first counts")


def test_of_several_pages_the_first_counts_and_is_said_to(tmp_path):
    """A TIFF of three pages is its first; of one page, as of any still picture, there is nothing to say."""
    path = tmp_path / "pages.tif"
    path.write_bytes(file_of(picture(colour=GREEN), "TIFF", save_all=True, append_images=[picture(), picture()]))
    assert colour_of(decode_image(path)) == GREEN
    assert describe_media(path) == ("the TIFF picture has 3 pages: only the first counts",)
    for kind in ("TIFF", "GIF", "PNG", "WEBP", "AVIF", "JPEG", "BMP"):
        assert describe_media(file_of(picture(), kind)) == ()


def test_nothing_is_said_of_a_file_that_is_refused(tmp_path):
    """Notes are for files that are used; a file that is missing is an error as everywhere."""
    animated = file_of(picture(), "GIF", save_all=True, append_images=[picture(colour=GREEN)])
    assert describe_media(animated)
    assert describe_media(animated[:-20]) == ()
    with pytest.raises(MediaError, match="does not exist"):
        describe_media(tmp_path / "none.gif")


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


@pytest.mark.parametrize("side", [8_000, 10_000, 20_000, 2_000_000_000])
def test_a_decompression_bomb_is_refused_before_decoding(side):
    """A small file that claims too many pixels costs nothing, below and above Pillow's own two limits."""
    assert code_of(png_file(side, side)) == "too_many_pixels"


def test_a_bomb_is_told_what_it_claims_and_what_the_limit_is():
    """The refusal names both numbers, whether Pillow's limit or the caller's is passed first."""
    assert reason_of(png_file(20_000, 20_000)) == (
        "too_many_pixels: the picture claims 400,000,000 pixels; the limit is 50,000,000"
    )
    assert "8000 x 8000 pixels; the limit is 50,000,000" in reason_of(png_file(8_000, 8_000))


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


def test_png_of_16_bit_colour_and_of_1_bit():
    """Sixteen-bit colours keep their high bytes; one bit is black or white."""
    rows = (b"\0" + struct.pack(">3H", 0xFFFF, 0x8000, 0x0102) * 4) * 4
    assert colour_of(decode_image(png_file(4, 4, rows=rows, depth=16))) == (255, 128, 1)
    bits = decode_image(png_file(8, 2, rows=b"\0\xf0" * 2, depth=1, colour=0))
    assert np.asarray(bits)[0, :, 0].tolist() == [255] * 4 + [0] * 4


TIFFS = [("RGB", None), ("RGB", "tiff_lzw"), ("RGB", "tiff_adobe_deflate"), ("RGB", "packbits"), ("RGB", "zstd"),
         ("CMYK", None), ("CMYK", "tiff_lzw"), ("P", "tiff_lzw"), ("I;16", None), ("I;16", "tiff_lzw"), ("1", "group4")]  # fmt: skip


@pytest.mark.parametrize(("mode", "compression"), TIFFS)
def test_tiff_of_every_kind(mode, compression):
    """Compressed or not, colour, inks, palette, sixteen bits or one: the picture is what was saved; cut short, it is refused."""
    grey = np.linspace(0, 65_535, 64 * 48).astype(np.uint16).reshape(48, 64)
    image = Image.fromarray(grey) if mode == "I;16" else smooth_picture((64, 48)).convert(mode)
    expected = Image.fromarray((grey / 257).round().astype(np.uint8)) if mode == "I;16" else image
    data = file_of(image, "TIFF", compression=compression)
    np.testing.assert_array_equal(decode_image(data), expected.convert("RGB"))
    for part in (0.3, 0.6, 0.9):
        assert code_of(data[: int(len(data) * part)]) in {"truncated", "undecodable"}


def test_colour_profiles_are_ignored():
    """The models were trained on pixels as stored: a profile changes nothing, and a damaged one costs nothing."""
    image = smooth_picture((32, 32))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for kind in ("PNG", "JPEG"):
        plain = decode_image(file_of(image, kind))
        for icc in (profile, b"no profile"):
            np.testing.assert_array_equal(decode_image(file_of(image, kind, icc_profile=icc)), plain)


def test_heic_with_the_extra():
    """With pillow-heif installed a phone's picture is read, and refused when cut short."""
    heif = pytest.importorskip("pillow_heif")
    buffer = io.BytesIO()
    heif.from_pillow(picture()).save(buffer, quality=95)
    assert np.abs(np.subtract(colour_of(decode_image(buffer.getvalue())), RED)).max() <= 8
    assert reason_of(buffer.getvalue()[:-50]).startswith("truncated")
    assert code_of(buffer.getvalue(), max_image_pixels=100) == "too_many_pixels"


def test_heic_without_the_extra(monkeypatch):
    """Without it the refusal names the extra."""
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    data = struct.pack(">I4s4sI4s", 20, b"ftyp", b"mif1", 0, b"heic") + bytes(100)
    assert "pip install 'triptych[heic]'" in reason_of(data)


def test_png_checksums_are_verified():
    """One changed bit anywhere in a PNG's chunks refuses it, named by its chunk."""
    data = file_of(smooth_picture((32, 32)))
    assert "checksum of its IDAT chunk" in reason_of(data[:80] + bytes([data[80] ^ 1]) + data[81:])
    text = png_file(8, 8, rows=bytes(8 * 25), before=png_chunk(b"tEXt", b"a\0b"))
    assert decode_image(text).size == (8, 8)
    assert "checksum of its tEXt chunk" in reason_of(text.replace(b"a\0b", b"a\0c"))


BOMB = zlib.compress(bytes(50 << 20))


@pytest.mark.parametrize("chunk", [png_chunk(b"iCCP", b"p\0\0" + BOMB), png_chunk(b"zTXt", b"p\0\0" + BOMB)])
def test_text_and_profile_bombs_are_refused(chunk):
    """Fifty kilobytes of text or profile that unpack to fifty megabytes are refused, wherever they stand."""
    pixels = bytes(8 * 25)
    behind = png_file(8, 8, rows=pixels)[:-12] + chunk + png_chunk(b"IEND")
    for data in (png_file(8, 8, rows=pixels, before=chunk), behind):
        assert reason_of(data).startswith("too_large")


def test_a_pixel_stream_that_is_too_long_is_not_unpacked():
    """Of 200 MB behind a header of 8 x 8 pixels only the 8 x 8 are unpacked."""
    assert decode_image(png_file(8, 8, rows=bytes(200 << 20))).size == (8, 8)


def test_too_many_frames_are_refused():
    """An animation of 100,000 frames names the limit, which is the caller's."""
    assert reason_of(gif_frames(100_000)) == (
        "too_many_frames: the GIF picture has more frames or pages than are accepted; the limit is 10,000"
    )
    data = file_of(picture(), "GIF", save_all=True, append_images=[picture(colour=GREEN)])
    assert code_of(data, max_image_frames=1) == "too_many_frames"
    assert decode_image(data, MediaLimits(max_image_frames=2)).size == (48, 32)


def test_chains_of_tiff_pages():
    """Pages chained to a ring, or ten thousands of empty ones, are refused without following them for ever."""
    data = bytearray(file_of(picture(), "TIFF"))
    first = struct.unpack_from("<I", data, 4)[0]
    link = first + 2 + 12 * struct.unpack_from("<H", data, first)[0]
    ring = data.copy()
    struct.pack_into("<I", ring, link, first)
    assert "chain of pages is a ring" in reason_of(bytes(ring))
    struct.pack_into("<I", data, link, len(data))
    end = len(data)
    data += b"".join(struct.pack("<HI", 0, end + 6 * (page + 1)) for page in range(20_000))
    assert code_of(bytes(data)) == "too_many_frames"


def test_what_is_wrapped_or_renamed_is_named():
    """A gzipped picture and a sound called a picture are told what they are."""
    assert "a gzip archive, not a picture" in reason_of(gzip.compress(file_of(picture())))
    assert "an MP3 sound, not a picture" in reason_of(sound_file(tone(), kind="MP3"))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "AVIF"])
def test_an_animation_cut_in_a_later_frame_is_refused(kind):
    """Though its first frame is whole, a file that breaks off is not what its owner meant."""
    data = file_of(noise_picture(0), kind, save_all=True, append_images=[noise_picture(i) for i in (1, 2, 3)])
    assert code_of(data[: int(len(data) * 0.8)]) in {"truncated", "undecodable"}
