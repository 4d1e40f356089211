"""Questions about what is not there, from photographs with captions and a scene.

    python examples/absent_rows.py OUT datasets/rsicd

A model that has only been asked for the boxes of things that are there draws a box for anything.
This writes a data set of the other kind, `[refer] the ship` and `[detection] ships` on a desert,
both answered "there is none", in the layout of SkyEye-968k, with hard links to the pictures.

A thing counts as absent where no caption of the picture mentions it, nor any caption of any
training picture of the same scene. Captions leave out much, so this asks a lot: a car is missing
from a forest, not from a street where nobody wrote of it.
"""
import argparse
import os
import random
import re
import shutil
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from examples.miniworld import write_rows  # noqa: E402
from support.common import UserError  # noqa: E402
from support.readers import read_data  # noqa: E402
from support.readers.common import Sample  # noqa: E402

THINGS = {      # what is asked for: words by which a caption mentions it
    "ship": "ship boat vessel yacht", "airplane": "airplane plane aircraft",
    "storage tank": "tank", "tennis court": "tennis", "baseball field": "baseball",
    "basketball court": "basketball", "bridge": "bridge viaduct overpass", "stadium": "stadium",
    "car": "car vehicle parking truck bus", "train": "train railway", "house": "house villa home "
    "building residential church school", "swimming pool": "pool", "helicopter": "helicopter"}
MIN_PICTURES = 50       # of a scene in train, to say what is never mentioned in it


def mentioned(texts: Iterable[str]) -> set[str]:
    """The THINGS that the texts mention."""
    words = {word.removesuffix("s") for text in texts for word in re.findall("[a-z]+",
                                                                             text.lower())}
    return {thing for thing, names in THINGS.items() if words & set(names.split())}


def pictures_of(samples: Sequence[Sample]) -> dict[str, tuple[str, set[str]]]:
    """Picture -> its scene and the things that its captions mention, where both are known."""
    scenes, texts = {}, defaultdict(list)
    for sample in samples:
        if len(sample.images) != 1:
            continue
        if sample.task == "scene":
            scenes[sample.images[0]] = sample.turns[0][1]
        elif sample.task == "caption":
            texts[sample.images[0]] += sample.references or [sample.turns[0][1]]
    return {path: (scenes[path], mentioned(texts[path])) for path in scenes if texts[path]}


def never_seen(pictures: dict[str, tuple[str, set[str]]]) -> dict[str, list[str]]:
    """Scene -> the things that no caption of its pictures mentions."""
    counts = Counter(scene for scene, _ in pictures.values())
    seen: dict[str, set[str]] = defaultdict(set)
    for scene, things in pictures.values():
        seen[scene] |= things
    return {scene: sorted(THINGS.keys() - seen[scene])
            for scene, count in counts.items() if count >= MIN_PICTURES}


def absent_things(pictures: dict[str, tuple[str, set[str]]], absent: dict[str, list[str]],
                  seed: int) -> list[tuple[str, str]]:
    """(picture, thing) for each picture of a scene of which there is something to ask."""
    found = []
    for path, (scene, things) in sorted(pictures.items()):
        missing = [thing for thing in absent.get(scene, ()) if thing not in things]
        if missing:
            rng = random.Random(f"{seed}/{Path(path).name}")
            found.append((path, rng.choice(missing)))
    return found


def link(path: str | Path, target: Path) -> None:
    """A hard link to a picture, or a copy where there is no link from disk to disk."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        try:
            os.link(path, target)
        except OSError:
            shutil.copyfile(path, target)


def write_split(out: Path, split: str, found: Sequence[tuple[str, str]]) -> None:
    for path, _ in found:
        link(path, out / "images" / split / Path(path).name)
    named = [({"image": f"{split}/{Path(path).name}"}, thing) for path, thing in found]
    write_rows(out / "vg" / f"Absent_vg_{split}.json",
               [image | {"expression": f"the {thing}", "bbox": []} for image, thing in named])
    write_rows(out / "phrasegrounding" / f"Absent_pg_{split}.json",
               [image | {"phrase": f"{thing}s", "bboxes": []} for image, thing in named])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("data", help="data set with captions and scenes")
    parser.add_argument("--seed", type=int, default=42, help="random seed (default: %(default)s)")
    args = parser.parse_args()
    try:
        absent = never_seen(pictures_of(read_data(args.data, "train")))
        for split in ("train", "val", "test"):
            try:
                pictures = pictures_of(read_data(args.data, split))
            except UserError as error:
                print(f"{args.data}: no {split} split ({error})", file=sys.stderr)
                continue
            found = absent_things(pictures, absent, args.seed)
            write_split(args.out, split, found)
            print(f"{split}: {2 * len(found):,} questions about {len(pictures):,} pictures")
    except (UserError, OSError) as error:
        print(f"absent_rows.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
