"""What is made of all that is known about one picture: samples, descriptions, a conversation.

It depends on the plan and the group alone, so any process may do it, in any order.
"""
import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from data import Tokenizer
from support.building.descriptions import description_rows
from support.building.expressions import (
    Layout,
    Thing,
    absent_names,
    object_rows,
    singular,
    words_of,
)
from support.building.output import (
    LLAVA_OUTPUT,
    SKYEYE_OUTPUT,
    llava_row,
    skyeye_row,
)
from support.building.store import EXAMPLES, Group, StoredPicture, StoredRow
from support.building.talks import compose, conversation_row, object_chains, turn_of_row
from support.common import Box
from support.readers.common import Sample, box_fault
from support.training.checks import TokenCounter

# Layouts that have every object of their classes; of the others, boxes are those of single phrases.
EXHAUSTIVE = ("coco", "voc", "dota", "yolo", "metadata")
OBJECT_TASKS = ("detection", "identify", "refer")       # which their readers make of objects


@dataclass(frozen=True)
class DataSet:
    name: str                   # of its files, different from all others'
    place: str                  # as it was named
    root: str                   # the folder that its pictures are in
    format: str
    ratio: float                # the part of its rows that is taken
    labels: dict[str, int]      # class in singular -> pictures of train that have it

    @property
    def is_exhaustive(self) -> bool:
        return self.format in EXHAUSTIVE


@dataclass(frozen=True)
class Plan:
    sets: tuple[DataSet, ...]
    layout: str
    conversations: float        # the part of the pictures that have one
    turns: tuple[int, int]      # of a conversation, least and most
    describe: bool
    seed: int
    tokenizer: str
    max_tokens: int


class Built(NamedTuple):
    """A row to write."""
    file: str                   # of the output
    data_set: int
    task: str
    kind: str
    label: str                  # an answer of few or a class, which --balance looks at; or ""
    links: tuple[tuple[str, str], ...]      # path and name in the output of each picture
    text: str                   # the row as JSON


class Result(NamedTuple):
    rows: list[Built]
    rejected: Counter           # by reason
    examples: list[tuple[str, str]]         # reason, source


class Rejections:
    def __init__(self):
        self.counts: Counter = Counter()
        self.examples: list[tuple[str, str]] = []

    def add(self, reason: str, source: str, count: int = 1) -> None:
        if self.counts[reason] < EXAMPLES:
            self.examples.append((reason, source))
        self.counts[reason] += count


def build_groups(groups: list[Group], plan: Plan) -> Result:
    rejections, rows = Rejections(), []
    for group in groups:
        rows += build_group(group, plan, rejections)
    return Result(rows, rejections.counts, rejections.examples)


def build_group(group: Group, plan: Plan, rejections: Rejections) -> Iterator[Built]:
    name = "/".join(picture_name(path, group.picture, plan) for path in group.picture.paths)
    rng = random.Random(f"{plan.seed} {name or group.rows[0].fields['source']}")
    words = known_words(group)
    layouts = find_layouts(group, plan, rejections)
    kept = [(row.data_set, row_in_fractions(row)) for row in sound_rows(group, plan, rejections)]
    kept += [(data_set, as_identify(row)) for data_set, row in kept
             if plan.sets[data_set].format == "dior_rsvg" and row["task"] == "refer"
             and row["boxes"]]
    made: list[tuple[int, dict]] = list(kept)
    for data_set, layout in layouts.items():
        labels = plan.sets[data_set].labels
        if is_taken(plan, data_set, name):
            made += [(data_set, row) for row in object_rows(layout, labels, words, rng)]
    if group.picture.paths:
        layout, labels = fullest_layout(layouts, plan)
        owner = group.picture.data_set
        if plan.describe:
            texts = texts_of(group)
            made += [(owner, row) for row in
                     description_rows(layout, texts["scene"], texts["caption"], rng)]
        if rng.random() < plan.conversations:
            absent = absent_names(layout, labels, words)
            chains = object_chains(layout, absent, labels, rng)
            chains += [[turn] for _, row in kept if (turn := turn_of_row(row))]
            if chosen := compose(chains, sorted(labels), plan.turns, rng):
                made.append((owner, conversation_row(chosen, rng)))
    yield from write_rows(made, group, plan, rng, rejections)


