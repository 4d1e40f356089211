"""support/readers/questions.py"""
import re
from collections.abc import Iterator
from pathlib import Path

from support.images.common import PICTURE_SUFFIXES
from support.readers.common import (
    class_name,
    error_context,
    find_picture,
    list_pictures,
    load_json,
    lookup,
    read_head,
    read_split_list,
    require_text,
    rows_or_error,
)

# ---- rsvqa ---------------------------------------------------------------------------------------
# RSVQA-LR and -HR: three JSON files a split beside the pictures.
#
#     FOLDER/LR_split_train_images.json       {"images": [{"id", "active"}]}
#     FOLDER/LR_split_train_questions.json    {"questions": [{"id", "img_id", "type", "question",
#                                              "answers_ids", "active"}]}
#     FOLDER/LR_split_train_answers.json      {"answers": [{"id", "answer", "active"}]}
#     FOLDER/Images_LR/ID.tif                 HR: USGS_split_.., Data/, and test_phili
#
# HR's second test split, Philadelphia, is called test2 too. What is not active is not part of the
# set: such rows hold an id and nothing else.

RSVQA_FOLDERS = ("Images_LR", "Images_HR", "Data", "images", "Images")


def is_rsvqa(place: Path) -> bool:
    return any(place.glob("*split_*_images*.json"))


def read_rsvqa(place: Path, split: str) -> Iterator[dict | ValueError]:
    folders = [name for name in RSVQA_FOLDERS if (place / name).is_dir()] or RSVQA_FOLDERS
    _, images = rsvqa_table(place, split, "images")
    _, answers = rsvqa_table(place, split, "answers")
    file, questions = rsvqa_table(place, split, "questions")
    names: dict[int, str] = {}
    for number, question in questions.items():
        for sample in rows_or_error(f"{file}:{number}", rsvqa_samples, question, images, answers):
            if isinstance(sample, dict):
                i = question["img_id"]
                if i not in names:
                    names[i] = find_picture(place, folders, f"{i}.tif")
                sample |= {"images": [names[i]], "source": f"{file}:{number}"}
            yield sample


def rsvqa_samples(question: dict, images: dict, answers: dict) -> Iterator[dict]:
    """The sample without picture; none where question, picture or answer is not active."""
    if question["active"] and lookup(images, "image", question["img_id"])["active"]:
        found = [lookup(answers, "answer", number) for number in question["answers_ids"]]
        said = [require_text(answer, "answer") for answer in found if answer["active"]]
        if not found:
            raise ValueError("a question without answers")
        for answer in said[:1]:
            yield {"turns": ((require_text(question, "question"), answer),), "task": "vqa",
                   "kind": require_text(question, "type"), "references": tuple(said[1:] and said)}


def rsvqa_table(place: Path, split: str, what: str) -> tuple[Path, dict]:
    """-> the file, and its rows by id."""
    name = f"*split_{'test_phili' if split == 'test2' else split}_{what}.json"
    file = next(iter(sorted(place.glob(name))), None)
    if file is None:
        raise ValueError(f"{place}: no file {name}")
    with error_context(str(file)):
        return file, {row["id"]: row for row in load_json(file)[what]}


# ---- lines ---------------------------------------------------------------------------------------
# RSIVQA's lines, a question each: `picture:question?answer`.
#
# A picture's name has no colon and no space, the question ends at the last question mark.

QUESTION_LINE = re.compile(r"([^:\s]+):(.*\S.*)\?(.*\S.*)")


QUESTION_TYPES = {       # the type of a question: the first that is found in it
    "theme": r"\btheme\b",
    "count": r"^how many\b|\bnumber of\b",
    "location": r"\blocation\b|^where\b",
    "color": r"\bcolou?r\b",
    "presence": r"^(does|do|is|are)\b",
}


def question_files(place: Path) -> list[Path]:
    """The texts in a folder that begin with such a line."""
    return [file for file in sorted(place.glob("*.txt")) if QUESTION_LINE.fullmatch(first_line(file))]


def first_line(file: Path) -> str:
    with file.open(encoding="utf-8", errors="replace") as opened:
        return opened.readline(1000).strip()


def read_question_lines(file: Path) -> Iterator[tuple[str, dict | ValueError]]:
    """-> picture, and the sample's fields without it; "" and the error for a wrong line."""
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        match = QUESTION_LINE.fullmatch(line.strip())
        if match:
            name, question, answer = (part.strip() for part in match.groups())
            yield name, {"turns": ((question + " ?", answer),), "task": "vqa",
                         "kind": question_type(question), "source": f"{file}:{number}"}
        elif line.strip():
            yield "", ValueError(f"{file}:{number}: not picture:question?answer: {line[:60]!r}")


def question_type(question: str) -> str:
    question = question.lower()
    return next((name for name, pattern in QUESTION_TYPES.items() if re.search(pattern, question)), "")


# ---- rsivqa --------------------------------------------------------------------------------------
# RSIVQA: texts of lines `picture:question?answer` beside the pictures.
#
#     FOLDER/ucm_res.txt, ..        a name without train, val or test in it is train
#     FOLDER/imgs/                  one folder of pictures, or for several sets a folder each,
#     FOLDER/UCM/, FOLDER/DOTA/     whose name holds the text's first word (ucm_res.txt: UCM)
#
# A picture is found by its name or, as DOTA's have no suffix, by its stem, also in subfolders.

def is_rsivqa(place: Path) -> bool:
    return place.is_dir() and not any(place.glob("dataset*.json")) and bool(question_files(place))


