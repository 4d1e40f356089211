"""Questions and answers as text: tasks, sampling, regions in a question, boxes in an answer.

A question names its task in front, `[refer] where is the ship ?`, or it names none and is a free
question. People measure a region in pixels; the model reads and writes `{<x1><y1><x2><y2>}`,
hundredths of the picture's sides (data.encode_box). All functions here take and return text and
numbers, no model.
"""
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from data import BOX, IDENTIFIERS, TEMPLATES, encode_box, find_boxes, parse_boxes
from support.common import Box, UserError

# ---- tasks ---------------------------------------------------------------------------------------

PICTURE = r"(?:(?:this|the) )?(?:image|picture|photo|photograph|scene|it|this)"

MANY = r"(?:\w+ )?\w*[^\Wsu]s"         # a plural of one word or two: ships, red cars, tennis courts

# The first pattern that fits a whole request decides; requests are in lower case, without the
# punctuation at their end.
TASK_PATTERNS = (
    (rf"(?:what is|describe|name)(?: it| this)?(?: (?:in|at))? ({BOX.pattern})",
     "[identify] what is it in {}"),
    (r"(?:find|detect|locate|mark|show|list)(?: me)? (?:all|every|each)(?: of)?(?: the)? (.+)",
     "[detection] {}"),
    (r"where are (?:all )?(?:the )?(.+)", "[detection] {}"),
    (rf"(?:find|detect|locate|mark|show|list)(?: me)?(?: the)? ({MANY})", "[detection] {}"),
    (r"detect (?:the |an? )?(.+)", "[detection] {}"),
    (r"count(?: all)?(?: of)?(?: the)? (.+)", "[vqa] how many {} are there ?"),
    (r"(?:where is|find|locate) (.+)", "[refer] where is {} ?"),
    (r"(?:mark|show)(?: me)? (the .+)", "[refer] where is {} ?"),
    (rf"(?:describe|summarize)(?: {PICTURE})? (?:in detail|in details|thoroughly)()",
     "[grounding] describe this image in detail"),
    (rf"(?:describe|caption|summarize)(?: {PICTURE})?(?: briefly)?()",
     "[caption] briefly describe the image"),
    (rf"what (?:do you see|can you see|is shown)(?: (?:in|on) {PICTURE})?()",
     "[caption] briefly describe the image"),
    (r"((?:how many|how much|is|are|do|does|which|what is|what are|what kind|what color) .+)",
     "[vqa] {} ?"),
)


def task_of(question: str) -> str:
    """"refer", "vqa", ..; "" for a free question. UserError: it begins with an unknown [task].

    [VQA] and [ vqa ] are [vqa]; a region in front, [12, 30, 55, 70], is no task.
    """
    if not question.startswith("[") or "]" not in question or REGION.match(question):
        return ""
    name = question[1:question.find("]")].strip().lower()
    if name and name not in IDENTIFIERS:
        known = " ".join(f"[{task}]" for task in IDENTIFIERS)
        raise UserError(f"[{name[:80]}]: unknown task; there are {known}")
    return name


def write_task(question: str) -> str:
    """The question with its task as the model knows it: [VQA] .. -> [vqa] .. UserError: unknown."""
    task = task_of(question)
    return f"[{task}]{question[question.find(']') + 1:]}" if task else question


def as_task_prompt(request: str) -> str:
    """A request in plain English -> the prompt of the task it asks for; other texts unchanged."""
    words = re.sub(r"^(?:please|can you|could you)\s+", "", " ".join(request.lower().split()))
    words = re.sub("^(what|where)['\u2019]s ", r"\1 is ", words)
    for pattern, prompt in TASK_PATTERNS:
        if match := re.fullmatch(pattern, words.rstrip(" ?!.")):
            return prompt.replace("{}", match[1].strip())
    return request


