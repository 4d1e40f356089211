"""RSICD, RSITMD, UCM-Captions, Sydney-Captions: dataset*.json beside one folder of pictures.

    FOLDER/dataset_rsicd.json     {"images": [{"filename", "split", "sentences": [{"raw"}]}]}
    FOLDER/RSICD_images/          or images/, imgs/, ..
    FOLDER/scene_classes.json     optional: {picture: class}
    FOLDER/*_vqa.txt              optional, RSIVQA's lines: picture:question?answer

The split is the JSON's; lists beside it are not asked (RSICD's have val and test swapped).
"""
from collections.abc import Iterator
from pathlib import Path

from formats import lines
from formats.class_folder import QUESTION, pictures, plain
from formats.common import head, load_json, text
from formats.wrong import attempt, naming


def matches(place: Path) -> bool:
    return bool(files(place))


def files(place: Path) -> list[Path]:
    return [file for file in sorted(place.glob("dataset*.json")) if '"sentences"' in head(file)]


def read(place: Path, split: str) -> Iterator[dict | ValueError]:
    """Captions of the split, then classes and theme questions of its pictures if there are any."""
    file, names = files(place)[0], {}
    folder = next((path.name for path in sorted(place.iterdir())
                   if path.is_dir() and pictures(path)), "images")
    with naming(str(file)):
        rows = list(load_json(file)["images"])
    for number, row in enumerate(rows, start=1):
        for sample in attempt(f"{file}:{number}", captions, row, split, folder, file):
            if isinstance(sample, dict):
                names[row["filename"]] = sample["images"]
            yield sample
    yield from scenes(place / "scene_classes.json", names)
    for questions in sorted(place.glob("*_vqa.txt")):
        for name, sample in lines.read(questions):
            if name in names or not name:
                yield sample | {"images": names[name]} if name else sample


def captions(row: dict, split: str, folder: str, file: Path) -> Iterator[dict]:
    if row["split"] == split:
        name = text(row, "filename")
        for number, sentence in enumerate(row["sentences"]):
            yield {"images": [f"{folder}/{name}"], "turns": (("", text(sentence, "raw")),),
                   "task": "caption", "source": f"{file}:{name}:{number}"}


def scenes(file: Path, names: dict) -> Iterator[dict]:
    labels = load_json(file) if file.is_file() else {}
    question = QUESTION.format(", ".join(sorted({plain(label) for label in labels.values()})))
    for name in names:
        if name in labels:
            yield {"images": names[name], "turns": ((question, plain(labels[name])),),
                   "task": "scene", "kind": "scene", "source": f"{file}:{name}"}
