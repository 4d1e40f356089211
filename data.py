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
import math
import random
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from PIL import Image
from torch import Tensor

from support.common import Box
from support.images.clips import is_clip, read_clip
from support.images.common import PictureError
from support.images.read import Picture, read_picture
from support.readers.common import DataError, Sample, SampleTable

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
QUARTER_TURNS = (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)


def load_image(path: str | Path) -> Image.Image:
    """-> RGB, 8 bit, turned as its EXIF orientation says. DataError: one line with the file."""
    return load_images([path])[0].image


def load_images(paths: Iterable[str | Path], bands: Sequence[int] = (), frames: int = 8,
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
class Augmentation:
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


NO_AUGMENTATION = Augmentation()


PAD_COLOR = (122, 116, 104)          # the mean color of CLIP's pictures, cut off to 8 bits


def pad_to_square(image: Image.Image) -> Image.Image:
    """In the middle of a square of CLIP's mean color."""
    side, (width, height) = max(image.size), image.size
    square = Image.new("RGB", (side, side), PAD_COLOR)
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square


def preprocess(image: Image.Image, size: int, move: Augmentation = NO_AUGMENTATION, style: str = "skyeye") -> Tensor:
    """-> float[3, size, size], CLIP-normalized; squashed to a square (bicubic), as upstream.

    LLaVA's style pads it to a square before, with CLIP's mean color.
    """
    part = None if move.crop == NO_AUGMENTATION.crop else tuple(
        fraction * side for fraction, side in zip(move.crop, image.size * 2, strict=True))
    if PROMPTS[style].pad:
        image, part = pad_to_square(image.crop(part) if part else image), None
    image = image.resize((size, size), Image.Resampling.BICUBIC, part)
    for step in move.transpose:
        image = image.transpose(step)
    x = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255        # [3, H, W]
    x = (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    return x if move.gain == NO_AUGMENTATION.gain else x * move.gain[0] + move.gain[1]


# ---- boxes ---------------------------------------------------------------------------------------

BOX = re.compile(r"\{\s*" + r"\s*".join([r"<\s*(\d{1,3})\s*>"] * 4)
                 + r"\s*(?:\|\s*<\s*(-?\d{1,3})\s*>\s*)?\}", re.ASCII)


PHRASE = re.compile(r"<p>(.*?)</p>")


def coordinate_frame(width: int, height: int, pad: bool) -> tuple[float, float, float, float]:
    """Left, top, width, height of what 0 to 100 spans: the picture, or the square it lies in."""
    side = max(width, height)
    return ((width - side) // 2, (height - side) // 2, side, side) if pad else (0, 0, width, height)


def encode_box(box: Box, width: int, height: int, pad: bool = False) -> str:
    """Pixels -> `{<x1><y1><x2><y2>}`, 0 to 100, cut off and not rounded, as upstream writes.

    Corners are sorted and brought into the picture. ValueError: nothing of the box is in it.
    """
    x1, y1, x2, y2 = box
    if not (min(x1, x2) <= width and min(y1, y2) <= height and max(x1, x2) >= 0
            and max(y1, y2) >= 0):                                  # also where one is not a number
        raise ValueError(f"the box {box} is not in a picture of {width} x {height}")
    left, top, w, h = coordinate_frame(width, height, pad)
    x1, x2 = sorted((min(max(x, 0), width) - left) / w for x in box[::2])
    y1, y2 = sorted((min(max(y, 0), height) - top) / h for y in box[1::2])
    return "{" + "".join(f"<{int(100 * v)}>" for v in (x1, y1, x2, y2)) + "}"


def parse_boxes(text: str, width: int, height: int, corner: bool = False, pad: bool = False
                ) -> list[tuple[str, Box]]:
    """Every box in a text -> [(phrase, box in pixels)]; the phrase is the last <p>..</p> before.

    A number q stands for the bin q .. q + 1 it was cut off to, so the middle of the bin is read;
    upstream reads its corner (corner=True). Numbers over 100 are no box, corners are sorted. A box
    turned by |<degrees> (GeoChat) gives the upright box around it.
    """
    found, (left, top, w, h) = [], coordinate_frame(width, height, pad)
    for match in BOX.finditer(text):
        numbers = [int(n) for n in match.groups()[:4]]
        if max(numbers) > 100:
            continue
        x1, y1, x2, y2 = (n / 100 if corner else min(n + 0.5, 100) / 100 for n in numbers)
        box = upright_box((min(x1, x2) * w, min(y1, y2) * h, max(x1, x2) * w, max(y1, y2) * h),
                     int(match[5] or 0))
        phrases = PHRASE.findall(text[:match.start()])
        box = tuple(min(max(v + shift, 0), side) for v, shift, side in zip(
            box, (left, top) * 2, (width, height) * 2, strict=True))
        found.append((phrases[-1].strip() if phrases else "", box))
    return found


def upright_box(box: Box, degrees: int) -> Box:
    """The upright box around a box turned about its middle."""
    x, y, w, h = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2, box[2] - box[0], box[3] - box[1]
    cos, sin = abs(math.cos(math.radians(degrees))), abs(math.sin(math.radians(degrees)))
    w, h = (w * cos + h * sin, w * sin + h * cos) if degrees else (w, h)
    return x - w / 2, y - h / 2, x + w / 2, y + h / 2


def write_boxes(text: str, boxes: Iterable[Box], width: int, height: int, move: Augmentation,
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

IDENTIFIERS = ("caption", "vqa", "refer", "detection", "identify", "grounding")


CAPTION_TEMPLATES = """Briefly describe this image. | Provide a concise depiction of this image.
| Present a short description of this image. | Summarize this image in a few words.
| A short image caption: | A short image description: | A photo of | An image that shows
| Write a short description for the image. | Write a description for the photo.
| Provide a description of what is presented in the photo.
| Briefly describe the content of the image. | Can you briefly explain what you see in the image?
| Could you use a few words to describe what you perceive in the photo?
| Please provide a short depiction of the picture.
| Using language, provide a short account of the image.
| Use a few words to illustrate what is happening in the picture."""


TEMPLATES = {       # MiniGPT-v2's templates; {} is the expression, the question or the box
    "caption": ["[caption] briefly describe the image",
                *("[caption] " + text.strip() for text in CAPTION_TEMPLATES.split("|"))],
    "video": ["[caption] briefly describe the video frame image"],
    "vqa": ["[vqa] {}",
            "[vqa] Based on the image, respond to this question with a short answer: {}"],
    "scene": ["[vqa] {}"],
    "refer": ["[refer] give me the location of {}", "[refer] {}", "[refer] where is {} ?",
              "[refer] from this image, tell me the location of {}",
              "[refer] the location of {} is", "[refer] could you tell me the location for {} ?",
              "[refer] where can I locate the {} ?"],
    "detection": ["[detection] {}"],
    "identify": ["[identify] what is it in {}", "[identify] {}", "[identify] this {} is",
                 "[identify] what object is in this location {}",
                 "[identify] identify the object present at this location {}",
                 "[identify] describe this object in {}", "[identify] the object in {} is"],
    "grounding": ["[grounding] describe this image in detail",
                  "[grounding] please describe this image in details",
                  "[grounding] describe this image as detailed as possible",
                  "[grounding] summarize this image in details",
                  "[grounding] give a thorough description of what you see in this image"],
    "conversation": ["{}"],
}


CLEANED_TASKS = ("caption", "video", "vqa", "refer")          # tasks whose texts upstream cleans


def clean_text(text: str, words: int = 50) -> str:
    """Upstream's blip_caption: lower case, no punctuation but ? and comma, at most 50 words."""
    text = re.sub(r"[.!\"()*#:;~]", " ", text.lower())
    return " ".join(re.sub(r" {2,}", " ", text).rstrip("\n").strip(" ").split(" ")[:words])


# Words that forbid to mirror or turn a picture, and to crop it.
SIDE_WORDS = set("left right top bottom upper lower above below leftmost rightmost north south east "
            "west northeast northwest southeast southwest".split())


NUMBER_WORDS = set("no one two three four five six seven eight nine ten".split())


@dataclass(frozen=True)
class PromptStyle:
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
    "skyeye": PromptStyle("<Img>|</Img>", " ", "[INST] ", "<s>[INST] ", " [/INST]"),
    # The released checkpoint: two spaces before [/INST] in training; asked, one and a second <s>.
    "minigpt_v2": PromptStyle("<Img>|</Img>", " ", "[INST] ", "<s>[INST] ", "  [/INST]",
                         ask_first="<s>[INST] ", ask_end=" [/INST]", joined=True),
    # LLaVA-1.5, and so RS-GPT4V.
    "vicuna_v1": PromptStyle("|\n", "", "A chat between a curious user and an artificial intelligence "
                        "assistant. The assistant gives helpful, detailed, and polite answers to "
                        "the user's questions. USER: ", "USER: ", " ASSISTANT:", mark=False,
                        pad=True),
}

def encode_conversation(tokenizer: Tokenizer, turns: Sequence[tuple[str, str | None]], slots: int = 0,
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


# ---- rows for the model --------------------------------------------------------------------------

def draw_augmentation(samples: Sequence[Sample], rng: random.Random) -> Augmentation:
    """A random move that contradicts no word of these samples: no mirror where a side is named,
    no crop where something is counted, pointed at or asked about."""
    text = " ".join(text for sample in samples for turn in sample.turns for text in turn)
    words, transpose, crop = set(re.findall(r"\w+", text.lower())), (), NO_AUGMENTATION.crop
    if not words & SIDE_WORDS and "|<" not in text:         # a box's angle would have to turn too
        transpose = rng.choice(((), (MIRROR,))) + rng.choice(((), *((turn,) for turn in QUARTER_TURNS)))
    whole = any(s.task not in ("caption", "scene") and s.kind != "theme" for s in samples)
    if not whole and not words & NUMBER_WORDS:
        width, height = rng.uniform(0.65, 1), rng.uniform(0.65, 1)
        x, y = rng.uniform(0, 1 - width), rng.uniform(0, 1 - height)
        crop = (x, y, x + width, y + height)
    return Augmentation(crop, transpose, (rng.uniform(0.8, 1.25), rng.uniform(-0.3, 0.3)))


def apply_templates(sample: Sample, size: tuple[int, int], move: Augmentation = NO_AUGMENTATION,
             rng: random.Random | None = None, style: str = "skyeye") -> list[tuple[str, str]]:
    """The turns as text: cleaned, boxes written, in a template (the first one without rng)."""
    boxes = list(sample.boxes)
    if move.transpose and sample.task == "detection":       # detections go from left to right
        boxes.sort(key=lambda box: move.box(box, *size)[0])
    pool, pad, turns = TEMPLATES[sample.task], PROMPTS[style].pad, []
    for question, answer in sample.turns:
        if sample.task in CLEANED_TASKS:
            question, answer = clean_text(question), clean_text(answer)
        asked = question.count("<bbox>")
        question = write_boxes(question, boxes[:asked], *size, move, pad)
        template = rng.choice(pool) if rng else pool[0]
        answer_boxes, boxes = boxes[asked:], boxes[asked + answer.count("<bbox>"):]
        turns.append((template.replace("{}", question),
                      write_boxes(answer, answer_boxes, *size, move, pad)))
    return turns


class PackedDataset(torch.utils.data.Dataset):
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
        self.samples = samples if isinstance(samples, SampleTable) else SampleTable(map(vars, samples))
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
        move = draw_augmentation(samples, rng) if self.augment else NO_AUGMENTATION
        # A JPEG may be decoded at an eighth to a half of its size, if twice what is needed is left.
        pictures = load_images(samples[0].images, self.bands, self.frames, 2 * self.image_size)
        size = pictures[0].size if pictures else (1, 1)
        turns = [self.turns(sample, size, move, rng) for sample in samples]
        images = [preprocess(p.image, self.image_size, move, self.style) for p in pictures]
        return self.row(turns, len(pictures)) | {"images": torch.stack(images) if images else None}

    def turns(self, sample: Sample, size: tuple[int, int], move: Augmentation, rng: random.Random
              ) -> tuple[str, list[tuple[str, str]]]:
        try:
            return sample.source, apply_templates(sample, size, move, rng, self.style)
        except ValueError as error:                                 # a box that is in no picture
            raise DataError(f"{sample.source}: {error}") from None

    def row(self, samples: list[tuple[str, list[tuple[str, str]]]], pictures: int
            ) -> dict[str, Tensor]:
        """(source, turns) of each sample -> the row, one copy of what they share in front."""
        ids, labels, segments, positions = [], [], [], []
        for segment, (source, turns) in enumerate(samples, start=1):
            own_ids, own_labels, shared = encode_conversation(self.tokenizer, turns, self.visual_tokens,
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


if __name__ == "__main__":
    from support.tools.check_data import main
    sys.exit(main())
