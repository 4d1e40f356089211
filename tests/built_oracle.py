"""Is a training set true that `python data.py --build` made?

    python tests/built_oracle.py OUT [--count 200] [--seed 0]

draws samples of each kind (all without --count) and compares them with the annotations of the data
sets that OUT/manifest.json names, which are read again. What a data set published must stand there;
what is said of objects must be true, in the plain meaning of the words (expression_oracle.py); no
question of a conversation may have been answered by an earlier turn (talk_oracle.py); and no
picture of val or test may be there. Pictures are matched by their files' contents and by 32 x 32
gray levels, not by their names. Nothing of support/building is used.
"""
import argparse
import hashlib
import json
import random
import re
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import expression_oracle  # noqa: E402
from data import TEMPLATES, clean_text, parse_boxes  # noqa: E402
from expression_oracle import NEAR_TEXT, boxes_of, same  # noqa: E402
from support.common import ABSENT  # noqa: E402
from support.readers import read_rows  # noqa: E402
from support.readers.common import MissingSplit  # noqa: E402
from talk_oracle import Talk, Turn, count_question, forms, side_question  # noqa: E402

COMPLETE = ("coco", "voc", "dota", "yolo", "metadata")      # layouts with all objects of a class
OBJECT_TASKS = ("refer", "detection", "identify")
NEAR, OF_CONTRAST = 3, 0.5      # mean difference of copies at 32 x 32: gray levels, and part of
                                # their standard deviation, as meadows hardly differ
DESCRIPTIONS = ("local description", "global description")


# ---- annotations ---------------------------------------------------------------------------------

class Picture:
    """What one data set says about one picture, boxes in fractions of its sides."""

    def __init__(self, paths, data_set):
        self.paths, self.data_set, self.size = paths, data_set, None
        self.things = defaultdict(list)         # class in singular -> boxes
        self.rows: list[tuple[str, tuple[Turn, ...]]] = []          # as published

    def fractions(self, box):
        self.size = self.size or image_size(self.paths)
        sides = [side / self.size[i % 2] for i, side in enumerate(box)]
        (x1, x2), (y1, y2) = sorted(sides[::2]), sorted(sides[1::2])
        return tuple(min(max(side, 0.0), 1.0) for side in (x1, y1, x2, y2))

    def add(self, row, complete):
        boxes = [self.fractions(box) for box in row.get("boxes") or ()]
        if complete and row["task"] in OBJECT_TASKS:
            if row["task"] == "detection":
                name = row["turns"][0][0]
                self.things[name] = list(dict.fromkeys([*self.things[name], *boxes]))
            return
        turns = []
        for question, answer in row["turns"]:
            count = (question + answer).count("<bbox>")
            turns.append(Turn(row["task"], plain(question), plain(answer), tuple(boxes[:count])))
            boxes = boxes[count:]
        self.rows.append((row["task"], tuple(turns)))
        if row["task"] == "refer":                  # is also asked the other way round
            self.rows.append(("identify", (Turn("identify", "bbox", turns[0].question,
                                                turns[0].boxes),)))


def plain(text):
    """What is compared: words in small letters, at most the 50 that data.py keeps."""
    text = re.sub(r"\{<[^}]*\}", "<bbox>", text)
    return " ".join(re.findall(r"[a-z0-9]+", clean_text(text)))


