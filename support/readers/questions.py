"""Readers of question data sets, and of pictures sorted by class.

RSVQA-LR and -HR: three JSON files a split beside the pictures

    FOLDER/LR_split_train_images.json       {"images": [{"id", "active"}]}
    FOLDER/LR_split_train_questions.json    {"questions": [{"id", "img_id", "type", "question",
                                             "answers_ids", "active"}]}
    FOLDER/LR_split_train_answers.json      {"answers": [{"id", "answer", "active"}]}
    FOLDER/Images_LR/ID.tif                 HR: USGS_split_.., Data/, and test_phili

RSIVQA: texts of lines `picture:question?answer` beside the pictures

    FOLDER/ucm_res.txt, ..        a name without train, val or test in it is train
    FOLDER/imgs/                  one folder of pictures, or for several sets a folder each,
    FOLDER/UCM/, FOLDER/DOTA/     whose name holds the text's first word (ucm_res.txt: UCM)

FloodNet (EarthVision 2021 challenge, track 2): one JSON of questions a split

    FOLDER/Questions/Training Question.json     {"0": {"Image_ID": "10168.JPG", "Question",
    FOLDER/Questions/Valid Question.json           "Ground_Truth", "Question_Type"}, ..}
    FOLDER/Questions/Test_Question.json
    FOLDER/Images/{Train,Valid,Test}_Image/     the questions may also be in FOLDER itself

AID, NWPU-RESISC45, RSSCN7, UC Merced: one folder a class, asked with the paper's question

    FOLDER/CLASS/*.jpg            two classes at least, and no annotations beside them
    FOLDER/{train,val,test}.txt   optional lists of CLASS/NAME; without them every split is all
"""
import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath

from support.common import read_json
from support.images.common import PICTURE_SUFFIXES
from support.readers.common import (
    MissingSplit,
    answer_text,
    class_name,
    error_context,
    find_files,
    find_picture,
    is_hidden,
    list_pictures,
    lookup,
    name_inside,
    portable_name,
    read_head,
    read_lines,
    read_split_list,
    require_text,
    skip_bad_row,
    splits_in_name,
    subfolders,
)

# ---- RSVQA ---------------------------------------------------------------------------------------

RSVQA_FOLDERS = ("Images_LR", "Images_HR", "Data", "images", "Images")


def is_rsvqa(place: Path) -> bool:
    return bool(find_files(place, "*split_*_images*.json"))


def read_rsvqa(place: Path, split: str, errors: list[str]) -> Iterator[dict]:
    """What is not active is not part of the set: such rows hold an id and nothing else."""
    if not rsvqa_files(place, split, "*"):
        raise MissingSplit(f"{place}: no file {rsvqa_pattern(split, '*')}")
    folders = [name for name in RSVQA_FOLDERS if (place / name).is_dir()] or RSVQA_FOLDERS
    _, images = rsvqa_table(place, split, "images")
    _, answers = rsvqa_table(place, split, "answers")
    file, questions = rsvqa_table(place, split, "questions")
    path_of: dict[int, str] = {}
    for number, question in questions.items():
        source = f"{file}:{number}"
        with skip_bad_row(source, errors):
            fields = rsvqa_fields(question, images, answers)
            if fields:
                image_id = question["img_id"]
                if image_id not in path_of:
                    path_of[image_id] = find_picture(place, folders, f"{image_id}.tif")
                yield fields | {"images": [path_of[image_id]], "task": "vqa", "source": source}


def rsvqa_fields(question: dict, images: dict, answers: dict) -> dict:
    """Turns, type and references; empty where question, picture or answer is not active."""
    if not question["active"] or not lookup(images, "image", question["img_id"])["active"]:
        return {}
    found = [lookup(answers, "answer", number) for number in question["answers_ids"]]
    if not found:
        raise ValueError("a question without answers")
    texts = [answer_text(answer["answer"], "answer") for answer in found if answer["active"]]
    if not texts:
        return {}
    return {"turns": ((require_text(question, "question"), texts[0]),),
            "kind": require_text(question, "type"),
            "references": tuple(texts) if len(texts) > 1 else ()}


