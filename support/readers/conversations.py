"""Readers of conversations: LLaVA's and ms-swift's files, and SkyEye-968k's folder.

LLaVA: one JSON list, or one object a line (.jsonl), as RS-GPT4V, GeoChat and your own data may be

    [{"image": "a.jpg", or a list, or absent,      pictures are named from the file's folder
      "conversations": [{"from": "human", "value": "<image>\\nwhat is it?"},
                        {"from": "gpt", "value": "a harbor"}, ..]}, ..]

ms-swift: the same with other keys, and boxes as numbers (pixels)

    {"images": ["a.jpg"],
     "messages": [{"role": "user", "content"}, {"role": "assistant", "content"}, ..],
     "objects": {"ref": ["the ship", ..], "bbox": [[x1, y1, x2, y2], ..]}}

Both also as FOLDER/{train,val,test}.json or .jsonl, with pictures named from the folder.
`<ref-object>` in a text stands for the next of ref, `<bbox>` for the next of bbox.

SkyEye-968k: one folder a task, JSON lists in it; also what examples/miniworld.py writes

    FOLDER/{caption,vqa,vg,phrasegrounding,multitask_conversation}/*_{train,val,test}.json
    FOLDER/images/                or the data sets' own folders (SKYEYE_FILES), also with one folder
                                  a class; files without a split in their name are train
"""
import functools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from support.common import ABSENT, Box, parse_json, read_text, split_lines
from support.images.common import PICTURE_SUFFIXES, VIDEO_SUFFIXES
from support.readers.common import (
    MissingSplit,
    PicturePaths,
    answer_text,
    find_file,
    find_files,
    optional_text,
    read_head,
    short_repr,
    skip_bad_row,
    to_number,
)

# ---- conversations -------------------------------------------------------------------------------

def is_llava(place: Path) -> bool:
    if place.is_dir():
        return any(llava_file(place, split) for split in ("train", "val", "test"))
    return place.is_file() and place.suffix.lower() in (".json", ".jsonl")


def llava_file(folder: Path, split: str) -> Path | None:
    """{split}.json or .jsonl of conversations in a folder, or None."""
    files = (find_file(folder, f"{split}{suffix}") for suffix in (".json", ".jsonl"))
    return next((file for file in files
                 if re.search('"(conversations|messages)"', read_head(file))), None)


def read_llava(place: Path, split: str, errors: list[str]) -> Iterator[dict]:
    """All rows of a file, which is one split; of a folder those of the split's file."""
    file = llava_file(place, split) if place.is_dir() else place
    if file is None:
        raise MissingSplit(f"{place}: no {split}.json or {split}.jsonl of conversations")
    for source, row in read_json_rows(file, errors):
        with skip_bad_row(source, errors):
            yield conversation_sample(row, source)


def read_json_rows(file: Path, errors: list[str]) -> Iterator[tuple[str, dict]]:
    """A list of objects, or an object a line, whatever the suffix says -> (file:number, row).

    UserError: the file as a whole is not valid.
    """
    text = read_text(file)
    lines = [(i, line) for i, line in enumerate(split_lines(text), start=1) if line.strip()]
    is_lines = bool(lines) and lines[0][1].lstrip().startswith("{") and (
        file.suffix.lower() == ".jsonl" or is_object(lines[0][1]))
    if is_lines:
        for number, line in lines:
            with skip_bad_row(f"{file}:{number}", errors):
                yield f"{file}:{number}", as_object(parse_json_line(line))
        return
    try:
        rows = parse_json(text)
    except ValueError as error:
        raise ValueError(f"{file}: not valid JSON ({error})") from None
    if not isinstance(rows, list):
        raise ValueError(f"{file}: a list of objects is expected")
    for number, row in enumerate(rows, start=1):
        with skip_bad_row(f"{file}:{number}", errors):
            yield f"{file}:{number}", as_object(row)


