"""support/readers/objects.py"""
import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from pathlib import Path

from support.common import Box
from support.readers.common import (
    class_name,
    error_context,
    files_of_split,
    find_picture,
    load_json,
    lookup,
    read_head,
    require_text,
    rows_or_error,
)

# ---- objects -------------------------------------------------------------------------------------
# Pictures with named boxes, as VOC, DOTA and COCO have them, become three tasks.
#
#     detection   class -> all its boxes, from left to right
#     identify    box -> class, of each object
#     refer       "the CLASS" -> box, where a picture has one of it

def checked_box(*corners: float | str) -> Box:
    x1, y1, x2, y2 = map(float, corners)
    if not (-math.inf < x1 < x2 < math.inf and -math.inf < y1 < y2 < math.inf):
        raise ValueError(f"no box: x {x1:g} to {x2:g}, y {y1:g} to {y2:g}")
    return x1, y1, x2, y2


def object_samples(picture: str, objects: Sequence[tuple[str, Box]], source: str) -> Iterator[dict]:
    """objects: (class, box) each; the classes come in their first objects' order."""
    shared = {"images": [picture], "source": source}
    groups: dict[str, list[Box]] = {}
    for name, corners in objects:
        groups.setdefault(class_name(name), []).append(corners)
    for name, boxes in groups.items():
        marks = "<delim>".join(["<bbox>"] * len(boxes))
        yield shared | {"task": "detection", "turns": ((name, f"<p>{name}</p> {marks}"),),
                        "boxes": tuple(sorted(boxes))}
    for name, corners in objects:
        yield shared | {"task": "identify", "turns": (("<bbox>", class_name(name)),),
                        "boxes": (corners,)}
    for name, boxes in groups.items():
        if len(boxes) == 1:
            yield shared | {"task": "refer", "turns": ((f"the {name}", "<bbox>"),),
                            "boxes": tuple(boxes)}


# ---- coco ----------------------------------------------------------------------------------------
# COCO: one JSON of images, annotations and categories (formats/objects.py makes the tasks).
#
#     FOLDER/instances_train.json   or train.json, or in annotations/; no split named: all
#     FOLDER/images/                or a folder called as the split (train, train2017)
#
# A bbox is x, y, width, height in pixels. Crowds count as objects.

SPLIT_NAME = re.compile(r"(?<![a-z])(train|val|test)(?![a-z])")


def is_coco(place: Path) -> bool:
    return bool(coco_files(place))


def coco_files(place: Path) -> list[Path]:
    found = [*sorted(place.glob("*.json")), *sorted(place.glob("annotations/*.json"))]
    return [file for file in found if re.match(r"\s*\{", start := read_head(file))
            and re.search(r'"(file_name|category_id|supercategory)"', start)]


def read_coco(place: Path, split: str) -> Iterator[dict | ValueError]:
    file, broken = coco_file(place, split), set()
    with error_context(str(file)):
        data = load_json(file)
        images = {row["id"]: (require_text(row, "file_name"), []) for row in data["images"]}
        classes = {row["id"]: require_text(row, "name") for row in data["categories"]}
        rows = list(data["annotations"])
    for number, row in enumerate(rows, start=1):
        for error in rows_or_error(f"{file}:{number}", add_annotation, row, images, classes):
            broken.add(row.get("image_id") if isinstance(row, dict) else None)
            yield error
    folders = ("images", split, f"images/{split}", file.stem.removeprefix("instances_"), ".")
    for number, (name, objects) in images.items():
        if number not in broken:        # its detections would lack a box
            yield from object_samples(find_picture(place, folders, name), objects, f"{file}:image {number}")


def add_annotation(row: dict, images: dict, classes: dict) -> tuple:
    objects, (x, y, width, height) = lookup(images, "image", row["image_id"])[1], row["bbox"]
    name = lookup(classes, "category", row["category_id"])
    objects.append((name, checked_box(x, y, x + width, y + height)))
    return ()


def coco_file(place: Path, split: str) -> Path:
    found = coco_files(place)
    splits = {file: SPLIT_NAME.findall(file.stem.lower()) for file in found}
    named = [f for f in found if split in splits[f]] or [f for f in found if not splits[f]]
    if len(named) != 1:
        names = ", ".join(file.name for file in found)
        raise ValueError(f"{place}: {len(named)} files for split {split!r} among {names}")
    return named[0]


# ---- voc -----------------------------------------------------------------------------------------
# Plain VOC XML, as HRRSD and DIOR have it: detection, identify and refer (formats/objects.py).
#
#     FOLDER/Annotations/*.xml      <filename>, <object> with <name> and <bndbox> (pixels);
#                                   DIOR: in "Horizontal Bounding Boxes"; or bare in FOLDER
#     FOLDER/JPEGImages/            or images/, JPEGImages-trainval/ and -test/
#     FOLDER/ImageSets/Main/{train,val,test}.txt     optional lists of names; or in FOLDER

VOC_ANNOTATIONS = ("Annotations/Horizontal Bounding Boxes", "Annotations", ".")


VOC_FOLDERS = ("JPEGImages", "images", "JPEGImages-trainval", "JPEGImages-test", ".")


def is_voc(place: Path) -> bool:
    return bool(voc_files(place)) and not has_descriptions(place)