def rsvqa_table(place: Path, split: str, name: str) -> tuple[Path, dict[int, dict]]:
    """-> the file of images, questions or answers, and its rows by id."""
    file = next(iter(rsvqa_files(place, split, name)), None)
    if file is None:
        raise ValueError(f"{place}: no file {rsvqa_pattern(split, name)}")
    with error_context(str(file)):
        return file, {row["id"]: row for row in read_json(file)[name]}


def rsvqa_files(place: Path, split: str, name: str) -> list[Path]:
    return find_files(place, rsvqa_pattern(split, name))


def rsvqa_pattern(split: str, name: str) -> str:
    """HR's second test split, Philadelphia, is test_phili in file names; test2 names it too."""
    return f"*split_{'test_phili' if split == 'test2' else split}_{name}.json"


# ---- RSIVQA --------------------------------------------------------------------------------------

QUESTION_TYPES = {       # the first pattern that is found in a question is its type
    "theme": r"\btheme\b",
    "count": r"^how many\b|\bnumber of\b",
    "location": r"\blocation\b|^where\b",
    "color": r"\bcolou?r\b",
    "presence": r"^(does|do|is|are)\b",
}


def question_type(question: str) -> str:
    question = question.lower()
    types = (name for name, pattern in QUESTION_TYPES.items() if re.search(pattern, question))
    return next(types, "")


def split_question(line: str) -> tuple[str, str, str] | None:
    """picture:question?answer -> its parts; None where it is no such line.

    A picture's name has no colon and no space, the question ends at the last question mark that an
    answer follows.
    """
    name, _, rest = line.partition(":")
    end = rest.rstrip()[:-1].rfind("?")
    question, answer = rest[:max(end, 0)].strip(), rest[end + 1:].strip()
    if not (name and question and answer) or len(name.split()) != 1 or name != name.strip():
        return None
    return portable_name(name), question, answer


def read_question_lines(file: Path, errors: list[str]) -> Iterator[tuple[str, dict]]:
    """-> (picture, the fields of its sample without images) for each line."""
    for number, line in enumerate(read_lines(file), start=1):
        parts = split_question(line.strip())
        if parts:
            name, question, answer = parts
            yield name, {"turns": ((question + " ?", answer),), "task": "vqa",
                         "kind": question_type(question), "source": f"{file}:{number}"}
        elif line.strip():
            errors.append(f"{file}:{number}: not picture:question?answer: {line[:60]!r}")


def question_files(place: Path) -> list[Path]:
    """The texts in a folder whose first line is such a question."""
    return [file for file in find_files(place, "*.txt") if split_question(first_line(file))]


def first_line(file: Path) -> str:
    return read_head(file).split("\n", 1)[0][:1000].strip()


def is_rsivqa(place: Path) -> bool:
    return (place.is_dir() and not find_files(place, "dataset*.json")
            and bool(question_files(place)))


def read_rsivqa(place: Path, split: str, errors: list[str]) -> Iterator[dict]:
    """A picture is found by its name or, as DOTA's have no suffix, its stem, also in subfolders."""
    for file in question_files(place):
        if split in (splits_in_name(file) or ["train"]):
            folder = rsivqa_folder(place, file)
            path_of = index_pictures(place, folder)
            for name, sample in read_question_lines(file, errors):
                key = name_key(name_inside(place, name))
                if key not in path_of:
                    path_of[key] = find_picture(place, [folder], name)
                yield sample | {"images": [path_of[key]]}


def rsivqa_folder(place: Path, file: Path) -> str:
    """The folder with a text's pictures. ValueError: several could be."""
    folders = [path.name for path in subfolders(place) if has_picture(path)]
    word = file.stem.lower().split("_")[0]
    candidates = [name for name in folders if word in name.lower()] or folders
    if len(candidates) > 1:         # names such as 1.tif are in more than one set
        raise ValueError(f"{file}: its pictures may be in {', '.join(candidates)}; call one of "
                         f"these folders {word}")
    return candidates[0] if candidates else "images"


def has_picture(folder: Path) -> bool:
    return any(pictures_below(folder))


def pictures_below(folder: Path) -> Iterator[Path]:
    """The pictures in a folder and its subfolders."""
    return (path for path in folder.rglob("*") if path.suffix.lower() in PICTURE_SUFFIXES
            and not any(map(is_hidden, path.relative_to(folder).parts)))


