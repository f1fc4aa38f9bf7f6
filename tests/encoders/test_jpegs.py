import contextlib
import io

import numpy as np
import pytest
from PIL import Image

from encoders.errors import MediaError
from encoders.media import decode_image
from tests.encoders.media_files import RED, file_of
from tests.encoders.picture_checks import colour_of, reason_of, smooth_picture


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_strict_jpeg_pixels_are_pillows(mode, progressive, subsampling):
    """The strict decoder's pixels are, bit by bit, those that Pillow and so every reference model sees."""
    options = {"progressive": progressive, "restart_marker_blocks": 5, "quality": 85}
    data = file_of(smooth_picture().convert(mode), "JPEG", subsampling=subsampling, **options)
    np.testing.assert_array_equal(decode_image(data), Image.open(io.BytesIO(data)).convert("RGB"))


def test_inks_of_a_jpeg_are_inverted_as_adobe_writes_them():
    """A CMYK JPEG holds inverted inks, with Adobe's mark or, as Pillow has it, without."""
    data = file_of(Image.new("CMYK", (32, 32), (0, 255, 255, 0)), "JPEG", quality=95)
    mark = data.index(b"\xff\xee")
    length = 2 + int.from_bytes(data[mark + 2 : mark + 4], "big")
    for file in (data, data[:mark] + data[mark + length :]):
        assert np.abs(np.subtract(colour_of(decode_image(file)), RED)).max() <= 3
    assert "truncated" in reason_of(data[:-40])


def test_jpeg_damage_that_pillow_accepts_is_refused():
    """Random bytes in mid-stream, which decode to a picture without any error, are found nearly always; single bits seldom."""
    random, data = np.random.default_rng(5), file_of(smooth_picture(), "JPEG", quality=85)
    found = accepted = 0
    for position in random.integers(data.index(b"\xff\xda") + 14, len(data) - 300, 60):
        damaged = data[:position] + random.bytes(256) + data[position + 256 :]
        with contextlib.suppress(OSError, SyntaxError):
            Image.open(io.BytesIO(damaged)).load()
            accepted += 1
        with contextlib.suppress(MediaError):
            decode_image(damaged)
            continue
        found += 1
    assert found >= 57
    assert accepted >= 10, "Pillow alone would have let these pass"


def test_restart_markers_out_of_order_are_refused():
    """Two restart intervals that changed places decode to a picture; the markers tell."""
    data = file_of(smooth_picture(), "JPEG", restart_marker_blocks=20)
    first, second, third = (data.index(bytes([0xFF, 0xD0 + n])) for n in range(3))
    swapped = data[:first] + data[second:third] + data[first:second] + data[third:]
    assert "JPEG" in reason_of(swapped)


def test_zeros_before_the_end_of_a_jpeg_are_no_damage():
    """Cameras that fill up their files are forgiven; other bytes left over are not."""
    data = file_of(smooth_picture(), "JPEG")
    padded = data[:-2] + bytes(64) + data[-2:]
    np.testing.assert_array_equal(decode_image(padded), decode_image(data))
    np.testing.assert_array_equal(decode_image(data + b"appended film"), decode_image(data))
    assert "extraneous bytes" in reason_of(data[:-2] + b"left over by something" + data[-2:])
