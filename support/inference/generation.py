"""support/inference/generation.py"""
import math
import re
from collections import deque
from collections.abc import Iterator
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from data import BOX

# ---- guiding -------------------------------------------------------------------------------------
# Between the numbers of a step and what follows each answer, formats.talking.guide.Guide.

def mask_logits(logits: Tensor, guides: list) -> Tensor:
    """float[B, V] -> the same, -inf where a row's guide does not allow the id."""
    if not guides:
        return logits
    may = torch.stack([torch.from_numpy(guide.allowed()) for guide in guides])    # [B, V]
    return logits.masked_fill(~may.to(logits.device), -torch.inf)


def observe_tokens(guides: list, ids: Tensor, logits: Tensor) -> None:
    """Each guide hears its row's id, ids: long[B], and how likely it was among all, not only the
    allowed ones."""
    if guides:
        logs = logits.float().log_softmax(-1).gather(1, ids[:, None])[:, 0]       # [B]
        for guide, token, log in zip(guides, ids.tolist(), logs.tolist(), strict=True):
            guide.said(token, log)


# ---- late ----------------------------------------------------------------------------------------
# Words that a device is still computing, looked at a few steps late, so that it never waits.

LOOKAHEAD = 4       # words that a GPU is asked for before the first of them is looked at


def stop_when_finished(words: Iterator[Tensor], stop: int, ahead: int) -> Iterator[Tensor]:
    """words: long[B] a step, on any device -> the same on the CPU, up to where all are `stop`."""
    for ids in prefetch(words, ahead):
        yield ids
        if ids.eq(stop).all():
            return


def prefetch(words: Iterator[Tensor], ahead: int) -> Iterator[Tensor]:
    """The words, each when `ahead` more have been asked for."""
    waiting = deque()
    for ids in words:
        waiting.append(copy_async(ids))
        if len(waiting) > ahead:
            yield wait_for_copy(*waiting.popleft())
    yield from (wait_for_copy(*sent) for sent in waiting)


def copy_async(ids: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """Begin to copy them to the CPU."""
    if ids.device.type == "cpu":
        return ids, None
    copy, arrived = ids.to("cpu", non_blocking=True), torch.cuda.Event()
    arrived.record()
    return copy, arrived


def wait_for_copy(ids: Tensor, arrived: torch.cuda.Event | None) -> Tensor:
    if arrived:
        arrived.synchronize()
    return ids


# ---- grammar -------------------------------------------------------------------------------------
# Which pieces of a vocabulary may come next, so that every box that is begun can be read.
#
#     {<x1><y1><x2><y2>}        0 to 100, no leading zeros, and as GeoChat turns it, {<..>|<degrees>}
#
# Each box has braces of its own, also where <delim> joins several (MiniGPT-v2). Corners may come in
# either order: parse_boxes sorts them.

BOX_NUMBER, BOX_ANGLE = r"(?:100|[1-9]?\d)", r"-?(?:0|[1-9]\d{0,2})"


WHOLE_BOX = rf"\{{(?:<{BOX_NUMBER}>){{4}}(?:\|<{BOX_ANGLE}>)?\}}"


PARTIAL_BOX = (rf"\{{(?:(?:<{BOX_NUMBER}>){{0,3}}(?:<{BOX_NUMBER}?)?"
         rf"|(?:<{BOX_NUMBER}>){{4}}(?:\|(?:<-?|<{BOX_ANGLE}>?)?)?)")    # what a whole one begins with


BOXED_TEXT = re.compile(rf"[^{{]*(?:{WHOLE_BOX}[^{{]*)*({PARTIAL_BOX})?", re.ASCII)


CONTROL_IDS, EOS = 3, 2             # <unk> <s> </s> have the first ids: no text, never inside a box


def token_text(piece: str) -> str:
    """What a piece adds to the text; a byte of a longer letter as the replacement character."""
    byte = re.fullmatch("<0x([0-9A-F]{2})>", piece)
    return bytes.fromhex(byte[1]).decode(errors="replace") if byte else piece.replace("▁", " ")


def unfinished_box(text: str) -> str | None:
    """The box that a text ends in the middle of, "" for none; None: it holds a broken one."""
    match = BOXED_TEXT.fullmatch(text)
    return match and (match[1] or "")


class BoxGrammar:
    """For the pieces of any sentencepiece vocabulary, in the order of their ids."""

    def __init__(self, pieces: list[str]):
        self.texts = [""] * CONTROL_IDS + [token_text(piece) for piece in pieces[CONTROL_IDS:]]
        self.opening = [i for i, text in enumerate(self.texts) if "{" in text]
        self.inner = [i for i, text in enumerate(self.texts) if text[:1] in set("<>}|-0123456789")]
        self.anything = np.full(len(pieces), True)
        self.known: dict[str, np.ndarray] = {}

    def allowed(self, begun: str = "") -> np.ndarray:
        """The box begun so far, "" outside of one -> bool[V], the ids that may come next.

        Where the vocabulary has no way on, as one without digits, all may.
        """
        state = re.sub(rf"<{BOX_NUMBER}>", "<0>", begun)            # which numbers came is no matter
        if state not in self.known:
            may = np.full(len(self.texts), not state)
            for i in self.inner if state else self.opening:
                may[i] = unfinished_box(state + self.texts[i]) is not None
            self.known[state] = may if may.any() else self.anything
        return self.known[state]


# ---- guide ---------------------------------------------------------------------------------------
# Follows one answer: which ids may come next in it, and how sure the model was of its boxes.

BOX_TASKS = ("[refer]", "[detection]", "[grounding]")           # tasks that are answered with boxes


class BoxConstraint:
    """One for each answer. Free, it forbids nothing and only listens."""

    def __init__(self, grammar: BoxGrammar, free: bool = False):
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
        self.ended = token == EOS
        self.texts.append(self.grammar.texts[token])
        self.logs.append(log_probability)
        self.begun = unfinished_box(self.begun + self.texts[-1]) or ""

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