def is_object(line: str) -> bool:
    try:
        return isinstance(parse_json(line), dict)
    except ValueError:
        return False


def parse_json_line(line: str):
    try:
        return parse_json(line)
    except ValueError as error:
        raise ValueError(f"not valid JSON ({error})") from None


def as_object(row: object) -> dict:
    if not isinstance(row, dict):
        raise ValueError(f"a list of objects is expected, not {short_repr(row)}")
    return row


def conversation_sample(row: dict, source: str) -> dict:
    turns, of_parts = read_turns(row)
    images = media_names(row)
    check_media_keys(row, CONVERSATION_KEYS, bool(images or of_parts))
    if row.get("system"):
        raise ValueError('a "system" text is not read; write it into the first question')
    if of_parts and images:
        raise ValueError("pictures are named beside the conversation and in its contents")
    images = images or of_parts
    texts, boxes = substitute_refs(turns, row.get("objects") or {})
    placeholders = sum(text.count("<image>") + text.count("<video>") for text in texts)
    if placeholders > len(images):
        raise ValueError(f"{placeholders} <image> for {len(images)} pictures")
    questions = [text.replace("<image>", "").replace("<video>", "").strip() for text in texts[::2]]
    for text in (*questions, *texts[1::2]):
        if found := MEDIA_TAG.search(text):
            raise ValueError(f"{found[0][:60]} in a text is not read: a picture is named under "
                             '"image" or "images", and <image> may stand for it in a question')
    if not all(questions):
        raise ValueError("a question is empty")
    return {"images": images, "task": "conversation", "source": source, "boxes": boxes,
            "turns": tuple(zip(questions, texts[1::2], strict=True)),
            "kind": optional_text(row, "type")}


# ---- pictures and clips of a row -----------------------------------------------------------------

CONVERSATION_KEYS = ("image", "images", "video", "videos", "conversations", "messages", "objects",
                     "id", "type", "task")
MEDIA_WORDS = set("image images img imgs picture pictures pic pics photo photos video videos clip "
                  "clips frame frames audio audios sound media file files filename filenames "
                  "filepath path paths mask masks depth".split())
METADATA_WORDS = set("id ids size sizes width height shape count num source url urls license date "
                     "split index hash type format caption captions description text label class "
                     "category".split())
LINK_WORDS = {"id", "ids", "url", "urls"}       # of these words, which may name a picture
MEDIA_SUFFIXES = (*PICTURE_SUFFIXES, *VIDEO_SUFFIXES, *(
    ".mkv .webm .m4v .mpg .mpeg .wmv .wav .mp3 .flac .ogg .m4a .npy .npz .img .ecw .hdf .h5 .nc "
    ".heic .avif .svg .las .laz .ply .pcd").split())
# What other programs write for a picture in a text.
MEDIA_TAG = re.compile(
    r"</?\s?\|?(?:img|images?|videos?|audios?|speech|sound|vision|point_?cloud|imagehere|videohere)"
    r"(?:_?[0-9]{1,9}|_[a-z_]{1,30})?\b[^<>]{0,300}>|!\[[^\[\]]{0,300}\]\(|\[IMG\]",
    re.IGNORECASE)


def check_media_keys(row: dict, known: Iterable[str], has_pictures: bool = True) -> None:
    """ValueError: a key looks like one of media and is none of those that are read.

    has_pictures: whether others are read. Then a picture's id or address beside it is no fault.
    """
    for key, value in row.items():
        if key not in known and looks_like_media(key, value, has_pictures):
            raise ValueError(f"the key {key[:60]!r} is not read: pictures are expected under "
                             '"image" or "images", clips under "video" or "videos"')


