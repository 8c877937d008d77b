"""A bitmap font of this project: 5 × 7 dots and two rows for descenders; enough for labels in an image."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]

# A glyph is its rows from the top, each row a base-32 digit whose five bits are its dots; rows left out are empty.
_ROWS = """
A ehhvhhh  B uhhuhhu  C ehggghe  D uhhhhhu  E vgguggv  F vgguggg  G ehgnhhe  H hhhvhhh  I e44444e  J 72222ic
K hikokih  L ggggggv  M hrllhhh  N hhpljhh  O ehhhhhe  P uhhuggg  Q ehhhlid  R uhhukih  S fgge11u  T v444444
U hhhhhhe  V hhhhha4  W hhhllla  X hha4ahh  Y hha4444  Z v1248gv
a 00e1fhf  b ggmphhu  c 00egghe  d 11djhhf  e 00ehvge  f 698s888  g 00fhhhf1e  h ggmphhh  i 40c444e  j 2062222ic
k ggikoki  l c44444e  m 00qllhh  n 00mphhh  o 00ehhhe  p 00uhhhugg  q 00fhhhf11  r 00mpggg  s 00ege1u  t 88s8896
u 00hhhjd  v 00hhha4  w 00hhlla  x 00ha4ah  y 00hhhhf1e  z 00v248v
0 ehjlphe  1 4c4444e  2 eh1248v  3 v2421he  4 26aiv22  5 vgu11he  6 68guhhe  7 v124888  8 ehhehhe  9 ehhf12c
. 00000cc  , 0000c48  - 000e     / 01248g   % op248j3  : 0cc0cc   ( 2488842  ) 8422248  + 044v44   = 00v0v
_ 000000v  @ eh1dlle  × 0ha4ah   < 248g842  > 8421248  ? eh12404  ' 44       · 0004     λ c44aahh  # aavavaa
"""

ADVANCE, HEIGHT = 6, 9
"""Dots from one character to the next, and from the top of a line to below its descenders."""


def _glyph(rows: str) -> NDArray[np.bool_]:
    dots = np.zeros((HEIGHT, ADVANCE), np.bool_)
    for y, digit in enumerate(rows):
        dots[y, :5] = [int(digit, 32) >> (4 - x) & 1 for x in range(5)]
    return dots


_PARTS = _ROWS.split()
_GLYPHS = {character: _glyph(rows) for character, rows in zip(_PARTS[::2], _PARTS[1::2], strict=True)}
_GLYPHS[" "] = _glyph("")


@functools.lru_cache(maxsize=512)
def _mask(text: str, scale: int) -> NDArray[np.bool_]:
    row = np.concatenate([_GLYPHS.get(c, _GLYPHS["?"]) for c in text or " "], axis=1)
    return row.repeat(scale, 0).repeat(scale, 1)


def width(text: str, scale: int = 2) -> int:
    """Pixels that `text` takes."""
    return len(text) * ADVANCE * scale


def write(image: Image, x: int, y: int, text: str, colour: Image, scale: int = 2, align: str = "left") -> None:
    """Draw `text` into `image` (H, W, 3) with its top at `y`; `x` is its left end, or its right or centre.

    A character without a glyph becomes a question mark; what lies outside the image is cut off.
    """
    mask = _mask(text, scale)
    x -= {"left": 0, "right": mask.shape[1] - scale, "centre": mask.shape[1] // 2}[align]
    mask = mask[max(0, -y) :, max(0, -x) :]
    part = image[max(0, y) :, max(0, x) :][: mask.shape[0], : mask.shape[1]]
    part[mask[: part.shape[0], : part.shape[1]]] = colour
