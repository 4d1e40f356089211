"""Readers of caption data sets.

RSICD, RSITMD, UCM-Captions, Sydney-Captions: dataset*.json beside one folder of pictures

    FOLDER/dataset_rsicd.json     {"images": [{"filename", "split", "sentences": [{"raw"}]}]}
    FOLDER/RSICD_images/          or images/, imgs/, ..
    FOLDER/scene_classes.json     optional: {picture: class}
    FOLDER/*_vqa.txt              optional, RSIVQA's lines: picture:question?answer

NWPU-Captions: one JSON of classes beside NWPU-RESISC45's class folders

    FOLDER/dataset_nwpu.json      {class: [{"filename", "split", "raw", "raw_1", .. "raw_4"}]}
    FOLDER/CLASS/                 or in NWPU-RESISC45/, NWPU_images/, images/

Caption lists, as retrieval code has them (AMFMN's rsitmd_precomp, PE-RSITR): two texts a split

    FOLDER/{train,val,test}_filename.txt      one picture a line
    FOLDER/{train,val,test}_caps.txt          one caption a line, five a picture
    FOLDER/images/

CapERA: captions of ERA's clips, five a clip

    FOLDER/CapERA_DATASET_{train,test}.json     {"ERA_caption": [{"video_id": "Fire_001.mp4",
                                                 "annotation": {"English_caption": [..]}}]}
    FOLDER/Videos/Fire_001/                     a clip: a folder of frames, a .gif, .webp or .mp4,
                                                or SingleFrames' .jpg or .png
"""
from collections.abc import Iterator
from pathlib import Path

from support.common import read_json
from support.images.common import PICTURE_SUFFIXES, VIDEO_SUFFIXES
from support.readers.common import (
    PicturePaths,
    answer_text,
    check_name,
    class_name,
    error_context,
    find_file,
    find_files,
    find_picture,
    leaves_folder,
    name_inside,
    picture_folder,
    portable_name,
    read_head,
    read_lines,
    require_split,
    require_text,
    skip_bad_row,
)
from support.readers.questions import class_question, read_question_lines

# ---- RSICD ---------------------------------------------------------------------------------------

def is_rsicd(place: Path) -> bool:
    return bool(rsicd_files(place))


def rsicd_files(place: Path) -> list[Path]:
    return [file for file in find_files(place, "dataset*.json")
            if '"sentences"' in read_head(file)]


def read_rsicd(place: Path, split: str, errors: list[str]) -> Iterator[dict]:
    """Captions of the split, then classes and questions of its pictures if there are any.

    The split is the JSON's; lists beside it are not used (RSICD's have val and test swapped).
    """
    file, folder = rsicd_files(place)[0], picture_folder(place)
    with error_context(str(file)):
        rows = list(read_json(file)["images"])
    paths = PicturePaths(place, (folder,))
    names: dict[str, str] = {}                  # of the split: path -> the name in the file
    for number, row in enumerate(rows, start=1):
        with skip_bad_row(f"{file}:{number}", errors):
            for sample in list(rsicd_captions(row, split, paths, file)):
                names[sample["images"][0]] = portable_name(row["filename"])
                yield sample
    yield from rsicd_scenes(find_file(place, "scene_classes.json"), names, paths)
    for lines in find_files(place, "*_vqa.txt"):
        for name, sample in read_question_lines(lines, errors):
            with skip_bad_row(sample["source"], errors):
                if paths[name] in names:
                    yield sample | {"images": [paths[name]]}


def rsicd_captions(row: dict, split: str, paths: PicturePaths, file: Path) -> Iterator[dict]:
    if row["split"] == split:
        name = portable_name(require_text(row, "filename"))
        images = [paths[name]]
        for number, sentence in enumerate(row["sentences"]):
            yield {"images": images, "turns": (("", require_text(sentence, "raw")),),
                   "task": "caption", "source": f"{file}:{name}:{number}"}


def rsicd_scenes(file: Path, names: dict[str, str], paths: PicturePaths) -> Iterator[dict]:
    with error_context(str(file)):
        labels = {paths[name]: answer_text(label, name)
                  for name, label in (read_json(file) if file.is_file() else {}).items()}
    question = class_question({class_name(label) for label in labels.values()})
    for path, name in names.items():
        if path in labels:
            yield {"images": [path], "turns": ((question, class_name(labels[path])),),
                   "task": "scene", "kind": "scene", "source": f"{file}:{name}"}


# ---- NWPU-Captions -------------------------------------------------------------------------------

NWPU_FOLDERS = ("", "NWPU-RESISC45", "NWPU_images", "images")
NWPU_SENTENCES = ("raw", "raw_1", "raw_2", "raw_3", "raw_4")


def is_nwpu_captions(place: Path) -> bool:
    return bool(nwpu_files(place))


def nwpu_files(place: Path) -> list[Path]:
    return [file for file in find_files(place, "dataset*.json") if '"raw_1"' in read_head(file)]


