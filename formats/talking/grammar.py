"""Which pieces of a vocabulary may come next, so that every box that is begun can be read.

    {<x1><y1><x2><y2>}        0 to 100, no leading zeros, and as GeoChat turns it, {<..>|<degrees>}

Each box has braces of its own, also where <delim> joins several (MiniGPT-v2). Corners may come in
either order: parse_boxes sorts them.
"""
import re

import numpy as np

NUMBER, TURN = r"(?:100|[1-9]?\d)", r"-?(?:0|[1-9]\d{0,2})"
WHOLE = rf"\{{(?:<{NUMBER}>){{4}}(?:\|<{TURN}>)?\}}"
BEGUN = (rf"\{{(?:(?:<{NUMBER}>){{0,3}}(?:<{NUMBER}?)?"
         rf"|(?:<{NUMBER}>){{4}}(?:\|(?:<-?|<{TURN}>?)?)?)")    # what a whole one begins with
TEXT = re.compile(rf"[^{{]*(?:{WHOLE}[^{{]*)*({BEGUN})?", re.ASCII)
CONTROL, END = 3, 2             # <unk> <s> </s> have the first ids: no text, never inside a box


def text_of(piece: str) -> str:
    """What a piece adds to the text; a byte of a longer letter as the replacement character."""
    byte = re.fullmatch("<0x([0-9A-F]{2})>", piece)
    return bytes.fromhex(byte[1]).decode(errors="replace") if byte else piece.replace("▁", " ")


def open_box(text: str) -> str | None:
    """The box that a text ends in the middle of, "" for none; None: it holds a broken one."""
    match = TEXT.fullmatch(text)
    return match and (match[1] or "")


class Grammar:
    """For the pieces of any sentencepiece vocabulary, in the order of their ids."""

    def __init__(self, pieces: list[str]):
        self.texts = [""] * CONTROL + [text_of(piece) for piece in pieces[CONTROL:]]
        self.opening = [i for i, text in enumerate(self.texts) if "{" in text]
        self.inner = [i for i, text in enumerate(self.texts) if text[:1] in set("<>}|-0123456789")]
        self.anything = np.full(len(pieces), True)
        self.known: dict[str, np.ndarray] = {}

    def allowed(self, begun: str = "") -> np.ndarray:
        """The box begun so far, "" outside of one -> bool[V], the ids that may come next.

        Where the vocabulary has no way on, as one without digits, all may.
        """
        state = re.sub(rf"<{NUMBER}>", "<0>", begun)            # which numbers came is no matter
        if state not in self.known:
            may = np.full(len(self.texts), not state)
            for i in self.inner if state else self.opening:
                may[i] = open_box(state + self.texts[i]) is not None
            self.known[state] = may if may.any() else self.anything
        return self.known[state]
