"""Published data sets -> samples: which layout a folder has, and what one of its splits holds.

Each layout is a pair of functions, in FORMATS under the name that --format takes:

    matches(place)                     whether a folder or file has this layout
    read(place, split, errors)         the fields of each Sample, pictures named from the folder;
                                       a line is appended to `errors` for each row that is wrong;
                                       ValueError or OSError: a file that is wrong or missing;
                                       MissingSplit: nothing of this split is there

A new layout is two functions and a line here. `python data.py --check` reports every row that is
wrong, a training refuses to start at the first: both get all of `errors` from read_split.
"""
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import NamedTuple

from support.common import UserError, printable
from support.images.read import PictureHeader, read_headers
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
from support.readers.common import (
    ROW_ERRORS,
    DataError,
    MissingSplit,
    PictureRoot,
    Sample,
    SampleTable,
    box_fault,
    describe_error,
)
from support.readers.conversations import is_llava, is_skyeye, read_llava, read_skyeye
from support.readers.metadata import is_metadata, read_metadata
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
from support.readers.yolo import is_yolo, read_yolo

# ---- layouts -------------------------------------------------------------------------------------

class Reader(NamedTuple):
    matches: Callable[[Path], bool]
    read: Callable[[Path, str, list[str]], Iterator[dict]]


FORMATS = {
    # Hugging Face's imagefolder: metadata.jsonl, metadata.csv
    "metadata": Reader(is_metadata, read_metadata),
    # boxes of classes, as three tasks; so are yolo, voc and dota; a folder or one .json
    "coco": Reader(is_coco, read_coco),
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
    # images/ and labels/*.txt
    "yolo": Reader(is_yolo, read_yolo),
    # DIOR-RSVG, RSVG: VOC XML and running object numbers
    "dior_rsvg": Reader(is_dior_rsvg, read_dior_rsvg),
    "voc": Reader(is_voc, read_voc),
    "dota": Reader(is_dota, read_dota),
    # AID, NWPU-RESISC45, RSSCN7, UC Merced: one folder a class
    "class_folder": Reader(is_class_folder, read_class_folder),
}


def find_format(place: Path, format_name: str = "") -> Reader:
    """The named layout, or the first that matches. DataError: there is none, which names the
    folders in this one that have one."""
    if not place.exists():
        raise DataError(f"{place}: no such file or folder")
    if format_name:
        if format_name not in FORMATS:
            raise DataError(f"--format {format_name}: unknown; there are {', '.join(FORMATS)}")
        return FORMATS[format_name]
    if reader := recognize(place):
        return reader
    inner = [folder for folder in sorted(place.iterdir()) if folder.is_dir() and recognize(folder)
             ] if place.is_dir() else []
    hint = f"; in one that can be read: {', '.join(map(str, inner[:8]))}" if inner else ""
    raise DataError(f"{place}: in no layout that can be read ({', '.join(FORMATS)}){hint}")


def recognize(place: Path) -> Reader | None:
    """The first layout that matches."""
    return next((reader for reader in FORMATS.values() if reader.matches(place)), None)


# ---- samples -------------------------------------------------------------------------------------

def read_data(place: str | Path, split: str = "train", stage: int = 0, tasks: Sequence[str] = (),
              format_name: str = "", skipped: list[str] | None = None,
              image_folder: str = "", bands: Sequence[int] = ()) -> Sequence[Sample]:
    """A folder in a known layout, or a file such as a LLaVA .json / .jsonl -> its samples.

    Outside train, all captions of a picture are one sample. Stage 1 leaves multi-task
    conversations out, stage 2 takes only these if there are any; tasks: of all, only these.
    Rows and pictures that are wrong are a DataError, or, where `skipped` is a list, are left out
    and described there. image_folder: where the pictures of a file are, if not beside it. bands:
    of a picture with more than three, those that will be shown.
    """
    single, conversations, errors = read_split(Path(place), split, format_name, tasks,
                                                image_folder)
    if skipped is not None:
        skipped += errors
    elif errors:
        more = f" (and {len(errors) - 1} rows more)" if len(errors) > 1 else ""
        raise DataError(errors[0] + more)
    if not stage:
        single.join(conversations)
    samples = (conversations or single) if stage == 2 else (single or conversations)
    samples = drop_broken_pictures(samples, place, skipped, tuple(bands))
    if not samples:
        raise DataError(f"{place}: no samples in split {split!r}")
    return samples if split == "train" else gather_references(list(samples))


def drop_broken_pictures(samples: SampleTable, place: str | Path, skipped: list[str] | None,
                         bands: tuple[int, ...] = ()) -> SampleTable:
    """Without the samples whose pictures cannot be read; DataError where `skipped` is None."""
    headers = read_headers((path for paths in samples.image_sets for path in paths), bands)
    broken = {path: reason for path, (_, _, reason) in headers.items() if reason}
    wrong = {} if broken and skipped is None else wrong_boxes(samples, headers)
    if not broken and not wrong:
        return samples
    if skipped is None:
        faults = list((broken or wrong).values())
        more = f", and {len(faults) - 1} more like it" if len(faults) > 1 else ""
        raise DataError(f"{faults[0]} ({place} names it{more})" if broken else faults[0] + more)
    skipped += broken.values()
    skipped += wrong.values()
    return SampleTable(vars(sample) for i, sample in enumerate(samples)
                       if i not in wrong and not broken.keys() & set(sample.images))


