"""support/tools/check_data.py"""
import argparse
import json
import math
import random
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from data import Tokenizer, apply_templates, encode_conversation, load_images, parse_boxes
from support.images.clips import is_clip
from support.images.draw import contact_sheet, draw_boxes
from support.images.read import read_headers
from support.readers import read_split
from support.readers.common import DataError, Sample
from support.readers.conversations import describe_skyeye_fields, is_skyeye

# ---- rows ----------------------------------------------------------------------------------------
# What can be wrong with a sample, told as (kind, what): faults stop a training, notes do not.

FAULTS = ("row", "picture", "empty question", "box", "class", "too long")


NOTES = ("box put right", "long strip", "said twice", "picture in two splits")


CLASS_LIST = re.compile(r"given classes: (.+?)\. ")


def check_sample(sample, sizes: list[tuple[int, int]]) -> Iterator[tuple[str, str]]:
    """sizes: of the sample's pictures, (0, 0) where one cannot be read."""
    for question, answer in sample.turns:
        if not question.strip() and sample.task not in ("caption", "video"):
            yield "empty question", f"before {answer[:40]!r}"
    if sample.task == "scene":
        yield from check_class(*sample.turns[0])
    if sizes and min(sizes[0]):
        for box in sample.boxes:
            yield from check_box(box, *sizes[0])


def check_class(question: str, answer: str) -> Iterator[tuple[str, str]]:
    listed = CLASS_LIST.search(question)
    if listed and answer not in listed[1].split(", "):
        yield "class", f"{answer!r} is none of the classes in its question"


def check_box(box: tuple[float, ...], width: int, height: int) -> Iterator[tuple[str, str]]:
    x1, x2, y1, y2 = *sorted(box[::2]), *sorted(box[1::2])
    told = f"{tuple(round(side, 1) for side in box)} in {width} x {height}"
    if not all(map(math.isfinite, box)):
        yield "box", f"{told}: not a number"
    elif x1 == x2 or y1 == y2:
        yield "box", f"{told}: no area"
    elif x2 <= 0 or y2 <= 0 or x1 >= width or y1 >= height:
        yield "box", f"{told}: outside the picture"
    elif (x1, y1, x2, y2) != tuple(box):
        yield "box put right", f"{told}: corners in the wrong order"
    elif x1 < 0 or y1 < 0 or x2 > width or y2 > height:
        yield "box put right", f"{told}: reaches over the edge"


# ---- report --------------------------------------------------------------------------------------
# What was found in a data set, for people and as JSON.

MAX_EXAMPLES = 20              # examples of each kind in the JSON, three of them on the screen


class Report:
    """Findings by kind, and what there is."""

    def __init__(self):
        self.count, self.examples = Counter(), defaultdict(list)
        self.samples, self.lengths = Counter(), Counter()
        self.pictures = 0

    def add(self, kind: str, where: str, what: str = "") -> None:
        self.count[kind] += 1
        if len(self.examples[kind]) < MAX_EXAMPLES:
            self.examples[kind].append(f"{where}: {what}" if what else where)

    def faults(self) -> int:
        return sum(self.count[kind] for kind in FAULTS)

    def text(self) -> str:
        lines = [f"{n:>10,}  {name}" for name, n in sorted(self.samples.items())]
        lines.append(f"{self.pictures:>10,}  pictures")
        for length, n in sorted(self.lengths.items()):
            lines.append(f"{n:>10,}  of {sum(self.lengths.values()):,} samples that were measured "
                         f"have {length} to {length + 63} tokens")
        for kind in (*FAULTS, *NOTES):
            if self.count[kind]:
                mark = "FAULT" if kind in FAULTS else "note"
                lines.append(f"{mark}: {kind}, {self.count[kind]:,}")
                lines += [f"    {example}" for example in self.examples[kind][:3]]
        return "\n".join([*lines, f"{self.faults():,} faults"])

    def json(self) -> str:
        return json.dumps({"faults": self.faults(), "samples": self.samples, "found": self.count,
                           "examples": self.examples, "tokens": self.lengths,
                           "pictures": self.pictures}, indent=1, ensure_ascii=False)


# ---- check ---------------------------------------------------------------------------------------
# A data set looked through, every split of it: rows, pictures, boxes, classes, lengths.

MEASURED_SAMPLES = 5000             # samples of a split whose tokens are counted for the histogram


TEMPLATE_TOKENS, STRIP_RATIO = 200, 4        # tokens a template takes at most; long side to short side


