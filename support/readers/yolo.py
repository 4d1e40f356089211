"""YOLO label folders: one text a picture, one object a line, sides in parts of the picture's.

    FOLDER/images/train/A.jpg     and FOLDER/labels/train/A.txt, as Ultralytics has them; or
    FOLDER/train/images/A.jpg     and FOLDER/train/labels/A.txt, as Roboflow has them; or
    FOLDER/images/A.jpg           and FOLDER/labels/A.txt: each split is all, unless there are lists
    FOLDER/{train,val,test}.txt   optional lists of pictures
    FOLDER/data.yaml              names: a list, or a map from numbers; or classes.txt, one a line

A line is one of

    class cx cy w h                     the middle of a box, its width and height
    class x1 y1 x2 y2 x3 y3 x4 y4       a rotated box: the upright box around it is taken
    class x1 y1 x2 y2 x3 y3 ..          an outline: the box around it

Of data.yaml only `names`, `nc` and `kpt_shape` are read, and of YAML what such files have there.
"""
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from support.common import Box
from support.images.read import PictureHeader, read_headers
from support.readers.common import (
    MissingSplit,
    PictureRoot,
    error_context,
    find_files,
    find_picture,
    read_head,
    read_lines,
    read_split_list,
    skip_bad_row,
    splits_in_name,
    subfolders,
    to_number,
)
from support.readers.objects import checked_box, object_samples

# ---- folders -------------------------------------------------------------------------------------

NOT_LABELS = ("classes.txt", "train.txt", "val.txt", "test.txt")


def is_yolo(place: Path) -> bool:
    files = [file for labels, _ in label_folders(place) for file in label_files(labels)]
    return any(looks_like_labels(read_head(file)) for file in files[:20])


def looks_like_labels(head: str) -> bool:
    """Whether a text begins with a line of YOLO's: a class and at least four numbers."""
    fields = head.lstrip().split("\n", 1)[0][:4000].split()
    number = re.compile(r"-?\d{0,9}\.?\d{1,30}(?:e-?\d{1,3})?")
    return len(fields) > 4 and fields[0].isdecimal() and all(map(number.fullmatch, fields[1:5]))


def label_folders(place: Path) -> list[tuple[Path, str]]:
    """-> each folder of labels, and that of its pictures, named from `place`."""
    if not place.is_dir():
        return []
    found = [(place / "labels", "images")]
    for folder in subfolders(place / "labels") if (place / "labels").is_dir() else ():
        found.append((folder, f"images/{folder.name}"))
    found += [(folder / "labels", f"{folder.name}/images") for folder in subfolders(place)]
    return found


def label_files(folder: Path) -> list[Path]:
    return [file for file in find_files(folder, "*.txt") if file.name.lower() not in NOT_LABELS]


def files_of_split(place: Path, split: str) -> list[tuple[Path, str]]:
    """-> each file of labels in the split, and the folder of its picture. ValueError.

    Folders that name a split have that one. Others have all splits, unless lists name theirs.
    """
    folders = [(labels, pictures, splits_in_name(Path(pictures.replace("images", "").strip("/"))))
               for labels, pictures in label_folders(place)]
    named = any(splits for labels, _, splits in folders if label_files(labels))
    listed = None if named else read_split_list(place, split)
    stems = None if listed is None else {Path(name).stem for _, name in listed}
    found = [(file, pictures) for labels, pictures, splits in folders
             if split in splits or not splits for file in label_files(labels)
             if stems is None or file.stem in stems]
    if not found:
        raise MissingSplit(f"{place}: no labels of split {split!r}")
    return found


# ---- samples -------------------------------------------------------------------------------------

def read_yolo(place: Path, split: str, errors: list[str]) -> Iterator[dict]:
    """The sizes of the pictures are read from their headers. Pictures without a label have no
    samples."""
    classes, root = read_classes(place), PictureRoot(place)
    chosen = []
    for file, folder in files_of_split(place, split):
        with skip_bad_row(str(file), errors):
            picture = find_picture(place, [folder], file.stem)
            chosen.append((file, picture, root.resolve(picture)))
    headers = read_headers(path for _, _, path in chosen)
    for file, picture, path in chosen:
        with skip_bad_row(str(file), errors):
            objects = read_labels(file, classes, headers[path])
            yield from object_samples(picture, objects, str(file))


def read_labels(file: Path, classes: dict[int, str], header: PictureHeader
                ) -> list[tuple[str, Box]]:
    """-> class and box in pixels of each line."""
    objects = []
    for number, line in enumerate(read_lines(file), start=1):
        if not line.strip():
            continue
        if header.fault or not header.width:
            raise ValueError(header.fault or "boxes of a clip are not supported")
        with error_context(f"line {number}"):
            label, (x1, y1, x2, y2) = read_label(line.split(), classes)
            objects.append((label, checked_box(x1 * header.width, y1 * header.height,
                                               x2 * header.width, y2 * header.height)))
    return objects


TOLERANCE = 0.01                # how far rounded sides may lie outside of 0 to 1