def write_question(line: str, size: tuple[int, int] | None, pad: bool = False, task: str = "",
                   auto_task: bool = False) -> str:
    """A line as the model reads it: the task in front, regions in hundredths.

    size: width and height of the first picture, None without one; pad: as in data.encode_box; task:
    "[refer] ", say, for lines that name none; auto_task: find it for a plain request. UserError: an
    unknown task, a region that cannot be read.
    """
    has_task = line.startswith("[") and not REGION.match(line)
    question = regions_to_text(write_task(line if has_task else task + line), size, pad)
    return as_task_prompt(question) if auto_task and not task_of(question) else question


def referred_phrase(question: str) -> str:
    """What a [refer] question asks for, without the template around it; "" for other questions."""
    phrases = []
    for template in TEMPLATES["refer"]:
        pattern = re.escape(template).replace(r"\{\}", "(.+)")
        if match := re.fullmatch(pattern, question):
            phrases.append(match[1])
    return min(phrases, key=len, default="")


# ---- sampling ------------------------------------------------------------------------------------

# Free questions are sampled as in upstream's web demo; where a task is named, the most probable
# token is taken, as in upstream's evaluation.
OPEN_SAMPLING = {"temperature": 0.6, "repetition_penalty": 1.05}
TASK_SAMPLING = {"temperature": 0.0, "repetition_penalty": 1.0}


def sampling_for(question: str, sampling: Mapping) -> dict:
    """`sampling` with each None replaced by the default for this kind of question."""
    defaults = TASK_SAMPLING if task_of(question) else OPEN_SAMPLING
    return {name: defaults[name] if value is None else value for name, value in sampling.items()}


# ---- regions in a question -----------------------------------------------------------------------

REGION_FORMS = ("{<12><30><55><70>} in hundredths of the sides, 120 80 300 260 px or "
                "[120, 80, 300, 260] in pixels, or [0.12, 0.3, 0.55, 0.7] in parts of the sides")

NUMBER = r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)"
UNIT = r"(?i:px|pix|pixels?)\b"
REGION = re.compile(                    # four numbers in a row or more, which are refused
    rf"(?P<open>[\[({{]\s*)?(?<![\w.+-])(?P<numbers>{NUMBER}(?:(?:\s*[,;]\s*|\s+){NUMBER}){{3,}})"
    rf"(?![\d.]*\d)(?:\s*(?P<close>[\])}}]))?(?:\s*(?P<unit>{UNIT}))?")
BRACKETS = {None: None, "[": "]", "(": ")", "{": "}"}
# (100, 146), (182, 238) and 100 px, 146 px, 182 px, 238 px
POINT = rf"[\[(]\s?({NUMBER})\s?[,;\s]\s?({NUMBER})\s?[\])]"
CORNERS = re.compile(rf"[\[(]?{POINT}\s?(?:[,;-]|to|and)?\s?{POINT}[\])]?(\s?{UNIT})?")
WITH_UNITS = re.compile(rf"(?<![\w.])({NUMBER})" + rf"\s?{UNIT}[,;]?\s?({NUMBER})" * 3
                        + rf"(\s?{UNIT})")
WRITTEN_BOX = re.compile(r"\{\s*<[^{}]*>\s*\}")                # whether or not it can be read
PERCENT_REGION = re.compile(rf"(?<![\w.]){NUMBER}\s*%(?:[,;\s]\s*{NUMBER}\s*%){{3}}", re.ASCII)
WITHOUT_BRACES = re.compile(rf"(?:<\s?{NUMBER}\s?>\s?){{4}}")
# What stands for the same signs elsewhere, each one letter: full-width forms, dashes.
PLAIN_SIGNS = str.maketrans(
    {0xff01 + i: chr(0x21 + i) for i in range(94)}
    | dict(zip("\u3010\u3011\u3001\u2212\u2013\u3000", "[],-- ", strict=True)))
BOX_NUMBERS = re.compile(r"\{\s*" + r"\s*".join([rf"<\s*({NUMBER})\s*>"] * 4) + r"\s*\}", re.ASCII)


