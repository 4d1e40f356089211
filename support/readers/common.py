"""support/readers/common.py"""
import contextlib
import json
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from support.common import Box, UserError
from support.images.common import PICTURE_SUFFIXES

# ---- wrong ---------------------------------------------------------------------------------------
# Errors that name their row.

ROW_ERRORS = (AttributeError, LookupError, SyntaxError, TypeError, ValueError)


def located(source: str, error: Exception) -> ValueError:
    """What went wrong with a row, in one line that names it."""
    what = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
    return ValueError(f"{source}: {what}")


@contextlib.contextmanager
def error_context(source: str) -> Iterator[None]:
    try:
        yield
    except ROW_ERRORS as error:
        raise located(source, error) from None


def rows_or_error(source: str, make: Callable, *given) -> list[dict | ValueError]:
    """The samples that `make` has for a row; in their place the error, if the row is wrong."""
    try:
        made = make(*given)
        return [made] if isinstance(made, dict) else list(made)
    except ROW_ERRORS as error:
        return [located(source, error)]


# ---- common --------------------------------------------------------------------------------------
# What several layouts need: JSON, fields of rows, pictures beside a file.

def load_json(file: Path):
    with error_context(f"{file}: not valid JSON"), file.open(encoding="utf-8") as opened:
        return json.load(opened)


def read_head(file: Path) -> str:
    """The beginning, enough to tell what a file is."""
    with file.open(encoding="utf-8", errors="replace") as opened:
        return opened.read(1 << 16)


def require_text(row: dict, name: str) -> str:
    value = row[name]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name!r} must be a text, not {repr(value)[:60]}")
    return value


def lookup(rows: dict, what: str, number: int):
    if number not in rows:
        raise ValueError(f"no {what} has id {number}")
    return rows[number]


def find_picture(place: Path, folders: Sequence[str], name: str) -> str:
    """Which of `folders` has that picture, a suffix added if need be; else where it should be."""
    if Path(name).is_absolute() or ".." in Path(name).parts:
        return name             # to be refused, not looked for
    ends = [""] if name.lower().endswith(PICTURE_SUFFIXES) else ["", *PICTURE_SUFFIXES]
    paths = [Path(folder, name + end) for folder in folders for end in ends]
    return next((path for path in paths if (place / path).is_file()), paths[0]).as_posix()


class PicturePaths(dict):
    """name -> where in `place` that picture lies; each is looked for once."""

    def __init__(self, place: Path, folders: tuple[str, ...]):
        self.place, self.folders = place, folders

    def __missing__(self, name: str) -> str:
        """Airport_12.jpg, airport12.tif: also in a folder Airport, airport."""
        label = re.sub(r"_?\d+$", "", Path(name).stem)
        inner = (f"{folder}/{label}" for folder in self.folders if label)
        self[name] = find_picture(self.place, [*self.folders, *inner], name)
        return self[name]


# ---- lists ---------------------------------------------------------------------------------------
# Lists of the pictures of a split, {train,val,test}.txt: a name a line.

def read_split_list(folder: Path, split: str) -> list[tuple[str, str]] | None:
    """[(where it stands, name)]; None where no split has a list."""
    file = folder / f"{split}.txt"
    if file.is_file():
        lines = file.read_text(encoding="utf-8").splitlines()
        return [(f"{file}:{i}", line.strip()) for i, line in enumerate(lines, 1) if line.strip()]
    if any((folder / f"{name}.txt").is_file() for name in ("train", "val", "test")):
        raise ValueError(f"{file}: no such list, though other splits have theirs")
    return None


def files_of_split(folders: Iterable[Path], split: str, files: list[Path]) -> Iterator[Path | ValueError]:
    """Of a picture each, the annotation files in the split's list; all, where there is no list."""
    lists = (read_split_list(folder, split) for folder in folders)
    names = next((names for names in lists if names is not None), None)
    if names is None:
        yield from files
        return
    known = {file.stem: file for file in files}
    for source, name in names:
        stem = name[:-len(Path(name).suffix)] if Path(name).suffix.lower() in PICTURE_SUFFIXES else name
        yield known.get(stem) or ValueError(f"{source}: {name} has no annotation file")


# ---- table ---------------------------------------------------------------------------------------
# A million samples in little memory, shared by the processes that load rows: texts in one block
# of bytes, the rest in arrays.

FIELD_SEPARATOR, TEXT_SEPARATOR = "\x1f", "\x1e"            # between a row's parts, between the texts of its turns


