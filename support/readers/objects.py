"""Readers of data sets of boxes.

COCO: one JSON of images, annotations and categories

    FOLDER/instances_train.json   or train.json, or in annotations/; no split in its name: all
    FOLDER/images/                or a folder named as the split (train, train2017), or in images/
    FOLDER/{train,valid,test}/_annotations.coco.json, the pictures beside it: Roboflow's
    FILE.json                     alone: pictures are named from its folder, or --image_folder

VOC XML, as HRRSD and DIOR have it

    FOLDER/Annotations/*.xml      <filename>, <object> with <name> and <bndbox> (pixels);
                                  DIOR: in "Horizontal Bounding Boxes"; or in FOLDER itself
    FOLDER/JPEGImages/            or images/, JPEGImages-trainval/ and -test/
    FOLDER/ImageSets/Main/{train,val,test}.txt     optional lists of names; or in FOLDER itself

DOTA: one text a picture, one polygon a line

    FOLDER/labelTxt/NAME.txt      x1 y1 x2 y2 x3 y3 x4 y4 class difficult
    FOLDER/images/NAME.png        both may be in FOLDER/train/ and FOLDER/val/
    FOLDER/{train,val,test}.txt   optional lists of names; without them every split is all

DIOR-RSVG and RSVG: one VOC XML a picture, and split files of running object numbers

    FOLDER/Annotations/*.xml      <object> with <bndbox> (pixels) and <description>
    FOLDER/JPEGImages/            the pictures; or images/
    FOLDER/{train,val,test}.txt   numbers of objects, over all XML files in sorted order
"""
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from pathlib import Path

from support.common import Box, read_json
from support.readers.common import (
    ROW_ERRORS,
    MissingSplit,
    class_name,
    describe_error,
    error_context,
    files_of_split,
    find_file,
    find_files,
    find_picture,
    lookup,
    read_head,
    read_lines,
    read_xml,
    require_split,
    require_text,
    short_repr,
    skip_bad_row,
    splits_in_name,
    subfolders,
    to_number,
)

# ---- objects -> samples --------------------------------------------------------------------------

def checked_box(*corners: float | str) -> Box:
    """x1, y1, x2, y2 as numbers. ValueError: they are no box. Corners may be in another order,
    which `python data.py --check` notes and what uses the box puts right."""
    x1, y1, x2, y2 = (float(to_number(corner)) for corner in corners)
    if x1 == x2 or y1 == y2:
        raise ValueError(f"no box: x {x1:g} to {x2:g}, y {y1:g} to {y2:g}")
    return x1, y1, x2, y2


def sized_box(box: object) -> Box:
    """[x, y, width, height] -> x1, y1, x2, y2. ValueError: it is no box."""
    if not isinstance(box, list) or len(box) != 4:
        raise ValueError(f"a bbox must be four numbers, not {short_repr(box)}")
    x, y, width, height = map(to_number, box)
    if width <= 0 or height <= 0:
        raise ValueError(f"no box: a width of {width:g} and a height of {height:g}")
    return checked_box(x, y, x + width, y + height)


def object_samples(picture: str, objects: Sequence[tuple[str, Box]], source: str) -> Iterator[dict]:
    """objects: (class, box) each -> the samples of a picture in three tasks.

    detection   class -> all its boxes, from left to right
    identify    box -> class, of each object
    refer       "the CLASS" -> box, where a picture has one object of it

    Classes come in the order of their first objects.
    """
    shared = {"images": [picture], "source": source}
    boxes_of: dict[str, list[Box]] = {}
    for name, box in objects:
        boxes_of.setdefault(class_name(name), []).append(box)
    for name, boxes in boxes_of.items():
        placeholders = "<delim>".join(["<bbox>"] * len(boxes))
        yield shared | {"task": "detection", "turns": ((name, f"<p>{name}</p> {placeholders}"),),
                        "boxes": tuple(sorted(boxes))}
    for name, box in objects:
        yield shared | {"task": "identify", "turns": (("<bbox>", class_name(name)),),
                        "boxes": (box,)}
    for name, boxes in boxes_of.items():
        if len(boxes) == 1:
            yield shared | {"task": "refer", "turns": ((f"the {name}", "<bbox>"),),
                            "boxes": tuple(boxes)}


# ---- COCO ----------------------------------------------------------------------------------------

def is_coco(place: Path) -> bool:
    return bool(coco_files(place))


