"""Pictures with named boxes, as VOC, DOTA and COCO have them, become three tasks.

    detection   class -> all its boxes, from left to right
    identify    box -> class, of each object
    refer       "the CLASS" -> box, where a picture has one of it
"""
import math
from collections.abc import Iterator, Sequence

from formats.class_folder import plain

Box = tuple[float, float, float, float]


def box(*corners: float | str) -> Box:
    x1, y1, x2, y2 = map(float, corners)
    if not (-math.inf < x1 < x2 < math.inf and -math.inf < y1 < y2 < math.inf):
        raise ValueError(f"no box: x {x1:g} to {x2:g}, y {y1:g} to {y2:g}")
    return x1, y1, x2, y2


def tasks(picture: str, objects: Sequence[tuple[str, Box]], source: str) -> Iterator[dict]:
    """objects: (class, box) each; the classes come in their first objects' order."""
    shared = {"images": [picture], "source": source}
    groups: dict[str, list[Box]] = {}
    for name, corners in objects:
        groups.setdefault(plain(name), []).append(corners)
    for name, boxes in groups.items():
        marks = "<delim>".join(["<bbox>"] * len(boxes))
        yield shared | {"task": "detection", "turns": ((name, f"<p>{name}</p> {marks}"),),
                        "boxes": tuple(sorted(boxes))}
    for name, corners in objects:
        yield shared | {"task": "identify", "turns": (("<bbox>", plain(name)),),
                        "boxes": (corners,)}
    for name, boxes in groups.items():
        if len(boxes) == 1:
            yield shared | {"task": "refer", "turns": ((f"the {name}", "<bbox>"),),
                            "boxes": tuple(boxes)}