def check_data(splits: dict[str, tuple[Sequence, list[str]]], tokens: Callable, longest: int,
          slots: int) -> Report:
    """splits: name -> samples, and what is wrong with rows that make none. tokens(sample) is to
    be at most `longest`; `slots`: tokens of a picture."""
    report = Report()
    looked = check_pictures(report, splits)
    for name, (samples, bad) in splits.items():
        for what in bad:
            report.add("row", what)
        said, each = Counter(), len(samples) // MEASURED_SAMPLES + 1
        for i, sample in enumerate(tqdm(samples, desc=name, unit="sample", disable=None)):
            report.samples[f"{name} {sample.task}"] += 1
            sizes = [looked[path][:2] for path in sample.images]
            for kind, what in check_sample(sample, sizes):
                report.add(kind, sample.source, what)
            said[hash((sample.images, sample.turns, sample.boxes))] += 1
            letters = 4 * sum(len(text) for turn in sample.turns for text in turn)
            if i % each == 0 or letters > longest - TEMPLATE_TOKENS - slots * len(sizes):
                count = tokens(sample)
                report.lengths[count // 64 * 64] += i % each == 0
                if count > longest:
                    report.add("too long", sample.source, f"{count} tokens, over {longest}")
        report.count["said twice"] += sum(n - 1 for n in said.values())
    check_splits(report, splits)
    return report


def check_pictures(report: Report, splits: dict) -> dict[str, tuple[int, int, str]]:
    paths = dict.fromkeys(path for samples, _ in splits.values() for names in samples.images
                          for path in names)
    looked = read_headers(paths)
    report.pictures = len(paths)
    for path, (width, height, fault) in looked.items():
        if fault:
            report.add("picture", fault)
        elif max(width, height) > STRIP_RATIO * min(width, height):
            report.add("long strip", path, f"{width} x {height}, squashed to a square")
    return looked


def check_splits(report: Report, splits: dict) -> None:
    sets = {name: {path for names in samples.images for path in names}
            for name, (samples, _) in splits.items()}
    for name in sets.keys() - {"train"}:
        for path in sorted(sets[name] & sets.get("train", set())):
            report.add("picture in two splits", path, f"train and {name}")


# ---- command -------------------------------------------------------------------------------------
# The flags of `python data.py`, and what they do.

def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False, description="Look at a data set before a "
                                     "training does: --check tells what is wrong, --show draws.")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--check", type=Path, metavar="DATA", help="exit code 1: something is wrong")
    which.add_argument("--show", type=Path, metavar="DATA", help="samples, with boxes, on a sheet")
    parser.add_argument("--format", default="", help="layout of DATA (default: seen)")
    parser.add_argument("--splits", nargs="+", default=["train", "val", "test"])
    parser.add_argument("--tokenizer", type=Path, default=Path("weights/nano/tokenizer.model"))
    parser.add_argument("--prompt", default="skyeye", help="style (default %(default)s)")
    parser.add_argument("--visual_tokens", "--visual-tokens", type=int, default=16,
                        help="of a picture; 256 at full size (default %(default)s)")
    parser.add_argument("--max_tokens", "--max-tokens", type=int, default=1024)
    parser.add_argument("--json", type=Path, help="with --check: the report as JSON")
    parser.add_argument("-n", type=int, default=12, help="with --show: samples")
    parser.add_argument("--seed", type=int, default=42, help="with --show: which samples")
    parser.add_argument("--out", type=Path, default=Path("sheet.png"), help="with --show: sheet")
    return parser.parse_args(argv)


def main() -> int:
    """-> the exit code: 0 fine, 1 something is wrong with the data, 2 with the command."""
    args = parse_args()
    try:
        splits = read_splits(args)
        if args.show:
            return draw_samples(args, next(iter(splits.values()))[0])
        count = partial(count_tokens, Tokenizer(args.tokenizer), args.visual_tokens, args.prompt)
        report = check_data(splits, count, args.max_tokens, args.visual_tokens)
    except (DataError, OSError) as problem:
        print(f"data.py: {problem}", file=sys.stderr)
        return 2
    for line in describe_skyeye_fields(args.check) if is_skyeye(args.check) else ():
        print(line)
    print(report.text())
    if args.json:
        args.json.write_text(report.json() + "\n", encoding="utf-8")
    return int(report.faults() > 0)


# ---- splits --------------------------------------------------------------------------------------
# The splits that a data set has, and a sheet of samples from one.

def read_splits(args: argparse.Namespace) -> dict:
    """Those that are there; data without splits are one."""
    splits = {}
    for split in args.splits:
        try:
            single, talks, bad = read_split(args.check or args.show, split, args.format)
        except DataError as problem:
            if not isinstance(problem.__cause__, FileNotFoundError):
                raise
            continue
        single.join(talks)
        if (single or bad) and all(single.block != old.block for old, _ in splits.values()):
            splits[split] = single, bad
    if not splits:
        raise DataError(f"{args.check or args.show}: no samples in {', '.join(args.splits)}")
    return splits


def draw_samples(args: argparse.Namespace, samples: Sequence) -> int:
    rng = random.Random(args.seed)
    chosen = sorted(rng.sample(range(len(samples)), min(args.n, len(samples))))
    contact_sheet([show_sample(samples[i], rng) for i in chosen]).save(args.out)
    print(f"{args.out}: {len(chosen)} of {len(samples):,} samples")
    return 0


# ---- data ----------------------------------------------------------------------------------------

# ---- python data.py --check, --show --------------------------------------------------------------

def count_tokens(tokenizer: Tokenizer, visual_tokens: int, style: str, sample: Sample) -> int:
    """How many tokens a sample takes, its boxes at their longest."""
    long = replace(sample, boxes=((0.99, 0.99, 1, 1),) * len(sample.boxes))
    pictures = sum(8 if is_clip(path) else 1 for path in sample.images)
    turns = apply_templates(long, (1, 1), style=style)
    return len(encode_conversation(tokenizer, turns, visual_tokens, pictures, style)[0])


# ---- data ----------------------------------------------------------------------------------------

def show_sample(sample: Sample, rng: random.Random) -> tuple[Image.Image, str]:
    """-> the first picture with its boxes, and the turns as the model reads them."""
    pictures = load_images(sample.images, frames=1)
    image = pictures[0].image if pictures else Image.new("RGB", (320, 40))
    turns = apply_templates(sample, pictures[0].size if pictures else image.size, rng=rng)
    text = "\n".join(f"{question}\n> {answer}" for question, answer in turns)
    return draw_boxes(image, parse_boxes(text, *image.size)), text