def coco_files(place: Path) -> list[Path]:
    """Those of a folder; or the one file that is named, with pictures beside it."""
    if place.is_file():
        head = read_head(place) if place.suffix.lower() == ".json" else ""
        other = re.search('"(conversations|messages)"', head)
        return [place] if looks_like_coco(head) and not other else []
    found = [*find_files(place, "*.json"), *find_files(place / "annotations", "*.json")]
    if place.is_dir():                              # Roboflow's: a folder a split
        found += [file for folder in subfolders(place)
                  for file in find_files(folder, "_annotations.coco.json")]
    return [file for file in found if looks_like_coco(read_head(file))]


def looks_like_coco(head: str) -> bool:
    return bool(re.match(r"\s*\{", head)
                and re.search(r'"(file_name|category_id|supercategory)"', head))


def coco_file(place: Path, split: str) -> Path:
    """The file that names the split; else the one that names none."""
    found = coco_files(place)
    if place.is_file():
        return place
    splits_of = {file: splits_in_name(file) or coco_folder_splits(place, file) for file in found}
    files = ([file for file in found if split in splits_of[file]]
             or [file for file in found if not splits_of[file]])
    if len(files) != 1:
        names = ", ".join(file.relative_to(place).as_posix() for file in found)
        error = ValueError if files else MissingSplit
        raise error(f"{place}: {len(files)} files for split {split!r} among {names}")
    return files[0]


def coco_folder_splits(place: Path, file: Path) -> list[str]:
    """The split of Roboflow's FOLDER/valid/_annotations.coco.json."""
    return [] if file.parent in (place, place / "annotations") else splits_in_name(file.parent)


def read_coco(place: Path, split: str, errors: list[str]) -> Iterator[dict]:
    """A bbox is x, y, width, height in pixels. Crowds count as objects."""
    file = coco_file(place, split)
    with error_context(str(file)):
        data = read_json(file)
        names = {row["id"]: require_text(row, "file_name") for row in data["images"]}
        classes = {row["id"]: require_text(row, "name") for row in data["categories"]}
        annotations = list(data["annotations"])
    objects: dict[int, list[tuple[str, Box]]] = {image_id: [] for image_id in names}
    incomplete = set()                  # pictures whose detections would lack a box
    for number, row in enumerate(annotations, start=1):
        try:
            lookup(names, "image", row["image_id"])
            objects[row["image_id"]].append(coco_object(row, classes))
        except ROW_ERRORS as error:
            errors.append(describe_error(f"{file}:{number}", error))
            incomplete.add(row.get("image_id") if isinstance(row, dict) else None)
    beside = file.parent.relative_to(place if place.is_dir() else place.parent).as_posix()
    subset = file.stem.removeprefix("instances_")           # "default" of CVAT's, for one
    folders = ("images", split, f"images/{split}", subset, f"images/{subset}", ".",
               *([beside] if beside not in (".", "annotations") else []))
    if beside not in (".", "annotations"):          # names are those of one split's folder
        folders = (beside,)
    for image_id, name in names.items():
        if image_id not in incomplete:
            source = f"{file}:image {image_id}"
            with skip_bad_row(source, errors):
                picture = find_picture(place, folders, name) if place.is_dir() else name
                yield from object_samples(picture, objects[image_id], source)


def coco_object(row: dict, classes: dict[int, str]) -> tuple[str, Box]:
    box = sized_box(row["bbox"])
    return lookup(classes, "category", row["category_id"]), box


# ---- VOC XML -------------------------------------------------------------------------------------

VOC_ANNOTATIONS = ("Annotations/Horizontal Bounding Boxes", "Annotations", ".")
VOC_FOLDERS = ("JPEGImages", "images", "JPEGImages-trainval", "JPEGImages-test", ".")


def is_voc(place: Path) -> bool:
    return bool(voc_files(place)) and not has_descriptions(place)


def voc_files(place: Path) -> list[Path]:
    """In the order of their names, which the object numbers of DIOR-RSVG count in."""
    found = (find_files(place / folder, "*.xml") for folder in VOC_ANNOTATIONS)
    return next(filter(None, found), [])


def has_descriptions(place: Path) -> bool:
    """Whether objects have a <description>: then it is DIOR-RSVG or RSVG."""
    return any("<description>" in read_head(file) for file in voc_files(place)[:20])


