"""What tests of pictures share: pictures that compress badly, and how a decoded or refused one is looked at."""

import pytest
from PIL import ImageFilter

from encoders.errors import MediaError
from encoders.media import MediaLimits, decode_image
from tests.encoders.media_files import noise_picture


def colour_of(image):
    """The colour in the middle of an RGB picture."""
    assert image.mode == "RGB"
    return image.getpixel((image.width // 2, image.height // 2))


def smooth_picture(size=(501, 373)):
    """Blurred noise, of which every format keeps something."""
    return noise_picture(size=size).filter(ImageFilter.GaussianBlur(1))


def reason_of(source, **limits):
    """Code and message with which a picture is refused under these limits."""
    with pytest.raises(MediaError) as caught:
        decode_image(source, MediaLimits(**limits))
    return f"{caught.value.code}: {caught.value}"


def code_of(source, **limits):
    """The code alone; there is a message too."""
    with pytest.raises(MediaError) as caught:
        decode_image(source, MediaLimits(**limits))
    assert str(caught.value)
    return caught.value.code
