"""Descriptions of a picture from its boxes, classes and captions, in two levels.

local       each object: its class, its size, its place in a grid of 3 x 3, where its nearest
            neighbor is
global      the scene, how many objects of each class there are, the published captions

Both are written as plain text and with `<p>` and boxes, as [grounding] has it. A size is a share of
the picture's area: small is less than a hundredth, large a tenth or more.
"""
import random
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from support.building.expressions import (
    COUNTS,
    MOST_BOXES,
    OPPOSITE,
    Layout,
    Thing,
    counted,
    distance,
    gap,
    listing,
    place_of,
    side_of,
    with_article,
)
from support.common import Box

SMALL, LARGE = 0.01, 0.1        # shares of the picture's area
MOST_SINGLE = 8                 # objects that are described one by one; more are by class
MOST_CAPTIONS = 2

LOCAL_QUESTIONS = ("describe the objects in this image and where they are",
                   "which objects can be seen, and where is each of them ?",
                   "list the objects of this image with their size and place")
GLOBAL_QUESTIONS = ("give an overall description of this image", "describe the scene as a whole",
                    "what does this image show as a whole ?")


class Phrase(NamedTuple):
    """A part of a sentence, and the boxes that it stands for; none of plain words."""
    words: str
    boxes: tuple[Box, ...] = ()


def plain_text(phrases: Sequence[Phrase]) -> str:
    return capitalize("".join(phrase.words for phrase in phrases))


def grounded_text(phrases: Sequence[Phrase]) -> tuple[str, tuple[Box, ...]]:
    """-> the text, with a <bbox> for each box, and the boxes."""
    parts = [f"<p>{phrase.words}</p> {'<delim>'.join(['<bbox>'] * len(phrase.boxes))}"
             if phrase.boxes else phrase.words for phrase in phrases]
    return "".join(parts), tuple(box for phrase in phrases for box in phrase.boxes)


def capitalize(text: str) -> str:
    """With a capital at the beginning of each sentence."""
    return ". ".join(part[:1].upper() + part[1:] for part in text.split(". "))


def size_word(thing: Thing) -> str:
    return "small" if thing.area < SMALL else "large" if thing.area >= LARGE else "medium-sized"


def where(place: str) -> str:
    """in the top left; at the center."""
    return f"in the {place}"


def neighbor_words(thing: Thing, things: Sequence[Thing]) -> str:
    """", left of a harbor": the nearest other object, where it is clear on which side it is."""
    others = [other for other in things if other is not thing]
    if not others:
        return ""
    nearest = min(others, key=lambda other: distance(thing, other))
    if any(gap(thing, other) < gap(thing, nearest) for other in others):
        return ""
    side = side_of(nearest, thing)
    if not side:
        return ""
    name = with_article(nearest.name)
    name = name if nearest.name != thing.name else f"another {nearest.name}"
    return f", {OPPOSITE[side]} {name}"


def describe_local(layout: Layout) -> list[Phrase]:
    """Empty where there is nothing to describe, or more boxes than an answer may have."""
    groups = layout.clear_groups()
    things = [thing for group in groups.values() for thing in group]
    if not things or len(things) > MOST_BOXES:
        return []
    phrases: list[Phrase] = []
    if len(things) <= MOST_SINGLE:
        for thing in things:
            phrases += [Phrase(with_article(f"{size_word(thing)} {thing.name}"), (thing.box,)),
                        Phrase(f" is {where(place_of(thing))}{neighbor_words(thing, things)}. ")]
    else:
        for name, group in groups.items():
            phrases += describe_group(name, group)
    return close(phrases)


def describe_group(name: str, group: Sequence[Thing]) -> list[Phrase]:
    """There are 14 ships: nine in the top left and five in the center."""
    boxes = tuple(sorted(thing.box for thing in group))
    subject = Phrase(counted(len(group), name), boxes)
    be = "is" if len(group) == 1 else "are"
    places = Counter(map(place_of, group))
    if len(places) == 1:
        return [Phrase(f"there {be} "), subject, Phrase(f" {where(*places)}. ")]
    parts = [f"{number_word(count)} {where(place)}" for place, count in places.items()]
    return [Phrase(f"there {be} "), subject, Phrase(f", {listing(parts)}. ")]


def number_word(count: int) -> str:
    return COUNTS[count] if count < len(COUNTS) else str(count)


def describe_global(layout: Layout, scenes: Sequence[str], captions: Sequence[str],
                    rng: random.Random) -> list[Phrase]:
    """scenes: the picture's classes; captions: as published. Empty where there is too little."""
    phrases: list[Phrase] = []
    if scenes:
        phrases.append(Phrase(f"the scene is of the class {scenes[0]}. "))
    groups = layout.clear_groups()
    if groups and sum(map(len, groups.values())) <= MOST_BOXES:
        first = next(iter(groups.values()))
        phrases.append(Phrase("there is " if len(first) == 1 else "there are "))
        for number, (name, group) in enumerate(groups.items()):
            boxes = tuple(sorted(thing.box for thing in group))
            phrases.append(Phrase(counted(len(group), name), boxes))
            left = len(groups) - number - 1
            phrases.append(Phrase(". " if not left else " and " if left == 1 else ", "))
    texts = sorted({caption.strip().rstrip(" .") for caption in captions} - {""})
    for caption in rng.sample(texts, min(len(texts), MOST_CAPTIONS)):
        phrases.append(Phrase(f"{caption}. "))
    return close(phrases) if len(phrases) > 1 else []


def close(phrases: list[Phrase]) -> list[Phrase]:
    """Without the space at the end."""
    return [*phrases[:-1], Phrase(phrases[-1].words.rstrip())] if phrases else []


def description_rows(layout: Layout, scenes: Sequence[str], captions: Sequence[str],
                     rng: random.Random) -> list[dict]:
    """The samples, boxes in fractions: as [grounding], and as a question in plain words."""
    rows = []
    for phrases, questions, kind in (
            (describe_local(layout), LOCAL_QUESTIONS, "local description"),
            (describe_global(layout, scenes, captions, rng), GLOBAL_QUESTIONS,
             "global description")):
        if phrases:
            text, boxes = grounded_text(phrases)
            if boxes:
                rows.append({"task": "grounding", "turns": (("", text),), "boxes": boxes,
                             "kind": kind})
            rows.append({"task": "conversation", "boxes": (), "kind": kind,
                         "turns": ((rng.choice(questions), plain_text(phrases)),)})
    return rows


