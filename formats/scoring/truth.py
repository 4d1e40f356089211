"""The boxes of a row: those that its answer names, and the true ones."""
from collections.abc import Sequence

from formats.boxes import PHRASE, Box, encode_box, parse_boxes
from formats.scoring.overlap import iou
from formats.scoring.score import Score, ratio


def boxes_in(text: str, row: dict) -> list[tuple[str, Box]]:
    """-> (phrase, box in pixels) each, "" where there is no phrase."""
    return parse_boxes(text, *row["size"], row.get("corner", False), row.get("pad", False))


def true_boxes(row: dict) -> list[tuple[str, Box]]:
    """The same of the truth; read from the reference where the data have boxes as text."""
    text = row["references"][0] if row["references"] else ""
    if not row["boxes"]:
        return boxes_in(text, row)
    texts = text.split("<bbox>")
    phrases = [PHRASE.findall("".join(texts[:i + 1])) or [""] for i in range(len(texts) - 1)]
    names = [found[-1].strip() for found in phrases] + [""] * len(row["boxes"])
    return list(zip(names, row["boxes"], strict=False))


def unparseable(row: dict) -> bool:
    return not boxes_in(row["answer"], row)


def grid_ceiling(rows: Sequence[dict]) -> Score:
    """The part of the true boxes that a perfect model can hit: hundredths are coarse for small
    things, so a box written as text and read again may miss itself."""
    hits = [[again(box, row) for _, box in true_boxes(row)] for row in rows]
    return ratio("grid ceiling", [sum(marks) for marks in hits], [len(marks) for marks in hits])


def again(box: Box, row: dict) -> bool:
    """Whether a true box, written and read, is still itself."""
    text = encode_box(box, *row["size"], row.get("pad", False))
    return bool(iou(boxes_in(text, row)[0][1], box) >= 0.5)
