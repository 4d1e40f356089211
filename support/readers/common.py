"""What every reader shares: the samples it makes, and the errors, fields and files it meets.

A reader turns one published layout of a data set into samples. It is a generator of the fields of
a Sample (a dict), with pictures named from the data set's folder. A row that is wrong adds a line
to `errors` and is skipped; a file that is wrong raises ValueError.
"""
import contextlib
import json
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from support.common import Box, UserError
from support.images.common import PICTURE_SUFFIXES


class DataError(UserError):
    """Data that cannot be used: one line that names the file or row and what to do."""


# ---- samples -------------------------------------------------------------------------------------

TASK_NAMES = ("caption", "video", "vqa", "scene", "refer", "detection", "identify", "grounding",
              "conversation")


@dataclass(frozen=True)
class Sample:
    """One question or conversation. `<bbox>` in a text stands for the next of `boxes`."""
    images: tuple[str, ...]                     # paths; several for a clip
    turns: tuple[tuple[str, str], ...]          # (question, answer), without template
    task: str                                   # one of TASK_NAMES
    source: str                                 # file and row, for messages
    boxes: tuple[Box, ...] = ()                 # pixels of the original picture
    references: tuple[str, ...] = ()            # all correct answers, if there are several
    kind: str = ""                              # question type (presence, count, ...)


FIELD_SEPARATOR = "\x1f"        # between the fields of a sample in SampleTable.text
TURN_SEPARATOR = "\x1e"         # between the texts of its turns


class SampleTable(Sequence):
    """A million samples in 130 bytes each: their texts in one bytearray, the rest in arrays.

    The processes that load batches are forked. They share memory with their parent only as long as
    nobody writes to it, and Python writes to every object that it touches (its reference count): a
    list of a million Samples would soon be in memory once for each process.
    """

    def __init__(self, rows: Iterable[dict] = ()):
        self.text = bytearray()
        self.ends = array("Q", [0])                         # where each sample's text ends
        self.image_sets: list[tuple[str, ...]] = []         # the pictures that samples are about
        self.image_set = array("I")                         # of each sample: which of image_sets
        self.num_chars = array("I")                         # of each sample's turns
        self.number_of: dict[tuple[str, ...] | int, int] = {}       # where in image_sets one is
        for row in rows:
            self.add(row)

    def add(self, row: dict) -> None:
        """row: the fields of a Sample. ValueError: it cannot be learned or stored."""
        images, turns, source = tuple(row["images"]), row["turns"], row["source"]
        boxes, references = row.get("boxes") or (), row.get("references") or ()
        if row["task"] not in TASK_NAMES:
            raise ValueError(f"{source}: unknown task {row['task']!r}")
        if not all(answer.strip() for _, answer in turns):
            raise ValueError(f"{source}: an empty answer, there is nothing to learn")
        texts = TURN_SEPARATOR.join(map(TURN_SEPARATOR.join, turns))
        if texts.count(TURN_SEPARATOR) != 2 * len(turns) - 1:
            raise ValueError(f"{source}: the control character {TURN_SEPARATOR!r} in a text")
        if (found := texts.count("<bbox>")) != len(boxes):
            raise ValueError(f"{source}: {found} <bbox> for {len(boxes)} boxes")
        lists = json.dumps([boxes, references]) if boxes or references else ""
        fields = (row["task"], row.get("kind", ""), source, lists, texts)
        self.text += FIELD_SEPARATOR.join(fields).encode("utf-8", "surrogatepass")
        # Samples without a picture have nothing in common: each gets a number of its own.
        number = self.number_of.setdefault(images or len(self), len(self.image_sets))
        if number == len(self.image_sets):
            self.image_sets.append(images)
        self.image_set.append(number)
        self.ends.append(len(self.text))
        self.num_chars.append(len(texts) - 2 * len(turns) + 1)

    def __len__(self) -> int:
        return len(self.image_set)

    def __getitem__(self, i: int | slice) -> "Sample | list[Sample]":
        """Each Sample is made when it is asked for."""
        if isinstance(i, slice):
            return [self[number] for number in range(len(self))[i]]
        i = range(len(self))[i]
        fields = self.text[self.ends[i]:self.ends[i + 1]].decode("utf-8", "surrogatepass")
        task, kind, source, lists, texts = fields.split(FIELD_SEPARATOR, 4)
        texts = texts.split(TURN_SEPARATOR)
        boxes, references = json.loads(lists) if lists else ((), ())
        return Sample(self.image_sets[self.image_set[i]],
                      tuple(zip(texts[::2], texts[1::2], strict=True)), task, source,
                      tuple(map(tuple, boxes)), tuple(references), kind)

    def join(self, other: "SampleTable") -> None:
        """Append the other's samples; those of the two never count as about the same pictures."""
        text_end, num_sets = len(self.text), len(self.image_sets)
        self.text += other.text
        self.ends.extend(end + text_end for end in other.ends[1:])
        self.image_sets += other.image_sets
        self.image_set.extend(number + num_sets for number in other.image_set)
        self.num_chars.extend(other.num_chars)


# ---- errors --------------------------------------------------------------------------------------

ROW_ERRORS = (AttributeError, LookupError, SyntaxError, TypeError, ValueError)


def describe_error(source: str, error: Exception) -> str:
    """What is wrong with a row, in one line that names it."""
    reason = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
    return f"{source}: {reason}"


@contextlib.contextmanager
def error_context(source: str) -> Iterator[None]:
    """What goes wrong inside becomes a ValueError that begins with `source`."""
    try:
        yield
    except ROW_ERRORS as error:
        raise ValueError(describe_error(source, error)) from None