# ---- what is known -------------------------------------------------------------------------------

def picture_name(path: str, picture: StoredPicture, plan: Plan) -> str:
    """Its name in the output: the data set, then its path there."""
    own = plan.sets[picture.data_set]
    return f"{own.name}/{Path(path).relative_to(own.root).as_posix()}"


def known_words(group: Group) -> set[str]:
    """Of all that any data set says about the picture."""
    words: set[str] = set()
    for row in group.rows:
        for question, answer in row.fields["turns"]:
            words |= words_of(answer)
            if row.fields["task"] != "scene":           # its question lists all classes
                words |= words_of(question)
    return words


def is_taken(plan: Plan, data_set: int, source: str) -> bool:
    """Whether the ratio of the data set takes this row; decided for each on its own."""
    ratio = plan.sets[data_set].ratio
    return ratio >= 1 or random.Random(f"{plan.seed} {source}").random() < ratio


def find_layouts(group: Group, plan: Plan, rejections: Rejections) -> dict[int, Layout]:
    """The objects as each data set that has all of them annotates them."""
    rows_of: dict[int, list[StoredRow]] = defaultdict(list)
    for row in group.rows:
        if plan.sets[row.data_set].is_exhaustive and row.fields["task"] == "detection":
            rows_of[row.data_set].append(row)
    layouts = {}
    for data_set, rows in rows_of.items():
        first = rows[0].picture
        repeated = [row for row in rows if row.picture != first]
        if repeated:
            rejections.add("annotated twice, in a copy of the picture",
                           repeated[0].fields["source"], len(repeated))
        layouts[data_set] = make_layout([row for row in rows if row.picture == first], rejections)
    return layouts


def fullest_layout(layouts: dict[int, Layout], plan: Plan) -> tuple[Layout, dict[str, int]]:
    """The one with the most objects, and the classes of its data set; empty where there is none."""
    if not layouts:
        return Layout(()), {}
    fullest = max(layouts, key=lambda number: len(layouts[number].things))
    return layouts[fullest], plan.sets[fullest].labels


def make_layout(rows: list[StoredRow], rejections: Rejections) -> Layout:
    things: dict[Thing, None] = {}
    unclear = set()
    for row in rows:
        name = singular(row.fields["turns"][0][0])
        for box in row.fields["boxes"]:
            if fault := box_fault(box, row.picture.width, row.picture.height):
                rejections.add("a class with a box that is none", f"{row.fields['source']}: "
                               f"{fault}")
                unclear.add(name)
                continue
            thing = Thing(name, to_fractions(box, row.picture))
            if thing in things:
                rejections.add("the same box twice", row.fields["source"])
            things[thing] = None
    return Layout(tuple(things), frozenset(unclear))


def to_fractions(box: Box, picture: StoredPicture) -> Box:
    """Pixels -> fractions of the sides, corners in order and inside."""
    x1, x2 = (min(max(x / picture.width, 0.0), 1.0) for x in sorted(box[::2]))
    y1, y2 = (min(max(y / picture.height, 0.0), 1.0) for y in sorted(box[1::2]))
    return x1, y1, x2, y2


def sound_rows(group: Group, plan: Plan, rejections: Rejections) -> Iterator[StoredRow]:
    """The rows that are taken as they are: all but those of objects, which are made anew."""
    for row in group.rows:
        fields, own = row.fields, plan.sets[row.data_set]
        if own.is_exhaustive and fields["task"] in OBJECT_TASKS:
            continue
        if not is_taken(plan, row.data_set, fields["source"] + fields["turns"][0][1]):
            rejections.add("left out by --ratio", fields["source"])
            continue
        known = row.picture.width and row.picture.height
        faults = (box_fault(box, row.picture.width, row.picture.height)
                  for box in fields["boxes"] if known)
        if fault := next(filter(None, faults), ""):
            rejections.add("a box that is none", f"{fields['source']}: {fault}")
        else:
            yield row


