"""JPEG, decoded strictly: what libjpeg only warns of, such as bytes left over or data that ends early, refuses the file.

Pillow decodes with the same library, but its warnings cannot be reached: half a picture comes out grey without a word. The pixels
are equal to Pillow's, bit by bit (a test holds that).
"""

import re
from typing import Final

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from encoders.errors import MediaError

Pixels = NDArray[np.uint8]  # [height, width, 3]
_LEFT_OVER: Final = re.compile(r"(\d+) extraneous bytes before marker 0xd9")
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, b"\xff\xd9"


def decode_jpeg(data: bytes, header: Image.Image) -> Pixels | None:
    """RGB of `data`, whose `header` Pillow has read, as stored (not turned). None: correct, and Pillow has to decode it.

    Raises:
        MediaError: `truncated` or `undecodable`, with libjpeg's reason.
    """
    inks = header.mode == "CMYK"  # Adobe's inverted inks are Pillow's business
    try:
        height, width = simplejpeg.decode_jpeg_header(data)[:2]
        if (width, height) != header.size:
            raise MediaError("undecodable", "the JPEG picture is damaged: its size is given twice")
        pixels = _strictly(data, "CMYK" if inks else "RGB")
    except ValueError as error:
        if "subsampling" in str(error).lower():  # lawful, but unknown to this decoder
            return None
        raise _refusal(str(error)) from error
    return None if inks else pixels


def _strictly(data: bytes, colours: str) -> Pixels:
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(data, colours, strict=True)
    except ValueError as error:
        padded = _LEFT_OVER.search(str(error))
        if padded is None:
            raise
        pixels = simplejpeg.decode_jpeg(_without_padding(data, int(padded[1]), error), colours, strict=True)
    return pixels


def _without_padding(data: bytes, length: int, error: ValueError) -> bytes:
    """Some cameras fill up with zeros before the end: no damage. Raises `error` if it is anything else that is left over."""
    end = data.find(_END_OF_IMAGE, _first_scan(data))
    if end < 0 or data[end - length : end].strip(b"\0"):
        raise error
    return data[: end - length] + data[end:]


def _first_scan(data: bytes) -> int:
    """Where the first scan begins: segments before it give their length (ITU-T T.81, B.1.1.4)."""
    position = 2
    while position + 4 <= len(data) and data[position + 1] != _START_OF_SCAN:
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return position


def _refusal(reason: str) -> MediaError:
    if "premature end" in reason.lower():
        return MediaError("truncated", f"the JPEG picture breaks off before its end ({reason})")
    return MediaError("undecodable", f"the JPEG picture is damaged: {reason}")
