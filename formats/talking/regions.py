"""Regions in a question: people measure them in pixels, the model reads hundredths."""
import re

from formats.boxes import BOX, encode_box

FOUR = r"(\d+)[,\s]+(\d+)[,\s]+(\d+)[,\s]+(\d+)"
PIXELS = re.compile(rf"(?:[\[{{(]\s*)?\b{FOUR}\s*[\]}})]?\s*(?:px|pixels)\b")
BARE = re.compile(rf"[\[{{(<]?\s*{FOUR}")
FORMS = "{<12><30><55><70>} in hundredths of the sides, or 120 80 300 260 px in pixels"


def in_hundredths(question: str, size: tuple[int, int] | None, pad: bool = False) -> str:
    """`120 80 300 260 px` (left, top, right, bottom) -> `{<23><15><58><50>}` in 512 x 512.

    size: the first picture's; None without one. ValueError: no box, or not in the picture.
    """
    def written(match: re.Match) -> str:
        if size is None:
            raise ValueError(f"{match[0].strip()}: pixels of no picture; name one")
        return encode_box(tuple(map(int, match.groups())), *size, pad)

    question = PIXELS.sub(written, question)
    for box in BOX.finditer(question):
        if max(int(number) for number in box.groups()[:4]) > 100:
            raise ValueError(f"{box[0]}: over 100; a region is {FORMS}")
    if question.startswith("[identify]") and BARE.search(question) and not BOX.search(question):
        raise ValueError(f"{BARE.search(question)[0].strip()}: a region is {FORMS}")
    return question