def wrong_boxes(samples: SampleTable, headers: dict[str, PictureHeader]) -> dict[int, str]:
    """The numbers of the samples with a box that is none in their picture, and what is wrong."""
    wrong = {}
    for i in samples.with_boxes():
        sample = samples[i]
        header = headers[sample.images[0]] if sample.images else PictureHeader(0, 0, "")
        if header.width and header.height:      # a clip's are not known
            faults = (box_fault(box, header.width, header.height) for box in sample.boxes)
            if fault := next(filter(None, faults), ""):
                wrong[i] = f"{sample.source}: {fault}"
    return wrong


def read_split(place: Path, split: str, format_name: str = "", tasks: Sequence[str] = (),
               image_folder: str = "") -> tuple[SampleTable, SampleTable, list[str]]:
    """-> single-task samples, conversations, and a line for each row that is wrong.

    DataError: the layout is unknown, or one of its files is wrong or missing.
    """
    single, conversations = SampleTable(), SampleTable()
    errors: list[str] = []
    for row in read_rows(place, split, format_name, errors, image_folder):
        if not tasks or row["task"] in tasks:
            table = conversations if row["task"] == "conversation" else single
            try:
                table.add(row)
            except ROW_ERRORS as error:
                errors.append(describe_error("", error).removeprefix(": "))
    return single, conversations, list(map(printable, errors))


def read_rows(place: Path, split: str, format_name: str, errors: list[str],
              image_folder: str = "") -> Iterator[dict]:
    """The fields of each sample, pictures with their full paths."""
    reader = find_format(place, format_name)
    root = PictureRoot(place)
    if place.is_file():
        root = PictureRoot(Path(image_folder or place.parent), "; --image_folder names another")
    paths_of: dict[tuple[str, ...], tuple[str, ...]] = {}    # many samples name the same
    try:
        for row in reader.read(place, split, errors):
            names = tuple(row["images"])
            try:
                if names not in paths_of:
                    paths_of[names] = tuple(map(root.resolve, names))
            except ValueError as error:
                errors.append(describe_error(row["source"], error))
            else:
                row["images"] = paths_of[names]
                yield row
    except MissingSplit as error:
        raise MissingSplit(printable(error)) from None
    except (ValueError, OSError, UserError) as error:
        raise DataError(printable(error)) from error
    except ROW_ERRORS as error:
        raise DataError(f"{place}: a row is not as this layout has it ({error!r:.200})") from None


def gather_references(samples: list[Sample]) -> list[Sample]:
    """All captions of a picture become one sample, asked once and scored against each."""
    captions: dict[tuple[str, ...], list[Sample]] = {}
    others = []
    for sample in samples:
        if sample.task in ("caption", "video"):
            captions.setdefault(sample.images, []).append(sample)
        else:
            others.append(sample)
    gathered = [replace(group[0], references=tuple(sample.turns[0][1] for sample in group))
                for group in captions.values()]
    return gathered + others


def check_image_folder(image_folder: str, places: Sequence[str]) -> None:
    """UserError: --image_folder is no folder, or none of the data sets is a file."""
    if image_folder and not Path(image_folder).is_dir():
        raise UserError(f"--image_folder {image_folder}: no such folder")
    if image_folder and not any(Path(place).is_file() for place in places):
        raise UserError(f"--image_folder {image_folder}: it is for data in one file, as a .json; a "
                        "folder of data has its pictures in it")


# ---- ratios --------------------------------------------------------------------------------------

def parse_ratios(ratios: Sequence[str], places: Sequence[str]) -> tuple[float, ...]:
    """The values of --ratio, how much of each data set an epoch has -> a ratio for each of
    `places`, or () if there are none. UserError.

    Either NAME=NUMBER for some data sets, the others being 1, or a number for each in their order.
    NAME is an entry of `places`, or its last part without .json or .jsonl.
    """
    if not ratios:
        return ()
    named = ["=" in text for text in ratios]
    if any(named) and not all(named):
        raise UserError(f"--ratio {' '.join(ratios)}: numbers alone or NAME=NUMBER alone")
    if all(named):
        numbers = parse_named_ratios(ratios, places)
    elif len(ratios) == len(places):
        numbers = [ratio_number(text) for text in ratios]
    else:
        raise UserError(f"--ratio has {len(ratios)} numbers for {len(places)} data sets")
    if not any(numbers):
        raise UserError(f"--ratio {' '.join(ratios)}: nothing is left to learn")
    return tuple(numbers)


def parse_named_ratios(ratios: Sequence[str], places: Sequence[str]) -> list[float]:
    numbers = [1.0] * len(places)
    name_of: dict[int, str] = {}
    for text in ratios:
        name, _, value = text.rpartition("=")
        place = find_data_set(name, places)
        if place in name_of:
            raise UserError(f"--ratio {name_of[place]} and {name}: the same data set")
        name_of[place], numbers[place] = name, ratio_number(value)
    return numbers


def find_data_set(name: str, places: Sequence[str]) -> int:
    """The index of the one data set that the name fits."""
    names = [short_name(place) for place in places]
    fits = ([i for i, place in enumerate(places) if place == name]
            or [i for i, own in enumerate(names) if own == name])
    if not fits:
        raise UserError(f"--ratio {name}: no such data set; there are {', '.join(names)}")
    if len(fits) > 1:
        raise UserError(f"--ratio {name}: fits {' and '.join(places[i] for i in fits)}; name one "
                        "of them as it stands in --data")
    return fits[0]


def short_name(place: str) -> str:
    path = PurePath(place)
    return path.stem if path.suffix.lower() in (".json", ".jsonl") else path.name


def ratio_number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise UserError(f"--ratio {text}: not a number from 0 up")
    return value