class Annotations:
    """All that the sources of a manifest say of pictures of train, and the pictures of the rest."""

    def __init__(self, manifest):
        self.pictures, self.held_out, self.names, self.matched = [], [], set(), {}
        folder = manifest["settings"]["image_folder"]
        for number, source in enumerate(manifest["sources"]):
            self.read(Path(source["place"]), number, source["format"] in COMPLETE, folder)
        self.prints = Prints([picture.paths for picture in self.pictures])
        self.held_prints = Prints(self.held_out)
        self.by_content = defaultdict(list)
        for picture in self.pictures:
            self.by_content[content(picture.paths)].append(picture)
        self.held_contents = set(map(content, self.held_out))

    def read(self, place, data_set, complete, folder):
        found: dict[tuple, Picture] = {}
        train = []
        for row in rows_of(place, "train", folder):
            train.append((row["images"], row["turns"]))
            paths = tuple(row["images"])
            found.setdefault(paths, Picture(paths, data_set)).add(row, complete)
        self.pictures += found.values()
        self.names |= {name for picture in found.values() for name in picture.things}
        questions = {turn.question + " ?" for picture in found.values()
                     for _, turns in picture.rows for turn in turns}
        self.names |= set(filter(None, map(count_question, questions)))
        for split in ("val", "test"):
            rows = [(row["images"], row["turns"]) for row in rows_of(place, split, folder)]
            if rows != train:
                self.held_out += dict.fromkeys(tuple(images) for images, _ in rows if images)

    def matching(self, paths):
        """-> what is known of the picture: of those with the same file, and of its copies in other
        data sets; None if it is one of val or test."""
        if paths not in self.matched:
            self.matched[paths] = self.find_matching(paths)
        return self.matched[paths]

    def find_matching(self, paths):
        if not paths:
            return [picture for picture in self.pictures if not picture.paths]
        own, print_ = content(paths), gray_print(paths)
        if own in self.held_contents or self.held_prints.near(print_):
            return None
        found = list(self.by_content[own])
        known = {picture.data_set for picture in found}
        return found + [self.pictures[i] for i in self.prints.near(print_)
                        if self.pictures[i].data_set not in known]


class Prints:
    """Pictures among which copies are looked for, by their gray levels."""

    def __init__(self, pictures):
        self.levels = np.array([gray_print(paths) for paths in pictures], np.int16)
        self.levels = self.levels.reshape(-1, 1024)
        self.means = self.levels.mean(1)

    def near(self, print_):
        """-> the numbers of the pictures that are copies of the one with these levels."""
        most = min(NEAR, OF_CONTRAST * print_.std())
        similar = np.flatnonzero(np.abs(self.means - print_.mean()) <= most)
        return similar[np.abs(self.levels[similar] - print_).mean(1) <= most].tolist()


def rows_of(place, split, folder):
    try:
        yield from read_rows(place, split, "", [], folder)
    except MissingSplit:
        pass


def files_of(paths):
    return [file for path in map(Path, paths)
            for file in (sorted(path.iterdir()) if path.is_dir() else [path])]


def content(paths):
    return hashlib.sha1(b"".join(file.read_bytes() for file in files_of(paths))).digest()


def gray_print(paths):
    """int16[1024]: the first picture in gray at 32 x 32; of no picture one that is near to none."""
    if not paths:
        return np.full(1024, 10_000, np.int16)
    with Image.open(files_of(paths)[0]) as image:
        small = image.convert("RGB").convert("L").resize((32, 32), Image.Resampling.BOX)
    return np.asarray(small, np.int16).ravel()


# ---- samples -------------------------------------------------------------------------------------

class Row(NamedTuple):
    source: str                 # file and number
    paths: tuple[Path, ...]
    task: str
    kind: str
    turns: tuple[Turn, ...]     # without templates, boxes in fractions
    near: float                 # how far a box may be from the annotation's
    texts: tuple = ()           # of a conversation: (question, answer) of each turn, see plain


def built_rows(out):
    """-> the Row of each sample, of either layout."""
    for file in sorted({*out.glob("*/*_train.json"), *out.glob("train.json")}):
        for number, fields in enumerate(json.loads(file.read_text()), start=1):
            names = fields.get("images") or fields.get("image") or []
            names = [names] if isinstance(names, str) else names
            base = out if file.parent == out else out / "images"
            paths = tuple(base / name for name in names)
            yield built_row(f"{file.relative_to(out)}:{number}", paths, fields)


def built_row(source, paths, fields):
    size = image_size(paths)
    task, kind = fields.get("task", "conversation"), fields.get("type", "")
    if "conversations" in fields:
        return talk_row(source, paths, fields, size, kind)
    boxes = fields.get("bboxes", fields.get("bbox", []))
    boxes = [boxes] if boxes and not isinstance(boxes[0], list) else boxes
    boxes = to_fractions(boxes, size)
    question = fields.get("question", fields.get("expression", fields.get("phrase", "")))
    placeholders = "<delim>".join(["<bbox>"] * len(boxes))
    located = f"<p>{question}</p> {placeholders}" if task == "detection" else placeholders
    answer = fields.get("caption", fields.get("answer", located if boxes else ABSENT))
    if task == "identify":
        question, answer = "<bbox>", fields["phrase"]
    task = "scene" if kind == "scene" else task
    return Row(source, paths, task, kind, (Turn(task, question, answer, boxes),),
               0.02 / min(size))


