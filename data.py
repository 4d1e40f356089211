"""Everything between disk or keyboard and tensors, in both directions.

A sample is one question or conversation about one or more pictures. A row is what the model is
fed: the questions of one picture, behind one copy of its visual tokens,

    ids        <s> [INST] <Img> -1 .. -1 | </Img> question 1 [/INST] answer 1 </s> | </Img> ..
    labels       .   .     .     .  .  . |    .      .         .     answer 1 </s> |    .
    segments     0   0     0     0  0  0 |    1      1         1        1      1   |    2
    positions    0   1     2     3  .. n |   n+1    n+2       n+3      ..          |   n+1

with -1 for an image slot and . for -100, no label. Ids and labels come from one call, so they
cannot drift apart.
"""
import random
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from PIL import Image
from torch import Tensor

from formats import capera, caption_lists, class_folder, coco, dior_rsvg, dota, floodnet, llava

# isort: split
from formats import nwpu_captions, rsicd, rsivqa, rsvqa, skyeye, voc
from formats.boxes import BOX, Box, encode_box, parse_boxes
from formats.checking import command
from formats.checking.headers import look_at_all
from formats.drawing import draw_boxes
from formats.pictures.clip import is_clip, read_clip
from formats.pictures.pad import padded
from formats.pictures.reading import Picture, PictureError, read_picture
from formats.table import Table
from formats.templates import CLEANED, NUMBERS, SIDES, TASKS, clean_text


class DataError(Exception):
    """Data that cannot be used: one line that names the file or row and what to do."""


# ---- tokenizer -----------------------------------------------------------------------------------

class Tokenizer:
    """A sentencepiece model, read as upstream's slow LlamaTokenizer reads it (transformers 4.30).

    <s>, </s> and <unk> in a text become their ids; each piece between them is encoded on its own,
    with the word mark that sentencepiece puts before a text. No <s> is added: `render` writes it.
    """
    SPECIAL = ("<unk>", "<s>", "</s>")          # ids 0, 1, 2

    def __init__(self, path: str | Path, pieces: int | None = None):
        """pieces: how many the model has embeddings for, if they are to be compared."""
        if not Path(path).is_file():
            raise DataError(f"{path}: no such file; a model folder holds its tokenizer.model")
        try:
            self.model = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except RuntimeError:
            raise DataError(f"{path}: not a sentencepiece model; download it again") from None
        if pieces not in (None, len(self)):
            raise DataError(f"{path}: {len(self)} pieces for the model's {pieces} embeddings")
        self.bos, self.eos = 1, 2

    def __len__(self) -> int:
        return self.model.vocab_size()

    def encode(self, text: str, mark: bool = True) -> list[int]:
        """Without `mark` a text goes on with what stands before it: no word mark in front."""
        if not mark:
            return self.encode("\n" + text)[2:]         # a newline is a piece of its own
        ids = []
        for piece in re.split("(<unk>|</?s>)", text):
            special = piece in self.SPECIAL
            ids += [self.SPECIAL.index(piece)] if special else self.model.encode(piece)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        return self.model.decode([i for i in ids if i > 2])


# ---- pictures ------------------------------------------------------------------------------------

MEAN = (0.48145466, 0.4578275, 0.40821073)      # of CLIP's pictures: red, green, blue in 0 .. 1
STD = (0.26862954, 0.26130258, 0.27577711)
MIRROR = Image.Transpose.FLIP_LEFT_RIGHT
TURNS = (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)


def load_image(path: str | Path) -> Image.Image:
    """-> RGB, 8 bit, turned as its EXIF orientation says. DataError: one line with the file."""
    return load_pictures([path])[0].image


def load_pictures(paths: Iterable[str | Path], bands: Sequence[int] = (), frames: int = 8,
                  near: int = 0) -> list[Picture]:
    """Pictures, and for each clip (a folder, an animation, a video) so many of its frames.

    bands: which are shown as red, green, blue; near: as read_picture has it. DataError.
    """
    found = []
    try:
        for path in paths:
            if is_clip(path):
                found += [Picture(frame, frame.size, "") for frame in read_clip(path, frames)]
            else:
                found.append(read_picture(path, tuple(bands), near))
    except PictureError as error:
        raise DataError(str(error)) from None
    return found


