"""Follows one answer: which ids may come next in it, and how sure the model was of its boxes."""
import math
from itertools import accumulate

import numpy as np

from formats.boxes import BOX
from formats.talking.grammar import END, Grammar, open_box

BOXED = ("[refer]", "[detection]", "[grounding]")           # tasks that are answered with boxes


class Guide:
    """One for each answer. Free, it forbids nothing and only listens."""

    def __init__(self, grammar: Grammar, free: bool = False):
        self.grammar, self.free = grammar, free
        self.begun, self.ended = "", False                  # the box we are in the middle of
        self.texts: list[str] = []
        self.logs: list[float] = []                         # of their probabilities

    def allowed(self) -> np.ndarray:
        """bool[V], the ids that may come next."""
        return self.grammar.anything if self.free else self.grammar.allowed(self.begun)

    def said(self, token: int, log_probability: float) -> None:
        """log_probability: the model's own, over all ids, whatever was allowed."""
        if self.ended:
            return
        self.ended = token == END
        self.texts.append(self.grammar.texts[token])
        self.logs.append(log_probability)
        self.begun = open_box(self.begun + self.texts[-1]) or ""

    def confidences(self) -> list[float]:
        """One for each finished box, as parse_boxes finds them, 0 .. 1.

        The geometric mean of the probabilities of the ids that a box is written with.
        """
        ends, found = list(accumulate(map(len, self.texts))), []
        for match in BOX.finditer("".join(self.texts)):
            if max(int(number) for number in match.groups()[:4]) <= 100:
                own = [log for text, end, log in zip(self.texts, ends, self.logs, strict=True)
                       if end - len(text) < match.end() and end > match.start()]
                found.append(math.exp(sum(own) / len(own)))
        return found
