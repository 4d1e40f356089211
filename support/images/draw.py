"""Boxes drawn on a picture, and sheets of pictures with their texts."""
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from support.common import Box, UserError, write_atomic
from support.images.read import Picture

# ---- boxes ---------------------------------------------------------------------------------------

COLORS = "#ff3b30 #ffcc00 #34c759 #00c7ff #ff2d92 #ff9500 #af52de #ffffff".split()
MOST_HIDDEN = 0.2       # of a box's area, the part that a label may cover

Rectangle = tuple[int, int, int, int]           # left, top, right, bottom, the last two included


def draw_boxes(image: Image.Image, boxes: Sequence[tuple[str, Box]],
               colors: Sequence[str] = COLORS) -> Image.Image:
    """A copy of the picture with (phrase, box in its pixels) drawn, the colors in turn.

    Lines run around a box, not over what is in it. Boxes of the same pixels are drawn once, with
    their phrases joined. A label lies in the picture, over no other label, and where it hides least
    of the boxes; where it would hide more than MOST_HIDDEN of one, it is left out.
    """
    image = image.copy()
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(max(9, max(image.size) // 40))
    merged = merge_boxes(boxes, image.size)
    for rectangle, (number, _) in merged.items():
        draw_outline(draw, rectangle, colors[number % len(colors)], image.size)
    placed: list[Rectangle] = []
    for rectangle, (number, phrases) in merged.items():
        label = ", ".join(phrases)
        size = label_size(draw, label, font)
        place = place_label(size, rectangle, list(merged), placed, image.size) if label else None
        if place:
            draw.rectangle(place, fill=colors[number % len(colors)])
            draw.text((place[0] + size[1] // 6, place[1]), label, fill="black", font=font)
            placed.append(place)
    return image


def merge_boxes(boxes: Sequence[tuple[str, Box]], size: tuple[int, int]
                ) -> dict[Rectangle, tuple[int, list[str]]]:
    """-> of each place in whole pixels, inside a picture of this width and height, the number of
    the first box there and the different phrases of all."""
    merged: dict[Rectangle, tuple[int, list[str]]] = {}
    for number, (phrase, box) in enumerate(boxes):
        left, right = sorted(min(max(round(x), 0), size[0] - 1) for x in box[::2])
        top, bottom = sorted(min(max(round(y), 0), size[1] - 1) for y in box[1::2])
        _, phrases = merged.setdefault((left, top, right, bottom), (number, []))
        if phrase and phrase not in phrases:
            phrases.append(phrase)
    return merged


def draw_outline(draw: ImageDraw.ImageDraw, rectangle: Rectangle, color: str,
                 size: tuple[int, int]) -> None:
    """A line that grows outwards from the box, with a thin black edge; on a side where the picture,
    of this width and height, ends it grows inwards. It is thinner around a small box."""
    left, top, right, bottom = rectangle
    line = max(1, min(round(max(size) / 300), min(right - left, bottom - top) // 8))
    edge = max(1, line // 4)
    for grown, fill, width in ((line - 1 + edge, "black", edge), (line - 1, color, line)):
        draw.rectangle((max(left - grown, 0), max(top - grown, 0), min(right + grown, size[0] - 1),
                        min(bottom + grown, size[1] - 1)), outline=fill, width=width)


def label_size(draw: ImageDraw.ImageDraw, label: str, font: ImageFont.FreeTypeFont
               ) -> tuple[int, int]:
    """Width and height of a label with its margins."""
    ascent, descent = font.getmetrics()
    height = ascent + descent
    return round(draw.textlength(label, font=font)) + 2 * (height // 6), height


def place_label(size: tuple[int, int], box: Rectangle, boxes: Sequence[Rectangle],
                placed: Sequence[Rectangle], picture: tuple[int, int]) -> Rectangle | None:
    """Where a label of this width and height goes, or None: nowhere.

    Tried are the sides of its box, outside first, each from one corner to the other; of the places
    that lie in the picture and over no label, the first with the least of the boxes below it.
    """
    best, least = None, MOST_HIDDEN
    for x, y in label_corners(size, box):
        place = (x, y, x + size[0] - 1, y + size[1] - 1)
        if x < 0 or y < 0 or place[2] >= picture[0] or place[3] >= picture[1]:
            continue
        if any(overlap(place, other) for other in placed):
            continue
        hidden = max(overlap(place, other) / area(other) for other in boxes)
        if best is None and hidden <= least or hidden < least:
            best, least = place, hidden
    return best


def label_corners(size: tuple[int, int], box: Rectangle) -> Iterator[tuple[int, int]]:
    """The upper left corners of the places that place_label tries."""
    (width, height), (left, top, right, bottom) = size, box
    gap = max(2, height // 8)                                   # over the outline
    columns = (left, right - width + 1, (left + right - width) // 2)
    rows = (top, bottom - height + 1, (top + bottom - height) // 2)
    yield from ((x, y) for y in (top - height - gap, bottom + 1 + gap) for x in columns)
    yield from ((x, y) for x in (right + 1 + gap, left - width - gap) for y in rows)
    yield from ((x, y) for y in (top + gap, bottom - height - gap) for x in columns)


def overlap(a: Rectangle, b: Rectangle) -> int:
    """Pixels that two rectangles share."""
    width = min(a[2], b[2]) - max(a[0], b[0]) + 1
    height = min(a[3], b[3]) - max(a[1], b[1]) + 1
    return max(width, 0) * max(height, 0)


def area(rectangle: Rectangle) -> int:
    return overlap(rectangle, rectangle)


def draw_on_picture(picture: Picture, boxes: Sequence[tuple[str, Box]],
                    colors: Sequence[str] = COLORS) -> Image.Image:
    """draw_boxes with boxes in pixels of the whole picture, which may have been reduced."""
    across = picture.image.width / picture.size[0]
    down = picture.image.height / picture.size[1]
    return draw_boxes(picture.image, [
        (phrase, (x1 * across, y1 * down, x2 * across, y2 * down))
        for phrase, (x1, y1, x2, y2) in boxes], colors)


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


# ---- writing -------------------------------------------------------------------------------------

def picture_format(file: Path, more: str = "") -> str:
    """"PNG". UserError: the suffix of `file` is not that of a picture format; more: to say then.
    """
    file_format = Image.registered_extensions().get(file.suffix.lower())
    if file_format not in Image.SAVE:
        raise UserError(f"{file}: a picture is written as .png, .jpg, .tif, ..{more}")
    return file_format


def check_sheet(flag: str, file: Path, overwrite: bool) -> None:
    """Before a sheet is drawn: UserError where it could not be written, or --overwrite is needed.
    """
    picture_format(file)
    if not file.parent.is_dir():
        raise UserError(f"{flag} {file}: no such folder")
    if file.exists() and not overwrite:
        raise UserError(f"{flag} {file}: exists; --overwrite writes over it")


def save_picture(image: Image.Image, file: Path) -> None:
    """UserError: as picture_format."""
    file_format = picture_format(file)
    write_atomic(file, lambda temporary: image.save(temporary, file_format))