@dataclass(frozen=True)
class Move:
    """How a picture is moved in training; its boxes go along."""
    crop: Box = (0, 0, 1, 1)                        # the part kept, in fractions of the sides
    transpose: tuple[Image.Transpose, ...] = ()     # mirrors and quarter turns, in order
    gain: tuple[float, float] = (1.0, 0.0)          # contrast, brightness of normalized values

    def box(self, box: Box, width: int, height: int) -> Box:
        """Where a box comes to lie, in the same frame. Crops are for pictures without boxes."""
        x1, y1, x2, y2 = box[0] / width, box[1] / height, box[2] / width, box[3] / height
        for step in self.transpose:
            if step == Image.Transpose.FLIP_LEFT_RIGHT:
                x1, x2 = 1 - x2, 1 - x1
            elif step == Image.Transpose.ROTATE_90:             # what was right is on top
                x1, y1, x2, y2 = y1, 1 - x2, y2, 1 - x1
            elif step == Image.Transpose.ROTATE_180:
                x1, y1, x2, y2 = 1 - x2, 1 - y2, 1 - x1, 1 - y1
            else:
                x1, y1, x2, y2 = 1 - y2, x1, 1 - y1, x2
        return x1 * width, y1 * height, x2 * width, y2 * height


STILL = Move()