def voc_files(place: Path) -> list[Path]:
    """In the order of their names."""
    found = (sorted((place / folder).glob("*.xml")) for folder in VOC_ANNOTATIONS)
    return next(filter(None, found), [])


def has_descriptions(place: Path) -> bool:
    """Whether objects have a <description>: then it is DIOR-RSVG or RSVG."""
    return any("<description>" in read_head(file) for file in voc_files(place)[:20])


def read_voc(place: Path, split: str) -> Iterator[dict | ValueError]:
    for file in files_of_split((place / "ImageSets" / "Main", place), split, voc_files(place)):
        yield from [file] if isinstance(file, ValueError) else rows_or_error(str(file), voc_samples,
                                                                       place, file)


def voc_samples(place: Path, file: Path) -> Iterator[dict]:
    root, objects = ElementTree.parse(file).getroot(), []
    for number, item in enumerate(root.iter("object"), start=1):
        with error_context(f"object {number}"):
            objects.append((element_text(item, "name"), checked_box(*bndbox(item))))
    return object_samples(find_picture(place, VOC_FOLDERS, element_text(root, "filename")), objects, str(file))


def element_text(element: ElementTree.Element, name: str) -> str:
    found = (element.findtext(name) or "").strip()
    if not found:
        raise ValueError(f"no <{name}>")
    return found


def bndbox(item: ElementTree.Element) -> Box:
    x1, y1, x2, y2 = (float(element_text(item, f"bndbox/{name}"))
                      for name in ("xmin", "ymin", "xmax", "ymax"))
    return x1, y1, x2, y2


# ---- dior_rsvg -----------------------------------------------------------------------------------
# DIOR-RSVG and RSVG: one VOC XML a picture, and split files of running object numbers.
#
#     FOLDER/Annotations/*.xml      <object> with <bndbox> (pixels) and <description>
#     FOLDER/JPEGImages/            the pictures; or images/
#     FOLDER/{train,val,test}.txt   numbers of objects, over all XML files in sorted order
#
# The order decides what a number means: names are sorted here, never taken as the directory lists.

def is_dior_rsvg(place: Path) -> bool:
    return has_descriptions(place)


def read_dior_rsvg(place: Path, split: str) -> Iterator[dict | ValueError]:
    chosen, number = read_object_numbers(place / f"{split}.txt"), -1
    for file in voc_files(place):
        with error_context(str(file)):
            root = ElementTree.parse(file).getroot()
        for item in root.iter("object"):
            number += 1
            if number in chosen:
                source = f"{file}:{number}"
                yield from rows_or_error(source, rsvg_sample, place, root, item, source)
    if chosen and max(chosen) > number:
        raise ValueError(f"{place / split}.txt: names object {max(chosen)}, but the XML files "
                         f"have {number + 1}; are some missing?")


def rsvg_sample(place: Path, root: ElementTree.Element, item: ElementTree.Element, source: str
           ) -> dict:
    return {"images": [find_picture(place, ("JPEGImages", "images"), element_text(root, "filename"))],
            "task": "refer", "turns": ((element_text(item, "description"), "<bbox>"),),
            "boxes": (bndbox(item),), "source": source}


def read_object_numbers(file: Path) -> set[int]:
    found = set()
    for line, number in enumerate(file.read_text(encoding="utf-8").split(), start=1):
        if not number.isdecimal():
            raise ValueError(f"{file}:{line}: {number} is no object number")
        found.add(int(number))
    return found


# ---- dota ----------------------------------------------------------------------------------------
# DOTA: a text a picture, a polygon a line; the box around it counts (formats/objects.py).
#
#     FOLDER/labelTxt/NAME.txt      x1 y1 x2 y2 x3 y3 x4 y4 class difficult
#     FOLDER/images/NAME.png        both may be in FOLDER/train/ and FOLDER/val/
#     FOLDER/{train,val,test}.txt   optional lists of names; without them all pictures count

DOTA_SPLITS = ("train", "val", "test")


def is_dota(place: Path) -> bool:
    return any(any((place / part / "labelTxt").glob("*.txt")) for part in (".", *DOTA_SPLITS))


def read_dota(place: Path, split: str) -> Iterator[dict | ValueError]:
    part = "." if (place / "labelTxt").is_dir() else split
    if not (place / part / "labelTxt").is_dir():
        raise ValueError(f"{place / part / 'labelTxt'}: no such folder")
    for file in files_of_split([place], split, sorted((place / part / "labelTxt").glob("*.txt"))):
        yield from [file] if isinstance(file, ValueError) else rows_or_error(str(file), dota_samples,
                                                                       place, part, file)


def dota_samples(place: Path, part: str, file: Path) -> Iterator[dict]:
    picture = find_picture(place, [f"{part}/images"], file.stem)
    if not (place / picture).exists():
        picture += ".png"
    return object_samples(Path(picture).as_posix(), list(read_label_file(file)), str(file))


def read_label_file(file: Path) -> Iterator[tuple[str, Box]]:
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        words = line.split()
        if not words or line.startswith(("imagesource:", "gsd:")):
            continue
        with error_context(f"line {number}"):
            if len(words) not in (9, 10):
                raise ValueError(f"not 8 numbers, class and difficult: {line[:60]!r}")
            x, y = [float(v) for v in words[0:8:2]], [float(v) for v in words[1:8:2]]
            yield words[8], checked_box(min(x), min(y), max(x), max(y))