def read_nwpu_captions(place: Path, split: str, errors: list[str]) -> Iterator[dict]:
    file = nwpu_files(place)[0]
    with error_context(str(file)):
        classes = list(read_json(file).items())
    for label, rows in classes:
        if not isinstance(rows, list):
            raise ValueError(f"{file}: {label}: a list of pictures is expected")
        folders = [*(f"{folder}/{label}".lstrip("/") for folder in NWPU_FOLDERS), "images"]
        for number, row in enumerate(rows, start=1):
            source = f"{file}:{label}:{number}"
            with skip_bad_row(source, errors):
                if row["split"] == split:
                    yield from nwpu_samples(row, place, folders, source)


def nwpu_samples(row: dict, place: Path, folders: list[str], source: str) -> list[dict]:
    images = [find_picture(place, folders, require_text(row, "filename"))]
    return [{"images": images, "turns": (("", require_text(row, name)),), "task": "caption",
             "source": f"{source}:{number}"} for number, name in enumerate(NWPU_SENTENCES)]


# ---- caption lists -------------------------------------------------------------------------------

CAPTIONS_PER_PICTURE = 5


def is_caption_lists(place: Path) -> bool:
    return bool(find_files(place, "*_filename.txt") and find_files(place, "*_caps.txt"))


def read_caption_lists(place: Path, split: str, errors: list[str]) -> Iterator[dict]:
    """A picture is named once for its five captions (train) or once for each of them (test)."""
    name_file = find_file(place, f"{split}_filename.txt")
    caption_file = find_file(place, f"{split}_caps.txt")
    require_split(split, name_file, caption_file)
    names, captions = read_lines(name_file), read_lines(caption_file)
    if len(captions) not in (len(names), CAPTIONS_PER_PICTURE * len(names)):
        raise ValueError(f"{caption_file}: {len(captions)} captions for the {len(names)} pictures "
                         f"of {name_file.name}; {CAPTIONS_PER_PICTURE} or 1 for each are expected")
    paths = PicturePaths(place, (picture_folder(place),))
    for number, caption in enumerate(captions):
        name = names[number * len(names) // len(captions)].strip()
        source = f"{caption_file}:{number + 1}"
        if not (name and caption.strip()):
            errors.append(f"{source}: an empty caption, or one of no picture")
            continue
        with skip_bad_row(source, errors):
            yield {"images": [paths[name]], "turns": (("", caption.strip()),), "task": "caption",
                   "source": source}


# ---- CapERA --------------------------------------------------------------------------------------

CAPERA_FOLDERS = ("Videos", "SingleFrames", "frames", ".")
CLIP_SUFFIXES = tuple(dict.fromkeys((           # "" is a folder of frames
    "", ".gif", ".webp", ".mp4", *VIDEO_SUFFIXES, ".jpg", ".png", *PICTURE_SUFFIXES)))


def is_capera(place: Path) -> bool:
    return bool(find_files(place, "CapERA*.json"))


def read_capera(place: Path, split: str, errors: list[str]) -> Iterator[dict]:
    """Clips are in one of CAPERA_FOLDERS, there in train or test, there in the class's folder
    (Fire), all optional. Train and test use the same names, so the other split's folder is never
    searched."""
    file = find_file(place, f"CapERA_DATASET_{split}.json")
    folders = [path for folder in CAPERA_FOLDERS
               for path in (Path(folder, split), Path(folder, split.capitalize()), Path(folder))
               if (place / path).is_dir()]
    require_split(split, file)
    with error_context(str(file)):
        rows = list(read_json(file)["ERA_caption"])
    for number, row in enumerate(rows, start=1):
        source = f"{file}:{number}"
        with skip_bad_row(source, errors):
            yield from capera_samples(row, place, folders, source)


def capera_samples(row: dict, place: Path, folders: list[Path], source: str) -> list[dict]:
    images = [find_clip(place, folders, require_text(row, "video_id"))]
    captions = [require_text({"caption": caption}, "caption")
                for caption in row["annotation"]["English_caption"]]
    return [{"images": images, "turns": (("", caption),), "task": "video",
             "source": f"{source}:{number}"} for number, caption in enumerate(captions)]


def find_clip(place: Path, folders: list[Path], name: str) -> str:
    """The path of a clip from `place`; where it should be if it is missing. As the names of
    find_picture, its name may be absolute, or begin with its folder in `place`."""
    check_name(portable_name(name))
    name = name_inside(place, name)
    if leaves_folder(name):
        return name                                 # is refused later, and not searched for
    parent, stem = Path(name).parent, Path(name).stem
    label = stem.rsplit("_", 1)[0]
    searched = folders if parent == Path() else [*folders, Path()]
    paths = (folder / parent / of_class / (stem + case) for suffix in CLIP_SUFFIXES
             for case in dict.fromkeys((suffix, suffix.upper(), suffix.capitalize()))
             for folder in searched for of_class in (label, "."))
    found = (path for path in paths if (place / path).exists())
    return next(found, Path("Videos", name)).as_posix()