def preprocess(image: Image.Image, size: int, move: Move = STILL, style: str = "skyeye") -> Tensor:
    """-> float[3, size, size], CLIP-normalized; squashed to a square (bicubic), as upstream.

    LLaVA's style pads it to a square before, with CLIP's mean color.
    """
    part = None if move.crop == STILL.crop else tuple(
        fraction * side for fraction, side in zip(move.crop, image.size * 2, strict=True))
    if PROMPTS[style].pad:
        image, part = padded(image.crop(part) if part else image), None
    image = image.resize((size, size), Image.Resampling.BICUBIC, part)
    for step in move.transpose:
        image = image.transpose(step)
    x = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255        # [3, H, W]
    x = (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    return x if move.gain == STILL.gain else x * move.gain[0] + move.gain[1]


# ---- boxes ---------------------------------------------------------------------------------------

def place_boxes(text: str, boxes: Iterable[Box], width: int, height: int, move: Move,
                pad: bool = False) -> str:
    """Write the next of `boxes` at each <bbox>; boxes that are text already move along."""
    def moved(match: re.Match) -> str:
        parsed = parse_boxes(match[0], width, height, pad=pad)
        return written(parsed[0][1]) if parsed else match[0]

    def written(box: Box) -> str:
        return encode_box(move.box(box, width, height), width, height, pad)

    coming = iter(boxes)
    text = BOX.sub(moved, text) if move.transpose else text
    return re.sub("<bbox>", lambda _: written(next(coming)), text)


# ---- prompts -------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Prompt:
    """How a conversation is written; | stands for a picture's slots."""
    picture: str                # once for each picture, before the first question
    after: str                  # between the pictures and the first question
    first: str                  # before the pictures
    later: str                  # before every later question
    end: str                    # after every question
    ask_first: str = ""         # `first` and `end` where an answer is asked for, if they differ
    ask_end: str = ""
    stop: str = "</s>"          # after an answer
    joined: bool = False        # asked, an earlier answer follows its question in one text, no stop
    mark: bool = True           # a word mark before `later`
    pad: bool = False           # pictures are padded to a square before they are resized


PROMPTS = {
    # One form for learning and asking: what we train with.
    "skyeye": Prompt("<Img>|</Img>", " ", "[INST] ", "<s>[INST] ", " [/INST]"),
    # The released checkpoint: two spaces before [/INST] in training; asked, one and a second <s>.
    "minigpt_v2": Prompt("<Img>|</Img>", " ", "[INST] ", "<s>[INST] ", "  [/INST]",
                         ask_first="<s>[INST] ", ask_end=" [/INST]", joined=True),
    # LLaVA-1.5, and so RS-GPT4V.
    "vicuna_v1": Prompt("|\n", "", "A chat between a curious user and an artificial intelligence "
                        "assistant. The assistant gives helpful, detailed, and polite answers to "
                        "the user's questions. USER: ", "USER: ", " ASSISTANT:", mark=False,
                        pad=True),
}

def render(tokenizer: Tokenizer, turns: Sequence[tuple[str, str | None]], slots: int = 0,
           pictures: int = 1, style: str = "skyeye") -> tuple[list[int], list[int], int]:
    """-> ids, labels, and how many ids come before the first question (what questions share).

    turns: (question, answer) each; where the last answer is None, it is asked for and the ids end.
    slots: visual tokens a picture; each picture becomes that many -1 (0 pictures: text alone).
    """
    prompt, asking = PROMPTS[style], turns[-1][1] is None
    end = (asking and prompt.ask_end) or prompt.end
    lead = (asking and prompt.ask_first) or prompt.first
    ids: list[int] = []
    labels: list[int] = []

    def write(piece: list[int], learn: bool = False) -> None:
        ids.extend(piece)
        labels.extend(piece if learn else [-100] * len(piece))

    write([tokenizer.bos])
    before, after = prompt.picture.split("|")
    for _ in range(pictures):
        write(tokenizer.encode(lead + before))
        write([-1] * slots)
        lead = after
    lead, shared, mark = lead + prompt.after * (pictures > 0), len(ids), True
    for question, answer in turns:
        text = lead + question + end
        if asking and prompt.joined:
            write(tokenizer.encode(text + (answer or "")))
        else:
            write(tokenizer.encode(text, mark))
            write(tokenizer.encode(answer + prompt.stop) if answer is not None else [], learn=True)
        lead, mark = prompt.later, prompt.mark
    return ids, labels, shared


# ---- samples -------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Sample:
    """One question or conversation. `<bbox>` in a text stands for the next of `boxes`."""
    images: tuple[str, ...]                     # paths; several for a clip
    turns: tuple[tuple[str, str], ...]          # (question, answer), without template
    task: str                                   # a key of TASKS
    source: str                                 # where the row stands, for messages
    boxes: tuple[Box, ...] = ()                 # pixels of the original picture
    references: tuple[str, ...] = ()            # what counts as right, if more than the answer
    kind: str = ""                              # question type (presence, count, ...)


class Samples(Table):
    """Many samples in little memory (formats/table.py); each is made when it is asked for."""

    def add(self, row: dict) -> None:
        if row["task"] not in TASKS:
            raise ValueError(f"{row['source']}: unknown task {row['task']!r}")
        if not all(map(str.strip, [answer for _, answer in row["turns"]])):
            raise ValueError(f"{row['source']}: an empty answer, there is nothing to learn")
        super().add(row)

    def __getitem__(self, i: int | slice) -> "Sample | list[Sample]":
        if isinstance(i, slice):
            return [self[number] for number in range(len(self))[i]]
        return Sample(**super().__getitem__(i))


# Each has matches(place) and read(place, split), which yields a Sample's fields, the pictures
# named from `place`. Raises ValueError with a line that names the row.
FORMATS = {
    "llava": llava,                     # a .json or .jsonl of conversations, also ms-swift's
    "skyeye": skyeye,                   # SkyEye-968k's folder, and the miniature world
    "rsicd": rsicd,                     # RSICD, RSITMD, UCM-, Sydney-Captions: dataset*.json
    "nwpu_captions": nwpu_captions,     # dataset_nwpu.json
    "caption_lists": caption_lists,     # {split}_filename.txt and {split}_caps.txt
    "capera": capera,                   # clips
    "rsvqa": rsvqa,                     # RSVQA-LR, RSVQA-HR
    "rsivqa": rsivqa,                   # lines of picture:question?answer
    "floodnet": floodnet,               # one JSON of questions a split
    "coco": coco,                       # boxes of classes, as three tasks; so are voc and dota
    "dior_rsvg": dior_rsvg,             # DIOR-RSVG, RSVG: VOC XML and running object numbers
    "voc": voc,
    "dota": dota,
    "class_folder": class_folder,       # AID, NWPU-RESISC45, RSSCN7, UC Merced: a folder a class
}


def find_format(place: Path, name: str = ""):
    """The module of FORMATS that reads a place: the named one, or the first that knows it."""
    if not place.exists():
        raise DataError(f"{place}: no such file or folder")
    if name and name not in FORMATS:
        raise DataError(f"--format {name}: unknown; there are {', '.join(FORMATS)}")
    found = [FORMATS[name]] if name else [m for m in FORMATS.values() if m.matches(place)]
    if not found:
        raise DataError(f"{place}: in no layout that is read here ({', '.join(FORMATS)})")
    return found[0]


def read_rows(place: Path, split: str, form: str = "") -> Iterator[dict | ValueError]:
    """The fields of each sample, pictures named in full; for a row that is wrong, the error."""
    reader, root, known = find_format(place, form), place if place.is_dir() else place.parent, {}
    try:
        for row in reader.read(place, split):
            if isinstance(row, dict):
                names = tuple(row["images"])
                if names not in known:
                    known[names] = inside(root, names)
                row["images"] = known[names]
                if known[names] is None:
                    row = ValueError(f"{row['source']}: {', '.join(names)}: a data file may only "
                                     f"name pictures inside {root}")
            yield row
    except (ValueError, OSError) as error:
        raise DataError(str(error)) from error
    except (AttributeError, LookupError, SyntaxError, TypeError) as error:
        raise DataError(f"{place}: a row is not as this layout has it ({error!r})") from None


def collect(place: Path, split: str, form: str = "", tasks: Sequence[str] = ()
            ) -> tuple[Samples, Samples, list[str]]:
    """-> single-task samples, conversations, and what is wrong with the rows that make none."""
    single, talks, bad = Samples(), Samples(), []
    for row in read_rows(place, split, form):
        try:
            if isinstance(row, ValueError):
                raise row
            if not tasks or row["task"] in tasks:
                (talks if row["task"] == "conversation" else single).add(row)
        except ValueError as error:
            bad.append(str(error))
    return single, talks, bad


def read_data(place: str | Path, split: str = "train", stage: int = 0, tasks: Sequence[str] = (),
              form: str = "", skipped: list[str] | None = None) -> Sequence[Sample]:
    """A folder in a known layout, or a LLaVA .json / .jsonl -> its samples.

    Outside train, all captions of a picture are one sample. Stage 1 leaves multi-task
    conversations out, stage 2 takes them alone where there are any. A row that is wrong is a
    DataError, or where `skipped` is a list is left out and told there.
    """
    single, talks, bad = collect(Path(place), split, form, tasks)
    if bad and skipped is None:
        raise DataError(f"{bad[0]}{f' (and {len(bad) - 1} rows more)' if len(bad) > 1 else ''}")
    if skipped is not None:
        skipped += bad
    if not stage:
        single.join(talks)
    samples = (talks or single) if stage == 2 else (single or talks)
    looked = look_at_all(path for names in samples.images for path in names)
    faults = {path: told for path, (_, _, told) in looked.items() if told}
    if faults and skipped is None:
        raise DataError(f"{next(iter(faults.values()))} ({place} names it"
                        f"{f', and {len(faults) - 1} more like it' if len(faults) > 1 else ''})")
    if faults:
        skipped += faults.values()
        samples = Samples(vars(sample) for sample in samples if not faults.keys() & sample.images)
    if not samples:
        raise DataError(f"{place}: no samples in split {split!r}")
    return samples if split == "train" else gather_references(list(samples))


def inside(root: Path, names: Sequence[str]) -> tuple[str, ...] | None:
    """The paths of pictures named in a data file; None if one leaves the data's folder."""
    leave = any(Path(name).is_absolute() or ".." in Path(name).parts for name in names)
    return None if leave else tuple(str(root / name) for name in names)


def gather_references(samples: list[Sample]) -> list[Sample]:
    """All captions of a picture become one sample, asked once and scored against each."""
    captions: dict[tuple, list[Sample]] = {}
    for sample in samples:
        if sample.task in ("caption", "video"):
            captions.setdefault(sample.images, []).append(sample)
    gathered = [replace(group[0], references=tuple(sample.turns[0][1] for sample in group))
                for group in captions.values()]
    return gathered + [sample for sample in samples if sample.task not in ("caption", "video")]


# ---- rows for the model --------------------------------------------------------------------------

def draw_move(samples: Sequence[Sample], rng: random.Random) -> Move:
    """A random move that contradicts no word of these samples: no mirror where a side is named,
    no crop where something is counted, pointed at or asked about."""
    text = " ".join(text for sample in samples for turn in sample.turns for text in turn)
    words, transpose, crop = set(re.findall(r"\w+", text.lower())), (), STILL.crop
    if not words & SIDES and "|<" not in text:         # a box's angle would have to turn too
        transpose = rng.choice(((), (MIRROR,))) + rng.choice(((), *((turn,) for turn in TURNS)))
    whole = any(s.task not in ("caption", "scene") and s.kind != "theme" for s in samples)
    if not whole and not words & NUMBERS:
        width, height = rng.uniform(0.65, 1), rng.uniform(0.65, 1)
        x, y = rng.uniform(0, 1 - width), rng.uniform(0, 1 - height)
        crop = (x, y, x + width, y + height)
    return Move(crop, transpose, (rng.uniform(0.8, 1.25), rng.uniform(-0.3, 0.3)))


def turns_of(sample: Sample, size: tuple[int, int], move: Move = STILL,
             rng: random.Random | None = None, style: str = "skyeye") -> list[tuple[str, str]]:
    """The turns as text: cleaned, boxes written, in a template (the first one without rng)."""
    boxes = list(sample.boxes)
    if move.transpose and sample.task == "detection":       # detections go from left to right
        boxes.sort(key=lambda box: move.box(box, *size)[0])
    pool, pad, turns = TASKS[sample.task], PROMPTS[style].pad, []
    for question, answer in sample.turns:
        if sample.task in CLEANED:
            question, answer = clean_text(question), clean_text(answer)
        asked = question.count("<bbox>")
        question = place_boxes(question, boxes[:asked], *size, move, pad)
        template = rng.choice(pool) if rng else pool[0]
        answer_boxes, boxes = boxes[asked:], boxes[asked + answer.count("<bbox>"):]
        turns.append((template.replace("{}", question),
                      place_boxes(answer, answer_boxes, *size, move, pad)))
    return turns


class Rows(torch.utils.data.Dataset):
    """The training rows: `rows[epoch, number]`, the same whoever asks and however often.

    Up to `questions` samples of one picture share a row. An epoch has every sample once, in an
    order drawn from (seed, epoch); a row's templates and moves are drawn from (seed, epoch,
    number). `ratios`, (samples, ratio) of each data set in turn, changes that: so large a part of
    the set's rows, others every epoch. Rows of like length come in blocks of `block`, the rows of
    a step, as a batch is padded to its longest.
    """

    def __init__(self, samples: Sequence[Sample], tokenizer: Tokenizer, image_size: int,
                 visual_tokens: int, style: str = "skyeye", questions: int = 1,
                 augment: bool = False, seed: int = 42, max_tokens: int = 1024,
                 ratios: Sequence[tuple[int, float]] = (), block: int = 1,
                 bands: Sequence[int] = (), frames: int = 8):
        self.samples = samples if isinstance(samples, Samples) else Samples(map(vars, samples))
        self.tokenizer, self.style = tokenizer, style
        self.image_size, self.visual_tokens, self.max_tokens = image_size, visual_tokens, max_tokens
        self.questions, self.augment, self.seed = questions, augment, seed
        self.ratios, self.block, self.bands, self.frames = ratios, block, bands, frames
        ends = np.cumsum([count for count, _ in ratios])
        own = np.searchsorted(ends, np.arange(len(samples)), "right")
        self.group = np.array(self.samples.image) + own * len(self.samples.images)
        self.letters = np.array(self.samples.letters)
        self.plans: dict[int, tuple[np.ndarray, ...]] = {}
        self.length = len(self.plan(0)[2])          # as in every other epoch

    def plan(self, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """-> sample numbers, where each row starts among them (and the end), the rows in order."""
        if epoch not in self.plans:
            rng = np.random.default_rng((self.seed, epoch))
            order = np.lexsort((rng.random(len(self.group)), self.group))     # shuffled in a group
            group = self.group[order]
            place = np.arange(len(order)) - np.searchsorted(group, group)     # 0, 1, .. in a group
            starts = np.flatnonzero(place % self.questions == 0)
            rows = self.mix(order[starts], rng)
            letters = np.add.reduceat(self.letters[order], starts)
            rows = self.arrange(rows[rng.permutation(len(rows))], letters, rng)
            self.plans = {epoch: (order, np.append(starts, len(order)), rows)}
        return self.plans[epoch]

    def members(self, epoch: int, number: int) -> np.ndarray:
        """The sample numbers of a row."""
        order, starts, rows = self.plan(epoch)
        return order[starts[rows[number]]:starts[rows[number] + 1]]

    def mix(self, first: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """first: a sample of each row -> rows, of each data set what its ratio says."""
        mixed, start, ends = [], 0, np.cumsum([count for count, _ in self.ratios])
        for end, (_, ratio) in zip(ends, self.ratios, strict=True):
            own, start = np.flatnonzero((first >= start) & (first < end)), end
            count = max(int(ratio > 0), round(ratio * len(own)))
            mixed.append(own[np.resize(rng.permutation(len(own)), count)])
        return np.concatenate(mixed) if mixed else np.arange(len(first))

    def arrange(self, rows: np.ndarray, letters: np.ndarray, rng: np.random.Generator
                ) -> np.ndarray:
        """Sort each window of four blocks by letters, then shuffle its blocks."""
        arranged, size = [rows[:0]], self.block
        for start in range(0, len(rows), 4 * size):
            window = rows[start:start + 4 * size]
            window = window[np.argsort(letters[window], kind="stable")]
            blocks = [window[i:i + size] for i in range(0, len(window), size)]
            arranged += [blocks[i] for i in rng.permutation(len(blocks))]
        return np.concatenate(arranged)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        epoch, number = key
        samples = [self.samples[i] for i in self.members(epoch, number)]
        rng = random.Random(f"{self.seed} {epoch} {number}")
        move = draw_move(samples, rng) if self.augment else STILL
        # A JPEG may be decoded at an eighth to a half of its size, if twice what is needed is left.
        pictures = load_pictures(samples[0].images, self.bands, self.frames, 2 * self.image_size)
        size = pictures[0].size if pictures else (1, 1)
        turns = [self.turns(sample, size, move, rng) for sample in samples]
        images = [preprocess(p.image, self.image_size, move, self.style) for p in pictures]
        return self.row(turns, len(pictures)) | {"images": torch.stack(images) if images else None}

    def turns(self, sample: Sample, size: tuple[int, int], move: Move, rng: random.Random
              ) -> tuple[str, list[tuple[str, str]]]:
        try:
            return sample.source, turns_of(sample, size, move, rng, self.style)
        except ValueError as error:                                 # a box that is in no picture
            raise DataError(f"{sample.source}: {error}") from None

    def row(self, samples: list[tuple[str, list[tuple[str, str]]]], pictures: int
            ) -> dict[str, Tensor]:
        """(source, turns) of each sample -> the row, one copy of what they share in front."""
        ids, labels, segments, positions = [], [], [], []
        for segment, (source, turns) in enumerate(samples, start=1):
            own_ids, own_labels, shared = render(self.tokenizer, turns, self.visual_tokens,
                                                 pictures, self.style)
            if len(own_ids) > self.max_tokens:
                raise DataError(f"{source}: {len(own_ids)} tokens, over --max_tokens "
                                f"{self.max_tokens}")
            new = shared if ids else 0
            ids, labels = ids + own_ids[new:], labels + own_labels[new:]
            segments += [0] * (shared - new) + [segment] * (len(own_ids) - shared)
            positions += range(new, len(own_ids))
        return {"ids": torch.tensor(ids), "labels": torch.tensor(labels),
                "segments": torch.tensor(segments), "positions": torch.tensor(positions)}


PADDING = {"ids": 0, "labels": -100, "segments": -1, "positions": 0}


def collate(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Rows -> a batch, padded on the right; segments and positions only where rows share."""
    batch = {name: torch.nn.utils.rnn.pad_sequence([row[name] for row in rows], True, value)
             for name, value in PADDING.items()}
    if batch["segments"].max() == 1:
        del batch["segments"], batch["positions"]
    pictures = [row["images"] for row in rows if row["images"] is not None]
    batch["images"] = torch.cat(pictures) if pictures else None
    return batch


# ---- python data.py --check, --show --------------------------------------------------------------

def count_tokens(tokenizer: Tokenizer, visual_tokens: int, style: str, sample: Sample) -> int:
    """How many tokens a sample takes, its boxes at their longest."""
    long = replace(sample, boxes=((0.99, 0.99, 1, 1),) * len(sample.boxes))
    pictures = sum(8 if is_clip(path) else 1 for path in sample.images)
    turns = turns_of(long, (1, 1), style=style)
    return len(render(tokenizer, turns, visual_tokens, pictures, style)[0])


def show(sample: Sample, rng: random.Random) -> tuple[Image.Image, str]:
    """-> the first picture with its boxes, and the turns as the model reads them."""
    pictures = load_pictures(sample.images, frames=1)
    image = pictures[0].image if pictures else Image.new("RGB", (320, 40))
    turns = turns_of(sample, pictures[0].size if pictures else image.size, rng=rng)
    text = "\n".join(f"{question}\n> {answer}" for question, answer in turns)
    return draw_boxes(image, parse_boxes(text, *image.size)), text


if __name__ == "__main__":
    sys.exit(command.main(collect, Tokenizer, count_tokens, show, DataError))
