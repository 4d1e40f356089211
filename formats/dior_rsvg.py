"""DIOR-RSVG and RSVG: one VOC XML a picture, and split files of running object numbers.

    FOLDER/Annotations/*.xml      <object> with <bndbox> (pixels) and <description>
    FOLDER/JPEGImages/            the pictures
    FOLDER/{train,val,test}.txt   numbers of objects, over all XML files in sorted order

The order decides what a number means: names are sorted here, never taken as the directory lists.
"""
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path


def matches(place: Path) -> bool:
    return (place / "Annotations").is_dir() and (place / "JPEGImages").is_dir()


def read(place: Path, split: str) -> Iterator[dict]:
    chosen = {int(number) for number in (place / f"{split}.txt").read_text().split()}
    number = -1
    for file in sorted((place / "Annotations").glob("*.xml")):
        root = ElementTree.parse(file).getroot()
        for item in root.iter("object"):
            number += 1
            if number in chosen:
                yield {"images": [f"JPEGImages/{root.findtext('filename')}"], "task": "refer",
                       "turns": ((item.findtext("description").strip(), "<bbox>"),),
                       "source": f"{file}:{number}", "boxes": (corners(item.find("bndbox")),)}


def corners(box: ElementTree.Element) -> tuple[float, ...]:
    return tuple(float(box.findtext(name)) for name in ("xmin", "ymin", "xmax", "ymax"))
