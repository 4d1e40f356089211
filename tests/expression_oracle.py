"""What expressions and questions about boxes mean, written down once more and independently of
support/building: the plain meaning of the words, by centers and areas, without any margin.

    python tests/expression_oracle.py OUT COCO.json [--count 200] [--seed 0]

draws samples of a training set that was built from one COCO file, and compares each with the
annotation: the expression names the one object that the box is of, counts and comparisons hold,
what is said to be absent is.
"""
import argparse
import json
import random
import re
import sys
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from support.building.expressions import plural, singular  # noqa: E402
from support.common import ABSENT  # noqa: E402
from support.readers.common import class_name  # noqa: E402

ORDINALS = {"second": 1, "third": 2, "fourth": 3}
COUNT_WORDS = dict(zip("no one two three four five six seven eight nine ten".split(), range(11),
                       strict=True))


def center(box):
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def area(box):
    return (box[2] - box[0]) * (box[3] - box[1])


def distance(a, b):
    (x1, y1), (x2, y2) = center(a), center(b)
    return ((x1 - x2) ** 2 + (y1 - y2) ** 2) ** 0.5


def cell(box, size):
    """top left, .. of the box's center."""
    x, y = center(box)
    row = ("top", "center", "bottom")[min(int(3 * y / size[1]), 2)]
    column = ("left", "center", "right")[min(int(3 * x / size[0]), 2)]
    return row if row == column else f"{row} {column}"


SIDES = {"left of": lambda a, b: center(a)[0] < center(b)[0],
         "right of": lambda a, b: center(a)[0] > center(b)[0],
         "above": lambda a, b: center(a)[1] < center(b)[1],
         "below": lambda a, b: center(a)[1] > center(b)[1]}


def first(boxes, key):
    """The boxes with the smallest key."""
    return [box for box in boxes if key(box) == min(map(key, boxes))]


KEYS = {"leftmost": lambda box: center(box)[0], "rightmost": lambda box: -center(box)[0],
        "largest": lambda box: -area(box), "smallest": area}
ENDS = {"left": lambda box: center(box)[0], "right": lambda box: -center(box)[0],
        "top": lambda box: center(box)[1], "bottom": lambda box: -center(box)[1]}


def denoted(expression, things, size):
    """things: {class: boxes} -> the boxes that the expression may stand for."""
    def of(name):
        return things.get(name, [])

    if match := re.fullmatch("the (leftmost|rightmost|largest|smallest) (.+)", expression):
        return first(of(match[2]), KEYS[match[1]])
    if match := re.fullmatch("the (.+) at the (top|bottom)", expression):
        return first(of(match[1]), ENDS[match[2]])
    if match := re.fullmatch("the (second|third|fourth) (.+) from the (left|right|top|bottom)",
                             expression):
        return [sorted(of(match[2]), key=ENDS[match[3]])[ORDINALS[match[1]]]]
    if match := re.fullmatch("the (.+) in the ((top|center|bottom)( left| center| right)?)",
                             expression):
        return [box for box in of(match[1]) if cell(box, size) == match[2]]
    if match := re.fullmatch("the (.+) (left of|right of|above|below) the (.+)", expression):
        [other] = of(match[3])
        return [box for box in of(match[1]) if SIDES[match[2]](box, other)]
    if match := re.fullmatch("the (.+) nearest to the (.+)", expression):
        [other] = of(match[2])
        return first(of(match[1]), lambda box: distance(box, other))
    return of(expression.removeprefix("the "))


