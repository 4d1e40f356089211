"""NWPU-Captions: one JSON of classes beside NWPU-RESISC45's class folders.

    FOLDER/dataset_nwpu.json      {class: [{"filename", "split", "raw", "raw_1", .. "raw_4"}]}
    FOLDER/CLASS/                 or in NWPU-RESISC45/, NWPU_images/, images/
"""
from collections.abc import Iterator
from pathlib import Path

from formats.common import find, head, load_json, text
from formats.wrong import attempt, naming

FOLDERS = ("", "NWPU-RESISC45", "NWPU_images", "images")
SENTENCES = ("raw", "raw_1", "raw_2", "raw_3", "raw_4")


def matches(place: Path) -> bool:
    return bool(files(place))


def files(place: Path) -> list[Path]:
    return [file for file in sorted(place.glob("dataset*.json")) if '"raw_1"' in head(file)]


def read(place: Path, split: str) -> Iterator[dict | ValueError]:
    file = files(place)[0]
    with naming(str(file)):
        classes = list(load_json(file).items())
    for label, rows in classes:
        folders = [*(f"{folder}/{label}".lstrip("/") for folder in FOLDERS), "images"]
        for number, row in enumerate(rows, start=1):
            source = f"{file}:{label}:{number}"
            yield from attempt(source, captions, row, split, place, folders, source)


def captions(row: dict, split: str, place: Path, folders: list[str], source: str
             ) -> Iterator[dict]:
    if row["split"] == split:
        picture = find(place, folders, text(row, "filename"))
        for number, name in enumerate(SENTENCES):
            yield {"images": [picture], "turns": (("", text(row, name)),), "task": "caption",
                   "source": f"{source}:{number}"}
