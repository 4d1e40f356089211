"""support/readers/__init__.py"""
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import NamedTuple

from support.common import UserError
from support.images.read import read_headers
from support.readers.captions import (
    is_capera,
    is_caption_lists,
    is_nwpu_captions,
    is_rsicd,
    read_capera,
    read_caption_lists,
    read_nwpu_captions,
    read_rsicd,
)
from support.readers.common import DataError, Sample, SampleTable
from support.readers.conversations import is_llava, is_skyeye, read_llava, read_skyeye
from support.readers.objects import (
    is_coco,
    is_dior_rsvg,
    is_dota,
    is_voc,
    read_coco,
    read_dior_rsvg,
    read_dota,
    read_voc,
)
from support.readers.questions import (
    is_class_folder,
    is_floodnet,
    is_rsivqa,
    is_rsvqa,
    read_class_folder,
    read_floodnet,
    read_rsivqa,
    read_rsvqa,
)

# ---- ratios --------------------------------------------------------------------------------------
# --ratio: how much of each data set an epoch has.

def parse_ratios(given: Sequence[str], places: Sequence[str]) -> tuple[float, ...]:
    """NAME=NUMBER of some data sets, 1 for the others, or the numbers of all in their order
    -> a ratio for each of `places`, () where none is given. Raises UserError.

    NAME is an entry of `places`, or its last part without .json or .jsonl.
    """
    pairs = [text.rpartition("=") for text in given if "=" in text]
    if pairs and len(pairs) < len(given):
        raise UserError(f"--ratio {' '.join(given)}: numbers alone or NAME=NUMBER alone")
    if given and not pairs and len(given) != len(places):
        raise UserError(f"--ratio has {len(given)} numbers for {len(places)} data sets")
    ratios = [1.0] * len(places) if pairs else [ratio_number(text) for text in given]
    named: dict[int, str] = {}
    for name, _, value in pairs:
        place = find_data_set(name, places)
        if place in named:
            raise UserError(f"--ratio {named[place]} and {name}: the same data set")
        named[place], ratios[place] = name, ratio_number(value)
    if given and not any(ratios):
        raise UserError(f"--ratio {' '.join(given)}: nothing is left to learn")
    return tuple(ratios)


def find_data_set(name: str, places: Sequence[str]) -> int:
    """The number of the one data set that the name fits."""
    names = [short_name(place) for place in places]
    fits = ([i for i, place in enumerate(places) if place == name]
            or [i for i, own in enumerate(names) if own == name])
    if not fits:
        raise UserError(f"--ratio {name}: no such data set; there are {', '.join(names)}")
    if len(fits) > 1:
        raise UserError(f"--ratio {name}: fits {' and '.join(places[i] for i in fits)}; give one "
                        "of them as it stands in --data")
    return fits[0]


def short_name(place: str) -> str:
    path = PurePath(place)
    return path.stem if path.suffix in (".json", ".jsonl") else path.name


def ratio_number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise UserError(f"--ratio {text}: not a number from 0 up")
    return value


# ---- data ----------------------------------------------------------------------------------------

class Reader(NamedTuple):
    """One layout. read yields a Sample's fields, the pictures named from `place`; ValueError: a
    line that names the row."""
    matches: Callable[[Path], bool]                                 # place
    read: Callable[[Path, str], Iterator[dict | ValueError]]        # place, split


FORMATS = {
    # a .json or .jsonl of conversations, also ms-swift's
    "llava": Reader(is_llava, read_llava),
    # SkyEye-968k's folder, and the miniature world
    "skyeye": Reader(is_skyeye, read_skyeye),
    # RSICD, RSITMD, UCM-, Sydney-Captions: dataset*.json
    "rsicd": Reader(is_rsicd, read_rsicd),
    # dataset_nwpu.json
    "nwpu_captions": Reader(is_nwpu_captions, read_nwpu_captions),
    # {split}_filename.txt and {split}_caps.txt
    "caption_lists": Reader(is_caption_lists, read_caption_lists),
    # clips
    "capera": Reader(is_capera, read_capera),
    # RSVQA-LR, RSVQA-HR
    "rsvqa": Reader(is_rsvqa, read_rsvqa),
    # lines of picture:question?answer
    "rsivqa": Reader(is_rsivqa, read_rsivqa),
    # one JSON of questions a split
    "floodnet": Reader(is_floodnet, read_floodnet),
    # boxes of classes, as three tasks; so are voc and dota
    "coco": Reader(is_coco, read_coco),
    # DIOR-RSVG, RSVG: VOC XML and running object numbers
    "dior_rsvg": Reader(is_dior_rsvg, read_dior_rsvg),
    "voc": Reader(is_voc, read_voc),
    "dota": Reader(is_dota, read_dota),
    # AID, NWPU-RESISC45, RSSCN7, UC Merced: a folder a class
    "class_folder": Reader(is_class_folder, read_class_folder),
}