def true_answer(question, things, size):
    """Of a question of support/building; None where it is of another kind."""
    number = {plural(name): len(boxes) for name, boxes in things.items()}
    number |= {name: len(boxes) for name, boxes in things.items()}
    patterns = {
        r"is there an? (.+) \?|are there any (.+) \?|is an? (.+) present in the image \?": "there",
        r"how many (.+) are there \?|what is the number of (.+) \?": "count",
        r"are there (more|fewer) (.+) than (.+) \?": "comp",
        r"is (the .+) (left of|right of|above|below) (the .+) \?": "relation"}
    for pattern, kind in patterns.items():
        match = re.fullmatch(pattern, question)
        if not match:
            continue
        words = [group for group in match.groups() if group]
        if kind == "there":
            return "yes" if number.get(words[0], 0) else "no"
        if kind == "count":
            return str(number.get(words[0], 0))
        if kind == "comp":
            more, less = number.get(words[1], 0), number.get(words[2], 0)
            return "yes" if (more > less if words[0] == "more" else more < less) else "no"
        [one], [other] = (denoted(words[i], things, size) for i in (0, 2))
        return "yes" if SIDES[words[1]](one, other) else "no"
    return None


def fault_of(task, question, answer, boxes, things, size):
    """What is wrong with a single sample; "" if it is true. boxes: of its answer or question."""
    if task == "vqa":
        true = true_answer(question, things, size)
        return "" if true == answer else f"the answer is {true}"
    if answer == ABSENT:
        there = things.get(question.removeprefix("the "), [])
        return f"{len(there)} are there" if there else ""
    if task == "refer":
        found = denoted(question, things, size)
        return "" if len(found) == 1 and same(found, boxes) else f"it may be one of {found}"
    if task == "detection":
        return "" if same(things.get(question, []), boxes) else "not all boxes of the class"
    found = denoted(answer, things, size)           # of identify: a class, or an expression
    alone = not answer.startswith("the ") or len(found) == 1
    return "" if alone and any(same([box], boxes) for box in found) else f"it names {found}"


def same(some, others):
    """Whether these are the same boxes, to half a pixel."""
    return len(some) == len(others) and all(
        max(abs(a - b) for a, b in zip(one, other, strict=True)) <= 0.5
        for one, other in zip(sorted(some), sorted(others), strict=True))


# ---- a built training set ------------------------------------------------------------------------

def read_coco(file):
    """-> {picture's name: ({class: boxes}, size)}."""
    data = json.loads(Path(file).read_text())
    names = {row["id"]: singular(class_name(row["name"])) for row in data["categories"]}
    things = {row["id"]: defaultdict(list) for row in data["images"]}
    sizes = {row["id"]: (row["width"], row["height"]) for row in data["images"]}
    for row in data["annotations"]:
        x, y, w, h = row["bbox"]
        width, height = sizes[row["image_id"]]
        box = (max(x, 0), max(y, 0), min(x + w, width), min(y + h, height))
        things[row["image_id"]][names[row["category_id"]]].append(box)
    return {Path(row["file_name"]).name: (things[row["id"]], sizes[row["id"]])
            for row in data["images"]}


def built_samples(out):
    """-> (picture's name, task, question, answer, boxes) of each single sample in SkyEye's layout.
    """
    for file in sorted(Path(out).glob("*/*_train.json")):
        for row in json.loads(file.read_text()):
            name, task = Path(str(row.get("image", ""))).name, row.get("task")
            boxes = row.get("bboxes", row.get("bbox", []))
            boxes = [boxes] if boxes and not isinstance(boxes[0], list) else boxes
            if task == "vqa" and row.get("type") in ("presence", "count", "comp", "relation"):
                yield name, task, row["question"], row["answer"], []
            elif task in ("refer", "detection"):
                yield (name, task, row["expression" if task == "refer" else "phrase"],
                       "" if boxes else ABSENT, boxes)
            elif task == "identify":
                yield name, task, "", row["phrase"], boxes


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("coco")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    known = read_coco(args.coco)
    samples = [sample for sample in built_samples(args.out) if sample[0] in known]
    drawn = random.Random(args.seed).sample(samples, min(args.count, len(samples)))
    wrong = 0
    for name, *sample in drawn:
        things, size = known[name]
        if fault := fault_of(*sample, things, size):
            wrong += 1
            if wrong <= 20:
                print(f"{name}: {sample}: {fault}")
    print(f"{len(drawn) - wrong} of {len(drawn)} samples are true ({len(samples):,} can be "
          "compared)")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
