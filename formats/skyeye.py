"""SkyEye-968k: a folder a task, JSON lists in it; also what examples/miniworld.py writes.

    FOLDER/{caption,vqa,vg,phrasegrounding,multitask_conversation}/*_{train,val,test}.json
    FOLDER/images/                or the sets' own folders (formats/skyeye_names.py), also with
                                  a folder a class; files without a split in their name are train
"""
import re
from collections.abc import Iterator
from pathlib import Path

from formats.common import attempt, find
from formats.llava import read_rows
from formats.skyeye_names import TASKS, alias, fields, known
from formats.skyeye_rows import sample


def matches(place: Path) -> bool:
    return sum((place / name).is_dir() for name in TASKS) >= 2


def files(place: Path) -> Iterator[tuple[Path, str]]:
    for folder, task in TASKS.items():
        for file in sorted((place / folder).glob("*.json")):
            yield file, known(file.stem)[0] or task


def read(place: Path, split: str) -> Iterator[dict | ValueError]:
    for file, task in files(place):
        folders, paths = ("images", *known(file.stem)[1]), {}
        named = [s for s in ("train", "val", "test") if file.stem.endswith("_" + s)]
        rows = read_rows(file) if split in (named or ["train"]) else []
        for number, row in enumerate(rows, start=1):
            for made in attempt(f"{file}:{number}", sample, row, row.get("task", task)):
                if isinstance(made, dict):
                    for name in made["images"]:
                        paths[name] = paths.get(name) or picture(place, folders, name)
                    images = [paths[name] for name in made["images"]]
                    made |= {"images": images, "source": f"{file}:{number}"}
                yield made


def matched(place: Path) -> Iterator[str]:
    """A line a file: what its first row calls each field."""
    for file, task in files(place):
        row, name = next(iter(read_rows(file)), {}), file.relative_to(place).as_posix()
        try:
            told = ", ".join(f"{field} <- {alias(row, field)}"
                             for field in fields(row, row.get("task", task)))
        except ValueError as error:
            told = str(error)
        yield f"{name}: {told}"


def picture(place: Path, folders: tuple[str, ...], name: str) -> str:
    """Airport_12.jpg, airport12.tif: also in a folder Airport, airport."""
    label = re.sub(r"_?\d+$", "", Path(name).stem)
    return find(place, [*folders, *(f"{folder}/{label}" for folder in folders if label)], name)