def regions_to_text(question: str, size: tuple[int, int] | None, pad: bool = False) -> str:
    """`120 80 300 260 px` (left, top, right, bottom) -> `{<23><15><58><50>}` in 512 x 512.

    Decimals and full-width signs may stand in every form. Without a unit, four numbers in [] or (),
    or two points, are pixels, or parts of the sides where none is over 1; without either they are a
    region only in parts of the sides.
    size: width and height of the first picture, None without one; pad: as in data.encode_box.
    UserError: the region cannot be read, or does not lie in the picture.
    """
    question = sub_plain(WRITTEN_BOX, read_written_box, question)
    for form in (CORNERS, WITH_UNITS):
        question = sub_plain(form, four_in_brackets, question)
    refuse_unread(question)
    is_identify = task_of(question) == "identify" and not BOX.search(question)

    def encode(match: re.Match) -> str | None:
        text, unit, written = match[0].strip()[:80], match["unit"], match["numbers"]
        numbers = [read_number(number) for number in re.findall(NUMBER, written)]
        opening = match["open"] and match["open"].strip()
        closed = BRACKETS[opening] == match["close"]
        in_brackets = closed and opening in ("[", "(")
        in_parts = not unit and max(map(abs, numbers)) <= 1 and (in_brackets or "." in written)
        is_region = unit or in_brackets or in_parts
        if len(numbers) != 4 or opening == "{" and not unit or not is_region:
            in_braces = opening == "{" and closed and len(numbers) == 4
            all_decimals = len(numbers) == 4 and written.count(".") == 4
            if unit or is_identify or in_braces or all_decimals:
                raise UserError(f"{text}: a region is {REGION_FORMS}")
            return None
        if size is None:
            raise UserError(f"{text}: a region in pixels needs a picture; name one")
        if in_parts:
            numbers = [number * side for number, side in zip(numbers, size * 2, strict=True)]
        if min(numbers) < 0 or max(numbers[::2]) > size[0] or max(numbers[1::2]) > size[1]:
            raise UserError(f"{text}: not in a picture of {size[0]} x {size[1]} pixels; a region "
                            f"is {REGION_FORMS}")
        if numbers[0] == numbers[2] or numbers[1] == numbers[3]:
            raise UserError(f"{text}: a region without area; a region is {REGION_FORMS}")
        before = "" if closed or opening is None else match["open"]
        after = "" if closed or match["close"] is None else match["close"]
        return before + encode_box(tuple(numbers), *size, pad) + after

    question = sub_plain(REGION, encode, question)
    if is_identify and not BOX.search(question):
        if len(re.findall(r"\d+(?:\.\d+)?", question)) > 2:    # one that is written in another way
            raise UserError(f"{question[:80]}: a region is {REGION_FORMS}")
    return question


def sub_plain(pattern: re.Pattern, replace: Callable[[re.Match], str | None], text: str) -> str:
    """pattern.sub(replace, text) on the text with plain signs; where `replace` returns None, and
    between the matches, the text stays as it is."""
    plain, pieces, end = text.translate(PLAIN_SIGNS), [], 0
    for match in pattern.finditer(plain):
        new = replace(match)
        if new is not None:
            pieces += [text[end:match.start()], new]
            end = match.end()
    return "".join([*pieces, text[end:]])


def four_in_brackets(match: re.Match) -> str:
    """Two points, or numbers with a unit each -> [x1, y1, x2, y2], with a unit if they have one."""
    *numbers, unit = match.groups()
    return f"[{', '.join(numbers)}]{unit or ''}"


def refuse_unread(question: str) -> None:
    """UserError for a region in percent, or in <> without braces."""
    plain = question.translate(PLAIN_SIGNS)
    unread = [match for match in WITHOUT_BRACES.finditer(plain)
              if not plain[:match.start()].rstrip()[-1:] == "{"]
    if found := next(iter(unread), None) or PERCENT_REGION.search(plain):
        raise UserError(f"{found[0][:80]}: a region is {REGION_FORMS}")


def read_number(text: str) -> float:
    return float(text.translate(PLAIN_SIGNS))


