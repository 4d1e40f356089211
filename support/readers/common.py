"""What every reader shares: the samples it makes, and the errors, fields and files it meets.

A reader turns one published layout of a data set into samples. It is a generator of the fields of
a Sample (a dict), with pictures named from the data set's folder. A row that is wrong adds a line
to `errors` and is skipped; a file that is wrong raises ValueError.
"""
import bisect
import contextlib
import fnmatch
import json
import math
import os
import re
import xml.etree.ElementTree as ElementTree
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from support.common import (
    UTF_16_MARKS,
    Box,
    UserError,
    printable,
    read_bytes,
    read_text,
    split_lines,
)
from support.images.common import PICTURE_SUFFIXES


class DataError(UserError):
    """Data that cannot be used: one line that names the file or row and what to do."""


class MissingSplit(DataError):
    """The data set does not have this split, and nothing of it is there."""


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
        if not isinstance(row.get("kind", ""), str):
            raise ValueError(f"{source}: the question's type is no text")
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
        kind = row.get("kind", "")
        if FIELD_SEPARATOR in kind or FIELD_SEPARATOR in source:        # as a file's name may hold
            kind, source = printable(kind), printable(source)
        fields = (row["task"], kind, source, lists, texts)
        try:
            texts.encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError(f"{source}: half a character (a lone surrogate) in a text") from None
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

    def with_boxes(self) -> list[int]:
        """The numbers of the samples that have boxes, found without making a Sample of each."""
        found = re.finditer(b"\x1f\\[\\[\\[", self.text)         # `lists` begins so, see add
        return sorted({bisect.bisect_right(self.ends, match.start()) - 1 for match in found})

    def join(self, other: "SampleTable") -> None:
        """Append the other's samples; those of the two never count as about the same pictures."""
        text_end, num_sets = len(self.text), len(self.image_sets)
        self.text += other.text
        self.ends.extend(end + text_end for end in other.ends[1:])
        self.image_sets += other.image_sets
        self.image_set.extend(number + num_sets for number in other.image_set)
        self.num_chars.extend(other.num_chars)


# ---- errors --------------------------------------------------------------------------------------

ROW_ERRORS = (ArithmeticError, AttributeError, LookupError, RecursionError, SyntaxError, TypeError,
              ValueError)


def describe_error(source: str, error: Exception) -> str:
    """What is wrong with a row, in one line that names it."""
    reason = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
    return printable(reason if reason.startswith(f"{source}: ") else f"{source}: {reason}")


@contextlib.contextmanager
def error_context(source: str) -> Iterator[None]:
    """What goes wrong inside becomes a ValueError that begins with `source`."""
    try:
        yield
    except ROW_ERRORS as error:
        raise ValueError(describe_error(source, error)) from None


class skip_bad_row:
    """`with skip_bad_row(source, errors):` what goes wrong inside is appended to `errors`, also a
    file of this row alone that cannot be read.

    A class and no generator: a million rows are read inside of it.
    """

    def __init__(self, source: str, errors: list[str]):
        self.source, self.errors = source, errors

    def __enter__(self) -> None:
        pass

    def __exit__(self, _, error: BaseException | None, __) -> bool:
        if not isinstance(error, (*ROW_ERRORS, UserError)):
            return False
        self.errors.append(describe_error(self.source, error))
        return True


# ---- fields of a row -----------------------------------------------------------------------------

def require_text(row: dict, name: str) -> str:
    """row[name]. ValueError: it is no text, or an empty one."""
    value = row[name]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name!r} must be a text, not {short_repr(value)}")
    return value


def short_repr(value: object) -> str:
    """The beginning of a value, for a message."""
    return repr(value)[:60]


def answer_text(value: object, name: str) -> str:
    """A text, or a number as a text: counts are written so. ValueError: neither, or empty."""
    if type(value) in (int, float) and abs(value) < 1e60:       # False for a NaN
        return str(value)
    return require_text({name: value}, name)


def optional_text(row: dict, name: str) -> str:
    """row[name] as a text; "" where it is missing or null. ValueError: a list or an object."""
    value = row.get(name)
    return "" if value is None or value == "" else answer_text(value, name)


NUMBER = re.compile(r"\s*[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?\s*", re.ASCII)
WHOLE_NUMBER = re.compile(r"\s*[-+]?\d+\s*", re.ASCII)


def to_number(value: object) -> float:
    """A number, or the text of one, as it is. ValueError: neither, not finite, or absurdly large.

    A text is one in digits alone: Python would read nan, infinity and 1_0 too.
    """
    if isinstance(value, str):
        if not (len(value) < 100 and NUMBER.fullmatch(value)):
            raise ValueError(f"could not read a number from {short_repr(value)}")
        value = int(value) if WHOLE_NUMBER.fullmatch(value) else float(value)
    if type(value) not in (int, float):
        raise ValueError(f"a number is expected, not {short_repr(value)}")
    if not abs(value) < 1e15:
        raise ValueError(f"a number is expected, not {short_repr(value)}")
    return value


