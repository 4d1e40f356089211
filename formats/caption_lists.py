"""Captions as retrieval codes have them (AMFMN's rsitmd_precomp, PE-RSITR): two texts a split.

    FOLDER/{train,val,test}_filename.txt      a picture a line
    FOLDER/{train,val,test}_caps.txt          a caption a line, five a picture
    FOLDER/images/

A picture is named once for its five captions (train) or once for each of them (test).
"""
from collections.abc import Iterator
from pathlib import Path

from formats.class_folder import pictures

EACH = 5


def matches(place: Path) -> bool:
    return any(place.glob("*_filename.txt")) and any(place.glob("*_caps.txt"))


def read(place: Path, split: str) -> Iterator[dict | ValueError]:
    listed, file = place / f"{split}_filename.txt", place / f"{split}_caps.txt"
    names = listed.read_text(encoding="utf-8").splitlines()
    captions = file.read_text(encoding="utf-8").splitlines()
    if len(captions) not in (len(names), EACH * len(names)):
        raise ValueError(f"{file}: {len(captions)} captions for the {len(names)} pictures of "
                         f"{listed.name}; {EACH} or 1 for each are expected")
    folder = next((path.name for path in sorted(place.iterdir())
                   if path.is_dir() and pictures(path)), "images")
    for number, caption in enumerate(captions):
        name = names[number * len(names) // len(captions)]
        if caption.strip() and name.strip():
            yield {"images": [f"{folder}/{name.strip()}"], "turns": (("", caption.strip()),),
                   "task": "caption", "source": f"{file}:{number + 1}"}
        else:
            yield ValueError(f"{file}:{number + 1}: an empty caption, or one of no picture")
