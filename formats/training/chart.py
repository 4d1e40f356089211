"""Axes, curves and a legend, drawn with Pillow at twice the size and then reduced: smooth."""
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from formats.training.axis import Axis

SIZE, BOX, FINE = (1000, 500), (80, 50, 905, 435), 2    # box: left, top, right, bottom in pixels
INK, GRID = "#333333", "#e4e4e4"


class Chart:
    def __init__(self) -> None:
        self.image = Image.new("RGB", [side * FINE for side in SIZE], "white")
        self.draw, self.font = ImageDraw.Draw(self.image), ImageFont.load_default(14 * FINE)

    def text(self, x: float, y: float, text: str, anchor: str) -> None:
        self.draw.text((x * FINE, y * FINE), text, INK, self.font, anchor)

    def curve(self, x: np.ndarray, y: np.ndarray, color: str, width: float) -> None:
        """Through points in pixels; a point alone is a dot."""
        points = [(float(a) * FINE, float(b) * FINE) for a, b in zip(x, y, strict=True)]
        self.draw.line(points, color, round(width * FINE), joint="curve")
        if len(points) == 1:
            self.draw.circle(points[0], 3 * FINE, color)

    def line(self, x1: float, y1: float, x2: float, y2: float, color: str = INK) -> None:
        self.curve(np.array([x1, x2]), np.array([y1, y2]), color, 1)

    def frame(self, across: Axis, left: Axis, right: Axis, names: tuple[str, str, str]) -> None:
        """Axes with their numbers, and names: of the left, the lower and the right one."""
        x1, y1, x2, y2 = BOX
        for axis, x, anchor, side in (left, x1, "rm", -1), (right, x2, "lm", 1):
            for tick in axis.ticks():
                y = axis.at(tick)
                if side < 0:
                    self.line(x1, y, x2, y, GRID)
                self.line(x, y, x + 5 * side, y)
                self.text(x + 9 * side, y, f"{tick:g}", anchor)
        for tick in across.ticks():
            self.line(across.at(tick), y2, across.at(tick), y2 + 5)
            self.text(across.at(tick), y2 + 9, f"{tick:,.10g}", "mt")
        self.line(x1, y2, x2, y2)
        for x, y, name, anchor in zip((x1, (x1 + x2) / 2, x2), (y1 - 14, y2 + 34, y1 - 14), names,
                                      ("ms", "mt", "ms"), strict=True):
            self.text(x, y, name, anchor)
        self.line(x1, y1, x1, y2)
        self.line(x2, y1, x2, y2)

    def legend(self, entries: Sequence[tuple[str, str]]) -> None:
        """A stroke and a name each, above the box."""
        x, y = 250.0, BOX[1] - 19
        for name, color in entries:
            self.curve(np.array([x, x + 28]), np.array([y, y]), color, 3)
            self.text(x + 36, y, name, "lm")
            x += 70 + self.font.getlength(name) / FINE

    def picture(self) -> Image.Image:
        return self.image.resize(SIZE, Image.Resampling.LANCZOS)
