"""DIOR-RSVG and RSVG: one VOC XML a picture, and split files of running object numbers.

    FOLDER/Annotations/*.xml      <object> with <bndbox> (pixels) and <description>
    FOLDER/JPEGImages/            the pictures; or images/
    FOLDER/{train,val,test}.txt   numbers of objects, over all XML files in sorted order

The order decides what a number means: names are sorted here, never taken as the directory lists.
"""
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

from formats.common import find
from formats.voc import corners, described, files, word
from formats.wrong import attempt, naming


def matches(place: Path) -> bool:
    return described(place)


def read(place: Path, split: str) -> Iterator[dict | ValueError]:
    chosen, number = numbers(place / f"{split}.txt"), -1
    for file in files(place):
        with naming(str(file)):
            root = ElementTree.parse(file).getroot()
        for item in root.iter("object"):
            number += 1
            if number in chosen:
                source = f"{file}:{number}"
                yield from attempt(source, sample, place, root, item, source)
    if chosen and max(chosen) > number:
        raise ValueError(f"{place / split}.txt: names object {max(chosen)}, but the XML files "
                         f"have {number + 1}; are some missing?")


def sample(place: Path, root: ElementTree.Element, item: ElementTree.Element, source: str
           ) -> dict:
    return {"images": [find(place, ("JPEGImages", "images"), word(root, "filename"))],
            "task": "refer", "turns": ((word(item, "description"), "<bbox>"),),
            "boxes": (corners(item),), "source": source}


def numbers(file: Path) -> set[int]:
    found = set()
    for line, number in enumerate(file.read_text(encoding="utf-8").split(), start=1):
        if not number.isdecimal():
            raise ValueError(f"{file}:{line}: {number} is no object number")
        found.add(int(number))
    return found