def index_pictures(place: Path, folder: str) -> dict[str, str]:
    """Keys of the names, and stems, of all pictures in a folder -> their paths; a name wins over a
    stem."""
    paths = sorted(pictures_below(place / folder))
    path_of = {path.stem: path for path in paths} | {name_key(path.name): path for path in paths}
    return {name: path.relative_to(place).as_posix() for name, path in path_of.items()}


def name_key(name: str) -> str:
    """The name with its suffix in small letters: 1.TIF is 1.tif."""
    suffix = PurePath(name).suffix
    return name.removesuffix(suffix) + suffix.lower()


# ---- FloodNet ------------------------------------------------------------------------------------

FLOODNET_SPLITS = {"train": "Train", "val": "Valid", "test": "Test"}


def is_floodnet(place: Path) -> bool:
    return any('"Question_Type"' in read_head(file) for file in floodnet_files(place))


def floodnet_files(place: Path) -> list[Path]:
    return [file for folder in (place / "Questions", place)
            for file in find_files(folder, "*Question*.json")]


def read_floodnet(place: Path, split: str, errors: list[str]) -> Iterator[dict]:
    """After code that reads this data set: its files were not available when this was written.

    A test file whose answers are withheld has rows without "Ground_Truth", which are errors.
    """
    prefix = FLOODNET_SPLITS.get(split, split)
    file = next((file for file in floodnet_files(place)
                 if file.name.lower().startswith(prefix.lower())), None)
    if file is None:
        raise MissingSplit(f"{place}: no file Questions/{prefix}*Question.json")
    folders = [f"{parent}{prefix}{suffix}" for parent in ("Images/", "")
               for suffix in ("_Image", "ing Images", "")] + ["Images", "images"]
    with error_context(str(file)):
        rows = list(read_json(file).items())
    for number, row in rows:
        source = f"{file}:{number}"
        with skip_bad_row(source, errors):
            yield floodnet_sample(row, place, folders, source)


def floodnet_sample(row: dict, place: Path, folders: list[str], source: str) -> dict:
    answer = answer_text(row["Ground_Truth"], "Ground_Truth")       # a count is a number
    return {"images": [find_picture(place, folders, require_text(row, "Image_ID"))], "task": "vqa",
            "turns": ((require_text(row, "Question"), answer),),
            "kind": require_text(row, "Question_Type"), "source": source}


# ---- class folders -------------------------------------------------------------------------------

CLASS_QUESTION = ("Classify the image within one of the given classes: {}. "
                  "Answer it using the above category word or phrase.")
CLASS_LIST = "given classes: ", ". Answer"          # around it; other data sets end it so too

OTHER_ANNOTATIONS = ("*.json", "*.xml", "*_filename.txt")       # of another layout


def class_question(classes: Iterable[str]) -> str:
    """The question that lists these classes, sorted."""
    return CLASS_QUESTION.format(", ".join(sorted(classes)))


def listed_classes(question: str) -> list[str]:
    """The classes that a question lists, as class_question writes them; none in other questions."""
    _, before, rest = question.partition(CLASS_LIST[0])
    classes, after, _ = rest.partition(CLASS_LIST[1])
    return classes.split(", ") if before and after and classes else []


OTHER_TABLES = ("_annotations.coco.json", "metadata.jsonl", "metadata.csv")  # in a split's folder


def is_class_folder(place: Path) -> bool:
    if not place.is_dir() or any(find_files(place, other) for other in OTHER_ANNOTATIONS):
        return False
    folders = class_folders(place)
    if any((folder / name).is_file() for folder in folders for name in OTHER_TABLES):
        return False
    return len(folders) > 1 and all(map(list_pictures, folders)) and not question_files(place)


def class_folders(place: Path) -> list[Path]:
    return subfolders(place)


def read_class_folder(place: Path, split: str, errors: list[str]) -> Iterator[dict]:
    classes = {path.name: class_name(path.name) for path in class_folders(place)}
    question = class_question(classes.values())
    names = read_split_list(place, split)
    if names is None:
        names = [("", f"{folder}/{name}") for folder in classes
                 for name in list_pictures(place / folder)]
    for source, name in names:
        folder = name.split("/")[0]
        if folder not in classes:
            errors.append(f"{source}: {name} is in none of the class folders")
            continue
        with skip_bad_row(source, errors):
            yield {"images": [find_picture(place, ["."], name)], "task": "scene", "kind": "scene",
                   "turns": ((question, classes[folder]),), "source": str(place / name)}
