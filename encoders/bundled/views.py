"""A picture as training sees it: as it is, then mirrored, framed, tinted and laid on other papers.

The first view is exactly what the encoder makes of the file. Drawings (SVG) are rendered by resvg, which only training needs.
"""

import io
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, ImageEnhance

from encoders._pictures import decode_image
from encoders.errors import MediaError, WeightsError

SIDE_PIXELS: Final = 256  # of a rendered drawing, and of the canvas of a view
_ENHANCEMENTS: Final = (ImageEnhance.Color, ImageEnhance.Brightness, ImageEnhance.Contrast)
# A view keeps between this share of the canvas and all of it: objects come near and far.
_SMALLEST_SHARE: Final = 0.5
_LARGEST_SHARE: Final = 1.25
_PLAIN_PAPER: Final = 0.4  # of the views; the others get a random colour


def read_picture(path: Path) -> Image.Image:
    """The picture as RGBA, so that views can lay it on other papers.

    Raises:
        MediaError: the file cannot be decoded.
        WeightsError: it is a drawing, and resvg is not installed.
    """
    if path.suffix == ".svg":
        return render(path)
    with Image.open(path) as picture:
        if picture.has_transparency_data:
            return picture.convert("RGBA")
    return decode_image(path).convert("RGBA")


def render(path: Path) -> Image.Image:
    """An SVG drawing as RGBA, `SIDE_PIXELS` wide.

    Raises:
        MediaError: it is damaged, or says nothing of its size.
        WeightsError: resvg is not installed.
    """
    try:
        from resvg_py import svg_to_bytes
    except ImportError as error:
        raise WeightsError(
            f"{path.name} is an SVG drawing; training renders those with: pip install resvg-py"
        ) from error
    try:
        drawn = bytes(svg_to_bytes(svg_path=str(path), width=SIDE_PIXELS))
    except ValueError as error:
        raise MediaError("undecodable", f"the drawing {path.name} cannot be rendered: {error}") from error
    return Image.open(io.BytesIO(drawn)).convert("RGBA")


def on_paper(picture: Image.Image, colour: tuple[int, int, int] = (255, 255, 255)) -> Image.Image:
    """An RGBA picture laid on a paper of one colour, as RGB; white is what the encoder does."""
    paper = Image.new("RGBA", picture.size, (*colour, 255))
    paper.alpha_composite(picture)
    return paper.convert("RGB")


def make_views(picture: Image.Image, count: int, random: np.random.Generator) -> list[Image.Image]:
    """`count` RGB views of an RGBA picture; the first is the picture as it is."""
    return [on_paper(picture), *(_random_view(picture, random) for _ in range(count - 1))]


def _random_view(picture: Image.Image, random: np.random.Generator) -> Image.Image:
    share = random.uniform(_SMALLEST_SHARE, _LARGEST_SHARE)
    scale = share * SIDE_PIXELS / max(picture.size)
    width, height = (max(1, round(side * scale * random.uniform(0.9, 1.1))) for side in picture.size)
    scaled = picture.resize((width, height), Image.Resampling.BICUBIC)
    if random.random() < 0.5:
        scaled = scaled.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    scaled = scaled.rotate(random.uniform(-12, 12), Image.Resampling.BICUBIC, expand=True)
    canvas = Image.new("RGBA", (SIDE_PIXELS, SIDE_PIXELS))
    canvas.paste(scaled, (_offset(scaled.width, random), _offset(scaled.height, random)))
    plain = random.random() < _PLAIN_PAPER
    red, green, blue = (255, 255, 255) if plain else (int(level) for level in random.integers(0, 256, 3))
    view = on_paper(canvas, (red, green, blue))
    for enhance in _ENHANCEMENTS:
        view = enhance(view).enhance(random.uniform(0.7, 1.3))
    return view


def _offset(side: int, random: np.random.Generator) -> int:
    free = SIDE_PIXELS - side
    return round(free * random.uniform(0.2, 0.8))