def looks_like_media(key: str, value: object, has_pictures: bool) -> bool:
    if not value or not isinstance(value, str | list | dict):
        return False
    words = [word.lower() for word in re.findall("[A-Z]?[a-z]+|[A-Z]+", key[:200])]
    of_media = bool(MEDIA_WORDS & set(words))
    if words and words[-1] in METADATA_WORDS:
        is_link = of_media and words[-1] in LINK_WORDS
        return not has_pictures and (is_link or names_media(value))
    return of_media or names_media(value)


def names_media(value: object, depth: int = 3) -> bool:
    """Whether a value is, or holds within so many lists and objects, the name of such a file."""
    if isinstance(value, str):
        name = re.split("[?#]", value[-300:].lower())[0]
        return name.endswith(MEDIA_SUFFIXES) or value.startswith(("data:image", "data:video",
                                                                  "data:audio"))
    if not depth or not isinstance(value, list | dict):
        return False
    items = value.values() if isinstance(value, dict) else value
    return any(names_media(item, depth - 1) for item in items)


def media_names(row: dict) -> list[str]:
    """The pictures, then the clips. ValueError where both keys of one kind are there."""
    names = []
    for one, several in (("image", "images"), ("video", "videos")):
        if row.get(one) and row.get(several) and row[one] != row[several]:
            raise ValueError(f'both "{one}" and "{several}" are there; only one can be read')
        names += names_of(row.get(several) or row.get(one) or [])
    return names


def image_names(row: dict) -> list[str]:
    return names_of(row.get("images", row.get("image")) or [])


def names_of(names: object) -> list[str]:
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"the pictures must be a name or a list of names, not {short_repr(names)}")
    return names


# ---- turns ---------------------------------------------------------------------------------------

TURN_KEYS = {"messages": ("role", "content"), "conversations": ("from", "value")}
ROLES = {"human": 0, "user": 0, "gpt": 1, "assistant": 1}


def read_turns(row: dict) -> tuple[list[str], list[str]]:
    """-> question, answer, question, answer, .., and the pictures that their contents name.

    Roles may be left out, and an empty system text is ignored. An answer may be a number.
    ValueError: they do not alternate, or one is empty.
    """
    if row.get("messages") and row.get("conversations"):
        raise ValueError('both "messages" and "conversations" are there; only one can be read')
    key = "messages" if "messages" in row else "conversations"
    role_key, text_key = TURN_KEYS[key]
    turns = row.get(key)
    if not turns or not isinstance(turns, list) or not all(
            isinstance(turn, dict) and text_key in turn for turn in turns):
        raise ValueError(f'"{key}" must be a list of {{"{role_key}", "{text_key}"}}')
    turns = [turn for turn in turns if turn.get(role_key) != "system"
             or turn[text_key] not in ("", None)]
    texts, names = [], []
    for number, turn in enumerate(turns):
        role = turn.get(role_key)
        if role_key in turn and (not isinstance(role, str) or ROLES.get(role) != number % 2):
            raise ValueError(f"turn {number + 1} is by {short_repr(role)}; human and gpt must "
                             "alternate")
        check_media_keys(turn, (role_key, text_key), has_pictures=bool(media_names(row)))
        texts.append(turn_text(turn[text_key], number, names))
    if not turns or len(turns) % 2:
        raise ValueError(f"{len(turns)} turns; human and gpt must come in pairs")
    return texts, names


def turn_text(content: object, number: int, names: list[str]) -> str:
    """The text of turn `number`; pictures that are named in its parts are appended to `names`."""
    if isinstance(content, list):
        content = "".join(part_text(part, names) for part in content)
    elif number % 2 and not isinstance(content, str):
        content = answer_text(content, f"turn {number + 1}")
    if not isinstance(content, str):
        raise ValueError(f"turn {number + 1} must be a text, not {short_repr(content)}")
    if not content.strip():
        raise ValueError(f"turn {number + 1} is empty")
    return content


