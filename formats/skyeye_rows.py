"""The rows of SkyEye-968k's files, whose fields were published without a description."""
import functools

from formats.common import text
from formats.llava import conversation, pictures
from formats.skyeye_names import alias, fields
from formats.swift import numbers


def sample(row: dict, task: str) -> dict:
    """Its pictures are named as the row has them, and it has no source yet."""
    task = row.get("task", task)
    if "conversations" in row:
        return conversation(row, "")
    first, *values = [row[name] for name in aliases(tuple(row), task)]
    images, kind, boxes = [first], "", ()
    if not first or type(first) is not str:
        images = pictures({"image": told(first) if type(first) is int else first})
        if not images:
            raise ValueError("no picture")
    if task == "vqa":
        turn, kind = (told(values[0]), told(values[1])), row.get("type", "")
        task = "scene" if kind == "scene" else task
    elif len(values) == 1:
        turn, task = ("", told(values[0])), "video" if len(images) > 1 else task
    else:
        phrase, (marks, boxes) = told(values[0]), boxes_of(values[1], task == "detection")
        turn = {"refer": (phrase, marks), "identify": (marks, phrase), "detection": (
            phrase, marks if "<p>" in marks else f"<p>{phrase}</p> {marks}")}[task]
    return {"images": images, "turns": (turn,), "task": task, "kind": kind, "boxes": boxes}


@functools.cache                        # a million rows have the same keys
def aliases(keys: tuple[str, ...], task: str) -> list[str]:
    return [alias(keys, name) for name in fields(keys, task)]


def told(value) -> str:
    if type(value) is str and value.strip():
        return value
    value = str(value) if type(value) in (int, float) else value
    return text({"text": value}, "text")


def boxes_of(value, several: bool) -> tuple[str, tuple]:
    """-> the answer, with a mark a box; a box that is text stays text."""
    if isinstance(value, str) and "{<" in value:
        return value, ()
    boxes = value if isinstance(value, list) and isinstance((value or [0])[0], list) else [value]
    if len(boxes) > 1 and not several:
        raise ValueError(f"{len(boxes)} boxes where one is expected")
    return "<delim>".join(["<bbox>"] * len(boxes)), tuple(numbers(box) for box in boxes)
