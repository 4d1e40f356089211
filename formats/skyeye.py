"""SkyEye-968k: a folder a task, JSON lists in it; also what examples/miniworld.py writes.

    FOLDER/{caption,vqa,vg,phrasegrounding,multitask_conversation}/*_{train,val,test}.json
    FOLDER/images/                or the sets' own folders (formats/skyeye_names.py), also with
                                  a folder a class; files without a split in their name are train
"""
from collections.abc import Iterator
from pathlib import Path

from formats.common import Paths
from formats.llava import read_rows
from formats.skyeye_names import TASKS, alias, fields, known
from formats.skyeye_rows import sample
from formats.wrong import WRONG, named


def matches(place: Path) -> bool:
    return sum((place / name).is_dir() for name in TASKS) >= 2


def files(place: Path) -> Iterator[tuple[Path, str]]:
    for folder, task in TASKS.items():
        for file in sorted((place / folder).glob("*.json")):
            yield file, known(file.stem)[0] or task


def read(place: Path, split: str) -> Iterator[dict | ValueError]:
    for file, task in files(place):
        paths, start = Paths(place, ("images", *known(file.stem)[1])), f"{file}:"
        splits = [s for s in ("train", "val", "test") if file.stem.endswith("_" + s)]
        rows = read_rows(file) if split in (splits or ["train"]) else []
        for number, row in enumerate(rows, start=1):
            source = f"{start}{number}"
            try:
                made = sample(row, task)
            except WRONG as error:
                yield named(source, error)
                continue
            made["images"], made["source"] = [paths[name] for name in made["images"]], source
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