def lookup(rows: dict, what: str, number: int):
    """rows[number]. ValueError: there is no such `what`."""
    if number not in rows:
        raise ValueError(f"no {what} has id {number}")
    return rows[number]


def box_fault(box: Box, width: int, height: int) -> str:
    """What stops a training: a box that is no box in a picture of this size; "" if it is one."""
    x1, x2 = sorted(box[::2])
    y1, y2 = sorted(box[1::2])
    where = f"the box {tuple(round(side, 1) for side in box)} in {width} x {height}"
    if not all(map(math.isfinite, box)):
        return f"{where}: not a number"
    if x1 == x2 or y1 == y2:
        return f"{where}: no area"
    if x2 <= 0 or y2 <= 0 or x1 >= width or y1 >= height:
        return f"{where}: outside the picture"
    return ""


# ---- files and pictures --------------------------------------------------------------------------

def read_head(file: Path) -> str:
    """The first 64 K bytes as text without a byte-order mark, enough to recognize a layout."""
    if not file.is_file():
        return ""
    with file.open("rb") as opened:
        head = opened.read(1 << 16)
    encoding = "utf-16" if head.startswith(UTF_16_MARKS) else "utf-8-sig"
    return head.decode(encoding, errors="replace")


def read_lines(file: Path) -> list[str]:
    """The lines of a text file. UserError: it is not UTF-8, or no file; OSError."""
    return split_lines(read_text(file))


XML_ENCODING = re.compile(rb"\s*<\?xml[^>]{0,99}? encoding=[\"']([\w.-]{1,40})[\"'][^>]{0,99}>")
EXPAT_ENCODINGS = (b"UTF-8", b"UTF-16", b"ISO-8859-1", b"US-ASCII")


def read_xml(file: Path) -> ElementTree.Element:
    """The root of an XML file in the encoding that it declares. ValueError, SyntaxError, OSError.
    """
    content = read_bytes(file)
    declared = XML_ENCODING.match(content)
    if declared and declared[1].upper() not in EXPAT_ENCODINGS:
        content = content[declared.end():].decode(declared[1].decode("ascii"))
    return ElementTree.fromstring(content)


# Of Mac, Synology and QNAP, Windows, Linux.
SYSTEM_FOLDERS = ("__MACOSX", "@eaDir", "#recycle", "@Recycle", "$RECYCLE.BIN",
                  "System Volume Information", "lost+found")


def is_hidden(name: str) -> bool:
    """What a system leaves beside the data: `._a.jpg` and __MACOSX of a Mac's zip, .cache, ..."""
    return name.startswith(".") or name in SYSTEM_FOLDERS


def find_files(folder: Path, pattern: str) -> list[Path]:
    """The sorted files of a folder whose names fit a pattern with *, in capitals or not."""
    if not folder.is_dir():
        return []
    return sorted(file for file in folder.iterdir() if not is_hidden(file.name)
                  and fnmatch.fnmatchcase(file.name.lower(), pattern.lower()) and file.is_file())


def find_file(folder: Path, name: str) -> Path:
    """folder/name, or what differs from it in capitals alone."""
    file = folder / name
    return file if file.is_file() else next(iter(find_files(folder, name)), file)


def subfolders(place: Path) -> list[Path]:
    """The sorted folders in a folder, but not what a system leaves there."""
    return sorted(path for path in place.iterdir() if path.is_dir() and not is_hidden(path.name))


def list_pictures(folder: Path) -> list[str]:
    """The sorted names of the pictures in a folder."""
    return sorted(file.name for file in folder.iterdir()
                  if file.suffix.lower() in PICTURE_SUFFIXES and not is_hidden(file.name))


def picture_folder(place: Path) -> str:
    """The name of the first folder in `place` that has pictures; "images" if none has."""
    return next((path.name for path in subfolders(place) if list_pictures(path)), "images")


MAX_NAME_BYTES = 255            # of a file, on every common file system


def portable_name(name: str) -> str:
    r"""A picture's name with / between folders: Windows writes img\a.jpg."""
    return name.replace("\\", "/")


def leaves_folder(name: str) -> bool:
    """Whether a picture's name leads out of the data set's folder, or may: .., an absolute path."""
    path = Path(portable_name(name))
    return path.is_absolute() or ".." in path.parts


def check_name(name: str) -> None:
    """ValueError: no file can have this name."""
    try:
        longest = max(len(part.encode("utf-8")) for part in name.split("/"))
    except UnicodeEncodeError:
        raise ValueError(f"{ascii(name)[:60]}: half a character (a lone surrogate) in a picture's "
                         "name") from None
    if longest > MAX_NAME_BYTES or len(name) > 4000:
        raise ValueError(f"{name[:40]}..: a picture's name of {len(name):,} letters")
    if "\0" in name or not name.strip("/. "):
        raise ValueError(f"{name!r} is no picture's name")


def other_cases(path: str) -> list[str]:
    """The path with its suffix in small letters, in capitals, and capitalized."""
    stem, suffix = os.path.splitext(path)
    return [stem + other for other in (suffix.lower(), suffix.upper(), suffix.capitalize())
            if other != suffix] if len(suffix) > 1 else []


