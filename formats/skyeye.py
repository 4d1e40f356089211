"""SkyEye-968k: a folder a task, JSON lists in it; also what examples/miniworld.py writes.

    FOLDER/{caption,vqa,vg,phrasegrounding,multitask_conversation}/*_{train,val,test}.json
    FOLDER/images/                files without a split in their name are train
"""
from collections.abc import Iterator
from pathlib import Path

from formats.llava import conversation, read_rows

TASKS = {"caption": "caption", "vqa": "vqa", "vg": "refer", "phrasegrounding": "detection",
         "multitask_conversation": "conversation"}
ALIASES = {     # the fields were published without a description: names that are understood
    "image": ("image", "image_id", "img_id", "filename", "file_name", "img", "picture"),
    "caption": ("caption", "text", "sentence", "answer", "ground_truth"),
    "question": ("question", "query", "text"),
    "answer": ("answer", "ground_truth", "label"),
    "expression": ("expression", "sents", "sentence", "description", "question", "text"),
    "phrase": ("phrase", "label", "name", "text", "caption"),
    "box": ("bbox", "bboxes", "box", "boxes", "answer", "ground_truth"),
}


def matches(place: Path) -> bool:
    return sum((place / name).is_dir() for name in TASKS) >= 2


def read(place: Path, split: str) -> Iterator[dict]:
    for folder, task in TASKS.items():
        for file in sorted((place / folder).glob("*.json")):
            named = [s for s in ("train", "val", "test") if file.stem.endswith("_" + s)]
            if split in (named or ["train"]):
                for number, row in enumerate(read_rows(file), start=1):
                    yield sample(row, row.get("task", task), f"{file}:{number}")


def sample(row: dict, task: str, source: str) -> dict:
    def field(name: str):
        alias = next((alias for alias in ALIASES[name] if alias in row), None)
        if alias is None:
            raise ValueError(f"{source}: no field for the {name}; it has {', '.join(row)}")
        return row[alias]

    if "conversations" in row:
        return conversation(row, source, "images/")
    names, kind, boxes = field("image"), row.get("type", ""), []
    names = [names] if isinstance(names, str) else names
    if task == "caption":
        task, turn = "video" if len(names) > 1 else task, ("", field("caption"))
    elif task == "vqa":
        turn = (field("question"), str(field("answer")))
        task = "scene" if kind == "scene" else task
    else:
        boxes = field("box")
        boxes = boxes if isinstance(boxes[0], list) else [boxes]
        turn = (field("expression"), "<bbox>") if task == "refer" else ("<bbox>", field("phrase"))
    if task == "detection":
        turn = (turn[1], f"<p>{turn[1]}</p> " + "<delim>".join(["<bbox>"] * len(boxes)))
    return {"images": ["images/" + name for name in names], "turns": (turn,), "task": task,
            "source": source, "kind": kind, "boxes": tuple(map(tuple, boxes))}