def read_label(fields: Sequence[str], classes: dict[int, str]) -> tuple[str, Box]:
    """-> class, and box in parts of the sides. ValueError."""
    number, *sides = map(to_number, fields)
    if len(sides) != 4 and (len(sides) < 6 or len(sides) % 2):
        raise ValueError(f"a class and 4 numbers, or 3 points and more, not {len(sides)} numbers")
    if number not in classes:
        raise ValueError(f"class {fields[0][:20]} of {len(classes)}")
    if min(sides) < -TOLERANCE or max(sides) > 1 + TOLERANCE:
        raise ValueError("numbers are expected in parts of the picture's sides, 0 to 1, not "
                         f"{' '.join(fields[1:5])[:60]}")
    if len(sides) == 4:
        x, y, width, height = sides
        return classes[number], (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    x, y = sides[0::2], sides[1::2]
    return classes[number], (min(x), min(y), max(x), max(y))


# ---- classes -------------------------------------------------------------------------------------

CLASS_FILES = ("classes.txt", "labels/classes.txt")


def read_classes(place: Path) -> dict[int, str]:
    """The name of each class's number. ValueError: none are there, or they cannot be read."""
    files = [file for pattern in ("data.yaml", "dataset.yaml", "*.yaml", "*.yml")
             for file in find_files(place, pattern) if re.search("(?m)^names *:", read_head(file))]
    if files:
        return read_yaml_classes(files[0])
    for file in (place / name for name in CLASS_FILES):
        if file.is_file():
            names = [line.strip() for line in read_lines(file)]
            while names and not names[-1]:
                names.pop()
            return checked_classes(str(file), dict(enumerate(names)))
    raise ValueError(f"{place}: the classes are named neither in data.yaml (names:) nor in "
                     "classes.txt, one a line")


def checked_classes(source: str, names: dict[int, str]) -> dict[int, str]:
    empty = [number for number, name in names.items() if not name.strip()]
    if empty or not names:
        raise ValueError(f"{source}: " + (f"class {empty[0]} has no name" if empty else "no names"))
    return names


def read_yaml_classes(file: Path) -> dict[int, str]:
    """names of a data.yaml, a list or a map in block or flow style. ValueError: another YAML."""
    with error_context(str(file)):
        entries = top_level(read_lines(file))
        if "kpt_shape" in entries:
            raise ValueError("labels of key points (kpt_shape) are not read")
        names = parse_names(*entries["names"])
        count = entries.get("nc", ("", []))[0]
        if count and count != str(len(names)):
            raise ValueError(f"nc is {count[:20]}, but {len(names)} names follow")
        return checked_classes("names", names)


def top_level(lines: Sequence[str]) -> dict[str, tuple[str, list[str]]]:
    """-> each key, with what stands behind it and the lines below it, without comments."""
    entries: dict[str, tuple[str, list[str]]] = {}
    below: list[str] = []
    for line in map(without_comment, lines):
        found = re.match(r"([A-Za-z_][\w .-]{0,99}?) *:(?: +(.*))?$", line)
        if found:
            if found[1] in entries:
                raise ValueError(f"{found[1]!r} stands there twice")
            below = []
            entries[found[1]] = (found[2] or "").strip(), below
        elif line and line not in ("---", "..."):
            below.append(line)
    return entries


QUOTED = r"'(?:[^']|'')*'|\"[^\"\\]*\""
FIRST = r"[^\s'\"\[\]{}#&*!|>%@`,:-]"              # of a name without quotes
IN_BLOCK = re.compile(rf"\s*(?:-|(\d{{1,6}}) *:) +({QUOTED}|{FIRST}(?:(?!: ).)*)")
IN_FLOW = re.compile(rf"\s*(?:(\d{{1,6}}) *: *)?({QUOTED}|{FIRST}(?:[^'\"\[\]{{}}#,:]*"
                     r"[^\s'\"\[\]{}#,:])?)\s*(?:,|$)")


def without_comment(line: str) -> str:
    """The line without a comment, which begins with # at its start or after a blank."""
    kept = re.match(rf"(?:{QUOTED}|[^#'\"]|(?<=\S)#|['\"])*", line)
    return kept[0].rstrip()


def parse_names(text: str, below: Sequence[str]) -> dict[int, str]:
    """What stands behind `names:` and the lines below it. ValueError: neither a list nor a map."""
    whole = " ".join([text, *map(str.strip, below)]).strip()
    if whole.startswith(("[", "{")):
        return parse_flow(whole)
    if text:
        raise not_names(text)
    names: dict[int, str] = {}
    for line in below:
        item = IN_BLOCK.fullmatch(line)
        if not item:
            raise not_names(line)
        add_name(names, item[1], item[2])
    return names


def parse_flow(text: str) -> dict[int, str]:
    """['a', b] or {0: a, 1: b}, with a comma behind the last one or without."""
    is_map, inner = text[0] == "{", text[1:-1].rstrip()
    if text[-1] != ("}" if is_map else "]"):
        raise not_names(text)
    names: dict[int, str] = {}
    place = 0
    while place < len(inner):
        found = IN_FLOW.match(inner, place)
        if not found or bool(found[1]) != is_map:
            raise not_names(inner[place:])
        add_name(names, found[1], found[2])
        place = found.end()
    return names


def add_name(names: dict[int, str], number: str | None, name: str) -> None:
    key = len(names) if number is None else int(number)
    if key in names:
        raise ValueError(f"class {key} stands there twice")
    name = name.strip()
    if name[:1] == "'":
        name = name[1:-1].replace("''", "'")
    elif name[:1] == '"':
        name = name[1:-1]
    names[key] = name


def not_names(text: str) -> ValueError:
    return ValueError("names must be a list or a map from numbers to plain or quoted names, not "
                      f"{text.strip()[:60]!r}")
