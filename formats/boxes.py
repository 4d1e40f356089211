"""Boxes as text: `{<x1><y1><x2><y2>}` in hundredths of the picture's sides, and back to pixels."""
import math
import re

Box = tuple[float, float, float, float]         # x1, y1, x2, y2 in pixels, y downwards
BOX = re.compile(r"\{\s*" + r"\s*".join([r"<\s*(\d{1,3})\s*>"] * 4)
                 + r"\s*(?:\|\s*<\s*(-?\d{1,3})\s*>\s*)?\}", re.ASCII)
PHRASE = re.compile(r"<p>(.*?)</p>")


def frame(width: int, height: int, pad: bool) -> tuple[float, float, float, float]:
    """Left, top, width, height of what 0 to 100 spans: the picture, or the square it lies in."""
    side = max(width, height)
    return ((width - side) // 2, (height - side) // 2, side, side) if pad else (0, 0, width, height)


def encode_box(box: Box, width: int, height: int, pad: bool = False) -> str:
    """Pixels -> `{<x1><y1><x2><y2>}`, 0 to 100, cut off and not rounded, as upstream writes.

    Corners are sorted and brought into the picture. ValueError: nothing of the box is in it.
    """
    x1, y1, x2, y2 = box
    if not (min(x1, x2) <= width and min(y1, y2) <= height and max(x1, x2) >= 0
            and max(y1, y2) >= 0):                                  # also where one is not a number
        raise ValueError(f"the box {box} is not in a picture of {width} x {height}")
    left, top, w, h = frame(width, height, pad)
    x1, x2 = sorted((min(max(x, 0), width) - left) / w for x in box[::2])
    y1, y2 = sorted((min(max(y, 0), height) - top) / h for y in box[1::2])
    return "{" + "".join(f"<{int(100 * v)}>" for v in (x1, y1, x2, y2)) + "}"


def parse_boxes(text: str, width: int, height: int, corner: bool = False, pad: bool = False
                ) -> list[tuple[str, Box]]:
    """Every box in a text -> [(phrase, box in pixels)]; the phrase is the last <p>..</p> before.

    A number q stands for the bin q .. q + 1 it was cut off to, so the middle of the bin is read;
    upstream reads its corner (corner=True). Numbers over 100 are no box, corners are sorted. A box
    turned by |<degrees> (GeoChat) gives the upright box around it.
    """
    found, (left, top, w, h) = [], frame(width, height, pad)
    for match in BOX.finditer(text):
        numbers = [int(n) for n in match.groups()[:4]]
        if max(numbers) > 100:
            continue
        x1, y1, x2, y2 = (n / 100 if corner else min(n + 0.5, 100) / 100 for n in numbers)
        box = turned((min(x1, x2) * w, min(y1, y2) * h, max(x1, x2) * w, max(y1, y2) * h),
                     int(match[5] or 0))
        phrases = PHRASE.findall(text[:match.start()])
        box = tuple(min(max(v + shift, 0), side) for v, shift, side in zip(
            box, (left, top) * 2, (width, height) * 2, strict=True))
        found.append((phrases[-1].strip() if phrases else "", box))
    return found


def turned(box: Box, degrees: int) -> Box:
    """The upright box around a box turned about its middle."""
    x, y, w, h = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2, box[2] - box[0], box[3] - box[1]
    cos, sin = abs(math.cos(math.radians(degrees))), abs(math.sin(math.radians(degrees)))
    w, h = (w * cos + h * sin, w * sin + h * cos) if degrees else (w, h)
    return x - w / 2, y - h / 2, x + w / 2, y + h / 2