def name_inside(place: Path, name: str) -> str:
    """A picture's name as a data file writes it -> its path from the folder `place`, if the name is
    absolute and lies there; else the name, with / between folders and without a ./ in front."""
    name = portable_name(name)
    if not name.startswith(("/", "./")):
        return name
    for root in (os.path.abspath(place), os.path.realpath(place)):
        name = name.removeprefix(root.rstrip("/") + "/")
    return Path(name).as_posix()


def find_picture(place: Path, folders: Sequence[str], name: str) -> str:
    """The path, from `place`, of a picture that is in one of `folders`, a suffix added or written
    in other letters if need be; where it should be if it is in none. A name may also be absolute,
    or begin with its folder in `place`. ValueError: no such name."""
    check_name(portable_name(name))
    name = name_inside(place, name)
    if leaves_folder(name):
        return name             # is refused later, and not searched for
    has_suffix = name.lower().endswith(PICTURE_SUFFIXES)
    suffixes = [""] if has_suffix else ["", *PICTURE_SUFFIXES]
    searched = [*folders, "."] if "/" in name else folders
    paths = [Path(folder, name + suffix).as_posix() for folder in searched for suffix in suffixes]
    found = next((path for path in paths if os.path.isfile(place / path)), None)
    if found is None:
        others = (other for path in paths for other in other_cases(path))
        found = next((path for path in others if os.path.isfile(place / path)), paths[0])
    return found


class PictureRoot:
    """The folder that a data set's pictures must be in."""

    def __init__(self, folder: Path, advice: str = ""):
        """advice: what to do about a picture elsewhere, for the message."""
        self.folder, self.real, self.advice = folder, os.path.realpath(folder), advice
        self.is_inside: dict[str, bool] = {}                # of the folders that were met

    def resolve(self, name: str) -> str:
        """The path of a picture named in a data file. ValueError: it is outside of the folder,
        also through a link."""
        name = portable_name(name)
        check_name(name)
        path = name_inside(self.folder, name)
        if leaves_folder(path):
            raise ValueError(f"{name}: a data file may only name pictures inside {self.folder}"
                             f"{self.advice}")
        found = str(self.folder / path)
        if not os.path.lexists(found):
            found = next(filter(os.path.lexists, other_cases(found)), found)
        if not self.holds(found):
            raise ValueError(f"{name}: a link leads out of {self.folder}; put the pictures there, "
                             "or name the folder that they are in")
        return found

    def holds(self, path: str) -> bool:
        parent = os.path.dirname(path)
        if parent not in self.is_inside:
            self.is_inside[parent] = self.has_real(os.path.realpath(parent))
        return self.is_inside[parent] and (not os.path.islink(path)
                                           or self.has_real(os.path.realpath(path)))

    def has_real(self, path: str) -> bool:
        return path == self.real or path.startswith(self.real.rstrip("/") + "/")


class PicturePaths(dict):
    """name -> the path of that picture, from `place`; each is searched for once."""

    def __init__(self, place: Path, folders: tuple[str, ...]):
        self.place, self.folders = place, folders

    def __missing__(self, name: str) -> str:
        """Airport_12.jpg, airport12.tif: also in a folder Airport, airport of each folder."""
        check_name(portable_name(name))
        label = re.sub(r"_?\d+$", "", Path(portable_name(name)).stem)
        of_class = [f"{folder}/{label}" for folder in self.folders if label]
        self[name] = find_picture(self.place, [*self.folders, *of_class], name)
        return self[name]


# ---- splits --------------------------------------------------------------------------------------

SPLIT_NAME = re.compile(r"(?<![a-z])(train|val|test)(?:id|idation)?(?![a-z])")


def splits_in_name(file: Path) -> list[str]:
    """The splits that a file's name mentions: instances_val2017 -> [val]."""
    return SPLIT_NAME.findall(file.stem.lower())


def read_split_list(folder: Path, split: str) -> list[tuple[str, str]] | None:
    """{split}.txt, one picture a line -> [(file:line, name from the folder)]; None where no split
    has a list. MissingSplit: others have."""
    file = find_file(folder, f"{split}.txt")
    if file.is_file():
        return [(f"{file}:{i}", name_inside(folder, line.strip()))
                for i, line in enumerate(read_lines(file), 1) if line.strip()]
    if any(find_file(folder, f"{name}.txt").is_file() for name in ("train", "val", "test")):
        raise MissingSplit(f"{file}: no such list, though other splits have theirs")
    return None


def require_split(split: str, *files: Path) -> None:
    """MissingSplit: none of the files of a split is there. Where some are, reading one that is
    missing is an error of another kind."""
    if not any(map(os.path.lexists, files)):
        raise MissingSplit(f"{files[0]}: no such file, so there is no split {split!r}")


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
        last = Path(name).name                  # a list may name whole paths, of either file
        suffix = Path(last).suffix
        is_file = suffix.lower() in (*PICTURE_SUFFIXES, ".xml", ".txt")
        stem = last.removesuffix(suffix) if is_file else last
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
