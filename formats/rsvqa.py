"""RSVQA-LR and -HR: three JSON files a split beside the pictures.

    FOLDER/LR_split_train_images.json       {"images": [{"id", "active"}]}
    FOLDER/LR_split_train_questions.json    {"questions": [{"id", "img_id", "type", "question",
                                             "answers_ids", "active"}]}
    FOLDER/LR_split_train_answers.json      {"answers": [{"id", "answer", "active"}]}
    FOLDER/Images_LR/ID.tif                 HR: USGS_split_.., Data/, and test_phili

HR's second test split, Philadelphia, is called test2 too. What is not active is not part of the
set: such rows hold an id and nothing else.
"""
from collections.abc import Iterator
from pathlib import Path

from formats.common import find, load_json, member, text
from formats.wrong import attempt, naming

FOLDERS = ("Images_LR", "Images_HR", "Data", "images", "Images")


def matches(place: Path) -> bool:
    return any(place.glob("*split_*_images*.json"))


def read(place: Path, split: str) -> Iterator[dict | ValueError]:
    folders = [name for name in FOLDERS if (place / name).is_dir()] or FOLDERS
    _, images = table(place, split, "images")
    _, answers = table(place, split, "answers")
    file, questions = table(place, split, "questions")
    names: dict[int, str] = {}
    for number, question in questions.items():
        for sample in attempt(f"{file}:{number}", samples, question, images, answers):
            if isinstance(sample, dict):
                i = question["img_id"]
                if i not in names:
                    names[i] = find(place, folders, f"{i}.tif")
                sample |= {"images": [names[i]], "source": f"{file}:{number}"}
            yield sample


def samples(question: dict, images: dict, answers: dict) -> Iterator[dict]:
    """The sample without picture; none where question, picture or answer is not active."""
    if question["active"] and member(images, "image", question["img_id"])["active"]:
        found = [member(answers, "answer", number) for number in question["answers_ids"]]
        said = [text(answer, "answer") for answer in found if answer["active"]]
        if not found:
            raise ValueError("a question without answers")
        for answer in said[:1]:
            yield {"turns": ((text(question, "question"), answer),), "task": "vqa",
                   "kind": text(question, "type"), "references": tuple(said[1:] and said)}


def table(place: Path, split: str, what: str) -> tuple[Path, dict]:
    """-> the file, and its rows by id."""
    name = f"*split_{'test_phili' if split == 'test2' else split}_{what}.json"
    file = next(iter(sorted(place.glob(name))), None)
    if file is None:
        raise ValueError(f"{place}: no file {name}")
    with naming(str(file)):
        return file, {row["id"]: row for row in load_json(file)[what]}
