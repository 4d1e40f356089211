"""support/terminal/questions.py"""
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from data import BOX, IDENTIFIERS, TEMPLATES, encode_box, parse_boxes
from support.common import Box

# ---- requests ------------------------------------------------------------------------------------
# What a question asks for: its task, typed as [task] or told from plain words.

PICTURE = r"(?:(?:this|the) )?(?:image|picture|photo|photograph|scene|it|this)"


REQUESTS = (        # the first that fits the whole request, in lower case, without its last mark
    (rf"(?:what is|what's|describe|name)(?: it| this)?(?: (?:in|at))? ({BOX.pattern})",
     "[identify] what is it in {}"),
    (r"(?:find|detect|locate|mark|show)(?: me)? (?:all|every|each)(?: of)?(?: the)? (.+)",
     "[detection] {}"),
    (r"where are (?:all )?(?:the )?(.+)", "[detection] {}"),
    (r"(?:where is|where's|find|locate) (.+)", "[refer] where is {} ?"),
    (rf"(?:describe|summarize)(?: {PICTURE})? (?:in detail|in details|thoroughly)()",
     "[grounding] describe this image in detail"),
    (rf"(?:describe|caption|summarize)(?: {PICTURE})?(?: briefly)?()",
     "[caption] briefly describe the image"),
    (r"((?:how many|how much|is|are|do|does|which|what is|what are|what kind|what color) .+)",
     "[vqa] {} ?"),
)


# Of upstream's web demo; where a task is named always the likeliest word, as its evaluation does.
OPEN_SAMPLING, TASK_SAMPLING = ({"temperature": 0.6, "repetition_penalty": 1.05},
               {"temperature": 0.0, "repetition_penalty": 1.0})


def as_task(request: str) -> str:
    """A plain request in the words of the task it names; others, and [tasks], as they are."""
    words = re.sub(r"^(?:please|can you|could you)\s+", "", " ".join(request.lower().split()))
    for pattern, asked in REQUESTS:
        if match := re.fullmatch(pattern, words.rstrip(" ?!.")):
            return asked.replace("{}", match[1].strip())
    return request


def task_of(question: str) -> str:
    """refer, vqa, ..; "" for a free question. ValueError: begins with an unknown [task]."""
    name = question[1:question.find("]")] if question.startswith("[") and "]" in question else ""
    if name and name not in IDENTIFIERS:
        known = " ".join(f"[{name}]" for name in IDENTIFIERS)
        raise ValueError(f"[{name}]: unknown task; there are {known}")
    return name


def referred_phrase(question: str) -> str:
    """What a [refer] question asks for: the question without the template around it."""
    patterns = [re.escape(template).replace(r"\{\}", "(.+)") for template in TEMPLATES["refer"]]
    found = [match[1] for match in (re.fullmatch(p, question) for p in patterns) if match]
    return min(found, key=len, default="")


def sampling_for(question: str, sampling: Mapping) -> dict:
    """How its answer is drawn: what is None in `sampling` is what fits the question."""
    fitting = TASK_SAMPLING if task_of(question) else OPEN_SAMPLING
    return {name: fitting[name] if value is None else value for name, value in sampling.items()}


# ---- regions -------------------------------------------------------------------------------------
# Regions in a question: people measure them in pixels, the model reads hundredths.

FOUR_NUMBERS = r"(\d+)[,\s]+(\d+)[,\s]+(\d+)[,\s]+(\d+)"


PIXEL_REGION = re.compile(rf"(?:[\[{{(]\s*)?\b{FOUR_NUMBERS}\s*[\]}})]?\s*(?:px|pixels)\b")


BARE_REGION = re.compile(rf"[\[{{(<]?\s*{FOUR_NUMBERS}")


REGION_FORMS = "{<12><30><55><70>} in hundredths of the sides, or 120 80 300 260 px in pixels"


def regions_to_text(question: str, size: tuple[int, int] | None, pad: bool = False) -> str:
    """`120 80 300 260 px` (left, top, right, bottom) -> `{<23><15><58><50>}` in 512 x 512.

    size: the first picture's; None without one. ValueError: no box, or not in the picture.
    """
    def written(match: re.Match) -> str:
        if size is None:
            raise ValueError(f"{match[0].strip()}: pixels of no picture; name one")
        return encode_box(tuple(map(int, match.groups())), *size, pad)

    question = PIXEL_REGION.sub(written, question)
    for box in BOX.finditer(question):
        if max(int(number) for number in box.groups()[:4]) > 100:
            raise ValueError(f"{box[0]}: over 100; a region is {REGION_FORMS}")
    if question.startswith("[identify]") and BARE_REGION.search(question) and not BOX.search(question):
        raise ValueError(f"{BARE_REGION.search(question)[0].strip()}: a region is {REGION_FORMS}")
    return question


# ---- marks ---------------------------------------------------------------------------------------
# The boxes of an answer, in pixels of the picture they belong to.

ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")


NAMED_PICTURE = re.compile(r"\b(?:image|picture|photo|frame)\s+(\d+)\b|"
                   rf"\b({'|'.join(ORDINALS)})\s+(?:image|picture|photo|frame)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Detection:
    phrase: str                         # "" where neither answer nor question names it
    box: Box                            # pixels of the whole picture
    picture: int = 0                    # which one of the conversation's
    confidence: float | None = None     # 0 to 1

    def told(self, names: Sequence[str]) -> str:
        x1, y1, x2, y2 = (round(side) for side in self.box)
        sure = "" if self.confidence is None else f" ({self.confidence:.2f})"
        where = f" of {names[self.picture]}" if len(names) > 1 else ""
        return f"{self.phrase or 'box'}: x {x1} to {x2}, y {y1} to {y2} pixels{where}{sure}"

    def entry(self, names: Sequence[str]) -> dict:
        return {"phrase": self.phrase, "pixels": [round(side, 1) for side in self.box],
                "confidence": self.confidence, "picture": names[self.picture]}


def find_detections(question: str, answer: str, sizes: Sequence[tuple[int, int]], pad: bool = False,
               sure: Sequence[float] = ()) -> list[Detection]:
    """sizes: width and height of each picture; sure: the confidence of each box in the answer.

    A box lies in the first picture, unless the answer names another one before it ("picture 2",
    "the second image"). Where the question gave the box ([identify]), the answer names it.
    """
    text, name = answer, referred_phrase(question)
    if task_of(question) == "identify" and not BOX.search(answer):
        text, name, sure = question, answer, ()
    boxes = [match for match in BOX.finditer(text) if max(map(int, match.groups()[:4])) <= 100]
    own = [named_picture(text[:match.start()], len(sizes)) for match in boxes] if sizes else []
    parsed = {k: parse_boxes(text, *sizes[k], pad=pad) for k in set(own)}
    return [Detection(parsed[k][i][0] or name, parsed[k][i][1], k, sure[i] if i < len(sure) else None)
            for i, k in enumerate(own)]


def named_picture(before: str, pictures: int) -> int:
    """The number, from 0, of the picture that a text has named last; 0 if none."""
    named = [int(number) - 1 if number else ORDINALS.index(word.lower())
             for number, word in NAMED_PICTURE.findall(before)]
    return next((k for k in reversed(named) if 0 <= k < pictures), 0)