def talk_row(source, paths, fields, size, kind):
    """A conversation; or, of LLaVA's layout, any sample."""
    texts = [turn["value"].replace("<image>\n", "") for turn in fields["conversations"]]
    numbers = list(to_fractions(fields.get("objects", {}).get("bbox", []), size))
    turns, near = [], 0.02 / min(size)
    for question, answer in zip(texts[::2], texts[1::2], strict=True):
        boxes = [box for _, box in parse_boxes(f"{question} {answer}", 1, 1)]
        near = NEAR_TEXT if boxes else near
        count = (question + answer).count("<bbox>")
        boxes, numbers = boxes + numbers[:count], numbers[count:]
        turns.append(asked_turn(question, answer, tuple(boxes)))
    task = turns[0].task if len(turns) == 1 and kind not in DESCRIPTIONS else "conversation"
    return Row(source, paths, "scene" if kind == "scene" else task, kind, tuple(turns), near,
               tuple((plain(texts[i]), plain(texts[i + 1])) for i in range(0, len(texts), 2)))


def to_fractions(boxes, size):
    return tuple(tuple(side / size[i % 2] for i, side in enumerate(box)) for box in boxes)


def image_size(paths):
    if not paths:
        return 1, 1
    with Image.open(files_of(paths)[0]) as image:
        return image.size[::-1] if image.getexif().get(0x0112, 1) >= 5 else image.size


def asked_turn(question, answer, boxes):
    """The turn without its template: the longest one of its task that fits."""
    question = re.sub(r"\{<[^}]*\}", "<bbox>", question)
    word = question[1:].split("]")[0] if question.startswith("[") else ""
    for task in ("caption", "video", "vqa", *OBJECT_TASKS, "grounding"):
        if not any(template.startswith(f"[{word}]") for template in TEMPLATES[task]):
            continue
        for template in sorted(TEMPLATES[task], key=len, reverse=True):
            for written in (template, template.replace("the {}", "{}")):
                slots = re.escape(written).replace(r"\{\}", "(.+)")
                if match := re.fullmatch(slots, question):
                    article = "the " if "the {}" in written else ""
                    return Turn(task, article + match[1] if "{}" in template else "", answer, boxes)
    return Turn("conversation", question, answer, boxes)


# ---- what is wrong with a sample -----------------------------------------------------------------

def fault_of(row, known):
    """-> what is wrong, "" if nothing is. known: Annotations."""
    pictures = known.matching(row.paths)
    if pictures is None:
        return "its picture is in val or test"
    if not pictures:
        return "nothing is known of its picture"
    if any(("conversation", row.texts) == (task, tuple(turn[1:3] for turn in turns))
           for picture in pictures for task, turns in picture.rows):
        return ""
    if len(row.turns) == 1 and any(is_published(*row.turns, picture, row.near)
                                   for picture in pictures):
        return ""
    if row.kind in DESCRIPTIONS or row.task == "grounding":
        return description_fault(row, pictures)
    if len(row.turns) > 1 and (given := given_away(row, known.names)):
        return given
    layouts = [picture.things for picture in pictures if picture.things] or [{}]
    faults = [turns_fault(row, pictures, things) for things in layouts]
    return "" if "" in faults else faults[0]


def is_published(turn, picture, near):
    """Whether a data set has this sample, or this turn as a sample."""
    asked, answered = plain(turn.question).removeprefix("the "), plain(turn.answer)
    for task, own in picture.rows:
        if kind_of(task) == kind_of(turn.task) and len(own) == 1:
            question = own[0].question.removeprefix("the ")
            if (own[0].answer == answered and (question == asked or kind_of(task) == "caption")
                    and same(own[0].boxes, turn.boxes, near)):
                return True
    return False


def kind_of(task):
    return {"video": "caption", "scene": "vqa"}.get(task, task)


