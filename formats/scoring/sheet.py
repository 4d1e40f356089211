"""Rows of an evaluation on one sheet: the worst, and as many random ones."""
from collections.abc import Callable, Sequence

from PIL import Image, ImageDraw, ImageFont

from formats.boxes import encode_box, parse_boxes
from formats.checking.sheet import sheet
from formats.drawing import Box, draw_boxes
from formats.scoring.picking import worst_and_random

TRUE, SAID = "#34c759", "#ff3b30"
LEGEND = "Boxes: green true, red answered; small ones are drawn larger than they are."
WIDTH, EDGE, COLUMNS = 400, 6, 4            # of a cell, around its picture; cells in a row
LEAST = 14                                  # pixels of the sheet that a box measures at least


def draw_sheet(rows: Sequence[dict], badness: Sequence[float], open_picture: Callable,
               count: int = 12, seed: int = 42) -> Image.Image:
    """rows: as in predictions.jsonl. open_picture(row) -> its first picture, RGB, of any size."""
    legend = LEGEND if any(row["boxes"] for row in rows) else ""
    strips, chosen = [], worst_and_random(rows, badness, count, seed)
    for name, numbers in zip(("worst", "random"), chosen, strict=True):
        cells = [draw_row(rows[i], open_picture(rows[i])) for i in numbers]
        title = f"{len(cells)} of {len(rows):,} rows, {name}. {legend}"
        strips += [heading(title), sheet(cells, WIDTH, COLUMNS)] if cells else []
    page = Image.new("RGB", (WIDTH * COLUMNS, sum(strip.height for strip in strips)), "white")
    for number, strip in enumerate(strips):
        page.paste(strip, (0, sum(above.height for above in strips[:number])))
    return page


def heading(text: str) -> Image.Image:
    image = Image.new("RGB", (WIDTH * COLUMNS, 34), "#dddddd")
    ImageDraw.Draw(image).text((EDGE, 7), text, fill="black", font=ImageFont.load_default(16))
    return image


def draw_row(row: dict, picture: Image.Image) -> tuple[Image.Image, str]:
    """-> the picture in the size it is shown in, with its boxes, and what stands below it."""
    scale = (WIDTH - 2 * EDGE) / max(picture.size)
    picture = picture.resize([max(1, round(side * scale)) for side in picture.size])
    said = parse_boxes(row["answer"], *row["size"], row.get("corner", False), row.get("pad", False))
    scale, true = max(picture.size) / max(row["size"]), ", ".join(row["references"])
    for box in row["boxes"]:
        true = true.replace("<bbox>", encode_box(box, *row["size"], row.get("pad", False)), 1)
    boxes = [*(around(box, scale, 3, picture.size) for box in row["boxes"]),
             *(around(box, scale, 0, picture.size) for _, box in said)]
    colors = [TRUE] * len(row["boxes"]) + [SAID] * len(said)
    drawn = draw_boxes(picture, [("", box) for box in boxes], colors) if boxes else picture
    return drawn, f"row {row['row']}: {row['question']}\n> {row['answer']}\ntrue: {true}"


def around(box: Box, scale: float, margin: float, size: tuple[int, int]) -> Box:
    """In pixels of the sheet, so large that it can be seen; equal boxes lie one in the other."""
    sides = []
    for low, high, side in zip(box[:2], box[2:], size, strict=True):
        middle, half = (low + high) / 2 * scale, max(abs(high - low) * scale, LEAST) / 2 + margin
        sides.append((max(1, middle - half), min(side - 2, middle + half)))
    return sides[0][0], sides[1][0], sides[0][1], sides[1][1]
