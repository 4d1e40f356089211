"""Plain VOC XML, as HRRSD and DIOR have it: detection, identify and refer (formats/objects.py).

    FOLDER/Annotations/*.xml      <filename>, <object> with <name> and <bndbox> (pixels);
                                  DIOR: in "Horizontal Bounding Boxes"; or bare in FOLDER
    FOLDER/JPEGImages/            or images/, JPEGImages-trainval/ and -test/
    FOLDER/ImageSets/Main/{train,val,test}.txt     optional lists of names; or in FOLDER
"""
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

from formats.common import find, head
from formats.lists import chosen
from formats.objects import Box, box, tasks
from formats.wrong import attempt, naming

ANNOTATIONS = ("Annotations/Horizontal Bounding Boxes", "Annotations", ".")
FOLDERS = ("JPEGImages", "images", "JPEGImages-trainval", "JPEGImages-test", ".")


def matches(place: Path) -> bool:
    return bool(files(place)) and not described(place)


def files(place: Path) -> list[Path]:
    """In the order of their names."""
    found = (sorted((place / folder).glob("*.xml")) for folder in ANNOTATIONS)
    return next(filter(None, found), [])


def described(place: Path) -> bool:
    """Whether objects have a <description>: then it is DIOR-RSVG or RSVG."""
    return any("<description>" in head(file) for file in files(place)[:20])


def read(place: Path, split: str) -> Iterator[dict | ValueError]:
    for file in chosen((place / "ImageSets" / "Main", place), split, files(place)):
        yield from [file] if isinstance(file, ValueError) else attempt(str(file), samples,
                                                                       place, file)


def samples(place: Path, file: Path) -> Iterator[dict]:
    root, objects = ElementTree.parse(file).getroot(), []
    for number, item in enumerate(root.iter("object"), start=1):
        with naming(f"object {number}"):
            objects.append((word(item, "name"), box(*corners(item))))
    return tasks(find(place, FOLDERS, word(root, "filename")), objects, str(file))


def word(element: ElementTree.Element, name: str) -> str:
    found = (element.findtext(name) or "").strip()
    if not found:
        raise ValueError(f"no <{name}>")
    return found


def corners(item: ElementTree.Element) -> Box:
    x1, y1, x2, y2 = (float(word(item, f"bndbox/{name}"))
                      for name in ("xmin", "ymin", "xmax", "ymax"))
    return x1, y1, x2, y2