def read_voc(place: Path, split: str, errors: list[str]) -> Iterator[dict]:
    list_folders = (place / "ImageSets" / "Main", place)
    for file in files_of_split(list_folders, split, voc_files(place), errors):
        with skip_bad_row(str(file), errors):
            picture, objects = read_voc_file(place, file)
            yield from object_samples(picture, objects, str(file))


def read_voc_file(place: Path, file: Path) -> tuple[str, list[tuple[str, Box]]]:
    """-> picture, and class and box of each object."""
    root = read_xml(file)
    objects = []
    for number, item in enumerate(root.iter("object"), start=1):
        with error_context(f"object {number}"):
            objects.append((element_text(item, "name"), bndbox(item)))
    return find_picture(place, VOC_FOLDERS, element_text(root, "filename")), objects


def element_text(element: ElementTree.Element, name: str) -> str:
    found = (element.findtext(name) or "").strip()
    if not found:
        raise ValueError(f"no <{name}>")
    return found


def bndbox(item: ElementTree.Element) -> Box:
    return checked_box(*(element_text(item, f"bndbox/{name}")
                         for name in ("xmin", "ymin", "xmax", "ymax")))


# ---- DIOR-RSVG -----------------------------------------------------------------------------------

def is_dior_rsvg(place: Path) -> bool:
    return has_descriptions(place)


def read_dior_rsvg(place: Path, split: str, errors: list[str]) -> Iterator[dict]:
    """Objects are numbered over all files in the order of their names, never in the directory's.
    """
    numbers = find_file(place, f"{split}.txt")
    require_split(split, numbers)
    chosen, number = read_object_numbers(numbers), -1
    for file in voc_files(place):
        with error_context(str(file)):
            root = read_xml(file)
        for item in root.iter("object"):
            number += 1
            if number in chosen:
                source = f"{file}:{number}"
                with skip_bad_row(source, errors):
                    yield rsvg_sample(place, root, item, source)
    if chosen and max(chosen) > number:
        raise ValueError(f"{place / split}.txt: names object {max(chosen)}, but the XML files "
                         f"have {number + 1}; are some missing?")


def rsvg_sample(place: Path, root: ElementTree.Element, item: ElementTree.Element, source: str
                ) -> dict:
    name = element_text(root, "filename")
    return {"images": [find_picture(place, ("JPEGImages", "images"), name)],
            "task": "refer", "turns": ((element_text(item, "description"), "<bbox>"),),
            "boxes": (bndbox(item),), "source": source}


def read_object_numbers(file: Path) -> set[int]:
    found = set()
    for line, number in enumerate(" ".join(read_lines(file)).split(), start=1):
        if not number.isdecimal() or len(number) > 15:
            raise ValueError(f"{file}:{line}: {number[:40]} is no object number")
        found.add(int(number))
    return found


# ---- DOTA ----------------------------------------------------------------------------------------

DOTA_SPLITS = ("train", "val", "test")


def is_dota(place: Path) -> bool:
    return any(find_files(place / folder / "labelTxt", "*.txt") for folder in (".", *DOTA_SPLITS))


def read_dota(place: Path, split: str, errors: list[str]) -> Iterator[dict]:
    folder = "." if (place / "labelTxt").is_dir() else split
    labels = place / folder / "labelTxt"
    if not labels.is_dir():
        raise MissingSplit(f"{labels}: no such folder, so there is no split {split!r}")
    for file in files_of_split([place], split, find_files(labels, "*.txt"), errors):
        with skip_bad_row(str(file), errors):
            objects = list(read_label_file(file))
            yield from object_samples(dota_picture(place, folder, file.stem), objects, str(file))


def dota_picture(place: Path, folder: str, name: str) -> str:
    picture = find_picture(place, [f"{folder}/images"], name)
    return picture if (place / picture).exists() else picture + ".png"


def read_label_file(file: Path) -> Iterator[tuple[str, Box]]:
    """-> class and upright box around the polygon of each line."""
    for number, line in enumerate(read_lines(file), start=1):
        fields = line.split()
        if not fields or line.startswith(("imagesource:", "gsd:")):
            continue
        with error_context(f"line {number}"):
            if len(fields) not in (9, 10):
                raise ValueError(f"not 8 numbers, class and difficult: {line[:60]!r}")
            numbers = list(map(to_number, fields[:8]))
            x, y = numbers[0::2], numbers[1::2]
            yield fields[8], checked_box(min(x), min(y), max(x), max(y))
