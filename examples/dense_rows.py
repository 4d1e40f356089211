"""Questions about every thing of every picture, from the boxes, classes and colors of a data set.

    python examples/dense_rows.py OUT out/miniworld

Of a picture with nine cars the miniature world asks for the box of one or two, and seldom by its
color. A small model then learns what a car is and leaves the color alone. This writes a second data
set about the same training pictures, in the layout of SkyEye-968k, with hard links to them:

    refer       each thing that its class and color tell from all others, "the red car"
    identify    what is in its box, of things that have colors
    detection   all things of a class, and all of a class and color
    vqa         how many there are, and whether there is one of a color

WORLD is a folder with objects_train.json, [{"image", "objects": [{"class", "color", "box"}]}].
"""
import argparse
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from examples.absent_rows import link  # noqa: E402
from examples.miniworld import CHOICES, Row, a, noun, write_rows  # noqa: E402
from support.common import UserError, read_json  # noqa: E402

MAX_IDENTIFIED = 6      # things of a picture that are identified


def named(objects: Sequence[Row]) -> dict[tuple[str, str | None], list[Row]]:
    """(class, color) -> the things of that name."""
    found: dict[tuple[str, str | None], list[Row]] = {}
    for one in objects:
        found.setdefault((one["class"], one["color"]), []).append(one)
    return found


def refer_rows(objects: Sequence[Row]) -> Iterator[Row]:
    """"the red car" for the one that is red, "the ship" for the only one of its class."""
    classes = [one["class"] for one in objects]
    for (name, color), things in named(objects).items():
        if len(things) == 1 and (color or classes.count(name) == 1):
            yield {"expression": f"the {noun(name, color)}", "bbox": things[0]["box"]}


def identify_rows(objects: Sequence[Row], rng: random.Random) -> Iterator[Row]:
    things = [one for one in objects if one["class"] in CHOICES]
    for one in rng.sample(things, min(len(things), MAX_IDENTIFIED)):
        yield {"bbox": one["box"], "phrase": noun(one["class"], one["color"]), "task": "identify"}


def detection_rows(objects: Sequence[Row]) -> Iterator[Row]:
    """Boxes from left to right, as the miniature world writes them."""
    groups = {name: things for name, things in named(objects).items() if name[1]}
    for one in objects:
        groups.setdefault((one["class"], None), []).append(one)
    for (name, color), things in groups.items():
        boxes = sorted((one["box"] for one in things), key=lambda box: box[0])
        yield {"phrase": noun(name, color, len(things) > 1), "bboxes": boxes}


def vqa_rows(objects: Sequence[Row], rng: random.Random) -> Iterator[Row]:
    """Counts of the classes, and of each class with colors one color that is there or is not."""
    found = named(objects)
    for name in sorted({one["class"] for one in objects}):
        count = sum(one["class"] == name for one in objects)
        yield {"question": f"how many {name}s are there ?", "answer": str(count), "type": "count"}
        colors = sorted(set(CHOICES.get(name, ())) - {None})
        present = [color for color in colors if (name, color) in found]
        absent = [color for color in colors if color not in present]
        for answer, choices in (("yes", present), ("no", absent)):
            if choices and (not present or not absent or rng.random() < .7):
                question = f"is there {a(noun(name, rng.choice(choices)))} ?"
                yield {"question": question, "answer": answer, "type": "presence"}


def dense_rows(objects: Sequence[Row], rng: random.Random) -> dict[str, list[Row]]:
    """Objects of one picture -> the rows of each file."""
    return {"vg/Dense_vg_train.json": list(refer_rows(objects)),
            "vg/Dense_identify_train.json": list(identify_rows(objects, rng)),
            "phrasegrounding/Dense_pg_train.json": list(detection_rows(objects)),
            "vqa/Dense_vqa_train.json": list(vqa_rows(objects, rng))}


def write_dense(out: Path, world: Path, seed: int) -> dict[str, int]:
    """-> file -> number of its rows. UserError, OSError."""
    files: dict[str, list[Row]] = {}
    for picture in read_json(world / "objects_train.json"):
        image, rng = picture["image"], random.Random(f"{seed}/{picture['image']}")
        rows = dense_rows(picture["objects"], rng)
        if any(rows.values()):
            link(world / "images" / image, out / "images" / image)
        for file, own in rows.items():
            files.setdefault(file, []).extend({"image": image} | row for row in own)
    for file, rows in files.items():
        write_rows(out / file, rows)
    return {file: len(rows) for file, rows in files.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("world", type=Path, help="data set with objects_train.json")
    parser.add_argument("--seed", type=int, default=42, help="random seed (default: %(default)s)")
    args = parser.parse_args()
    try:
        for file, count in write_dense(args.out, args.world, args.seed).items():
            print(f"{args.out / file}: {count:,} rows")
    except (UserError, OSError) as error:
        print(f"dense_rows.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
