"""support/readers/conversations.py"""
import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path

from support.readers.common import (
    ROW_ERRORS,
    PicturePaths,
    load_json,
    located,
    require_text,
    rows_or_error,
)

# ---- llava ---------------------------------------------------------------------------------------
# LLaVA's conversations, one JSON list or one object a line (.jsonl): RS-GPT4V, GeoChat, your own.
#
#     [{"image": "a.jpg", or a list, or absent,      pictures are named from the file's folder
#       "conversations": [{"from": "human", "value": "<image>\nwhat is it?"},
#                         {"from": "gpt", "value": "a harbor"}, ..]}, ..]
#
# or as ms-swift has them: "images", "messages" of {"role", "content"}, "objects" (formats/swift.py).

def is_llava(place: Path) -> bool:
    return place.is_file() and place.suffix in (".json", ".jsonl")


def read_llava(place: Path, split: str) -> Iterator[dict | ValueError]:
    """All rows: such a file is one split."""
    for number, row in enumerate(read_json_rows(place), start=1):
        yield from rows_or_error(f"{place}:{number}", conversation_sample, row, f"{place}:{number}")


def read_json_rows(file: Path) -> list[dict]:
    if file.suffix == ".jsonl":
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
            rows = [json.loads(line) for line in lines if line.strip()]
        except ValueError as error:
            raise ValueError(f"{file}: not valid JSON ({error})") from None
    else:
        rows = load_json(file)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{file}: a list of objects is expected")
    return rows


def conversation_sample(row: dict, source: str) -> dict:
    names, (texts, boxes) = named_pictures(row), substitute_refs(read_turns(row), row.get("objects") or {})
    marks = sum(text.count("<image>") for text in texts)
    if marks > len(names):
        raise ValueError(f"{marks} <image> marks for {len(names)} pictures")
    questions = [" ".join(text.replace("<image>", " ").split()) for text in texts[::2]]
    if not all(questions):
        raise ValueError("a question is empty")
    return {"images": names, "task": "conversation", "source": source, "boxes": boxes,
            "turns": tuple(zip(questions, texts[1::2], strict=True)), "kind": row.get("type", "")}


def named_pictures(row: dict) -> list[str]:
    names = row.get("images", row.get("image")) or []
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"the pictures must be a name or a list of names, not {repr(names)[:60]}")
    return names


# ---- swift ---------------------------------------------------------------------------------------
# The turns of a conversation, by LLaVA's keys or ms-swift's, and ms-swift's objects.
#
#     {"conversations": [{"from": "human", "value"}, {"from": "gpt", "value"}, ..]}
#     {"messages": [{"role": "user", "content"}, {"role": "assistant", "content"}, ..],
#      "objects": {"ref": ["the ship", ..], "bbox": [[x1, y1, x2, y2], ..]}}      in pixels
#
# `<ref-object>` in a text stands for the next of ref, `<bbox>` for the next of bbox.

TURN_KEYS = {"messages": ("role", "content"), "conversations": ("from", "value")}


ROLES = {"human": 0, "user": 0, "gpt": 1, "assistant": 1}


REF_MARK = "<ref-object>"


def read_turns(row: dict) -> list[str]:
    """Questions and answers by turns; who speaks may be left out. An empty system text is none."""
    kind = "messages" if "messages" in row else "conversations"
    turns, (who, what) = row.get(kind), TURN_KEYS[kind]
    if not turns or not isinstance(turns, list) or not all(
            isinstance(turn, dict) and isinstance(turn.get(what), str) for turn in turns):
        raise ValueError(f'"{kind}" must be a list of {{"{who}", "{what}"}}')
    turns = [turn for turn in turns if turn.get(who) != "system" or turn[what].strip()]
    for number, turn in enumerate(turns):
        if who in turn and ROLES.get(turn[who]) != number % 2:
            raise ValueError(f"turn {number + 1} is by {turn[who]!r}; human and gpt take turns")
        if not turn[what].strip():
            raise ValueError(f"turn {number + 1} is empty")
    if not turns or len(turns) % 2:
        raise ValueError(f"{len(turns)} turns; human and gpt must come in pairs")
    return [turn[what] for turn in turns]