# ---- data ----------------------------------------------------------------------------------------

def find_format(place: Path, name: str = "") -> Reader:
    """The one of FORMATS that reads a place: the named one, or the first that knows it."""
    if not place.exists():
        raise DataError(f"{place}: no such file or folder")
    if name and name not in FORMATS:
        raise DataError(f"--format {name}: unknown; there are {', '.join(FORMATS)}")
    found = [FORMATS[name]] if name else [m for m in FORMATS.values() if m.matches(place)]
    if not found:
        raise DataError(f"{place}: in no layout that is read here ({', '.join(FORMATS)})")
    return found[0]


# ---- data ----------------------------------------------------------------------------------------

def read_rows(place: Path, split: str, form: str = "") -> Iterator[dict | ValueError]:
    """The fields of each sample, pictures named in full; for a row that is wrong, the error."""
    reader, root, known = find_format(place, form), place if place.is_dir() else place.parent, {}
    try:
        for row in reader.read(place, split):
            if isinstance(row, dict):
                names = tuple(row["images"])
                if names not in known:
                    known[names] = resolve_inside(root, names)
                row["images"] = known[names]
                if known[names] is None:
                    row = ValueError(f"{row['source']}: {', '.join(names)}: a data file may only "
                                     f"name pictures inside {root}")
            yield row
    except (ValueError, OSError) as error:
        raise DataError(str(error)) from error
    except (AttributeError, LookupError, SyntaxError, TypeError) as error:
        raise DataError(f"{place}: a row is not as this layout has it ({error!r})") from None


# ---- data ----------------------------------------------------------------------------------------

def read_split(place: Path, split: str, form: str = "", tasks: Sequence[str] = ()
            ) -> tuple[SampleTable, SampleTable, list[str]]:
    """-> single-task samples, conversations, and what is wrong with the rows that make none."""
    single, talks, bad = SampleTable(), SampleTable(), []
    for row in read_rows(place, split, form):
        try:
            if isinstance(row, ValueError):
                raise row
            if not tasks or row["task"] in tasks:
                (talks if row["task"] == "conversation" else single).add(row)
        except ValueError as error:
            bad.append(str(error))
    return single, talks, bad


# ---- data ----------------------------------------------------------------------------------------

def read_data(place: str | Path, split: str = "train", stage: int = 0, tasks: Sequence[str] = (),
              form: str = "", skipped: list[str] | None = None) -> Sequence[Sample]:
    """A folder in a known layout, or a LLaVA .json / .jsonl -> its samples.

    Outside train, all captions of a picture are one sample. Stage 1 leaves multi-task
    conversations out, stage 2 takes them alone where there are any. A row that is wrong is a
    DataError, or where `skipped` is a list is left out and told there.
    """
    single, talks, bad = read_split(Path(place), split, form, tasks)
    if bad and skipped is None:
        raise DataError(f"{bad[0]}{f' (and {len(bad) - 1} rows more)' if len(bad) > 1 else ''}")
    if skipped is not None:
        skipped += bad
    if not stage:
        single.join(talks)
    samples = (talks or single) if stage == 2 else (single or talks)
    looked = read_headers(path for names in samples.images for path in names)
    faults = {path: told for path, (_, _, told) in looked.items() if told}
    if faults and skipped is None:
        raise DataError(f"{next(iter(faults.values()))} ({place} names it"
                        f"{f', and {len(faults) - 1} more like it' if len(faults) > 1 else ''})")
    if faults:
        skipped += faults.values()
        samples = SampleTable(vars(sample) for sample in samples if not faults.keys() & sample.images)
    if not samples:
        raise DataError(f"{place}: no samples in split {split!r}")
    return samples if split == "train" else gather_references(list(samples))


# ---- data ----------------------------------------------------------------------------------------

def resolve_inside(root: Path, names: Sequence[str]) -> tuple[str, ...] | None:
    """The paths of pictures named in a data file; None if one leaves the data's folder."""
    leave = any(Path(name).is_absolute() or ".." in Path(name).parts for name in names)
    return None if leave else tuple(str(root / name) for name in names)


# ---- data ----------------------------------------------------------------------------------------

def gather_references(samples: list[Sample]) -> list[Sample]:
    """All captions of a picture become one sample, asked once and scored against each."""
    captions: dict[tuple, list[Sample]] = {}
    for sample in samples:
        if sample.task in ("caption", "video"):
            captions.setdefault(sample.images, []).append(sample)
    gathered = [replace(group[0], references=tuple(sample.turns[0][1] for sample in group))
                for group in captions.values()]
    return gathered + [sample for sample in samples if sample.task not in ("caption", "video")]