class RowTable(Sequence):
    """Rows as the formats yield them; table[i] makes the i-th anew."""

    def __init__(self, rows: Iterable[dict] = ()):
        self.block, self.ends = bytearray(), array("Q", [0])
        self.images: list[tuple[str, ...]] = []
        self.image, self.letters = array("I"), array("I")   # of each row: which of `images`
        self.number: dict = {}                              # where in `images` one stands
        for row in rows:
            self.add(row)

    def add(self, row: dict) -> None:
        images = tuple(row["images"])
        number = self.number.setdefault(images or len(self.ends), len(self.images))
        if number == len(self.images):
            self.images.append(images)
        turns, boxes, references = row["turns"], row.get("boxes"), row.get("references")
        rest = json.dumps([boxes or (), references or ()]) if boxes or references else ""
        texts, marks = TEXT_SEPARATOR.join(map(TEXT_SEPARATOR.join, turns)), len(boxes or ())
        if texts.count(TEXT_SEPARATOR) != 2 * len(turns) - 1:
            raise ValueError(f"{row['source']}: the control character {TEXT_SEPARATOR!r} in a text")
        if (found := texts.count("<bbox>")) != marks:
            raise ValueError(f"{row['source']}: {found} <bbox> marks for {marks} boxes")
        parts = (row["task"], row.get("kind", ""), row["source"], rest, texts)
        self.block += FIELD_SEPARATOR.join(parts).encode("utf-8", "surrogatepass")
        self.ends.append(len(self.block))
        self.image.append(number)
        self.letters.append(len(texts) - 2 * len(turns) + 1)

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, i: int) -> dict:
        i = range(len(self))[i]
        parts = self.block[self.ends[i]:self.ends[i + 1]].decode("utf-8", "surrogatepass")
        task, kind, source, rest, said = parts.split(FIELD_SEPARATOR, 4)
        texts = said.split(TEXT_SEPARATOR)
        boxes, references = json.loads(rest) if rest else ((), ())
        return {"images": self.images[self.image[i]], "task": task, "kind": kind, "source": source,
                "turns": tuple(zip(texts[::2], texts[1::2], strict=True)),
                "boxes": tuple(map(tuple, boxes)), "references": tuple(references)}

    def join(self, other: "RowTable") -> None:
        """Put the other's rows behind these; pictures of the two are never the same."""
        shift, first = len(self.block), len(self.images)
        self.block += other.block
        self.ends.extend(end + shift for end in other.ends[1:])
        self.image.extend(number + first for number in other.image)
        self.letters.extend(other.letters)
        self.images += other.images


# ---- class_folder --------------------------------------------------------------------------------

TWO_WORD_CLASSES = ("bare land, baseball diamond, baseball field, basketball court, dense residential, "
          "golf course, golf field, ground track field, medium residential, mobile home park, "
          "parking lot, railway station, sparse residential, storage tank, storage tanks, "
          "tennis court, train station")            # as UC Merced, RSICD and DIOR write them


CLASS_NAMES = {name.replace(" ", ""): name for name in TWO_WORD_CLASSES.split(", ")}


def list_pictures(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir() if file.suffix.lower() in PICTURE_SUFFIXES)


def class_name(name: str) -> str:
    """DenseResidential, dense_residential, denseresidential, aGrass -> dense residential, .. grass
    """
    name = re.sub(r"^[a-z](?=[A-Z])", "", name)
    name = " ".join(re.sub(r"(?<=[a-z])(?=[A-Z])|[_-]", " ", name).lower().split())
    return CLASS_NAMES.get(name, name)


# ---- data ----------------------------------------------------------------------------------------

class DataError(UserError):
    """Data that cannot be used: one line that names the file or row and what to do."""


# ---- data ----------------------------------------------------------------------------------------

# ---- samples -------------------------------------------------------------------------------------

TASK_NAMES = ("caption", "video", "vqa", "scene", "refer", "detection", "identify", "grounding",
              "conversation")


@dataclass(frozen=True)
class Sample:
    """One question or conversation. `<bbox>` in a text stands for the next of `boxes`."""
    images: tuple[str, ...]                     # paths; several for a clip
    turns: tuple[tuple[str, str], ...]          # (question, answer), without template
    task: str                                   # a key of TASKS
    source: str                                 # where the row stands, for messages
    boxes: tuple[Box, ...] = ()                 # pixels of the original picture
    references: tuple[str, ...] = ()            # what counts as right, if more than the answer
    kind: str = ""                              # question type (presence, count, ...)


# ---- data ----------------------------------------------------------------------------------------

class SampleTable(RowTable):
    """Many samples in little memory (formats/table.py); each is made when it is asked for."""

    def add(self, row: dict) -> None:
        if row["task"] not in TASK_NAMES:
            raise ValueError(f"{row['source']}: unknown task {row['task']!r}")
        if not all(map(str.strip, [answer for _, answer in row["turns"]])):
            raise ValueError(f"{row['source']}: an empty answer, there is nothing to learn")
        super().add(row)

    def __getitem__(self, i: int | slice) -> "Sample | list[Sample]":
        if isinstance(i, slice):
            return [self[number] for number in range(len(self))[i]]
        return Sample(**super().__getitem__(i))