def substitute_refs(texts: list[str], objects: dict) -> tuple[list[str], tuple]:
    """Write the refs at their marks -> texts, and the boxes of the marks that stay."""
    if objects.get("bbox_type", "real") != "real":
        raise ValueError(f"bbox_type {objects['bbox_type']!r}: boxes must be pixels (\"real\")")
    if any(objects.get("image_id") or ()):
        raise ValueError("a box in a later picture than the first (image_id) is not read")
    refs, boxes = objects.get("ref") or [], objects.get("bbox") or []
    if not all(isinstance(ref, str) for ref in refs):
        raise ValueError('"ref" must be a list of texts')
    for mark, given in ((REF_MARK, refs), ("<bbox>", boxes)):
        marks = sum(text.count(mark) for text in texts)
        if marks != len(given):
            raise ValueError(f"{marks} {mark} marks for {len(given)} given")
    coming = iter(refs)
    texts = [re.sub(REF_MARK, lambda _: next(coming), text) for text in texts]
    return texts, tuple(checked_numbers(box) for box in boxes)


def checked_numbers(box: list) -> tuple[float, ...]:
    if not isinstance(box, list) or [type(side) in (int, float) for side in box] != [True] * 4:
        raise ValueError(f"a box must be four numbers, not {repr(box)[:60]}")
    return tuple(box)


# ---- skyeye --------------------------------------------------------------------------------------
# SkyEye-968k: a folder a task, JSON lists in it; also what examples/miniworld.py writes.
#
#     FOLDER/{caption,vqa,vg,phrasegrounding,multitask_conversation}/*_{train,val,test}.json
#     FOLDER/images/                or the sets' own folders (formats/skyeye_names.py), also with
#                                   a folder a class; files without a split in their name are train

def is_skyeye(place: Path) -> bool:
    return sum((place / name).is_dir() for name in SKYEYE_TASKS) >= 2


def skyeye_files(place: Path) -> Iterator[tuple[Path, str]]:
    for folder, task in SKYEYE_TASKS.items():
        for file in sorted((place / folder).glob("*.json")):
            yield file, file_info(file.stem)[0] or task


def read_skyeye(place: Path, split: str) -> Iterator[dict | ValueError]:
    for file, task in skyeye_files(place):
        paths, start = PicturePaths(place, ("images", *file_info(file.stem)[1])), f"{file}:"
        splits = [s for s in ("train", "val", "test") if file.stem.endswith("_" + s)]
        rows = read_json_rows(file) if split in (splits or ["train"]) else []
        for number, row in enumerate(rows, start=1):
            source = f"{start}{number}"
            try:
                made = skyeye_sample(row, task)
            except ROW_ERRORS as error:
                yield located(source, error)
                continue
            made["images"], made["source"] = [paths[name] for name in made["images"]], source
            yield made


def describe_skyeye_fields(place: Path) -> Iterator[str]:
    """A line a file: what its first row calls each field."""
    for file, task in skyeye_files(place):
        row, name = next(iter(read_json_rows(file)), {}), file.relative_to(place).as_posix()
        try:
            told = ", ".join(f"{field} <- {field_name(row, field)}"
                             for field in required_fields(row, row.get("task", task)))
        except ValueError as error:
            told = str(error)
        yield f"{name}: {told}"


# ---- skyeye_names --------------------------------------------------------------------------------
# SkyEye-968k's 19 files as they were released, and what their rows may call a field.
#
# The fields were published without a description: ALIASES are the names that are understood.

SKYEYE_FILES = {       # how a name begins: the task, where the folder does not tell it, and the pictures
    "caption_ERA": ("video", ("SingleFrames", "SingleFrames/train", "SingleFrames/Train")),
    "caption_NWPU": ("", ("NWPU-RESISC45",)),
    "caption_RSICD": ("", ("RSICD_images",)),
    "caption_RSITMD": ("", ("rsitmd/images",)),
    "caption_Sydney": ("", ("Sydney/images", "Sydney/imgs", "Sydney")),
    "caption_UCM": ("", ("UCMerced", "UCMerced/Images", "UCMerced/imgs")),
    "DIOR_Conversa": ("", ("DIOR/JPEGImages-trainval", "JPEGImages-trainval")),
    "DOTA_Conversa": ("", ("DOTA/images", "DOTA")),
    "Sydney_Conversa": ("", ("Sydney/images", "Sydney/imgs", "Sydney")),
    "UCM_Conversa": ("", ("UCMerced", "UCMerced/Images", "UCMerced/imgs")),
    "diorpg": ("", ("DIOR/JPEGImages-trainval", "JPEGImages-trainval")),
    "rsvg": ("", ("RSVG/images",)),
    "DIORvg": ("", ("DIOR/JPEGImages-trainval", "JPEGImages-trainval")),
    "DOTAvqa": ("", ("DOTA/images", "DOTA")),
    "EARVqa": ("", ("SingleFrames", "SingleFrames/train", "SingleFrames/Train")),
    "RSVQAHR": ("", ("RSVQA_HR/Data",)),
    "RSVQALR": ("", ("RSVQA_LR/Images_LR",)),
    "SydneyVqa": ("", ("Sydney/images", "Sydney/imgs", "Sydney")),
    "UCMvqa": ("", ("UCMerced", "UCMerced/Images", "UCMerced/imgs")),
}


