"""Pictures with their texts on one sheet."""
import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont


def sheet(cells: Sequence[tuple[Image.Image, str]], width: int = 320, columns: int = 4
          ) -> Image.Image:
    """Pictures with their texts below, in rows."""
    cells = [cell(picture, text, width) for picture, text in cells]
    rows = [cells[i:i + columns] for i in range(0, len(cells), columns)]
    heights = [max(tile.height for tile in row) for row in rows]
    page = Image.new("RGB", (columns * width, sum(heights)), "white")
    for number, row in enumerate(rows):
        for column, tile in enumerate(row):
            page.paste(tile, (column * width, sum(heights[:number])))
    return page


def cell(picture: Image.Image, text: str, width: int, edge: int = 6) -> Image.Image:
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
