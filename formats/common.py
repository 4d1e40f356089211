"""What several layouts need: JSON, fields of rows, pictures beside a file."""
import json
import re
from collections.abc import Sequence
from pathlib import Path

from formats.wrong import naming

PICTURES = (".jpg", ".jpeg", ".png", ".tif", ".tiff")


def load_json(file: Path):
    with naming(f"{file}: not valid JSON"), file.open(encoding="utf-8") as opened:
        return json.load(opened)


def head(file: Path) -> str:
    """The beginning, enough to tell what a file is."""
    with file.open(encoding="utf-8", errors="replace") as opened:
        return opened.read(1 << 16)


def text(row: dict, name: str) -> str:
    value = row[name]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name!r} must be a text, not {repr(value)[:60]}")
    return value


def member(rows: dict, what: str, number: int):
    if number not in rows:
        raise ValueError(f"no {what} has id {number}")
    return rows[number]


def find(place: Path, folders: Sequence[str], name: str) -> str:
    """Which of `folders` has that picture, a suffix added if need be; else where it should be."""
    if Path(name).is_absolute() or ".." in Path(name).parts:
        return name             # to be refused, not looked for
    ends = [""] if name.lower().endswith(PICTURES) else ["", *PICTURES]
    paths = [Path(folder, name + end) for folder in folders for end in ends]
    return next((path for path in paths if (place / path).is_file()), paths[0]).as_posix()


class Paths(dict):
    """name -> where in `place` that picture lies; each is looked for once."""

    def __init__(self, place: Path, folders: tuple[str, ...]):
        self.place, self.folders = place, folders

    def __missing__(self, name: str) -> str:
        """Airport_12.jpg, airport12.tif: also in a folder Airport, airport."""
        label = re.sub(r"_?\d+$", "", Path(name).stem)
        inner = (f"{folder}/{label}" for folder in self.folders if label)
        self[name] = find(self.place, [*self.folders, *inner], name)
        return self[name]
