"""COCO: one JSON of images, annotations and categories (formats/objects.py makes the tasks).

    FOLDER/instances_train.json   or train.json, or in annotations/; no split named: all
    FOLDER/images/                or a folder called as the split (train, train2017)

A bbox is x, y, width, height in pixels. Crowds count as objects.
"""
import re
from collections.abc import Iterator
from pathlib import Path

from formats.common import find, head, load_json, member, text
from formats.objects import box, tasks
from formats.wrong import attempt, naming

SPLITS = re.compile(r"(?<![a-z])(train|val|test)(?![a-z])")


def matches(place: Path) -> bool:
    return bool(files(place))


def files(place: Path) -> list[Path]:
    found = [*sorted(place.glob("*.json")), *sorted(place.glob("annotations/*.json"))]
    return [file for file in found if re.match(r"\s*\{", start := head(file))
            and re.search(r'"(file_name|category_id|supercategory)"', start)]


def read(place: Path, split: str) -> Iterator[dict | ValueError]:
    file, broken = file_of(place, split), set()
    with naming(str(file)):
        data = load_json(file)
        images = {row["id"]: (text(row, "file_name"), []) for row in data["images"]}
        classes = {row["id"]: text(row, "name") for row in data["categories"]}
        rows = list(data["annotations"])
    for number, row in enumerate(rows, start=1):
        for error in attempt(f"{file}:{number}", add, row, images, classes):
            broken.add(row.get("image_id") if isinstance(row, dict) else None)
            yield error
    folders = ("images", split, f"images/{split}", file.stem.removeprefix("instances_"), ".")
    for number, (name, objects) in images.items():
        if number not in broken:        # its detections would lack a box
            yield from tasks(find(place, folders, name), objects, f"{file}:image {number}")


def add(row: dict, images: dict, classes: dict) -> tuple:
    objects, (x, y, width, height) = member(images, "image", row["image_id"])[1], row["bbox"]
    name = member(classes, "category", row["category_id"])
    objects.append((name, box(x, y, x + width, y + height)))
    return ()


def file_of(place: Path, split: str) -> Path:
    found = files(place)
    splits = {file: SPLITS.findall(file.stem.lower()) for file in found}
    named = [f for f in found if split in splits[f]] or [f for f in found if not splits[f]]
    if len(named) != 1:
        names = ", ".join(file.name for file in found)
        raise ValueError(f"{place}: {len(named)} files for split {split!r} among {names}")
    return named[0]
