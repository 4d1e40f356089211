"""Predictions to be scored: ours again, or another system's, which need a JSON object a line,

    {"task": "vqa", "answer": "yes", "references": ["yes"], "type": "presence"}
    {"task": "refer", "answer": "{<1><2><30><40>}", "boxes": [[9, 9, 80, 90]], "size": [256, 256]}

Boxes are x1, y1, x2, y2 in pixels of a picture of `size`, width and height. A caption has a list of
references. Without "type" a question has none; without "image" (names) a row is a picture of its
own; without "task" it is that of --benchmark.
"""
from collections.abc import Collection, Sequence
from pathlib import Path

from formats.boxes import encode_box
from formats.scoring.predictions import RunError, read
from formats.wrong import WRONG, named

PLACED = ("refer", "detection", "grounding")            # tasks that are scored by boxes


def load(file: Path, tasks: Collection[str], task: str = "") -> list[dict]:
    """Rows with all that a score needs; task: of rows that do not tell. RunError names the row."""
    if not file.is_file():
        raise RunError(f"{file}: no such file; --score takes a predictions.jsonl")
    rows = []
    for number, row in enumerate(read(file)):
        try:
            rows.append(filled(row, number, tasks, task))
        except WRONG as error:
            raise RunError(str(named(f"{file}:{number + 1}", error))) from None
    if not rows:
        raise RunError(f"{file}: no rows")
    return rows


def filled(row: dict, number: int, tasks: Collection[str], task: str) -> dict:
    """The row, what it may lack added."""
    row = {"row": number, "task": task, "image": [f"row {number}"], "type": "", "question": "",
           "references": [], "boxes": [], "pad": False, "size": [0, 0]} | row
    if row["task"] not in tasks:
        raise ValueError(f"task {row['task']!r} is none of {', '.join(tasks)}")
    row["image"], row["references"] = texts(row["image"]), texts(row["references"])
    texts([row["answer"]])
    row["boxes"] = [tuple(map(float, box)) for box in row["boxes"]]
    if any(len(box) != 4 for box in row["boxes"]):
        raise ValueError("a box is four numbers: x1, y1, x2, y2")
    if row["task"] in PLACED:
        if len(row["size"]) != 2 or not min(row["size"]) > 0:
            raise ValueError("size is the width and height of the picture, in pixels")
        for box in row["boxes"]:
            encode_box(box, *row["size"])       # ValueError: it is not in the picture
    if not row["references"] and not (row["task"] in PLACED and row["boxes"]):
        raise ValueError("no references (or boxes and size) to score it against")
    return row


def texts(values: str | Sequence) -> list[str]:
    values = [values] if isinstance(values, str) else list(values)
    if not all(type(value) is str for value in values):
        raise ValueError(f"a text is expected, not {repr(values)[:60]}")
    return values
