"""AID, NWPU-RESISC45, RSSCN7, UC Merced: one folder a class, asked with the paper's question.

    FOLDER/CLASS/*.jpg
    FOLDER/{train,val,test}.txt   optional lists of CLASS/NAME; without them all pictures count
"""
import re
from collections.abc import Iterator
from pathlib import Path

QUESTION = ("Classify the image within one of the given classes: {}. "
            "Answer it using the above category word or phrase.")
PICTURES = {".jpg", ".jpeg", ".png", ".tif", ".tiff"}


def matches(place: Path) -> bool:
    return place.is_dir() and any(pictures(path) for path in place.iterdir() if path.is_dir())


def pictures(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir() if file.suffix.lower() in PICTURES)


def read(place: Path, split: str) -> Iterator[dict]:
    classes = {path.name: plain(path.name) for path in sorted(place.iterdir()) if path.is_dir()}
    question = QUESTION.format(", ".join(sorted(classes.values())))
    listed = place / f"{split}.txt"
    if listed.is_file():
        names = [line.strip() for line in listed.read_text(encoding="utf-8").splitlines()]
    else:
        names = [f"{label}/{name}" for label in classes for name in pictures(place / label)]
    for name in filter(None, names):
        label = name.split("/")[0]
        if label not in classes:
            raise ValueError(f"{listed}: {name} is in none of the class folders")
        yield {"images": [name], "turns": ((question, classes[label]),), "task": "scene",
               "kind": "scene", "source": str(place / name)}


def plain(name: str) -> str:
    """DenseResidential, dense_residential, aGrass -> dense residential, .., grass"""
    name = re.sub(r"^[a-z](?=[A-Z])", "", name)
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).replace("_", " ").lower()