def part_text(part: object, names: list[str]) -> str:
    """A content part, {"type": "text" or "image" or "video", ..} -> its text or placeholder."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        check_media_keys(part, ("type", "text"), has_pictures=False)
        return part["text"]
    if kind in ("image", "video"):
        check_media_keys(part, ("type", kind), has_pictures=bool(part.get(kind)))
        names += names_of(part.get(kind) or [])
        return f"<{kind}>"
    raise ValueError("a part of a content must be {\"type\": \"text\", \"text\"} or {\"type\": "
                     f"\"image\", \"image\"}}, not {short_repr(part)}")


def substitute_refs(texts: list[str], objects: dict) -> tuple[list[str], tuple[Box, ...]]:
    """objects: ms-swift's -> texts with each <ref-object> written out, and the box of each <bbox>.
    """
    if objects.get("bbox_type", "real") != "real":
        raise ValueError(f"bbox_type {objects['bbox_type']!r}: boxes must be pixels (\"real\")")
    if any(objects.get("image_id") or ()):
        raise ValueError("a box in a later picture than the first (image_id) is not supported")
    refs, boxes = objects.get("ref") or [], objects.get("bbox") or []
    if not all(isinstance(ref, str) for ref in refs):
        raise ValueError('"ref" must be a list of texts')
    for placeholder, values in (("<ref-object>", refs), ("<bbox>", boxes)):
        found = sum(text.count(placeholder) for text in texts)
        if found != len(values):
            raise ValueError(f"{found} {placeholder} in the texts for {len(values)} in the objects")
    remaining = iter(refs)
    texts = [re.sub("<ref-object>", lambda _: next(remaining), text) for text in texts]
    return texts, tuple(four_numbers(box) for box in boxes)


def four_numbers(box: list) -> Box:
    if not isinstance(box, list) or len(box) != 4:
        raise ValueError(f"a box must be four numbers, not {short_repr(box)}")
    return tuple(map(to_number, box))


# ---- SkyEye-968k: its files ----------------------------------------------------------------------

SKYEYE_TASKS = {"caption": "caption", "vqa": "vqa", "vg": "refer", "phrasegrounding": "detection",
                "multitask_conversation": "conversation"}       # by folder

# The 19 files as released: how a name begins -> the task, where it is not the folder's, and the
# folders of its pictures.
SKYEYE_FILES = {
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


def is_skyeye(place: Path) -> bool:
    return sum((place / folder).is_dir() for folder in SKYEYE_TASKS) >= 2


def skyeye_files(place: Path) -> Iterator[tuple[Path, str]]:
    """-> each file, and the task of its rows."""
    for folder, task in SKYEYE_TASKS.items():
        for file in find_files(place / folder, "*.json"):
            yield file, file_info(file.stem)[0] or task


def file_info(stem: str) -> tuple[str, tuple[str, ...]]:
    """-> task or "", and the folders of its pictures beside images/."""
    return next((SKYEYE_FILES[name] for name in SKYEYE_FILES if stem.startswith(name)), ("", ()))


def read_skyeye(place: Path, split: str, errors: list[str]) -> Iterator[dict]:
    for file, task in skyeye_files(place):
        stem = file.stem.lower()
        splits = [s for s in ("train", "val", "test") if stem.endswith("_" + s)] or ["train"]
        if split not in splits:
            continue
        paths = PicturePaths(place, ("images", *file_info(file.stem)[1]))
        for source, row in read_json_rows(file, errors):
            with skip_bad_row(source, errors):
                sample = skyeye_sample(row, task)
                sample["images"] = [paths[name] for name in sample["images"]]
                sample["source"] = source
                yield sample


def describe_skyeye_fields(place: Path) -> Iterator[str]:
    """One line a file: the names of the fields in its first row."""
    for file, task in skyeye_files(place):
        _, row = next(read_json_rows(file, []), ("", {}))
        try:
            fields = required_fields(row, row.get("task", task))
            found = ", ".join(f"{field} <- {field_name(row, field)}" for field in fields)
        except ValueError as error:
            found = str(error)
        yield f"{file.relative_to(place).as_posix()}: {found}"


# ---- SkyEye-968k: its rows -----------------------------------------------------------------------
# The fields were published without a description: FIELD_ALIASES are the names that are understood.

SKYEYE_FIELDS = {"caption": ("image", "caption"), "video": ("image", "caption"),
                 "grounding": ("image", "caption"),
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
SKYEYE_KEYS = {"task", "type", "id"}.union(*FIELD_ALIASES.values())


def required_fields(row: dict | tuple, task: str) -> tuple[str, ...]:
    """What a row of a task must have; row: the row or its keys."""
    if "conversations" in row or task not in SKYEYE_FIELDS:
        return ("conversations",)
    return SKYEYE_FIELDS[task]


def field_name(row: dict | tuple, field: str) -> str:
    """The row's name of a field. ValueError: it has none."""
    for name in FIELD_ALIASES.get(field, (field,)):
        if name in row:
            return name
    raise ValueError(f"no field for the {field}; it has {', '.join(row)}")


