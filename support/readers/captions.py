"""support/readers/captions.py"""
from collections.abc import Iterator
from pathlib import Path

from support.readers.common import (
    class_name,
    error_context,
    find_picture,
    list_pictures,
    load_json,
    read_head,
    require_text,
    rows_or_error,
)
from support.readers.questions import CLASS_QUESTION, read_question_lines

# ---- rsicd ---------------------------------------------------------------------------------------
# RSICD, RSITMD, UCM-Captions, Sydney-Captions: dataset*.json beside one folder of pictures.
#
#     FOLDER/dataset_rsicd.json     {"images": [{"filename", "split", "sentences": [{"raw"}]}]}
#     FOLDER/RSICD_images/          or images/, imgs/, ..
#     FOLDER/scene_classes.json     optional: {picture: class}
#     FOLDER/*_vqa.txt              optional, RSIVQA's lines: picture:question?answer
#
# The split is the JSON's; lists beside it are not asked (RSICD's have val and test swapped).

def is_rsicd(place: Path) -> bool:
    return bool(rsicd_files(place))


def rsicd_files(place: Path) -> list[Path]:
    return [file for file in sorted(place.glob("dataset*.json")) if '"sentences"' in read_head(file)]


def read_rsicd(place: Path, split: str) -> Iterator[dict | ValueError]:
    """Captions of the split, then classes and theme questions of its pictures if there are any."""
    file, names = rsicd_files(place)[0], {}
    folder = next((path.name for path in sorted(place.iterdir())
                   if path.is_dir() and list_pictures(path)), "images")
    with error_context(str(file)):
        rows = list(load_json(file)["images"])
    for number, row in enumerate(rows, start=1):
        for sample in rows_or_error(f"{file}:{number}", rsicd_captions, row, split, folder, file):
            if isinstance(sample, dict):
                names[row["filename"]] = sample["images"]
            yield sample
    yield from rsicd_scenes(place / "scene_classes.json", names)
    for questions in sorted(place.glob("*_vqa.txt")):
        for name, sample in read_question_lines(questions):
            if name in names or not name:
                yield sample | {"images": names[name]} if name else sample


def rsicd_captions(row: dict, split: str, folder: str, file: Path) -> Iterator[dict]:
    if row["split"] == split:
        name = require_text(row, "filename")
        for number, sentence in enumerate(row["sentences"]):
            yield {"images": [f"{folder}/{name}"], "turns": (("", require_text(sentence, "raw")),),
                   "task": "caption", "source": f"{file}:{name}:{number}"}


def rsicd_scenes(file: Path, names: dict) -> Iterator[dict]:
    labels = load_json(file) if file.is_file() else {}
    question = CLASS_QUESTION.format(", ".join(sorted({class_name(label) for label in labels.values()})))
    for name in names:
        if name in labels:
            yield {"images": names[name], "turns": ((question, class_name(labels[name])),),
                   "task": "scene", "kind": "scene", "source": f"{file}:{name}"}


# ---- nwpu_captions -------------------------------------------------------------------------------
# NWPU-Captions: one JSON of classes beside NWPU-RESISC45's class folders.
#
#     FOLDER/dataset_nwpu.json      {class: [{"filename", "split", "raw", "raw_1", .. "raw_4"}]}
#     FOLDER/CLASS/                 or in NWPU-RESISC45/, NWPU_images/, images/

NWPU_FOLDERS = ("", "NWPU-RESISC45", "NWPU_images", "images")


NWPU_SENTENCES = ("raw", "raw_1", "raw_2", "raw_3", "raw_4")


def is_nwpu_captions(place: Path) -> bool:
    return bool(nwpu_files(place))


def nwpu_files(place: Path) -> list[Path]:
    return [file for file in sorted(place.glob("dataset*.json")) if '"raw_1"' in read_head(file)]


def read_nwpu_captions(place: Path, split: str) -> Iterator[dict | ValueError]:
    file = nwpu_files(place)[0]
    with error_context(str(file)):
        classes = list(load_json(file).items())
    for label, rows in classes:
        folders = [*(f"{folder}/{label}".lstrip("/") for folder in NWPU_FOLDERS), "images"]
        for number, row in enumerate(rows, start=1):
            source = f"{file}:{label}:{number}"
            yield from rows_or_error(source, nwpu_samples, row, split, place, folders, source)


