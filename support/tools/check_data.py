"""`python data.py`: --check reports what is wrong with a data set, --show draws its samples.

A finding is a fault, which stops a training, or a note, which does not:

    row                     makes no sample (the readers say why)
    picture                 missing, cut off, or no picture
    empty question          only captions and descriptions need none
    box                     not a number, without area, or outside the picture
    class                   not among those that its question lists
    too long                over --max_tokens of text

    box corrected           corners in the wrong order, or over the edge: encode_box puts it right
    text box                a box written in a text in other numbers than hundredths
    long strip              squashed to a square, its sides differ more than 4 times
    duplicate sample        the same pictures, texts and boxes again
    picture in two splits   in train and in another split
"""
import json
import random
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from data import PROMPTS, Tokenizer, apply_templates, load_images, parse_boxes
from support.common import Box, UserError, option, parse_config, write_atomic
from support.images.clips import check_pixels
from support.images.common import parse_bands
from support.images.draw import check_sheet, contact_sheet, draw_boxes, save_picture
from support.images.read import PictureHeader, read_headers, read_notes
from support.readers import FORMATS, check_image_folder, read_split
from support.readers.common import DataError, MissingSplit, Sample, SampleTable, box_fault
from support.readers.conversations import describe_skyeye_fields, is_skyeye
from support.readers.questions import listed_classes
from support.training.checks import TokenCounter, describe_text_boxes, length_fault

FAULTS = ("row", "picture", "empty question", "box", "class", "too long")
NOTES = ("box corrected", "text box", "long strip", "picture tags", "duplicate sample",
         "picture in two splits")

STRIP_RATIO = 4                 # long side to short side, from which a picture is a long strip
MEASURED_SAMPLES = 5000         # samples of a split whose tokens are counted for the histogram
BUCKET_TOKENS = 64              # width of a bucket of the histogram

EXAMPLES_SAVED, EXAMPLES_SHOWN = 20, 3          # of each kind, in the JSON and on the screen

Splits = dict[str, tuple[SampleTable, list[str]]]       # name -> samples, lines about wrong rows


# ---- the command ---------------------------------------------------------------------------------

@dataclass(frozen=True)
class CheckConfig:
    check: str = option("", "report what is wrong with this data set; the exit code is 1 if there "
                        "is a fault", metavar="DATA")
    show: str = option("", "draw samples of this data set, with their boxes, on a sheet",
                       metavar="DATA")
    format: str = option("", "layout of the data set, one of " + " ".join(FORMATS)
                         + "; empty: recognized from its files")
    image_folder: str = option("", "folder of the pictures that a .json or .jsonl names; empty: "
                               "the file's own", metavar="FOLDER")
    bands: tuple[int, ...] = option((), "which bands of a multispectral picture are red, green and "
                                    "blue, as in 4,3,2", type=parse_bands, nargs=None)
    splits: tuple[str, ...] = option(("train", "val", "test"), "splits to read; those that do not "
                                     "exist are skipped, and --show draws the first")
    tokenizer: str = option("weights/nano/tokenizer.model", "tokenizer that the lengths are "
                            "measured with", is_shipped=True)
    prompt: str = option("skyeye", "prompt style", choices=tuple(PROMPTS))
    visual_tokens: int = option(16, "visual tokens of a picture; 256 at full size")
    max_tokens: int = option(1024, "tokens of text that a sample may have, its pictures not "
                             "counted; a longer one is a fault")
    deep: bool = option(False, "with --check: decode every picture and clip, not only the headers")
    json: Path | None = option(None, "with --check: write the report to this JSON file",
                               type=Path, metavar="FILE")
    samples: int = option(12, "with --show: number of samples", aliases=("-n",))
    seed: int = option(42, "with --show: which samples are drawn")
    out: Path = option(Path("sheet.png"), "with --show: file of the sheet", metavar="FILE")
    overwrite: bool = option(False, "let --out and --json write over a file that exists")


def parse_args(argv: Sequence[str] | None = None) -> CheckConfig:
    return parse_config(CheckConfig, argv, "Look at a data set before a training does.")


def main(argv: Sequence[str] | None = None) -> int:
    """-> the exit code: 0 fine, 1 something is wrong with the data, 2 with the command."""
    args = parse_args(argv)
    try:
        if bool(args.check) == bool(args.show):
            raise UserError("name a data set with --check or with --show")
        check_image_folder(args.image_folder, [args.check or args.show])
        return check(args) if args.check else show(args)
    except (UserError, OSError) as error:
        print(f"data.py: {error}", file=sys.stderr)
        return 2


