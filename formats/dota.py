"""DOTA: a text a picture, a polygon a line; the box around it counts (formats/objects.py).

    FOLDER/labelTxt/NAME.txt      x1 y1 x2 y2 x3 y3 x4 y4 class difficult
    FOLDER/images/NAME.png        both may be in FOLDER/train/ and FOLDER/val/
    FOLDER/{train,val,test}.txt   optional lists of names; without them all pictures count
"""
from collections.abc import Iterator
from pathlib import Path

from formats.common import find
from formats.lists import chosen
from formats.objects import Box, box, tasks
from formats.wrong import attempt, naming

SPLITS = ("train", "val", "test")


def matches(place: Path) -> bool:
    return any(any((place / part / "labelTxt").glob("*.txt")) for part in (".", *SPLITS))


def read(place: Path, split: str) -> Iterator[dict | ValueError]:
    part = "." if (place / "labelTxt").is_dir() else split
    if not (place / part / "labelTxt").is_dir():
        raise ValueError(f"{place / part / 'labelTxt'}: no such folder")
    for file in chosen([place], split, sorted((place / part / "labelTxt").glob("*.txt"))):
        yield from [file] if isinstance(file, ValueError) else attempt(str(file), samples,
                                                                       place, part, file)


def samples(place: Path, part: str, file: Path) -> Iterator[dict]:
    picture = find(place, [f"{part}/images"], file.stem)
    if not (place / picture).exists():
        picture += ".png"
    return tasks(Path(picture).as_posix(), list(read_objects(file)), str(file))


def read_objects(file: Path) -> Iterator[tuple[str, Box]]:
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        words = line.split()
        if not words or line.startswith(("imagesource:", "gsd:")):
            continue
        with naming(f"line {number}"):
            if len(words) not in (9, 10):
                raise ValueError(f"not 8 numbers, class and difficult: {line[:60]!r}")
            x, y = [float(v) for v in words[0:8:2]], [float(v) for v in words[1:8:2]]
            yield words[8], box(min(x), min(y), max(x), max(y))
