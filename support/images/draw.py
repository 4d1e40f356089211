"""support/images/draw.py"""
import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from support.common import Box

# ---- drawing -------------------------------------------------------------------------------------
# Boxes drawn on a picture.

COLORS = "#ff3b30 #ffcc00 #34c759 #00c7ff #ff2d92 #ff9500 #af52de #ffffff".split()


def draw_boxes(image: Image.Image, boxes: Sequence[tuple[str, Box]],
               colors: Sequence[str] = COLORS) -> Image.Image:
    """A copy of the picture with each box and its phrase, in the colors in turn."""
    image = image.copy()
    draw, stroke = ImageDraw.Draw(image), max(2, max(image.size) // 200)
    font = ImageFont.load_default(max(11, max(image.size) // 32))
    for i, (phrase, box) in enumerate(boxes):
        rim = (box[0] - 1, box[1] - 1, box[2] + 1, box[3] + 1)
        draw.rectangle(rim, outline="black", width=stroke + 2)
        draw.rectangle(box, outline=colors[i % len(colors)], width=stroke)
        if phrase:
            _, _, width, height = draw.textbbox((4, 2), phrase, font=font)
            width, height = width + 4, height + 4
            x = max(0, min(box[0], image.width - width))
            y = box[1] - height if box[1] > height else min(box[3], image.height - height)
            draw.rectangle((x, y, x + width, y + height), fill=colors[i % len(colors)])
            draw.text((x + 4, y + 2), phrase, fill="black", font=font)
    return image


def draw_on_picture(picture, boxes: Sequence[tuple[str, Box]]) -> Image.Image:
    """Boxes in pixels of the whole picture, also where it was reduced as it was read."""
    across, down = (a / b for a, b in zip(picture.image.size, picture.size, strict=True))
    return draw_boxes(picture.image, [(phrase, (box[0] * across, box[1] * down, box[2] * across,
                                                box[3] * down)) for phrase, box in boxes])


def unused_name(picture: str) -> Path:
    """NAME_boxes.png beside the picture, or NAME_boxes_2.png, ..: never a file that exists."""
    stem, number = Path(picture).with_suffix(""), 1
    file = Path(f"{stem}_boxes.png")
    while file.exists():
        number += 1
        file = Path(f"{stem}_boxes_{number}.png")
    return file


# ---- sheet ---------------------------------------------------------------------------------------
# Pictures with their texts on one sheet.

def contact_sheet(cells: Sequence[tuple[Image.Image, str]], width: int = 320, columns: int = 4
          ) -> Image.Image:
    """Pictures with their texts below, in rows."""
    cells = [sheet_cell(picture, text, width) for picture, text in cells]
    rows = [cells[i:i + columns] for i in range(0, len(cells), columns)]
    heights = [max(tile.height for tile in row) for row in rows]
    page = Image.new("RGB", (columns * width, sum(heights)), "white")
    for number, row in enumerate(rows):
        for column, tile in enumerate(row):
            page.paste(tile, (column * width, sum(heights[:number])))
    return page


def sheet_cell(picture: Image.Image, text: str, width: int, edge: int = 6) -> Image.Image:
    font, inside = ImageFont.load_default(12), width - 2 * edge
    lines = [line for part in text.splitlines()
             for line in textwrap.wrap(part, inside // 7) or [""]][:24]
    scale = inside / max(picture.size)
    small = picture.resize([max(1, round(side * scale)) for side in picture.size])
    tile = Image.new("RGB", (width, small.height + 16 * len(lines) + 3 * edge), "white")
    tile.paste(small, (edge, edge))
    draw = ImageDraw.Draw(tile)
    for number, line in enumerate(lines):
        draw.text((edge, small.height + 2 * edge + 16 * number), line, fill="black", font=font)
    return tile
