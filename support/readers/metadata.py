"""Hugging Face's imagefolder: a table of pictures beside them, metadata.jsonl or metadata.csv.

    FOLDER/train/metadata.jsonl   or validation/ (valid/, val/), test/, these also in data/;
    FOLDER/train/A.jpg            or FOLDER/metadata.jsonl, whose rows are of the split that their
                                  file_name begins with (train/A.jpg), else of every split

A row names its picture from the table's folder, and has one or more of

    {"file_name": "A.jpg", "text": "a harbor ."}            or caption; text and captions may be
                                                            lists: each is a caption
    {"file_name": ..,      "question": "what is it?", "answer": "a harbor"}         also of equal
                                                            length: lists; questions, answers
    {"file_name": ..,      "objects": {"bbox": [[x, y, width, height], ..], "categories": [..]}}
                                                            pixels; categories are names, or numbers
                                                            of the lines of FOLDER/classes.txt
    {"file_name": ..,      "conversations": [..]}           or messages, as LLaVA's files have them
"""
import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from support.common import Box, read_text
from support.readers.common import (
    MissingSplit,
    answer_text,
    check_name,
    find_files,
    portable_name,
    read_head,
    read_lines,
    require_text,
    short_repr,
    skip_bad_row,
    splits_in_name,
    subfolders,
)
from support.readers.conversations import (
    check_media_keys,
    conversation_sample,
    read_json_rows,
)
from support.readers.objects import object_samples, sized_box

# ---- files ---------------------------------------------------------------------------------------

TABLES = ("metadata.jsonl", "metadata.csv")


def is_metadata(place: Path) -> bool:
    """A folder of such tables, or one table."""
    return bool(metadata_files(place))


def metadata_files(place: Path) -> list[Path]:
    if place.is_file():
        found = [place] if place.name.lower() in TABLES else []
    elif place.is_dir():
        data = [place / "data"] if (place / "data").is_dir() else []
        folders = [place, *data, *(folder for parent in (place, *data)
                                   for folder in subfolders(parent) if splits_in_name(folder))]
        found = [file for folder in folders for name in TABLES for file in find_files(folder, name)]
    else:
        found = []
    return [file for file in found if "file_name" in read_head(file)]


def read_metadata(place: Path, split: str, errors: list[str]) -> Iterator[dict]:
    files = metadata_files(place)
    folder = place if place.is_dir() else place.parent
    splits_of = {file: splits_in_name(file.parent) if file.parent != folder else []
                 for file in files}
    files = [file for file in files if split in splits_of[file] or not splits_of[file]]
    if not files:
        raise MissingSplit(f"{place}: no {TABLES[0]} of split {split!r}")
    for file in files:
        if any(other.parent == file.parent and other != file for other in files):
            raise ValueError(f"{file.parent}: both {' and '.join(TABLES)} are there; only one can "
                             "be read")
        classes = read_class_list(folder)
        beside = file.parent.relative_to(folder)
        read = read_json_rows if file.suffix.lower() == ".jsonl" else read_csv_rows
        for source, row in read(file, errors):
            with skip_bad_row(source, errors):
                name = portable_name(require_text(row, "file_name"))
                check_name(name)
                first = Path(name).parts[0]
                own = splits_of[file] or splits_in_name(Path(first) if first != name else Path(""))
                if split in own or not own:
                    yield from metadata_samples(row, (beside / name).as_posix(), classes, source)


def read_class_list(folder: Path) -> list[str] | None:
    """The lines of classes.txt, if it is there."""
    file = folder / "classes.txt"
    return [line.strip() for line in read_lines(file)] if file.is_file() else None


def read_csv_rows(file: Path, errors: list[str]) -> Iterator[tuple[str, dict]]:
    """-> (file:line, row); what is empty is left out. ValueError: the file is no such table."""
    text = read_text(file)
    if "\0" in text:
        raise ValueError(f"{file}: not a CSV file: it has NUL characters")
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(rows, [])
        if len(set(header)) < len(header):
            raise ValueError(f"{file}: two columns have the same name")
        for row in rows:
            source = f"{file}:{rows.line_num}"
            if len(row) not in (0, len(header)):
                errors.append(f"{source}: {len(row)} cells for {len(header)} columns")
            elif row:
                cells = zip(header, row, strict=True)
                yield source, {name: cell for name, cell in cells if cell.strip()}
    except csv.Error as error:
        raise ValueError(f"{file}:{rows.line_num}: not a CSV file ({error})") from None


# ---- rows ----------------------------------------------------------------------------------------

CAPTION_KEYS = ("text", "caption", "captions")
QUESTION_KEYS = (("question", "answer"), ("questions", "answers"))
KEYS = ("file_name", *CAPTION_KEYS, *(key for pair in QUESTION_KEYS for key in pair), "objects",
        "conversations", "messages")


def metadata_samples(row: dict, picture: str, classes: Sequence[str] | None, source: str
                     ) -> list[dict]:
    """ValueError: nothing in the row can be learned, or a part of it is wrong."""
    check_media_keys(row, KEYS)
    shared = {"images": [picture], "source": source}
    samples = [shared | {"task": "caption", "turns": (("", text),)}
               for key in CAPTION_KEYS for text in texts_of(row, key)]
    for question_key, answer_key in QUESTION_KEYS:
        questions, answers = texts_of(row, question_key), texts_of(row, answer_key)
        if len(questions) != len(answers):
            raise ValueError(f"{len(questions)} {question_key!r} for {len(answers)} {answer_key!r}")
        samples += [shared | {"task": "vqa", "turns": (turn,)}
                    for turn in zip(questions, answers, strict=True)]
    if row.get("objects"):
        samples += object_samples(picture, row_objects(row["objects"], classes), source)
    if row.get("conversations") or row.get("messages"):
        turns = {key: row[key] for key in ("conversations", "messages") if key in row}
        samples.append(conversation_sample(turns | {"image": picture}, source))
    if not samples and "objects" not in row:
        raise ValueError("nothing to learn: text, question and answer, objects or conversations "
                         f"are expected; it has {', '.join(row)[:200]}")
    return samples


def texts_of(row: dict, key: str) -> list[str]:
    """The text under a key, or its list of texts; [] where it is missing or null."""
    value = row.get(key)
    values = value if isinstance(value, list) else [] if value is None else [value]
    return [answer_text(text, key) for text in values]


def row_objects(objects: object, classes: Sequence[str] | None) -> list[tuple[str, Box]]:
    """-> class and box in pixels of each."""
    if not isinstance(objects, dict) or not isinstance(objects.get("bbox"), list):
        raise ValueError(f'"objects" must be {{"bbox": [..], "categories": [..]}}, not '
                         f"{short_repr(objects)}")
    labels = objects.get("categories", objects.get("category"))
    boxes = objects["bbox"]
    if not isinstance(labels, list) or len(labels) != len(boxes):
        raise ValueError(f"{len(boxes)} boxes need as many categories, not {short_repr(labels)}")
    return [(label_name(label, classes), sized_box(box))
            for label, box in zip(labels, boxes, strict=True)]


def label_name(label: object, classes: Sequence[str] | None) -> str:
    if type(label) is not int:
        return require_text({"category": label}, "category")
    if classes is None:
        raise ValueError(f"category {label} is a number: write the names into classes.txt beside "
                         "the data, one a line")
    if not 0 <= label < len(classes) or not classes[label]:
        raise ValueError(f"category {label} has no line in classes.txt")
    return classes[label]