def check(args: CheckConfig) -> int:
    place = Path(args.check)
    if args.json and args.json.exists() and not args.overwrite:
        raise UserError(f"--json {args.json}: exists; --overwrite writes over it")
    splits = read_splits(place, args)
    tokens = TokenCounter(Tokenizer(args.tokenizer), args.prompt, args.visual_tokens,
                          args.max_tokens)
    report = check_data(splits, tokens, args.deep, args.bands)
    if is_skyeye(place):
        print("\n".join(describe_skyeye_fields(place)))
    print(report.text())
    if args.json:
        write_atomic(args.json,
                     lambda file: file.write_text(report.json() + "\n", encoding="utf-8"))
    return 1 if report.faults() else 0


def show(args: CheckConfig) -> int:
    check_sheet("--out", args.out, args.overwrite)
    samples, _ = next(iter(read_splits(Path(args.show), args).values()))
    rng = random.Random(args.seed)
    chosen = sorted(rng.sample(range(len(samples)), min(args.samples, len(samples))))
    sheet = contact_sheet([draw_sample(samples[i], rng, args.bands) for i in chosen])
    save_picture(sheet, args.out)
    print(f"{args.out}: {len(chosen)} of {len(samples):,} samples")
    return 0


def draw_sample(sample: Sample, rng: random.Random, bands: Sequence[int] = ()
                ) -> tuple[Image.Image, str]:
    """-> the first picture with its boxes, and the turns as the model is given them."""
    pictures = load_images(sample.images, bands, frames=1)
    image = pictures[0].image if pictures else Image.new("RGB", (320, 40))
    turns = apply_templates(sample, pictures[0].size if pictures else image.size, rng=rng)
    text = "\n".join(f"{question}\n> {answer}" for question, answer in turns)
    return draw_boxes(image, parse_boxes(text, *image.size)), text


def read_splits(place: Path, args: CheckConfig) -> Splits:
    """The splits that there are; a data set that has the same for each is one split. DataError."""
    splits: Splits = {}
    for name in args.splits:
        try:
            samples, conversations, errors = read_split(place, name, args.format,
                                                        image_folder=args.image_folder)
        except MissingSplit:
            continue
        samples.join(conversations)
        is_new = all(samples.text != other.text for other, _ in splits.values())
        if is_new and (samples or errors):
            splits[name] = samples, errors
    if not splits:
        raise DataError(f"{place}: no samples in {', '.join(args.splits)}")
    return splits


# ---- findings ------------------------------------------------------------------------------------

class Report:
    """Findings by kind with some examples, and how much there is."""

    def __init__(self):
        self.found: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = defaultdict(list)
        self.samples: Counter[str] = Counter()          # by split and task
        self.tokens: Counter[int] = Counter()           # samples by length, lower end of a bucket
        self.pictures = 0

    def add(self, kind: str, source: str, reason: str = "") -> None:
        self.found[kind] += 1
        if len(self.examples[kind]) < EXAMPLES_SAVED:
            self.examples[kind].append(f"{source}: {reason}" if reason else source)

    def faults(self) -> int:
        return sum(self.found[kind] for kind in FAULTS)

    def text(self) -> str:
        lines = [f"{count:>10,}  {name}" for name, count in sorted(self.samples.items())]
        lines.append(f"{self.pictures:>10,}  pictures")
        measured = sum(self.tokens.values())
        lines += [f"{count:>10,}  of {measured:,} samples that were measured have {low} to "
                  f"{low + BUCKET_TOKENS - 1} tokens" for low, count in sorted(self.tokens.items())]
        for kind in (*FAULTS, *NOTES):
            if self.found[kind]:
                level = "FAULT" if kind in FAULTS else "note"
                lines.append(f"{level}: {kind}, {self.found[kind]:,}")
                lines += [f"    {example}" for example in self.examples[kind][:EXAMPLES_SHOWN]]
        return "\n".join([*lines, f"{self.faults():,} faults"])

    def json(self) -> str:
        return json.dumps({"faults": self.faults(), "samples": self.samples, "found": self.found,
                           "examples": self.examples, "tokens": self.tokens,
                           "pictures": self.pictures}, indent=1, ensure_ascii=False)