def row_in_fractions(row: StoredRow) -> dict:
    boxes = tuple(to_fractions(box, row.picture) for box in row.fields["boxes"])
    return row.fields | {"boxes": boxes}


def as_identify(row: dict) -> dict:
    """The expression of a box, asked the other way round."""
    [(expression, _)] = row["turns"]
    return row | {"task": "identify", "turns": (("<bbox>", expression),)}


def texts_of(group: Group) -> dict[str, list[str]]:
    """Task -> the answers of its rows; "scene" has those to the question for the theme too."""
    answers = defaultdict(list)
    for row in group.rows:
        key = "scene" if row.fields["kind"] in ("scene", "theme") else row.fields["task"]
        answers[key].append(row.fields["turns"][0][1])
    return answers


# ---- rows to write -------------------------------------------------------------------------------

CLOSED = ("yes", "no")


def label_of(row: dict, own: DataSet) -> str:
    """What --balance looks at: yes or no, the class of a scene, the class of an object."""
    question, answer = row["turns"][0]
    if row["task"] == "scene" or row["kind"] == "theme" or answer in CLOSED:
        return answer if row["task"] != "conversation" else ""
    if not own.is_exhaustive or not row["boxes"]:
        return ""
    return {"detection": question, "identify": answer}.get(row["task"], "")


def write_rows(made: list[tuple[int, dict]], group: Group, plan: Plan, rng: random.Random,
               rejections: Rejections) -> Iterator[Built]:
    picture, seen = group.picture, set()
    size = picture.width or 1, picture.height or 1
    names = tuple(picture_name(path, picture, plan) for path in picture.paths)
    prefix = "images/" if plan.layout == "llava" else ""
    for data_set, row in made:
        key = row["task"], row["turns"], tuple(round(side, 3) for box in row["boxes"]
                                               for side in box)
        source = row.get("source") or "/".join(names)
        if key in seen:
            rejections.add("repeated", source)
            continue
        seen.add(key)
        boxes = tuple((x1 * size[0], y1 * size[1], x2 * size[0], y2 * size[1])
                      for x1, y1, x2, y2 in row["boxes"])
        number = f"{plan.sets[data_set].name} {Path(names[0]).stem if names else ''} {len(seen)}"
        sample = Sample(picture.paths, row["turns"], row["task"], number, boxes, (), row["kind"])
        if fault := length_fault(sample, plan):
            rejections.add("over --max_tokens", f"{source}: {fault}")
            continue
        named = replace(sample, images=tuple(prefix + name for name in names))
        if plan.layout == "llava":
            file, fields = LLAVA_OUTPUT, llava_row(named, size, rng)
        else:
            file = SKYEYE_OUTPUT[row["task"]].format(plan.sets[data_set].name)
            fields = skyeye_row(named, size)
        yield Built(file, data_set, row["task"], row["kind"], label_of(row, plan.sets[data_set]),
                    tuple(zip(picture.paths, names, strict=True)),
                    json.dumps(fields, ensure_ascii=False))


def length_fault(sample: Sample, plan: Plan) -> str:
    """"" if the sample is no longer than --max_tokens; most are seen to be so at once."""
    letters = sum(len(text.encode()) + 40 for turn in sample.turns for text in turn)
    if letters + 90 + 20 * len(sample.boxes) <= plan.max_tokens:
        return ""
    counter = TokenCounter(load_tokenizer(plan.tokenizer), "skyeye", 1, plan.max_tokens)
    return counter.fault(sample)[1]


@lru_cache(maxsize=1)
def load_tokenizer(path: str) -> Tokenizer:
    return Tokenizer(path)
