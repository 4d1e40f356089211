"""A picture in the terminal: each character is two pixels, one above the other."""
from collections.abc import Sequence

from PIL import Image, ImageColor, ImageDraw

from formats.drawing import COLORS, Box

RESET = "\x1b[0m"


def color(number: int) -> tuple[int, int, int]:
    """Of the box with this number, as draw_boxes has it."""
    return ImageColor.getrgb(COLORS[number % len(COLORS)])


def swatch(number: int) -> str:
    """A small square in the color of a box."""
    return f"\x1b[38;2;{';'.join(map(str, color(number)))}m■{RESET} "


def half_blocks(image: Image.Image, size: tuple[int, int], boxes: Sequence[Box], columns: int,
                rows: int) -> str:
    """A picture, and its boxes in pixels of one of `size` -> lines of ▀.

    At most `columns` wide and `rows` high, sides in their proportion.
    """
    scale = min(columns / image.width, 2 * rows / image.height)
    width = max(1, int(image.width * scale))
    height = 2 * max(1, round(image.height * scale / 2))
    small = image.convert("RGB").resize((width, height), Image.Resampling.BOX)
    draw = ImageDraw.Draw(small)
    for number, box in enumerate(boxes):
        x1, y1, x2, y2 = (side * to / of for side, to, of in
                          zip(box, (width, height) * 2, size * 2, strict=True))
        draw.rectangle((min(int(x1), width - 1), min(int(y1), height - 1),
                        max(int(x1), min(int(x2), width - 1)),
                        max(int(y1), min(int(y2), height - 1))), outline=color(number))
    pixels = small.load()
    return "\n".join("".join(
        "\x1b[38;2;{};{};{};48;2;{};{};{}m▀".format(*pixels[x, y], *pixels[x, y + 1])
        for x in range(width)) + RESET for y in range(0, height, 2))
