"""CapERA: captions of ERA's clips, five a clip.

    FOLDER/CapERA_DATASET_{train,test}.json     {"ERA_caption": [{"video_id": "Fire_001.mp4",
                                                 "annotation": {"English_caption": [..]}}]}
    FOLDER/Videos/Fire_001/                     a clip: a folder of frames, a .gif, .webp or .mp4,
                                                or SingleFrames' .jpg or .png

In Videos, SingleFrames, frames or FOLDER itself, there in train or test, there in the class's
folder (Fire). Train and test use the same names: what is in the other split's folder is not it.
"""
from collections.abc import Iterator
from pathlib import Path

from formats.common import load_json, text
from formats.wrong import attempt, naming

FOLDERS = ("Videos", "SingleFrames", "frames", ".")
FORMS = ("", ".gif", ".webp", ".mp4", ".jpg", ".png")


def matches(place: Path) -> bool:
    return any(place.glob("CapERA*.json"))


def read(place: Path, split: str) -> Iterator[dict | ValueError]:
    file = place / f"CapERA_DATASET_{split}.json"
    folders = [path for folder in FOLDERS for path in
               (Path(folder, split), Path(folder, split.capitalize()), Path(folder))
               if (place / path).is_dir()]
    with naming(str(file)):
        rows = list(load_json(file)["ERA_caption"])
    for number, row in enumerate(rows, start=1):
        yield from attempt(f"{file}:{number}", captions, row, place, folders, f"{file}:{number}")


def captions(row: dict, place: Path, folders: list[Path], source: str) -> Iterator[dict]:
    images = [clip(place, folders, text(row, "video_id"))]
    for number, caption in enumerate(row["annotation"]["English_caption"]):
        yield {"images": images, "turns": (("", text({"caption": caption}, "caption")),),
               "task": "video", "source": f"{source}:{number}"}


def clip(place: Path, folders: list[Path], name: str) -> str:
    """Where a clip is, or should be."""
    if Path(name).name != name:
        return name                                 # to be refused, not looked for
    stem = Path(name).stem
    label = stem.rsplit("_", 1)[0]
    paths = (folder / part / (stem + form) for form in FORMS for folder in folders
             for part in (label, "."))
    found = (path for path in paths if (place / path).exists())
    return next(found, Path("Videos", name)).as_posix()