def nwpu_samples(row: dict, split: str, place: Path, folders: list[str], source: str
             ) -> Iterator[dict]:
    if row["split"] == split:
        picture = find_picture(place, folders, require_text(row, "filename"))
        for number, name in enumerate(NWPU_SENTENCES):
            yield {"images": [picture], "turns": (("", require_text(row, name)),), "task": "caption",
                   "source": f"{source}:{number}"}


# ---- caption_lists -------------------------------------------------------------------------------
# Captions as retrieval codes have them (AMFMN's rsitmd_precomp, PE-RSITR): two texts a split.
#
#     FOLDER/{train,val,test}_filename.txt      a picture a line
#     FOLDER/{train,val,test}_caps.txt          a caption a line, five a picture
#     FOLDER/images/
#
# A picture is named once for its five captions (train) or once for each of them (test).

CAPTIONS_PER_PICTURE = 5


def is_caption_lists(place: Path) -> bool:
    return any(place.glob("*_filename.txt")) and any(place.glob("*_caps.txt"))


def read_caption_lists(place: Path, split: str) -> Iterator[dict | ValueError]:
    listed, file = place / f"{split}_filename.txt", place / f"{split}_caps.txt"
    names = listed.read_text(encoding="utf-8").splitlines()
    captions = file.read_text(encoding="utf-8").splitlines()
    if len(captions) not in (len(names), CAPTIONS_PER_PICTURE * len(names)):
        raise ValueError(f"{file}: {len(captions)} captions for the {len(names)} pictures of "
                         f"{listed.name}; {CAPTIONS_PER_PICTURE} or 1 for each are expected")
    folder = next((path.name for path in sorted(place.iterdir())
                   if path.is_dir() and list_pictures(path)), "images")
    for number, caption in enumerate(captions):
        name = names[number * len(names) // len(captions)]
        if caption.strip() and name.strip():
            yield {"images": [f"{folder}/{name.strip()}"], "turns": (("", caption.strip()),),
                   "task": "caption", "source": f"{file}:{number + 1}"}
        else:
            yield ValueError(f"{file}:{number + 1}: an empty caption, or one of no picture")


# ---- capera --------------------------------------------------------------------------------------
# CapERA: captions of ERA's clips, five a clip.
#
#     FOLDER/CapERA_DATASET_{train,test}.json     {"ERA_caption": [{"video_id": "Fire_001.mp4",
#                                                  "annotation": {"English_caption": [..]}}]}
#     FOLDER/Videos/Fire_001/                     a clip: a folder of frames, a .gif, .webp or .mp4,
#                                                 or SingleFrames' .jpg or .png
#
# In Videos, SingleFrames, frames or FOLDER itself, there in train or test, there in the class's
# folder (Fire). Train and test use the same names: what is in the other split's folder is not it.

CAPERA_FOLDERS = ("Videos", "SingleFrames", "frames", ".")


CLIP_SUFFIXES = ("", ".gif", ".webp", ".mp4", ".jpg", ".png")


def is_capera(place: Path) -> bool:
    return any(place.glob("CapERA*.json"))


def read_capera(place: Path, split: str) -> Iterator[dict | ValueError]:
    file = place / f"CapERA_DATASET_{split}.json"
    folders = [path for folder in CAPERA_FOLDERS for path in
               (Path(folder, split), Path(folder, split.capitalize()), Path(folder))
               if (place / path).is_dir()]
    with error_context(str(file)):
        rows = list(load_json(file)["ERA_caption"])
    for number, row in enumerate(rows, start=1):
        yield from rows_or_error(f"{file}:{number}", capera_samples, row, place, folders, f"{file}:{number}")


def capera_samples(row: dict, place: Path, folders: list[Path], source: str) -> Iterator[dict]:
    images = [find_clip(place, folders, require_text(row, "video_id"))]
    for number, caption in enumerate(row["annotation"]["English_caption"]):
        yield {"images": images, "turns": (("", require_text({"caption": caption}, "caption")),),
               "task": "video", "source": f"{source}:{number}"}


def find_clip(place: Path, folders: list[Path], name: str) -> str:
    """Where a clip is, or should be."""
    if Path(name).name != name:
        return name                                 # to be refused, not looked for
    stem = Path(name).stem
    label = stem.rsplit("_", 1)[0]
    paths = (folder / part / (stem + form) for form in CLIP_SUFFIXES for folder in folders
             for part in (label, "."))
    found = (path for path in paths if (place / path).exists())
    return next(found, Path("Videos", name)).as_posix()
