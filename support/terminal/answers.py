"""An answer as a person is shown it: without the tags that the model writes around it.

A model writes `<p>ships</p> {<1><2><30><40>}<delim>{<5><6><7><8>}`. Shown are its words and its
whole boxes, `ships {<1><2><30><40>} {<5><6><7><8>}`. What a small or a sampled model breaks, a
`</p>` without its `<p>`, a `<38>` outside of a box, a box that is cut off, is left out, and the
caller is told so. Whatever reads answers by program gets them as they were generated.
"""
import re
from collections.abc import Iterable, Iterator

from data import BOX, find_boxes

TAGS = ("<p>", "</p>", "<delim>", "<Img>", "</Img>", "<ImageHere>", "<s>", "</s>", "<unk>")
PIECE = re.compile(
    rf"(?P<box>{BOX.pattern})"
    rf"|(?P<tag>{'|'.join(TAGS)})"
    r"|(?P<numbers>\{?(?:\s*<\s*-?\d+\s*>\s*\|?)+\s*\}?)"      # of a box that is none
    r"|(?P<blank>\s+)|(?P<text>[^<{\s]+|.)", re.DOTALL | re.ASCII)
OPEN_END = re.compile(r"(?:\{[\s<>\d|-]*|<[/\w-]*)\Z", re.ASCII)   # may become a box or a tag
LEFT_OUT = ("(pieces of a box or a tag that fit nowhere are left out; --json prints the answer as "
            "generated)")


def readable_text(answer: str, finished: bool = True) -> tuple[str, bool]:
    """-> the answer without markup, and whether something of it was broken.

    finished: no more will come; else what may still become a box or a tag is not shown yet, so
    that the text of an answer's beginning is the beginning of its text.
    """
    tail = OPEN_END.search(answer)
    end = tail.start() if tail and not find_boxes(tail[0]) else len(answer)
    shown: list[str] = []
    blanks, tags = "", []                       # since the last word or box
    phrase_open = broken = after_box = False
    for piece in PIECE.finditer(answer, 0, end):
        kind, text = piece.lastgroup, piece[0]
        if kind == "box" and not find_boxes(text):
            kind = "numbers"                    # with one over 100
        if kind == "blank":
            blanks += text
        elif kind in ("tag", "numbers"):
            broken |= not is_in_place(text, phrase_open, after_box)
            phrase_open = text == "<p>" or phrase_open and text != "</p>"
            tags.append(text)
        else:
            broken |= "<delim>" in tags and kind != "box"
            shown += [separator(blanks, tags) if shown or not tags else "", text]
            blanks, tags, after_box = "", [], kind == "box"
    if finished and end < len(answer):
        if is_cut_off(answer[end:]):
            broken = True
        else:
            shown += [separator(blanks, tags), answer[end:]]
    return "".join(shown), broken or finished and (phrase_open or "<delim>" in tags)


def is_in_place(tag: str, phrase_open: bool, after_box: bool) -> bool:
    """Whether a tag belongs where it stands: <p>..</p> in pairs, <delim> behind a box."""
    return (tag == "<p>" and not phrase_open or tag == "</p>" and phrase_open
            or tag == "<delim>" and after_box)


def is_cut_off(tail: str) -> bool:
    """Whether what an answer ends with is the beginning of a box or a tag; `a < b` is none."""
    return (tail.startswith("{") or re.fullmatch(r"<-?\d*", tail) is not None
            or any(tag.startswith(tail) for tag in TAGS))


def separator(blanks: str, tags: list[str]) -> str:
    """What stands in the place of blanks and tags between two words."""
    if not tags:
        return blanks
    return " " if blanks or len(tags) > 1 or any(tag == "<delim>" or re.search(r"\s", tag)
                                                 for tag in tags) else ""


def readable_pieces(pieces: Iterable[str]) -> Iterator[str]:
    """An answer that comes piece by piece -> the same as readable_text, as soon as it is sure."""
    answer, printed = "", 0
    for piece in pieces:
        answer += piece
        text, _ = readable_text(answer, finished=False)
        yield text[printed:]
        printed = len(text)
    yield readable_text(answer)[0][printed:]
