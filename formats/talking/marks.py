"""The boxes of an answer, in pixels of the picture they belong to."""
import re
from collections.abc import Sequence
from dataclasses import dataclass

from formats.boxes import BOX, Box, parse_boxes
from formats.talking.requests import referred, task_of

ORDER = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")
NAMED = re.compile(r"\b(?:image|picture|photo|frame)\s+(\d+)\b|"
                   rf"\b({'|'.join(ORDER)})\s+(?:image|picture|photo|frame)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Mark:
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


def find_marks(question: str, answer: str, sizes: Sequence[tuple[int, int]], pad: bool = False,
               sure: Sequence[float] = ()) -> list[Mark]:
    """sizes: width and height of each picture; sure: the confidence of each box in the answer.

    A box lies in the first picture, unless the answer names another one before it ("picture 2",
    "the second image"). Where the question gave the box ([identify]), the answer names it.
    """
    text, name = answer, referred(question)
    if task_of(question) == "identify" and not BOX.search(answer):
        text, name, sure = question, answer, ()
    boxes = [match for match in BOX.finditer(text) if max(map(int, match.groups()[:4])) <= 100]
    own = [owner(text[:match.start()], len(sizes)) for match in boxes] if sizes else []
    parsed = {k: parse_boxes(text, *sizes[k], pad=pad) for k in set(own)}
    return [Mark(parsed[k][i][0] or name, parsed[k][i][1], k, sure[i] if i < len(sure) else None)
            for i, k in enumerate(own)]


def owner(before: str, pictures: int) -> int:
    """The number, from 0, of the picture that a text has named last; 0 if none."""
    named = [int(number) - 1 if number else ORDER.index(word.lower())
             for number, word in NAMED.findall(before)]
    return next((k for k in reversed(named) if 0 <= k < pictures), 0)