def turns_fault(row, pictures, things):
    """Of the first turn that no data set has and that is not true of these objects."""
    it = None
    for turn in row.turns:
        published = any(is_published(turn, picture, row.near) for picture in pictures)
        fault = "" if published else object_fault(turn, things, it, row.near)
        if not fault and not published and says_absent(turn):
            fault = mentioned(turn, pictures)
        if fault:
            return f"{turn.question!r} {turn.answer!r}: {fault}"
        it = turn.boxes[0] if turn.task == "refer" and turn.boxes else None
    return ""


def object_fault(turn, things, it, near):
    if turn.task == "refer" and (match := re.fullmatch("(?:the )?(.+) nearest to it",
                                                       turn.question)):
        others = [box for box in boxes_of(match[1], things) if not same([box], [it], near)]
        nearest = expression_oracle.first(others, lambda box: expression_oracle.distance(box, it))
        return "" if same(nearest, turn.boxes, near) else f"it is at {nearest}"
    if match := side_question(turn.question):
        count = sum(expression_oracle.SIDES[match[1]](box, it)
                    for box in boxes_of(match[0], things)
                    if not same([box], [it], near))
        return "" if turn.answer in (str(count), "yes" if count else "no") else f"{count} are there"
    if turn.task not in ("vqa", *OBJECT_TASKS):
        return "no data set says so"
    return expression_oracle.fault_of(turn.task, turn.question, turn.answer, turn.boxes, things,
                                      (1, 1), near)


def says_absent(turn):
    return turn.answer in (ABSENT, "0", "no")


def mentioned(turn, pictures):
    """That a text about the picture has the name of what is said to be absent."""
    words = re.sub(r"^(the|is there an?|are there any|is an?|how many) | present in the image \?$"
                   r"| are there \?$| \?$", "", turn.question)
    if side_question(turn.question) or " than " in words or "the " in words:
        return ""                               # it does not say that there is none
    for picture in pictures:
        for task, turns in picture.rows:
            for other in [other for other in turns if not says_absent(other)]:
                text = other.answer if task == "scene" else f"{other.question} {other.answer}"
                if any(f" {form} " in f" {text} " for form in forms(words)):
                    return f"{text[:80]!r} mentions it"
    return ""


def given_away(row, names):
    talk = Talk(names)
    for turn in row.turns:
        turn = turn._replace(question=turn.question.lower(), answer=turn.answer.lower())
        if reason := talk.gives_away(turn):
            return f"given away: {turn.question!r} {turn.answer!r}: {reason}"
        talk.add(turn)
    return ""


# ---- descriptions --------------------------------------------------------------------------------

def description_fault(row, pictures):
    """Of one made from boxes, classes and captions; written with <p> and boxes, or plain."""
    [turn] = row.turns
    text = re.sub(r"\{<[^}]*\}", "<bbox>", turn.answer)
    faults = []
    for things in [picture.things for picture in pictures if picture.things] or [{}]:
        fault = boxes_fault(text, turn.boxes, things, row.near)
        plain_text = re.sub(r" +(?=[,.])", "", re.sub(r"</?p>|<delim>|<bbox>", "", text))
        sentences = re.split(r"(?<=[a-z0-9])\s*\.(?:\s+|$)", plain_text)
        for sentence in filter(None, sentences):
            fault = fault or sentence_fault(" ".join(sentence.lower().split()), things, pictures)
        faults.append(fault)
    return "" if "" in faults else faults[0]


def boxes_fault(text, boxes, things, near):
    """Each <p>phrase</p> names one class, and its boxes are all of that class, or the one."""
    boxes = list(boxes)
    for phrase, places in re.findall(r"<p>(.*?)</p>((?: ?(?:<delim>)?<bbox>)*)", text):
        count = places.count("<bbox>")
        own, boxes = boxes[:count], boxes[count:]
        name = next((name for name in sorted(things, key=len, reverse=True)
                     if any(phrase.lower().endswith(f" {form}") for form in forms(name))), "")
        single = re.match("an? (small|medium-sized|large) ", phrase.lower())
        if not (any(same(own, [box], near) for box in things.get(name, [])) if single
                else same(own, things.get(name, []), near)):
            return f"{phrase!r} has other boxes"
    return "boxes are left over" if boxes else ""


