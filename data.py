"""Everything between disk or keyboard and tensors, in both directions.

A sample is one question or conversation about one or more images. A row is what the model is
fed: the questions about one image, behind one copy of its visual tokens,

    ids        <s> [INST] <Img> -1 .. -1 | </Img> question 1 [/INST] answer 1 </s> | </Img> ..
    labels       .   .     .     .  .  . |    .      .         .     answer 1 </s> |    .
    segments     0   0     0     0  0  0 |    1      1         1        1      1   |    2
    positions    0   1     2     3  .. n |   n+1    n+2       n+3      ..          |   n+1

with -1 for a visual token, which the model fills in, and . for -100, no label. Ids and labels come
from one call, so they cannot drift apart.

From top to bottom: the tokenizer, images, boxes as text, prompts, and the batches of a training.
"""
import math
import random
import re
import sys
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

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

    <s>, </s> and <unk> in a text become their ids; each part between them is encoded on its own,
    with the word boundary that sentencepiece puts before a text. No <s> is added at the front:
    encode_conversation does that.
    """
    SPECIAL = ("<unk>", "<s>", "</s>")          # ids 0, 1, 2

    def __init__(self, path: str | Path, vocab_size: int | None = None):
        """vocab_size: how many embeddings the model has, if it is to be compared. DataError."""
        if not Path(path).is_file():
            raise DataError(f"{path}: no such file; a model folder holds its tokenizer.model")
        try:
            self.model = sentencepiece.SentencePieceProcessor(model_file=str(path))
            self.model.id_to_piece(list(range(len(self))))      # UnicodeDecodeError: damaged
        except (RuntimeError, ValueError):
            raise DataError(f"{path}: not a sentencepiece model; download it again") from None
        if vocab_size not in (None, len(self)):
            raise DataError(f"{path}: {len(self)} pieces for the model's {vocab_size} embeddings")
        self.bos, self.eos = 1, 2

    def __len__(self) -> int:
        return self.model.vocab_size()

    def encode(self, text: str, word_boundary: bool = True) -> list[int]:
        """word_boundary=False: the text continues what stands before it, no boundary in front."""
        if not word_boundary:
            return self.encode("\n" + text)[2:]         # a newline is a piece of its own
        ids = []
        for part in re.split("(<unk>|</?s>)", text):
            ids += [self.SPECIAL.index(part)] if part in self.SPECIAL else self.model.encode(part)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        return self.model.decode([i for i in ids if i >= len(self.SPECIAL)])


# ---- images --------------------------------------------------------------------------------------

MEAN = (0.48145466, 0.4578275, 0.40821073)      # of CLIP's images: red, green, blue in 0 .. 1
STD = (0.26862954, 0.26130258, 0.27577711)
PAD_COLOR = (122, 116, 104)                     # MEAN in 8 bits, cut off as LLaVA does
MIRROR = Image.Transpose.FLIP_LEFT_RIGHT
QUARTER_TURNS = (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)


def load_image(path: str | Path) -> Image.Image:
    """-> RGB, 8 bit, turned as its EXIF orientation says. DataError: one line with the file."""
    return load_images([path])[0].image


def load_images(paths: Iterable[str | Path], bands: Sequence[int] = (), frames: int = 8,
                min_side: int = 0) -> list[Picture]:
    """Images, and of each clip (a folder, an animation, a video) at most `frames` of its frames.

    bands: which ones are shown as red, green and blue, from 1; () for the first ones.
    min_side: a JPEG may be decoded smaller, down to this many pixels a side; 0: at its own size.
    DataError: one line that begins with the file.
    """
    found = []
    try:
        for path in paths:
            if is_clip(path):
                found += read_clip(path, frames, tuple(bands))
            else:
                found.append(read_picture(path, tuple(bands), min_side))
    except PictureError as error:
        raise DataError(str(error)) from None
    return found


@dataclass(frozen=True)
class Augmentation:
    """How an image is changed in training: cropped, mirrored or turned, then recolored."""
    crop: Box = (0, 0, 1, 1)                        # the part that stays, in fractions of the sides
    transpose: tuple[Image.Transpose, ...] = ()     # mirrors and quarter turns, in order
    contrast: float = 1.0                           # factor of the normalized values
    brightness: float = 0.0                         # added to them

    def transform_box(self, box: Box, width: int, height: int) -> Box:
        """Where a box ends up after `transpose`, in the same frame; images with boxes have no crop.
        """
        x1, y1, x2, y2 = box[0] / width, box[1] / height, box[2] / width, box[3] / height
        for step in self.transpose:
            if step == Image.Transpose.FLIP_LEFT_RIGHT:
                x1, x2 = 1 - x2, 1 - x1
            elif step == Image.Transpose.ROTATE_90:             # the right edge becomes the top
                x1, y1, x2, y2 = y1, 1 - x2, y2, 1 - x1
            elif step == Image.Transpose.ROTATE_180:
                x1, y1, x2, y2 = 1 - x2, 1 - y2, 1 - x1, 1 - y1
            else:
                x1, y1, x2, y2 = 1 - y2, x1, 1 - y1, x2
        return x1 * width, y1 * height, x2 * width, y2 * height


NO_AUGMENTATION = Augmentation()


def pad_to_square(image: Image.Image) -> Image.Image:
    """The image in the middle of a square of CLIP's mean color."""
    side = max(image.size)
    square = Image.new("RGB", (side, side), PAD_COLOR)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def preprocess(image: Image.Image, size: int, augmentation: Augmentation = NO_AUGMENTATION,
               style: str = "skyeye") -> Tensor:
    """-> float[3, size, size], CLIP-normalized.

    Resized to a square whatever its sides are (bicubic), as upstream does; a prompt style with
    `pad` (LLaVA's) pads it to a square before.
    """
    region = None                                               # what is resized: all of it
    if augmentation.crop != NO_AUGMENTATION.crop:
        x1, y1, x2, y2 = augmentation.crop
        region = (x1 * image.width, y1 * image.height, x2 * image.width, y2 * image.height)
    if PROMPTS[style].pad:
        image = pad_to_square(image.crop(region) if region else image)
        region = None
    image = image.resize((size, size), Image.Resampling.BICUBIC, region)
    for step in augmentation.transpose:
        image = image.transpose(step)
    x = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255            # [3, H, W]
    x = (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    if (augmentation.contrast, augmentation.brightness) != (1.0, 0.0):
        x = x * augmentation.contrast + augmentation.brightness
    return x


# ---- boxes ---------------------------------------------------------------------------------------
# As text, `{<x1><y1><x2><y2>}`: hundredths of the image's sides, 0 to 100. GeoChat adds an angle,
# `{<x1><y1><x2><y2>|<degrees>}`. `<p>two ships</p>` before boxes is the phrase they belong to.

BOX = re.compile(r"\{\s*" + r"\s*".join([r"<\s*(\d{1,3})\s*>"] * 4)
                 + r"\s*(?:\|\s*<\s*(-?\d{1,3})\s*>\s*)?\}", re.ASCII)


def find_phrases(text: str) -> list[tuple[int, str]]:
    """Where each <p>..</p> on one line ends, and what it holds; linear in the text's length."""
    found, start = [], 0
    for line in text.split("\n"):
        opened = line.find("<p>")
        while opened >= 0:
            closed = line.find("</p>", opened + 3)
            if closed < 0:
                break
            found.append((start + closed + 4, line[opened + 3:closed]))
            opened = line.find("<p>", closed + 4)
        start += len(line) + 1
    return found


def phrases_before(text: str, places: Iterable[int]) -> list[str]:
    """What the last <p>..</p> holds that ends at or before each place in a text; "" without one."""
    phrases = find_phrases(text)
    ends = [end for end, _ in phrases]
    counts = (bisect_right(ends, place) for place in places)
    return [phrases[count - 1][1].strip() if count else "" for count in counts]


def find_boxes(text: str) -> list[re.Match]:
    """The matches of BOX in a text; what has a number over 100 is no box."""
    return [match for match in BOX.finditer(text) if max(map(int, match.groups()[:4])) <= 100]


def coordinate_frame(width: int, height: int, pad: bool) -> tuple[float, float, float, float]:
    """Left, top, width, height of what 0 to 100 spans: the image, or the square it is padded to."""
    if not pad:
        return 0, 0, width, height
    side = max(width, height)
    return (width - side) // 2, (height - side) // 2, side, side


def clamp(value: float, high: float) -> float:
    return min(max(value, 0), high)


def normalize_box(box: Box, width: int, height: int) -> Box:
    """Corners sorted and moved into the image. ValueError: no part of the box is in it."""
    x1, y1, x2, y2 = box
    inside = (min(x1, x2) <= width and min(y1, y2) <= height
              and max(x1, x2) >= 0 and max(y1, y2) >= 0)            # False also for a NaN
    if not inside:
        raise ValueError(f"the box {box} is not in a picture of {width} x {height}")
    x1, x2 = sorted(clamp(x, width) for x in (x1, x2))
    y1, y2 = sorted(clamp(y, height) for y in (y1, y2))
    return x1, y1, x2, y2


def encode_box(box: Box, width: int, height: int, pad: bool = False) -> str:
    """Pixels -> `{<x1><y1><x2><y2>}`, 0 to 100, cut off and not rounded, as upstream writes.

    Corners are sorted and moved into the image. ValueError: no part of the box is in it.
    """
    x1, y1, x2, y2 = normalize_box(box, width, height)
    left, top, w, h = coordinate_frame(width, height, pad)
    sides = ((x1 - left) / w, (y1 - top) / h, (x2 - left) / w, (y2 - top) / h)
    return "{" + "".join(f"<{int(100 * side)}>" for side in sides) + "}"


def parse_boxes(text: str, width: int, height: int, corner: bool = False, pad: bool = False
                ) -> list[tuple[str, Box]]:
    """Every box in a text -> [(phrase, box in pixels)]; the phrase is the last <p>..</p> before.

    A number q stands for the bin q .. q + 1 it was cut off to, so the middle of the bin is read;
    upstream reads its corner (corner=True). Corners are sorted. A box with an angle gives the
    upright box around it.
    """
    left, top, w, h = coordinate_frame(width, height, pad)
    found, matches = [], find_boxes(text)
    phrases = phrases_before(text, [match.start() for match in matches])
    for match, phrase in zip(matches, phrases, strict=True):
        bins = [int(number) for number in match.groups()[:4]]
        x1, y1, x2, y2 = (q / 100 if corner else min(q + 0.5, 100) / 100 for q in bins)
        box = (min(x1, x2) * w, min(y1, y2) * h, max(x1, x2) * w, max(y1, y2) * h)
        x1, y1, x2, y2 = upright_box(box, int(match[5] or 0))
        box = (clamp(x1 + left, width), clamp(y1 + top, height),
               clamp(x2 + left, width), clamp(y2 + top, height))
        found.append((phrase, box))
    return found


def upright_box(box: Box, degrees: int) -> Box:
    """The upright box around a box that is turned about its middle."""
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    w, h = box[2] - box[0], box[3] - box[1]
    if degrees:
        cos, sin = abs(math.cos(math.radians(degrees))), abs(math.sin(math.radians(degrees)))
        w, h = w * cos + h * sin, w * sin + h * cos
    return x - w / 2, y - h / 2, x + w / 2, y + h / 2


def write_boxes(text: str, boxes: Iterable[Box], width: int, height: int,
                augmentation: Augmentation, pad: bool = False) -> str:
    """Write the next of `boxes` at each <bbox>; boxes that are text already are transformed too."""
    remaining = iter(boxes)

    def encode(box: Box) -> str:
        return encode_box(augmentation.transform_box(box, width, height), width, height, pad)

    def transform(match: re.Match) -> str:
        parsed = parse_boxes(match[0], width, height, pad=pad)
        return encode(parsed[0][1]) if parsed else match[0]

    if augmentation.transpose:
        text = BOX.sub(transform, text)
    return re.sub("<bbox>", lambda _: encode(next(remaining)), text)


# ---- prompts -------------------------------------------------------------------------------------

IDENTIFIERS = ("caption", "vqa", "refer", "detection", "identify", "grounding")

CAPTION_TEMPLATES = (       # the blank at the end of three of them is upstream's
    "Briefly describe this image.", "Provide a concise depiction of this image.",
    "Present a short description of this image.", "Summarize this image in a few words.",
    "A short image caption:", "A short image description:", "A photo of ",
    "An image that shows ", "Write a short description for the image. ",
    "Write a description for the photo.",
    "Provide a description of what is presented in the photo.",
    "Briefly describe the content of the image.",
    "Can you briefly explain what you see in the image?",
    "Could you use a few words to describe what you perceive in the photo?",
    "Please provide a short depiction of the picture.",
    "Using language, provide a short account of the image.",
    "Use a few words to illustrate what is happening in the picture.")

TEMPLATES = {       # by task, MiniGPT-v2's; {} is the expression, the question or the box
    "caption": ["[caption] briefly describe the image",
                *("[caption] " + text for text in CAPTION_TEMPLATES)],
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

CLEANED_TASKS = ("caption", "video", "vqa", "refer")        # upstream cleans the texts of these


def clean_text(text: str, max_words: int = 50) -> str:
    """Upstream's blip_caption: lower case, no punctuation but ? and comma, at most 50 words."""
    text = re.sub(r"[.!\"()*#:;~]", " ", text.lower())
    text = re.sub(r"\s{2,}", " ", text).rstrip("\n").strip(" ")
    return " ".join(text.split(" ")[:max_words])


def apply_templates(sample: Sample, size: tuple[int, int],
                    augmentation: Augmentation = NO_AUGMENTATION,
                    rng: random.Random | None = None, style: str = "skyeye"
                    ) -> list[tuple[str, str]]:
    """The turns as text: cleaned, boxes written, in a template (the first one without rng).

    size: width and height of the sample's first image. ValueError: a box that is not in it.
    """
    boxes = list(sample.boxes)
    if sample.task == "detection" and augmentation.transpose:       # listed from left to right
        boxes.sort(key=lambda box: augmentation.transform_box(box, *size)[0])
    pad = PROMPTS[style].pad
    turns = []
    for number, (question, answer) in enumerate(sample.turns):
        if sample.task in CLEANED_TASKS:
            question, answer = clean_text(question), clean_text(answer)
        if sample.task == "identify":                   # its question is a box
            answer = clean_text(answer)
        if style == "minigpt_v2" and sample.task == "conversation" and number == 0:
            question = question.replace("\n", "")       # upstream, in the first question alone
        asked, answered = question.count("<bbox>"), answer.count("<bbox>")
        question = write_boxes(question, boxes[:asked], *size, augmentation, pad)
        answer = write_boxes(answer, boxes[asked:asked + answered], *size, augmentation, pad)
        boxes = boxes[asked + answered:]
        template = rng.choice(TEMPLATES[sample.task]) if rng else TEMPLATES[sample.task][0]
        turns.append((template.replace("{}", question), answer))
    return turns


@dataclass(frozen=True)
class PromptStyle:
    """What stands around images, questions and answers."""
    image_start: str                # before and after the visual tokens of each image
    image_end: str
    after_images: str               # between the last image and the first question
    user_prefix_first: str          # before the images
    user_prefix: str                # before every question but the first
    user_suffix: str                # after every question
    infer_prefix_first: str = ""    # user_prefix_first at inference, if it differs
    infer_suffix: str = ""          # user_suffix at inference and without images, if it differs
    answer_end: str = "</s>"        # after every answer
    merge_history: bool = False     # at inference an earlier question and its answer are one text
    word_boundary: bool = True      # before user_prefix
    pad: bool = False               # images are padded to a square before they are resized


PROMPTS = {
    # One form for training and inference: what we train with.
    "skyeye": PromptStyle("<Img>", "</Img>", " ", "[INST] ", "<s>[INST] ", " [/INST]"),
    # The released checkpoint: in training two spaces before [/INST], one where there is no image;
    # at inference one, and a second <s>.
    "minigpt_v2": PromptStyle("<Img>", "</Img>", " ", "[INST] ", "<s>[INST] ", "  [/INST]",
                              infer_prefix_first="<s>[INST] ", infer_suffix=" [/INST]",
                              merge_history=True),
    # LLaVA-1.5, and so RS-GPT4V.
    "vicuna_v1": PromptStyle("", "\n", "", "A chat between a curious user and an artificial "
                             "intelligence assistant. The assistant gives helpful, detailed, and "
                             "polite answers to the user's questions. USER: ", "USER: ",
                             " ASSISTANT:", word_boundary=False, pad=True),
}


def encode_conversation(tokenizer: Tokenizer, turns: Sequence[tuple[str, str | None]],
                        visual_tokens: int = 0, num_images: int = 1, style: str = "skyeye"
                        ) -> tuple[list[int], list[int], int]:
    """-> ids, labels, and prefix_len: how many ids stand before the first question, the part that
    questions about the same images share.

    turns: (question, answer) each; where the last answer is None, it is to be generated and the
    ids end after the question. visual_tokens: of an image; each image becomes that
    many -1.
    """
    prompt = PROMPTS[style]
    prefix, suffix = prompt.user_prefix_first, prompt.user_suffix
    inference = turns[-1][1] is None
    if inference:
        prefix = prompt.infer_prefix_first or prefix
    if inference or not num_images:
        suffix = prompt.infer_suffix or suffix
    ids: list[int] = []
    labels: list[int] = []

    def append(new: list[int], supervised: bool = False) -> None:
        ids.extend(new)
        labels.extend(new if supervised else [-100] * len(new))

    append([tokenizer.bos])
    for _ in range(num_images):
        append(tokenizer.encode(prefix + prompt.image_start))
        append([-1] * visual_tokens)
        prefix = prompt.image_end
    if num_images:
        prefix += prompt.after_images
    prefix_len = len(ids)

    word_boundary = True
    for question, answer in turns:
        text = prefix + question + suffix
        if inference and prompt.merge_history:
            append(tokenizer.encode(text + (answer or "")))
        else:
            append(tokenizer.encode(text, word_boundary))
            if answer is not None:
                append(tokenizer.encode(answer + prompt.answer_end), supervised=True)
        prefix, word_boundary = prompt.user_prefix, prompt.word_boundary
    return ids, labels, prefix_len


# ---- batches -------------------------------------------------------------------------------------

# Words in a sample that forbid to mirror or turn its image, and to crop it.
SIDE_WORDS = set("left right top bottom upper lower above below leftmost rightmost north south "
                 "east west northeast northwest southeast southwest".split())
NUMBER_WORDS = set("no one two three four five six seven eight nine ten".split())


def draw_augmentation(samples: Sequence[Sample], rng: random.Random) -> Augmentation:
    """A random augmentation under which all texts of these samples stay true: no mirror where a
    side is named, no crop where something is counted, located or asked about."""
    text = " ".join(text for sample in samples for turn in sample.turns for text in turn)
    words = set(re.findall(r"\w+", text.lower()))
    transpose: tuple[Image.Transpose, ...] = ()
    if not words & SIDE_WORDS and "|<" not in text:         # a box's angle would have to turn too
        transpose = rng.choice(((), (MIRROR,)))
        transpose += rng.choice(((), *((turn,) for turn in QUARTER_TURNS)))
    crop = NO_AUGMENTATION.crop
    about_all = all(sample.task in ("caption", "scene") or sample.kind == "theme"
                    for sample in samples)
    if about_all and not words & NUMBER_WORDS:
        width, height = rng.uniform(0.65, 1), rng.uniform(0.65, 1)
        x, y = rng.uniform(0, 1 - width), rng.uniform(0, 1 - height)
        crop = (x, y, x + width, y + height)
    return Augmentation(crop, transpose, contrast=rng.uniform(0.8, 1.25),
                        brightness=rng.uniform(-0.3, 0.3))


def length_fault(text: int, whole: int, max_tokens: int, max_positions: int = 0) -> str:
    """What is wrong with a sample of so many tokens of text, and with its images; or ""."""
    if text > max_tokens:
        return f"{text:,} tokens of text, over --max_tokens {max_tokens}"
    if 0 < max_positions < whole:
        return f"{whole:,} tokens with its pictures, and the model's context has {max_positions}"
    return ""


class EpochPlan(NamedTuple):
    """Row r of an epoch has the samples order[starts[rows[r]]:starts[rows[r] + 1]]."""
    order: np.ndarray           # int[samples]: sample numbers, those that share a row side by side
    starts: np.ndarray          # int[packed rows + 1]: where each packed row begins in `order`
    rows: np.ndarray            # int[rows]: packed rows in the order of the epoch


class PackedDataset(torch.utils.data.Dataset):
    """The training rows: `dataset[epoch, row]` is the same in every process and at every call.

    Up to `questions_per_row` samples of the same images share a row. An epoch has every sample
    once, in an order drawn from (seed, epoch); the templates and the augmentation of a row are
    drawn from (seed, epoch, row). `ratios` changes that: (number of samples, ratio) of each data
    set in turn, the ratio being the part of its rows that an epoch has, others in every epoch.
    Rows of like length come in buckets of `bucket_size`, the rows of a step, as a batch is padded
    to its longest row.

    image_size: pixels a side. visual_tokens: of an image. max_tokens: of a sample's text.
    max_positions: of the model's context; 0: not known.
    bands, frames: as load_images takes them.
    """

    def __init__(self, samples: Sequence[Sample], tokenizer: Tokenizer, image_size: int,
                 visual_tokens: int, *, style: str = "skyeye", questions_per_row: int = 1,
                 augment: bool = False, seed: int = 42, max_tokens: int = 1024,
                 ratios: Sequence[tuple[int, float]] = (), bucket_size: int = 1,
                 bands: Sequence[int] = (), frames: int = 8, max_positions: int = 0):
        if not isinstance(samples, SampleTable):
            samples = SampleTable(map(vars, samples))
        self.samples, self.tokenizer, self.style = samples, tokenizer, style
        self.image_size, self.visual_tokens, self.max_tokens = image_size, visual_tokens, max_tokens
        self.questions_per_row, self.bucket_size = questions_per_row, bucket_size
        self.augment, self.seed = augment, seed
        self.bands, self.frames, self.max_positions = bands, frames, max_positions
        self.ratios = ratios
        # Samples with the same number here, those of one data set about the same images, may share
        # a row.
        set_ends = np.cumsum([count for count, _ in ratios])
        data_set = np.searchsorted(set_ends, np.arange(len(samples)), "right")
        self.group = np.array(samples.image_set) + data_set * len(samples.image_sets)
        self.num_chars = np.array(samples.num_chars)
        self.plans: dict[int, EpochPlan] = {}       # of the latest epoch only
        self.length = len(self.epoch_plan(0).rows)  # as in every other epoch

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor | None]:
        """(epoch, row) -> ids, labels, segments, positions: long[T]; images: float[n, 3, H, W] or
        None. DataError: an image that cannot be read, a box outside it, too many tokens."""
        epoch, row = key
        samples = [self.samples[i] for i in self.samples_of_row(epoch, row)]
        rng = random.Random(f"{self.seed} {epoch} {row}")
        augmentation = draw_augmentation(samples, rng) if self.augment else NO_AUGMENTATION
        # A JPEG may be decoded at an eighth to a half of its size, if twice what is needed remains.
        try:
            pictures = load_images(samples[0].images, self.bands, self.frames, 2 * self.image_size)
        except DataError as error:
            raise DataError(f"{samples[0].source}: {error}") from None
        size = pictures[0].size if pictures else (1, 1)
        turns = [self.turns(sample, size, augmentation, rng) for sample in samples]
        images = [preprocess(picture.image, self.image_size, augmentation, self.style)
                  for picture in pictures]
        sources = [sample.source for sample in samples]
        tensors = self.pack(list(zip(sources, turns, strict=True)), len(pictures))
        return tensors | {"images": torch.stack(images) if images else None}

    def turns(self, sample: Sample, size: tuple[int, int], augmentation: Augmentation,
              rng: random.Random) -> list[tuple[str, str]]:
        try:
            return apply_templates(sample, size, augmentation, rng, self.style)
        except ValueError as error:                             # a box that is not in the image
            raise DataError(f"{sample.source}: {error}") from None

    def pack(self, samples: list[tuple[str, list[tuple[str, str]]]], num_images: int
             ) -> dict[str, Tensor]:
        """(source, turns) of each sample -> their row, one copy of what they share in front."""
        ids, labels, segments, positions = [], [], [], []
        for segment, (source, turns) in enumerate(samples, start=1):
            own_ids, own_labels, prefix_len = encode_conversation(
                self.tokenizer, turns, self.visual_tokens, num_images, self.style)
            text = len(own_ids) - own_ids.count(-1)
            if fault := length_fault(text, len(own_ids), self.max_tokens, self.max_positions):
                raise DataError(f"{source}: {fault}")
            own_segments = [0] * prefix_len + [segment] * (len(own_ids) - prefix_len)
            skip = 0 if segment == 1 else prefix_len            # the prefix is in the row already
            ids += own_ids[skip:]
            labels += own_labels[skip:]
            segments += own_segments[skip:]
            positions += range(skip, len(own_ids))
        return {"ids": torch.tensor(ids), "labels": torch.tensor(labels),
                "segments": torch.tensor(segments), "positions": torch.tensor(positions)}

    def samples_of_row(self, epoch: int, row: int) -> np.ndarray:
        """The numbers of the samples in a row."""
        order, starts, rows = self.epoch_plan(epoch)
        return order[starts[rows[row]]:starts[rows[row] + 1]]

    def epoch_plan(self, epoch: int) -> EpochPlan:
        if epoch not in self.plans:
            rng = np.random.default_rng((self.seed, epoch))
            order = np.lexsort((rng.random(len(self.group)), self.group))   # shuffled in a group
            group = self.group[order]
            place = np.arange(len(order)) - np.searchsorted(group, group)   # 0, 1, .. in a group
            starts = np.flatnonzero(place % self.questions_per_row == 0)
            num_chars = np.add.reduceat(self.num_chars[order], starts)      # of each packed row
            rows = self.mix_datasets(order[starts], rng)
            rows = rows[rng.permutation(len(rows))]
            rows = self.bucket_by_length(rows, num_chars, rng)
            self.plans = {epoch: EpochPlan(order, np.append(starts, len(order)), rows)}
        return self.plans[epoch]

    def mix_datasets(self, first: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """first: the first sample of each packed row -> the packed rows of an epoch, as many of
        each data set as its ratio asks for, at least one if the ratio is not 0."""
        if not self.ratios:
            return np.arange(len(first))
        chosen, start = [], 0
        for count, ratio in self.ratios:
            own = np.flatnonzero((first >= start) & (first < start + count))
            wanted = max(1, round(ratio * len(own))) if ratio > 0 else 0
            chosen.append(own[np.resize(rng.permutation(len(own)), wanted)])
            start += count
        return np.concatenate(chosen)

    def bucket_by_length(self, rows: np.ndarray, num_chars: np.ndarray, rng: np.random.Generator
                         ) -> np.ndarray:
        """Sort every four buckets of rows by their characters, then shuffle these four buckets."""
        size = self.bucket_size
        bucketed = [rows[:0]]
        for start in range(0, len(rows), 4 * size):
            window = rows[start:start + 4 * size]
            window = window[np.argsort(num_chars[window], kind="stable")]
            buckets = [window[i:i + size] for i in range(0, len(window), size)]
            bucketed += [buckets[i] for i in rng.permutation(len(buckets))]
        return np.concatenate(bucketed)


PADDING = {"ids": 0, "labels": -100, "segments": -1, "positions": 0}


def collate(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Rows -> a batch: long[B, T] padded on the right, images: float[all, 3, H, W] or None.

    Segments and positions are left out where no row has more than one sample: they would be what
    the model assumes without them.
    """
    batch = {name: torch.nn.utils.rnn.pad_sequence([row[name] for row in rows], True, value)
             for name, value in PADDING.items()}
    if batch["segments"].max() == 1:
        del batch["segments"], batch["positions"]
    images = [row["images"] for row in rows if row["images"] is not None]
    batch["images"] = torch.cat(images) if images else None
    return batch


if __name__ == "__main__":
    from support.building import build
    from support.tools import check_data, row_examples
    if any(argument.split("=")[0] == "--build" for argument in sys.argv):
        sys.exit(build.main())
    sys.exit(check_data.main() if sys.argv[1:] else row_examples.show_data())