# ---- checks --------------------------------------------------------------------------------------

def check_data(splits: Splits, tokens: TokenCounter, deep: bool = False,
               bands: tuple[int, ...] = ()) -> Report:
    """deep: decode every picture. bands: as load_images takes them; () if they are not known."""
    report = Report()
    headers = check_pictures(splits, report, deep, bands)
    for name, (samples, errors) in splits.items():
        for error in errors:
            report.add("row", error)
        times: Counter[int] = Counter()                 # of each sample
        step = len(samples) // MEASURED_SAMPLES + 1
        may_be_long = set(tokens.candidates(samples).tolist())
        for i, sample in enumerate(tqdm(samples, desc=name, unit="sample", disable=None)):
            report.samples[f"{name} {sample.task}"] += 1
            for kind, reason in check_sample(sample, [headers[path] for path in sample.images]):
                report.add(kind, sample.source, reason)
            times[hash((sample.images, sample.turns, sample.boxes))] += 1
            if i % step == 0 or i in may_be_long:
                check_length(sample, tokens, i % step == 0, report)
        report.found["duplicate sample"] += sum(count - 1 for count in times.values())
    check_splits(splits, report)
    return report


def check_length(sample: Sample, tokens: TokenCounter, measured: bool, report: Report) -> None:
    """measured: whether its length counts in the histogram."""
    text, whole = tokens.count(sample)
    if measured:
        report.tokens[whole // BUCKET_TOKENS * BUCKET_TOKENS] += 1
    if fault := length_fault(text, whole, tokens.max_tokens):
        report.add("too long", sample.source, fault)


def check_pictures(splits: Splits, report: Report, deep: bool, bands: tuple[int, ...]
                   ) -> dict[str, PictureHeader]:
    headers = read_headers((path for samples, _ in splits.values()
                            for paths in samples.image_sets for path in paths), bands or None)
    report.pictures = len(headers)
    for path, (width, height, fault) in headers.items():
        if fault:
            report.add("picture", fault)
        elif max(width, height) > STRIP_RATIO * min(width, height):
            report.add("long strip", path, f"{width} x {height}, squashed to a square")
    for path, note in read_notes(headers, bands or None).items():
        if note:
            report.add("picture tags", path, note)
    if deep:
        sound = [path for path, header in headers.items() if not header.fault]
        for fault in check_pixels(sound, bands).values():
            if fault:
                report.add("picture", fault)
    return headers


def check_splits(splits: Splits, report: Report) -> None:
    pictures = {name: {path for paths in samples.image_sets for path in paths}
                for name, (samples, _) in splits.items()}
    train = pictures.pop("train", set())
    for name, paths in pictures.items():
        for path in sorted(paths & train):
            report.add("picture in two splits", path, f"train and {name}")


def check_sample(sample: Sample, headers: Sequence[PictureHeader]) -> Iterator[tuple[str, str]]:
    """-> (kind, reason) of each finding; headers: of the sample's pictures."""
    for question, answer in sample.turns:
        if found := describe_text_boxes(question) or describe_text_boxes(answer):
            yield "text box", found
        if not question.strip() and sample.task not in ("caption", "video", "grounding"):
            yield "empty question", f"before {answer[:40]!r}"
    if sample.task == "scene":
        yield from check_class(*sample.turns[0])
    if headers and headers[0].width and headers[0].height:
        for box in sample.boxes:
            yield from check_box(box, headers[0].width, headers[0].height)


def check_class(question: str, answer: str) -> Iterator[tuple[str, str]]:
    classes = listed_classes(question)
    if classes and answer not in classes:
        yield "class", f"{answer!r} is none of the classes in its question"


def check_box(box: Box, width: int, height: int) -> Iterator[tuple[str, str]]:
    x1, x2 = sorted(box[::2])
    y1, y2 = sorted(box[1::2])
    where = f"{tuple(round(side, 1) for side in box)} in {width} x {height}"
    if fault := box_fault(box, width, height):
        yield "box", fault
    elif (x1, y1, x2, y2) != tuple(box):
        yield "box corrected", f"{where}: corners in the wrong order"
    elif x1 < 0 or y1 < 0 or x2 > width or y2 > height:
        yield "box corrected", f"{where}: reaches over the edge"
