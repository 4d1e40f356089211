"""What can be wrong with a sample, told as (kind, what): faults stop a training, notes do not."""
import math
import re
from collections.abc import Iterator

FAULTS = ("row", "picture", "empty question", "box", "class", "too long")
NOTES = ("box put right", "long strip", "said twice", "picture in two splits")
CLASSES = re.compile(r"given classes: (.+?)\. ")


def check_sample(sample, sizes: list[tuple[int, int]]) -> Iterator[tuple[str, str]]:
    """sizes: of the sample's pictures, (0, 0) where one cannot be read."""
    for question, answer in sample.turns:
        if not question.strip() and sample.task not in ("caption", "video"):
            yield "empty question", f"before {answer[:40]!r}"
    if sample.task == "scene":
        yield from check_class(*sample.turns[0])
    if sizes and min(sizes[0]):
        for box in sample.boxes:
            yield from check_box(box, *sizes[0])


def check_class(question: str, answer: str) -> Iterator[tuple[str, str]]:
    listed = CLASSES.search(question)
    if listed and answer not in listed[1].split(", "):
        yield "class", f"{answer!r} is none of the classes in its question"


def check_box(box: tuple[float, ...], width: int, height: int) -> Iterator[tuple[str, str]]:
    x1, x2, y1, y2 = *sorted(box[::2]), *sorted(box[1::2])
    told = f"{tuple(round(side, 1) for side in box)} in {width} x {height}"
    if not all(map(math.isfinite, box)):
        yield "box", f"{told}: not a number"
    elif x1 == x2 or y1 == y2:
        yield "box", f"{told}: no area"
    elif x2 <= 0 or y2 <= 0 or x1 >= width or y1 >= height:
        yield "box", f"{told}: outside the picture"
    elif (x1, y1, x2, y2) != tuple(box):
        yield "box put right", f"{told}: corners in the wrong order"
    elif x1 < 0 or y1 < 0 or x2 > width or y2 > height:
        yield "box put right", f"{told}: reaches over the edge"