def read_written_box(match: re.Match) -> str:
    """`{<12.5><30><55><70>}` -> `{<12><30><55><70>}`: cut off, as a box is written. UserError."""
    if find_boxes(match[0]):
        return match[0]
    numbers = BOX_NUMBERS.fullmatch(match[0])
    values = [read_number(number) for number in numbers.groups()] if numbers else []
    if values and max(values) <= 1 and "." in match[0]:
        values = [100 * value for value in values]
    if not values or min(values) < 0 or max(values) > 100:
        reason = "below 0 or over 100; " if values else ""
        raise UserError(f"{match[0][:80]}: {reason}a region is {REGION_FORMS}")
    return "{" + "".join(f"<{int(round(value, 6))}>" for value in values) + "}"


# ---- boxes in an answer --------------------------------------------------------------------------

ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")
NAMED_PICTURE = re.compile(
    r"\b(?:image|picture|photo|frame)\s+(\d+)\b|"
    rf"\b({'|'.join(ORDINALS)})\s+(?:image|picture|photo|frame)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Detection:
    """One box of an answer."""
    phrase: str                         # "" where neither answer nor question names it
    box: Box                            # pixels of the full-size picture
    picture: int = 0                    # index among the pictures of the conversation
    confidence: float | None = None     # 0 to 1; None: the model did not write this box

    def describe(self, names: Sequence[str]) -> str:
        """"the ship: x 21 to 41, y 42 to 82 pixels (0.31)"; names: of the pictures."""
        x1, y1, x2, y2 = (round(side) for side in self.box)
        picture = f" of {names[self.picture]}" if len(names) > 1 else ""
        confidence = "" if self.confidence is None else f" ({self.confidence:.2f})"
        return f"{self.phrase or 'box'}: x {x1} to {x2}, y {y1} to {y2} pixels{picture}{confidence}"

    def to_json(self, names: Sequence[str]) -> dict:
        return {"phrase": self.phrase, "pixels": [round(side, 1) for side in self.box],
                "confidence": rounded(self.confidence), "picture": names[self.picture]}


def rounded(confidence: float | None) -> float | None:
    """With the four digits that a file or a line of JSON gets."""
    return None if confidence is None else round(confidence, 4)


def find_detections(question: str, answer: str, sizes: Sequence[tuple[int, int]],
                    pad: bool = False, scores: Sequence[float] = ()) -> list[Detection]:
    """The boxes of an answer, in pixels of the picture that each lies in.

    That is the first picture, unless the answer names another one before the box ("picture 2",
    "the second image"). Where the question gave the box ([identify]), the answer names it.
    sizes: width and height of each picture; pad: as in data.parse_boxes; scores: the confidence
    of each box in the answer.
    """
    text, name = answer, referred_phrase(question)
    if task_of(question) == "identify" and not BOX.search(answer):
        text, name, scores = question, answer, ()
    if not sizes:
        return []
    boxes_by_picture = [parse_boxes(text, *size, pad=pad) for size in sizes]
    detections = []
    for i, match in enumerate(find_boxes(text)):
        picture = named_picture(text[:match.start()], len(sizes))
        phrase, box = boxes_by_picture[picture][i]
        score = scores[i] if i < len(scores) else None
        detections.append(Detection(phrase or name, box, picture, score))
    return detections


def named_picture(text: str, pictures: int) -> int:
    """The index of the picture that a text names last; 0 if it names none of them."""
    named = [int(number) - 1 if number else ORDINALS.index(word.lower())
             for number, word in NAMED_PICTURE.findall(text)]
    return next((index for index in reversed(named) if 0 <= index < pictures), 0)


def confidences(texts: Sequence[str], log_probs: Sequence[float]) -> list[float]:
    """The confidence of each box in an answer, 0 to 1, in the order of data.find_boxes.

    It is the geometric mean of the probabilities of the tokens that the box is written with.
    texts: what each token adds to the answer; log_probs: their log-probabilities.
    """
    ends = list(accumulate(map(len, texts)))
    scores = []
    for match in find_boxes("".join(texts)):
        own = [log_prob for text, end, log_prob in zip(texts, ends, log_probs, strict=True)
               if end - len(text) < match.end() and end > match.start()]
        scores.append(math.exp(sum(own) / len(own)))
    return scores