def read_rsivqa(place: Path, split: str) -> Iterator[dict | ValueError]:
    for file in question_files(place):
        named = re.findall(r"(?<![a-z])(train|val|test)(?![a-z])", file.stem.lower())
        if split in (named or ["train"]):
            folder = rsivqa_folder(place, file)
            paths = index_pictures(place, folder)
            for name, sample in read_question_lines(file):
                images = [paths.get(name, f"{folder}/{name}")]
                yield sample | {"images": images} if isinstance(sample, dict) else sample


def rsivqa_folder(place: Path, file: Path) -> str:
    folders = [path.name for path in sorted(place.iterdir()) if path.is_dir() and has_picture(path)]
    word = file.stem.lower().split("_")[0]
    own = [name for name in folders if word in name.lower()] or folders
    if len(own) > 1:        # names such as 1.tif are in more than one set
        raise ValueError(f"{file}: its pictures may be in {', '.join(own)}; call one of these "
                         f"folders {word}")
    return own[0] if own else "images"


def has_picture(folder: Path) -> bool:
    return any(path.suffix.lower() in PICTURE_SUFFIXES for path in folder.rglob("*"))


def index_pictures(place: Path, folder: str) -> dict[str, str]:
    """Names and stems of all pictures in a folder -> paths; a whole name comes first."""
    paths = [path for path in sorted((place / folder).rglob("*"))
             if path.suffix.lower() in PICTURE_SUFFIXES]
    named = {path.stem: path for path in paths} | {path.name: path for path in paths}
    return {name: path.relative_to(place).as_posix() for name, path in named.items()}


# ---- floodnet ------------------------------------------------------------------------------------
# FloodNet's questions (EarthVision 2021 challenge, track 2): a JSON a split beside the pictures.
#
#     FOLDER/Questions/Training Question.json     {"0": {"Image_ID": "10168.JPG", "Question",
#     FOLDER/Questions/Valid Question.json           "Ground_Truth", "Question_Type"}, ..}
#     FOLDER/Questions/Test_Question.json
#     FOLDER/Images/{Train,Valid,Test}_Image/     also with the questions in FOLDER itself
#
# As the codes that read the set have it; no file of it was at hand here. A test file whose answers
# were held back has rows without "Ground_Truth", which are errors.

FLOODNET_SPLITS = {"train": "Train", "val": "Valid", "test": "Test"}


def is_floodnet(place: Path) -> bool:
    return any('"Question_Type"' in read_head(file) for file in floodnet_files(place))


def floodnet_files(place: Path) -> list[Path]:
    return [file for folder in (place / "Questions", place)
            for file in sorted(folder.glob("*Question*.json"))]


def read_floodnet(place: Path, split: str) -> Iterator[dict | ValueError]:
    word = FLOODNET_SPLITS.get(split, split)
    file = next((file for file in floodnet_files(place) if file.name.startswith(word)), None)
    if file is None:
        raise ValueError(f"{place}: no file Questions/{word}*Question.json")
    folders = [f"{folder}{word}{end}" for folder in ("Images/", "")
               for end in ("_Image", "ing Images", "")] + ["Images", "images"]
    with error_context(str(file)):
        rows = list(load_json(file).items())
    for number, row in rows:
        yield from rows_or_error(f"{file}:{number}", floodnet_sample, row, place, folders, f"{file}:{number}")


def floodnet_sample(row: dict, place: Path, folders: list[str], source: str) -> dict:
    answer = {"Ground_Truth": str(row["Ground_Truth"])}         # a count is a number
    return {"images": [find_picture(place, folders, require_text(row, "Image_ID"))], "task": "vqa",
            "turns": ((require_text(row, "Question"), require_text(answer, "Ground_Truth")),),
            "kind": require_text(row, "Question_Type"), "source": source}


# ---- class_folder --------------------------------------------------------------------------------
# AID, NWPU-RESISC45, RSSCN7, UC Merced: one folder a class, asked with the paper's question.
#
#     FOLDER/CLASS/*.jpg            two classes at least, and no annotations beside them
#     FOLDER/{train,val,test}.txt   optional lists of CLASS/NAME; without them all pictures count

CLASS_QUESTION = ("Classify the image within one of the given classes: {}. "
            "Answer it using the above category word or phrase.")


OTHER_ANNOTATIONS = ("*.json", "*.xml", "*_filename.txt")      # annotations of another layout


def is_class_folder(place: Path) -> bool:
    if not place.is_dir() or any(any(place.glob(other)) for other in OTHER_ANNOTATIONS):
        return False
    folders = class_folders(place)
    return len(folders) > 1 and all(map(list_pictures, folders)) and not question_files(place)


def class_folders(place: Path) -> list[Path]:
    return sorted(path for path in place.iterdir() if path.is_dir() and path.name[0] != ".")


def read_class_folder(place: Path, split: str) -> Iterator[dict | ValueError]:
    classes = {path.name: class_name(path.name) for path in class_folders(place)}
    question = CLASS_QUESTION.format(", ".join(sorted(classes.values())))
    names = read_split_list(place, split)
    if names is None:
        names = [("", f"{label}/{name}") for label in classes for name in list_pictures(place / label)]
    for source, name in names:
        label = name.split("/")[0]
        if label in classes:
            yield {"images": [name], "turns": ((question, classes[label]),), "task": "scene",
                   "kind": "scene", "source": str(place / name)}
        else:
            yield ValueError(f"{source}: {name} is in none of the class folders")