NUMBER_WORDS = {word: number for number, word in enumerate(
    "no one two three four five six seven eight nine ten".split())} | {"a": 1, "an": 1}


def number_of(word):
    return NUMBER_WORDS.get(word) if not word.isdecimal() else int(word)


def sentence_fault(sentence, things, pictures):
    published = {turn.answer: task for picture in pictures for task, turns in picture.rows
                 for turn in turns}
    if match := re.fullmatch("the scene is of the class (.+)", sentence):
        return "" if plain(match[1]) in published else f"{sentence!r}: no data set says so"
    pattern = r"an? (small|medium-sized|large) (.+) is in the ((?:top|center|bottom)(?: left| " \
              r"center| right)?)(?:, (left of|right of|above|below) (an?|another) (.+))?"
    if match := re.fullmatch(pattern, sentence):
        return "" if any(is_so(box, match, things) for box in boxes_of(match[2], things)) else (
            f"{sentence!r} of {dict(things)}")
    if match := re.fullmatch(r"there (?:is|are) (\S+) ([a-z -]+?)(?: in the ([a-z ]+)|, (.+))",
                             sentence):
        boxes = boxes_of(match[2], things)
        cells = Counter(expression_oracle.cell(box, (1, 1)) for box in boxes)
        parts = re.findall(r"(\S+) in the ([a-z ]+?)(?:,| and|$)", match[4] or "")
        said = {place: number_of(word) for word, place in parts} or {
            match[3]: number_of(match[1])}
        if (match[3] or parts) and boxes:
            return "" if said == cells and sum(said.values()) == number_of(match[1]) else (
                f"{sentence!r}: they are {dict(cells)}")
    if match := re.fullmatch(r"there (?:is|are) (.+)", sentence):
        parts = re.split(r", | and ", match[1])
        counted = {name: number_of(part.split()[0]) for part in parts for name in things
                   if part.partition(" ")[2] in forms(name)}
        if len(counted) == len(parts):
            wrong = {name: len(things[name]) for name in counted
                     if counted[name] != len(things[name])}
            return f"{sentence!r}: there are {wrong}" if wrong else ""
    whole = plain(sentence)
    return "" if any(whole in answer for answer in published) else (
        f"{sentence!r}: no data set says so")


def is_so(box, match, things):
    """Size, place and neighbor of a box, as a sentence says."""
    share = expression_oracle.area(box)
    size = "small" if share < .01 else "large" if share >= .1 else "medium-sized"
    if (size, expression_oracle.cell(box, (1, 1))) != (match[1], match[3]):
        return False
    if not match[4]:
        return True
    others = [other for other in boxes_of(match[6], things) if other != box]
    another = match[5] == "another"
    return another == (match[6] == match[2]) and any(
        expression_oracle.SIDES[match[4]](box, other) for other in others)


# ---- the command ---------------------------------------------------------------------------------

def check(out, count=0, seed=0):
    """-> (rows that were compared by task and kind, [(row, fault)] of those that are wrong)."""
    known = Annotations(json.loads((out / "manifest.json").read_text()))
    rows = list(built_rows(out))
    if count:
        rows = draw(rows, count, random.Random(seed))
    faults = [(row, fault) for row in rows if (fault := fault_of(row, known))]
    return Counter(group(row) for row in rows), faults


def group(row):
    return row.task, row.kind or ("talk" if len(row.turns) > 1 else "")


def draw(rows, count, rng):
    """As many of each kind as of each other, as far as there are so many."""
    waiting = defaultdict(list)
    for row in rng.sample(rows, len(rows)):
        waiting[group(row)].append(row)
    drawn = []
    while len(drawn) < min(count, len(rows)):
        drawn += [own.pop() for own in waiting.values() if own]
    return drawn[:count]


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=0, help="0: all")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    compared, faults = check(args.out, args.count, args.seed)
    for row, fault in faults[:20]:
        print(f"{row.source}: {fault}")
    for (task, kind), number in sorted(compared.items()):
        wrong = sum(group(row) == (task, kind) for row, _ in faults)
        print(f"{number - wrong:6,} of {number:6,}  {task} {kind}")
    print(f"{compared.total() - len(faults):,} of {compared.total():,} samples are true")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
