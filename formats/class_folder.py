"""AID, NWPU-RESISC45, RSSCN7, UC Merced: one folder a class, asked with the paper's question.

    FOLDER/CLASS/*.jpg            two classes at least, and no annotations beside them
    FOLDER/{train,val,test}.txt   optional lists of CLASS/NAME; without them all pictures count
"""
import re
from collections.abc import Iterator
from pathlib import Path

from formats import lines
from formats.common import PICTURES
from formats.lists import listed

QUESTION = ("Classify the image within one of the given classes: {}. "
            "Answer it using the above category word or phrase.")
OTHERS = ("*.json", "*.xml", "*_filename.txt")      # annotations of another layout
JOINED = ("bare land, baseball diamond, baseball field, basketball court, dense residential, "
          "golf course, golf field, ground track field, medium residential, mobile home park, "
          "parking lot, railway station, sparse residential, storage tank, storage tanks, "
          "tennis court, train station")            # as UC Merced, RSICD and DIOR write them
WORDS = {name.replace(" ", ""): name for name in JOINED.split(", ")}


def matches(place: Path) -> bool:
    if not place.is_dir() or any(any(place.glob(other)) for other in OTHERS):
        return False
    folders = class_folders(place)
    return len(folders) > 1 and all(map(pictures, folders)) and not lines.files(place)


def class_folders(place: Path) -> list[Path]:
    return sorted(path for path in place.iterdir() if path.is_dir() and path.name[0] != ".")


def pictures(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir() if file.suffix.lower() in PICTURES)


def read(place: Path, split: str) -> Iterator[dict | ValueError]:
    classes = {path.name: plain(path.name) for path in class_folders(place)}
    question = QUESTION.format(", ".join(sorted(classes.values())))
    names = listed(place, split)
    if names is None:
        names = [("", f"{label}/{name}") for label in classes for name in pictures(place / label)]
    for source, name in names:
        label = name.split("/")[0]
        if label in classes:
            yield {"images": [name], "turns": ((question, classes[label]),), "task": "scene",
                   "kind": "scene", "source": str(place / name)}
        else:
            yield ValueError(f"{source}: {name} is in none of the class folders")


def plain(name: str) -> str:
    """DenseResidential, dense_residential, denseresidential, aGrass -> dense residential, .. grass
    """
    name = re.sub(r"^[a-z](?=[A-Z])", "", name)
    name = " ".join(re.sub(r"(?<=[a-z])(?=[A-Z])|[_-]", " ", name).lower().split())
    return WORDS.get(name, name)
