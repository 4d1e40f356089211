"""RSIVQA: texts of lines `picture:question?answer` beside the pictures.

    FOLDER/ucm_res.txt, ..        a name without train, val or test in it is train
    FOLDER/imgs/                  one folder of pictures, or for several sets a folder each,
    FOLDER/UCM/, FOLDER/DOTA/     whose name holds the text's first word (ucm_res.txt: UCM)

A picture is found by its name or, as DOTA's have no suffix, by its stem, also in subfolders.
"""
import re
from collections.abc import Iterator
from pathlib import Path

from formats import lines, rsicd
from formats.common import PICTURES


def matches(place: Path) -> bool:
    return place.is_dir() and not rsicd.matches(place) and bool(lines.files(place))


def read(place: Path, split: str) -> Iterator[dict | ValueError]:
    for file in lines.files(place):
        named = re.findall(r"(?<![a-z])(train|val|test)(?![a-z])", file.stem.lower())
        if split in (named or ["train"]):
            folder = folder_of(place, file)
            paths = index(place, folder)
            for name, sample in lines.read(file):
                images = [paths.get(name, f"{folder}/{name}")]
                yield sample | {"images": images} if isinstance(sample, dict) else sample


def folder_of(place: Path, file: Path) -> str:
    folders = [path.name for path in sorted(place.iterdir()) if path.is_dir() and has_picture(path)]
    word = file.stem.lower().split("_")[0]
    own = [name for name in folders if word in name.lower()] or folders
    if len(own) > 1:        # names such as 1.tif are in more than one set
        raise ValueError(f"{file}: its pictures may be in {', '.join(own)}; call one of these "
                         f"folders {word}")
    return own[0] if own else "images"


def has_picture(folder: Path) -> bool:
    return any(path.suffix.lower() in PICTURES for path in folder.rglob("*"))


def index(place: Path, folder: str) -> dict[str, str]:
    """Names and stems of all pictures in a folder -> paths; a whole name comes first."""
    paths = [path for path in sorted((place / folder).rglob("*"))
             if path.suffix.lower() in PICTURES]
    named = {path.stem: path for path in paths} | {path.name: path for path in paths}
    return {name: path.relative_to(place).as_posix() for name, path in named.items()}
