"""FloodNet's questions (EarthVision 2021 challenge, track 2): a JSON a split beside the pictures.

    FOLDER/Questions/Training Question.json     {"0": {"Image_ID": "10168.JPG", "Question",
    FOLDER/Questions/Valid Question.json           "Ground_Truth", "Question_Type"}, ..}
    FOLDER/Questions/Test_Question.json
    FOLDER/Images/{Train,Valid,Test}_Image/     also with the questions in FOLDER itself

As the codes that read the set have it; no file of it was at hand here. A test file whose answers
were held back has rows without "Ground_Truth", which are errors.
"""
from collections.abc import Iterator
from pathlib import Path

from formats.common import find, head, load_json, text
from formats.wrong import attempt, naming

SPLITS = {"train": "Train", "val": "Valid", "test": "Test"}


def matches(place: Path) -> bool:
    return any('"Question_Type"' in head(file) for file in files(place))


def files(place: Path) -> list[Path]:
    return [file for folder in (place / "Questions", place)
            for file in sorted(folder.glob("*Question*.json"))]


def read(place: Path, split: str) -> Iterator[dict | ValueError]:
    word = SPLITS.get(split, split)
    file = next((file for file in files(place) if file.name.startswith(word)), None)
    if file is None:
        raise ValueError(f"{place}: no file Questions/{word}*Question.json")
    folders = [f"{folder}{word}{end}" for folder in ("Images/", "")
               for end in ("_Image", "ing Images", "")] + ["Images", "images"]
    with naming(str(file)):
        rows = list(load_json(file).items())
    for number, row in rows:
        yield from attempt(f"{file}:{number}", sample, row, place, folders, f"{file}:{number}")


def sample(row: dict, place: Path, folders: list[str], source: str) -> dict:
    answer = {"Ground_Truth": str(row["Ground_Truth"])}         # a count is a number
    return {"images": [find(place, folders, text(row, "Image_ID"))], "task": "vqa",
            "turns": ((text(row, "Question"), text(answer, "Ground_Truth")),),
            "kind": text(row, "Question_Type"), "source": source}