SKYEYE_TASKS = {"caption": "caption", "vqa": "vqa", "vg": "refer", "phrasegrounding": "detection",
         "multitask_conversation": "conversation"}      # of the folders


SKYEYE_FIELDS = {"caption": ("image", "caption"), "video": ("image", "caption"),
          "vqa": ("image", "question", "answer"), "refer": ("image", "expression", "box"),
          "detection": ("image", "phrase", "box"), "identify": ("image", "phrase", "box")}


FIELD_ALIASES = {
    "image": ("image", "image_id", "img_id", "filename", "file_name", "img", "picture"),
    "caption": ("caption", "text", "sentence", "answer", "ground_truth"),
    "question": ("question", "query", "text"),
    "answer": ("answer", "ground_truth", "label"),
    "expression": ("expression", "sents", "sentence", "description", "question", "text"),
    "phrase": ("phrase", "label", "name", "text", "caption"),
    "box": ("bbox", "bboxes", "box", "boxes", "answer", "ground_truth"),
}


def file_info(stem: str) -> tuple[str, tuple[str, ...]]:
    """-> task or "", and the folders of its pictures after images/."""
    return next((SKYEYE_FILES[name] for name in SKYEYE_FILES if stem.startswith(name)), ("", ()))


def required_fields(row: dict | tuple, task: str) -> tuple[str, ...]:
    """What a row of a task must have."""
    talk = "conversations" in row or task not in SKYEYE_FIELDS
    return ("conversations",) if talk else SKYEYE_FIELDS[task]


def field_name(row: dict | tuple, name: str) -> str:
    """What a row calls a field."""
    for found in FIELD_ALIASES.get(name, (name,)):
        if found in row:
            return found
    raise ValueError(f"no field for the {name}; it has {', '.join(row)}")


# ---- skyeye_rows ---------------------------------------------------------------------------------
# The rows of SkyEye-968k's files, whose fields were published without a description.

def skyeye_sample(row: dict, task: str) -> dict:
    """Its pictures are named as the row has them, and it has no source yet."""
    task = row.get("task", task)
    if "conversations" in row:
        return conversation_sample(row, "")
    first, *values = [row[name] for name in field_names(tuple(row), task)]
    images, kind, boxes = [first], "", ()
    if not first or type(first) is not str:
        images = named_pictures({"image": as_text(first) if type(first) is int else first})
        if not images:
            raise ValueError("no picture")
    if task == "vqa":
        turn, kind = (as_text(values[0]), as_text(values[1])), row.get("type", "")
        task = "scene" if kind == "scene" else task
    elif len(values) == 1:
        turn, task = ("", as_text(values[0])), "video" if len(images) > 1 else task
    else:
        phrase, (marks, boxes) = as_text(values[0]), read_boxes(values[1], task == "detection")
        turn = {"refer": (phrase, marks), "identify": (marks, phrase), "detection": (
            phrase, marks if "<p>" in marks else f"<p>{phrase}</p> {marks}")}[task]
    return {"images": images, "turns": (turn,), "task": task, "kind": kind, "boxes": boxes}


@functools.cache                        # a million rows have the same keys
def field_names(keys: tuple[str, ...], task: str) -> list[str]:
    return [field_name(keys, name) for name in required_fields(keys, task)]


def as_text(value) -> str:
    if type(value) is str and value.strip():
        return value
    value = str(value) if type(value) in (int, float) else value
    return require_text({"text": value}, "text")


def read_boxes(value, several: bool) -> tuple[str, tuple]:
    """-> the answer, with a mark a box; a box that is text stays text."""
    if isinstance(value, str) and "{<" in value:
        return value, ()
    boxes = value if isinstance(value, list) and isinstance((value or [0])[0], list) else [value]
    if len(boxes) > 1 and not several:
        raise ValueError(f"{len(boxes)} boxes where one is expected")
    return "<delim>".join(["<bbox>"] * len(boxes)), tuple(checked_numbers(box) for box in boxes)