@functools.cache                        # a million rows have the same keys
def field_names(keys: tuple[str, ...], task: str) -> list[str]:
    return [field_name(keys, field) for field in required_fields(keys, task)]


def skyeye_sample(row: dict, task: str) -> dict:
    """The fields of a Sample, without source, its pictures named as in the row."""
    task = row.get("task", task)
    if not isinstance(task, str):
        raise ValueError(f"unknown task {short_repr(task)}")
    if "conversations" in row:
        return conversation_sample(row, "")
    if not row.keys() <= SKYEYE_KEYS:
        check_media_keys(row, SKYEYE_KEYS, has_pictures=True)
    image, *values = [row[name] for name in field_names(tuple(row), task)]
    images = skyeye_images(image)
    kind, boxes = "", ()
    if task == "vqa":
        turn = (as_text(values[0]), as_text(values[1]))
        kind = optional_text(row, "type")
        task = "scene" if kind == "scene" else task
    elif task in ("caption", "video"):
        turn = ("", as_text(values[0]))
        task = "video" if len(images) > 1 else task
    elif task == "grounding":                   # a caption with a <bbox> for each of its boxes
        turn = ("", as_text(values[0]))
        boxes = tuple(map(four_numbers, row.get("bboxes") or ()))
    else:
        phrase = as_text(values[0])
        answer, boxes = read_boxes(values[1], several=task == "detection")
        if answer == ABSENT and task not in ("refer", "detection"):
            raise ValueError("no box")
        if task == "detection" and "<p>" not in answer and answer != ABSENT:
            answer = f"<p>{phrase}</p> {answer}"
        turn = (answer, phrase) if task == "identify" else (phrase, answer)
    return {"images": images, "turns": (turn,), "task": task, "kind": kind, "boxes": boxes}


def skyeye_images(value: str | int | list) -> list[str]:
    if type(value) is str and value:            # nearly every row
        return [value]
    images = image_names({"image": as_text(value) if type(value) is int else value})
    if not images:
        raise ValueError("no picture")
    return images


def as_text(value: str | int | float) -> str:
    if type(value) is str and value.strip():
        return value
    return answer_text(value, "text")


def read_boxes(value: list | str, several: bool) -> tuple[str, tuple[Box, ...]]:
    """-> the answer, with a <bbox> for each box, and the boxes; boxes that are text stay text.
    An empty list says that there is none."""
    if isinstance(value, str) and "{<" in value:
        return value, ()
    if value == []:
        return ABSENT, ()
    is_list_of_boxes = isinstance(value, list) and value and isinstance(value[0], list)
    boxes = value if is_list_of_boxes else [value]
    if len(boxes) > 1 and not several:
        raise ValueError(f"{len(boxes)} boxes where one is expected")
    return "<delim>".join(["<bbox>"] * len(boxes)), tuple(four_numbers(box) for box in boxes)
