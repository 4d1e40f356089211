"""RSICD, UCM-Captions, Sydney-Captions: dataset*.json beside one folder of pictures.

    FOLDER/dataset_rsicd.json     {"images": [{"filename", "split", "sentences": [{"raw"}]}]}
    FOLDER/RSICD_images/          or imgs/, ..
    FOLDER/scene_classes.json     optional: {picture: class}
    FOLDER/*_vqa.txt              optional, RSIVQA's lines: picture:question?answer
"""
import json
from collections.abc import Iterator
from pathlib import Path

from formats.class_folder import QUESTION, plain


def matches(place: Path) -> bool:
    return any(place.glob("dataset*.json"))


def read(place: Path, split: str) -> Iterator[dict]:
    """Captions of the split, then classes and theme questions of its pictures if there are any."""
    file = next(place.glob("dataset*.json"))
    rows = json.loads(file.read_text(encoding="utf-8"))["images"]
    folder = next(path.name for path in sorted(place.iterdir()) if path.is_dir())
    names = {row["filename"]: [f"{folder}/{row['filename']}"] for row in rows
             if row["split"] == split}
    for row in rows:
        if row["split"] == split:
            for number, sentence in enumerate(row["sentences"]):
                yield {"images": names[row["filename"]], "turns": (("", sentence["raw"]),),
                       "task": "caption", "source": f"{file}:{row['filename']}:{number}"}
    yield from scenes(place / "scene_classes.json", names)
    for text in sorted(place.glob("*_vqa.txt")):
        yield from questions(text, names)


def scenes(file: Path, names: dict) -> Iterator[dict]:
    labels = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    question = QUESTION.format(", ".join(sorted({plain(label) for label in labels.values()})))
    for name in names:
        if name in labels:
            yield {"images": names[name], "turns": ((question, plain(labels[name])),),
                   "task": "scene", "kind": "scene", "source": f"{file}:{name}"}


def questions(file: Path, names: dict) -> Iterator[dict]:
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        name, _, rest = line.partition(":")
        question, _, answer = rest.rpartition("?")
        if name in names:
            yield {"images": names[name], "turns": ((question + " ?", answer.strip()),),
                   "task": "vqa", "kind": "theme" if "theme" in question else "",
                   "source": f"{file}:{number}"}