class skip_bad_row:
    """`with skip_bad_row(source, errors):` what goes wrong inside is appended to `errors`.

    A class and no generator: a million rows are read inside of it.
    """

    def __init__(self, source: str, errors: list[str]):
        self.source, self.errors = source, errors

    def __enter__(self) -> None:
        pass

    def __exit__(self, _, error: BaseException | None, __) -> bool:
        if not isinstance(error, ROW_ERRORS):
            return False
        self.errors.append(describe_error(self.source, error))
        return True


# ---- fields of a row -----------------------------------------------------------------------------

def require_text(row: dict, name: str) -> str:
    """row[name]. ValueError: it is no text, or an empty one."""
    value = row[name]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name!r} must be a text, not {repr(value)[:60]}")
    return value


def lookup(rows: dict, what: str, number: int):
    """rows[number]. ValueError: there is no such `what`."""
    if number not in rows:
        raise ValueError(f"no {what} has id {number}")
    return rows[number]


# ---- files and pictures --------------------------------------------------------------------------

def read_head(file: Path) -> str:
    """The first 64 K characters, enough to recognize a layout."""
    with file.open(encoding="utf-8", errors="replace") as opened:
        return opened.read(1 << 16)


def list_pictures(folder: Path) -> list[str]:
    """The sorted names of the pictures in a folder."""
    return sorted(file.name for file in folder.iterdir()
                  if file.suffix.lower() in PICTURE_SUFFIXES)


def picture_folder(place: Path) -> str:
    """The name of the first folder in `place` that has pictures; "images" if none has."""
    folders = (path for path in sorted(place.iterdir()) if path.is_dir())
    return next((path.name for path in folders if list_pictures(path)), "images")


def leaves_folder(name: str) -> bool:
    """Whether a picture's name would lead out of the data set's folder."""
    return Path(name).is_absolute() or ".." in Path(name).parts


def find_picture(place: Path, folders: Sequence[str], name: str) -> str:
    """The path, from `place`, of a picture that is in one of `folders`, a suffix added if need be;
    where it should be if it is in none."""
    if leaves_folder(name):
        return name             # is refused later, and not searched for
    has_suffix = name.lower().endswith(PICTURE_SUFFIXES)
    suffixes = [""] if has_suffix else ["", *PICTURE_SUFFIXES]
    paths = [Path(folder, name + suffix) for folder in folders for suffix in suffixes]
    return next((path for path in paths if (place / path).is_file()), paths[0]).as_posix()


class PicturePaths(dict):
    """name -> the path of that picture, from `place`; each is searched for once."""

    def __init__(self, place: Path, folders: tuple[str, ...]):
        self.place, self.folders = place, folders

    def __missing__(self, name: str) -> str:
        """Airport_12.jpg, airport12.tif: also in a folder Airport, airport of each folder."""
        label = re.sub(r"_?\d+$", "", Path(name).stem)
        of_class = [f"{folder}/{label}" for folder in self.folders if label]
        self[name] = find_picture(self.place, [*self.folders, *of_class], name)
        return self[name]


# ---- splits --------------------------------------------------------------------------------------

SPLIT_NAME = re.compile(r"(?<![a-z])(train|val|test)(?![a-z])")


def splits_in_name(file: Path) -> list[str]:
    """The splits that a file's name mentions: instances_val2017 -> [val]."""
    return SPLIT_NAME.findall(file.stem.lower())


def read_split_list(folder: Path, split: str) -> list[tuple[str, str]] | None:
    """{split}.txt, one picture a line -> [(file:line, name)]; None where no split has a list."""
    file = folder / f"{split}.txt"
    if file.is_file():
        lines = file.read_text(encoding="utf-8").splitlines()
        return [(f"{file}:{i}", line.strip()) for i, line in enumerate(lines, 1) if line.strip()]
    if any((folder / f"{name}.txt").is_file() for name in ("train", "val", "test")):
        raise ValueError(f"{file}: no such list, though other splits have theirs")
    return None


def files_of_split(folders: Iterable[Path], split: str, files: list[Path], errors: list[str]
                   ) -> Iterator[Path]:
    """Of `files`, one annotation file a picture, those in the first split list of `folders`; all
    where there is no list."""
    lists = (read_split_list(folder, split) for folder in folders)
    names = next((names for names in lists if names is not None), None)
    if names is None:
        yield from files
        return
    file_of = {file.stem: file for file in files}
    for source, name in names:
        suffix = Path(name).suffix
        stem = name.removesuffix(suffix) if suffix.lower() in PICTURE_SUFFIXES else name
        if stem in file_of:
            yield file_of[stem]
        else:
            errors.append(f"{source}: {name} has no annotation file")


# ---- classes -------------------------------------------------------------------------------------

TWO_WORD_CLASSES = (            # that UC Merced, RSICD and DIOR write in one word
    "bare land, baseball diamond, baseball field, basketball court, dense residential, "
    "golf course, golf field, ground track field, medium residential, mobile home park, "
    "parking lot, railway station, sparse residential, storage tank, storage tanks, "
    "tennis court, train station")
CLASS_NAMES = {name.replace(" ", ""): name for name in TWO_WORD_CLASSES.split(", ")}


def class_name(name: str) -> str:
    """DenseResidential, dense_residential, denseresidential -> dense residential; aGrass -> grass.
    """
    name = re.sub(r"^[a-z](?=[A-Z])", "", name)
    name = " ".join(re.sub(r"(?<=[a-z])(?=[A-Z])|[_-]", " ", name).lower().split())
    return CLASS_NAMES.get(name, name)
