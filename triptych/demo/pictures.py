"""The postcards' artworks: eight styles that a person, and an image encoder, can tell apart.

Each painter draws one style on a canvas twice the final size; the reduction smooths its edges. Colours and layout vary
freely inside a style, so that a style is a manner and not a single picture.
"""

import math
from collections.abc import Callable
from typing import Final

import numpy as np
from PIL import Image, ImageDraw

PICTURE_PIXELS: Final = 224
_CANVAS: Final = 2 * PICTURE_PIXELS

Rng = np.random.Generator
Palette = tuple[str, ...]
Painter = Callable[[ImageDraw.ImageDraw, Palette, Rng], None]

PALETTES: Final[dict[str, Palette]] = {  # the first colour is the ground
    "sunset": ("#2b1d3a", "#f25f5c", "#ffb347", "#ffe066", "#c84b7a"),
    "meadow": ("#f4f1de", "#3d7a4f", "#81b29a", "#e9c46a", "#e07a5f"),
    "ocean": ("#e0f4f5", "#05668d", "#028090", "#00a896", "#f0b67f"),
    "candy": ("#fff0f5", "#ff5d8f", "#9b5de5", "#00bbf9", "#fee440"),
    "brick": ("#f7ede2", "#9c3d2e", "#d97b4a", "#84a59d", "#3d405b"),
    "night": ("#0b132b", "#5bc0be", "#f8f4e3", "#ffd166", "#7a6ff0"),
    "paper": ("#faf6ee", "#22223b", "#d62828", "#f2b134", "#457b9d"),
    "moss": ("#1f2d1f", "#a3b18a", "#dad7cd", "#588157", "#e9c46a"),
}
STYLE_PALETTES: Final = {  # a lean, not a rule: see `paint`
    "rings": ("sunset", "brick"),
    "stripes": ("candy", "paper"),
    "hills": ("ocean", "meadow"),
    "tiles": ("paper", "brick"),
    "confetti": ("candy", "meadow"),
    "shards": ("moss", "sunset"),
    "blooms": ("meadow", "candy"),
    "stars": ("night", "ocean"),
}
PALETTE_LEAN: Final = 0.7


def _disc(draw: ImageDraw.ImageDraw, x: float, y: float, r: float, fill: str) -> None:
    draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)


def _ink(palette: Palette, rng: Rng) -> str:
    return palette[1 + int(rng.integers(len(palette) - 1))]


def _rings(draw: ImageDraw.ImageDraw, palette: Palette, rng: Rng) -> None:
    x, y = rng.uniform(0.3, 0.7, 2) * _CANVAS
    step = rng.uniform(20, 34)
    for i, r in enumerate(np.arange(1.05 * _CANVAS, 8, -step)):
        _disc(draw, x, y, float(r), palette[1 + i % (len(palette) - 1)] if i % 2 else palette[0])


def _stripes(draw: ImageDraw.ImageDraw, palette: Palette, rng: Rng) -> None:
    lean = rng.choice((-1, 1)) * rng.uniform(0.7, 1.2) * _CANVAS
    x, i = -1.3 * _CANVAS, 0
    while x < 2.3 * _CANVAS:
        width = rng.uniform(16, 40)
        corners = ((x, 0), (x + width, 0), (x + width + lean, _CANVAS), (x + lean, _CANVAS))
        draw.polygon(corners, fill=palette[i % len(palette)])
        x, i = x + width, i + 1


def _hills(draw: ImageDraw.ImageDraw, palette: Palette, rng: Rng) -> None:
    _disc(draw, rng.uniform(0.2, 0.8) * _CANVAS, rng.uniform(0.12, 0.3) * _CANVAS, rng.uniform(28, 52), palette[-1])
    xs = np.arange(0, _CANVAS + 8, 8)
    for i in range(6):
        base = (0.34 + 0.115 * i) * _CANVAS
        waves, phase, height = rng.uniform(1.0, 2.4), rng.uniform(0, 6.3), rng.uniform(16, 36)
        ys = base + height * np.sin(2 * math.pi * waves * xs / _CANVAS + phase)
        outline = [*zip(xs.tolist(), ys.tolist(), strict=True), (_CANVAS, _CANVAS), (0, _CANVAS)]
        draw.polygon(outline, fill=palette[1 + i % (len(palette) - 2)])


