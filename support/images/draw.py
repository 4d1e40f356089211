"""Boxes drawn on a picture, and sheets of pictures with their texts."""
import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from support.common import Box
from support.images.read import Picture

# ---- boxes ---------------------------------------------------------------------------------------

COLORS = "#ff3b30 #ffcc00 #34c759 #00c7ff #ff2d92 #ff9500 #af52de #ffffff".split()


def draw_boxes(image: Image.Image, boxes: Sequence[tuple[str, Box]],
               colors: Sequence[str] = COLORS) -> Image.Image:
    """A copy of the picture with (phrase, box in its pixels) drawn, the colors in turn."""
    image = image.copy()
    draw, stroke = ImageDraw.Draw(image), max(2, max(image.size) // 200)
    font = ImageFont.load_default(max(11, max(image.size) // 32))
    for i, (phrase, box) in enumerate(boxes):
        color = colors[i % len(colors)]
        outside = (box[0] - 1, box[1] - 1, box[2] + 1, box[3] + 1)
        draw.rectangle(outside, outline="black", width=stroke + 2)
        draw.rectangle(box, outline=color, width=stroke)
        if phrase:
            draw_label(draw, phrase, box, color, font, image.size)
    return image


def draw_label(draw: ImageDraw.ImageDraw, phrase: str, box: Box, color: str,
               font: ImageFont.FreeTypeFont, size: tuple[int, int]) -> None:
    """The phrase above the box, or below where there is no room; always inside the picture."""
    _, _, width, height = draw.textbbox((4, 2), phrase, font=font)
    width, height = width + 4, height + 4
    x = max(0, min(box[0], size[0] - width))
    y = box[1] - height if box[1] > height else min(box[3], size[1] - height)
    draw.rectangle((x, y, x + width, y + height), fill=color)
    draw.text((x + 4, y + 2), phrase, fill="black", font=font)


def draw_on_picture(picture: Picture, boxes: Sequence[tuple[str, Box]]) -> Image.Image:
    """draw_boxes with boxes in pixels of the whole picture, which may have been reduced."""
    across = picture.image.width / picture.size[0]
    down = picture.image.height / picture.size[1]
    return draw_boxes(picture.image, [
        (phrase, (x1 * across, y1 * down, x2 * across, y2 * down))
        for phrase, (x1, y1, x2, y2) in boxes])


def unused_name(picture: str) -> Path:
    """NAME_boxes.png beside the picture, or NAME_boxes_2.png, ..: never a file that exists."""
    stem, number = Path(picture).with_suffix(""), 1
    file = Path(f"{stem}_boxes.png")
    while file.exists():
        number += 1
        file = Path(f"{stem}_boxes_{number}.png")
    return file


# ---- contact sheets ------------------------------------------------------------------------------

MARGIN, LINE_HEIGHT, CHARACTER_WIDTH, MAX_LINES = 6, 16, 7, 24      # of a cell; pixels, lines


def contact_sheet(cells: Sequence[tuple[Image.Image, str]], width: int = 320, columns: int = 4
                  ) -> Image.Image:
    """Pictures with their texts below, in rows of `columns` cells, each `width` pixels wide."""
    drawn = [draw_cell(picture, text, width) for picture, text in cells]
    rows = [drawn[i:i + columns] for i in range(0, len(drawn), columns)]
    heights = [max(cell.height for cell in row) for row in rows]
    sheet, y = Image.new("RGB", (columns * width, sum(heights)), "white"), 0
    for row, height in zip(rows, heights, strict=True):
        for column, cell in enumerate(row):
            sheet.paste(cell, (column * width, y))
        y += height
    return sheet


def draw_cell(picture: Image.Image, text: str, width: int) -> Image.Image:
    inside = width - 2 * MARGIN
    lines = []
    for paragraph in text.splitlines():
        lines += textwrap.wrap(paragraph, inside // CHARACTER_WIDTH) or [""]
    lines = lines[:MAX_LINES]
    scale = inside / max(picture.size)
    small = picture.resize([max(1, round(side * scale)) for side in picture.size])
    height = small.height + LINE_HEIGHT * len(lines) + 3 * MARGIN
    cell = Image.new("RGB", (width, height), "white")
    cell.paste(small, (MARGIN, MARGIN))
    draw, font = ImageDraw.Draw(cell), ImageFont.load_default(12)
    for number, line in enumerate(lines):
        y = small.height + 2 * MARGIN + LINE_HEIGHT * number
        draw.text((MARGIN, y), line, fill="black", font=font)
    return cell