def _tiles(draw: ImageDraw.ImageDraw, palette: Palette, rng: Rng) -> None:
    def split(x: float, y: float, w: float, h: float, depth: int) -> None:
        if depth == 0 or min(w, h) < 70:
            fill = _ink(palette, rng) if rng.random() < 0.55 else "#f6f2e7"
            draw.rectangle((x, y, x + w, y + h), fill=fill, outline="#15151f", width=11)
            return
        cut = rng.uniform(0.3, 0.7)
        if w > h:
            split(x, y, w * cut, h, depth - 1)
            split(x + w * cut, y, w * (1 - cut), h, depth - 1)
        else:
            split(x, y, w, h * cut, depth - 1)
            split(x, y + h * cut, w, h * (1 - cut), depth - 1)

    split(0, 0, _CANVAS, _CANVAS, 5)


def _confetti(draw: ImageDraw.ImageDraw, palette: Palette, rng: Rng) -> None:
    step = rng.uniform(34, 46)
    for row, y in enumerate(np.arange(step / 2, _CANVAS + step, step)):
        for x in np.arange((row % 2) * step / 2, _CANVAS + step, step):
            _disc(draw, float(x), float(y), step * rng.uniform(0.18, 0.42), _ink(palette, rng))


def _shards(draw: ImageDraw.ImageDraw, palette: Palette, rng: Rng) -> None:
    cells = int(rng.integers(5, 7))
    grid = np.stack(np.meshgrid(np.arange(cells + 1), np.arange(cells + 1)), -1).astype(float)
    grid[1:-1, 1:-1] += rng.uniform(-0.36, 0.36, (cells - 1, cells - 1, 2))
    points = [[tuple(p) for p in row] for row in (grid * _CANVAS / cells).tolist()]
    for r in range(cells):
        for c in range(cells):
            a, b, d, e = points[r][c], points[r][c + 1], points[r + 1][c], points[r + 1][c + 1]
            for corners in ((a, b, d), (b, d, e)):
                draw.polygon(corners, fill=palette[int(rng.integers(len(palette)))])


def _blooms(draw: ImageDraw.ImageDraw, palette: Palette, rng: Rng) -> None:
    for _ in range(int(rng.integers(7, 11))):
        x, y, size = rng.uniform(0, _CANVAS), rng.uniform(0, _CANVAS), rng.uniform(44, 84)
        petals, turn, ink = int(rng.integers(5, 9)), rng.uniform(0, 6.3), _ink(palette, rng)
        for k in range(petals):
            angle = turn + 2 * math.pi * k / petals
            _disc(draw, x + 0.62 * size * math.cos(angle), y + 0.62 * size * math.sin(angle), 0.4 * size, ink)
        _disc(draw, x, y, 0.34 * size, palette[3])


def _stars(draw: ImageDraw.ImageDraw, palette: Palette, rng: Rng) -> None:
    draw.rectangle((0, 0, _CANVAS, _CANVAS), fill="#0b132b")
    for x, y in rng.uniform(0, _CANVAS, (90, 2)):
        _disc(draw, x, y, rng.uniform(1.2, 3.2), "#cfd8ff")
    corners = [tuple(p) for p in rng.uniform(0.08, 0.92, (int(rng.integers(7, 11)), 2)) * _CANVAS]
    draw.line(corners, fill=_ink(palette, rng), width=4)
    for x, y in corners:
        r, ink = rng.uniform(12, 24), _ink(palette, rng)
        tips = [(r if k % 2 == 0 else r * 0.42, math.pi * k / 5 - math.pi / 2) for k in range(10)]
        draw.polygon([(x + d * math.cos(a), y + d * math.sin(a)) for d, a in tips], fill=ink)


PAINTERS: Final[dict[str, Painter]] = {
    "rings": _rings,
    "stripes": _stripes,
    "hills": _hills,
    "tiles": _tiles,
    "confetti": _confetti,
    "shards": _shards,
    "blooms": _blooms,
    "stars": _stars,
}


def paint(style: str, rng: Rng) -> Image.Image:
    """One artwork in `style`, RGB, `PICTURE_PIXELS` square; another for every state of `rng`."""
    names = STYLE_PALETTES[style] if rng.random() < PALETTE_LEAN else tuple(PALETTES)
    palette = PALETTES[names[int(rng.integers(len(names)))]]
    canvas = Image.new("RGB", (_CANVAS, _CANVAS), palette[0])
    PAINTERS[style](ImageDraw.Draw(canvas), palette, rng)
    return canvas.resize((PICTURE_PIXELS, PICTURE_PIXELS), Image.Resampling.LANCZOS)
