"""From the boxes of a picture: what can be said of it that is true, and true of one object alone.

All here rests on one assumption, that a picture's annotation has every object of every class that
the data set names. Then an absent class is absent, and a count is a count. A class is *clear* in a
picture if none of the other classes there could be called by its name (a van may be called a
vehicle) and no two of its boxes may be the same object; nothing is asked of a class that is not.

Whatever compares objects keeps a margin: an object is the leftmost one if its center is to the left
of all others' by a clear distance, the largest one if its area exceeds all others' clearly.
Lengths are fractions of the picture's sides, so that a margin is the same in both directions.
"""
import math
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from support.common import ABSENT, Box

MARGIN = 0.05           # between centers, of the picture's side, where one is said to be further
SIZE_RATIO = 1.4        # between areas, where one is said to be larger
NEAR_RATIO = 0.75       # between distances of centers, where one is said to be nearer
SAME_OBJECT = 0.7       # overlap (IoU) from which two boxes of a class may be one object
MIN_SIDE = 0.01         # of an object that is asked for: one unit of a box as text


# ---- names of classes ----------------------------------------------------------------------------

VAGUE = {"other", "others", "object", "objects", "unknown", "misc", "background", "ignore", "none",
         "ignored regions", "class", "thing", "item"}           # they name nothing
IGNORED_WORDS = {"small", "large", "big", "other", "the", "a", "an", "of", "and", "with", "in"}
UNCHANGED = {"aircraft", "watercraft", "spacecraft", "hovercraft", "sheep", "fish", "gas", "canvas",
             "lens", "chassis"}

# A word -> other words by which somebody may call the same thing.
OTHER_NAMES = {
    **dict.fromkeys("ship boat vessel ferry yacht sailboat barge tanker warship".split(),
                    "ship boat vessel"),
    **dict.fromkeys("airplane plane aircraft airliner jet".split(), "airplane plane aircraft"),
    "helicopter": "aircraft chopper", "vehicle": "car truck van bus automobile lorry",
    "car": "vehicle automobile", "automobile": "vehicle car", "van": "vehicle car",
    "truck": "vehicle lorry", "lorry": "vehicle truck", "bus": "vehicle", "trailer": "vehicle",
    "overpass": "bridge viaduct flyover", "viaduct": "bridge overpass flyover",
    "flyover": "bridge overpass viaduct", "house": "building home", "home": "building house",
    "villa": "building house home", "church": "building", "school": "building",
    "harbor": "port dock pier", "port": "harbor dock", "dock": "harbor pier", "pier": "harbor dock",
    "playground": "ground track field", "stadium": "field track", "tank": "storage",
    "roundabout": "circle rotary", "baseball": "ballpark", "lake": "pond water",
    "pond": "lake pool water", "pool": "pond water",
}


def singular(name: str) -> str:
    """storage tanks -> storage tank; what is no plural stays."""
    stem, _, word = name.rpartition(" ")
    if word.endswith("ies") and len(word) > 4:
        word = word[:-3] + "y"
    elif word.endswith(("sses", "xes", "ches", "shes", "buses")):
        word = word[:-2]
    elif word.endswith("s") and not word.endswith(("ss", "us", "is")) and word not in UNCHANGED:
        word = word[:-1]
    return f"{stem} {word}".strip()


def plural(name: str) -> str:
    """bridge -> bridges, overpass -> overpasses, aircraft -> aircraft."""
    if name.rpartition(" ")[2] in UNCHANGED:
        return name
    if name.endswith(("s", "x", "ch", "sh")):
        return name + "es"
    if name.endswith("y") and name[-2:-1] not in "aeiou":
        return name[:-1] + "ies"
    return name + "s"


def with_article(words: str) -> str:
    vowel = words[:1] in "aeiou" and not re.match("uni|uti|use|one|eu", words)
    return f"{'an' if vowel else 'a'} {words}"


def single_article(question: str) -> str:
    """Of a [refer] question in a template that brings an article along: "where can I locate the the
    ship ?" -> "where can I locate the ship ?"."""
    return re.sub(r"\bthe (?=(?:the|an?) )", "", question, count=1)


COUNTS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def counted(count: int, name: str) -> str:
    """a ship, three ships, 14 ships, no ships."""
    if count == 1:
        return with_article(name)
    return f"{COUNTS[count] if count < len(COUNTS) else count} {plural(name)}"


def listing(parts: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))


@lru_cache(maxsize=10_000)
def words_of(text: str) -> frozenset[str]:
    """The words of a text in small letters and in singular."""
    return frozenset(singular(word) for word in re.findall(r"[a-z]+", text.lower()))


def also_called(words: Iterable[str]) -> set[str]:
    """These words, and those by which somebody may call the same things."""
    found = set(words)
    for word in words:
        found.update(OTHER_NAMES.get(word, "").split())
    return found


@lru_cache(maxsize=100_000)
def may_be_called(name: str, other: str) -> bool:
    """Whether a thing of the first class could be called by the second one's name."""
    return words_of(other) <= also_called(words_of(name))


def is_mentioned(name: str, words: Iterable[str]) -> bool:
    """Whether texts with these words, see words_of, may speak of a thing of this class."""
    own = words_of(name) - IGNORED_WORDS
    head = words_of(name.rpartition(" ")[2]) - IGNORED_WORDS or own
    return bool((head | (own if len(own) == 1 else set())) & also_called(words))


# ---- objects and how they lie --------------------------------------------------------------------

class Thing(NamedTuple):
    """An object: its class in singular, and its box in fractions of the picture's sides."""
    name: str
    box: Box

    @property
    def x(self) -> float:
        return (self.box[0] + self.box[2]) / 2

    @property
    def y(self) -> float:
        return (self.box[1] + self.box[3]) / 2

    @property
    def area(self) -> float:
        return (self.box[2] - self.box[0]) * (self.box[3] - self.box[1])

    @property
    def is_visible(self) -> bool:
        """Whether its box as text has an area."""
        return min(self.box[2] - self.box[0], self.box[3] - self.box[1]) >= MIN_SIDE


def overlap(a: Box, b: Box) -> float:
    """Intersection over union."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return width * height / (areas - width * height)


def distance(a: Thing, b: Thing) -> float:
    """Between the centers."""
    return math.hypot(a.x - b.x, a.y - b.y)


def gap(a: Thing, b: Thing) -> float:
    """Between the nearest points of the boxes; 0 where they touch."""
    across = max(a.box[0] - b.box[2], b.box[0] - a.box[2], 0)
    down = max(a.box[1] - b.box[3], b.box[1] - a.box[3], 0)
    return math.hypot(across, down)


SIDES = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def center_is(side: str, a: Thing, b: Thing) -> bool:
    """Whether a's center is on this side of b's."""
    axis, sign = SIDES[side]
    return sign * ((a.x, a.y)[axis] - (b.x, b.y)[axis]) > 0


def lies(side: str, a: Thing, b: Thing) -> bool:
    """Whether a is clearly on this side of b: their boxes are apart in this direction, and the way
    from b to a leads more in this direction than across it."""
    axis, sign = SIDES[side]
    first, second = (a, b) if sign < 0 else (b, a)
    apart = first.box[2 + axis] <= second.box[axis]
    along, across = abs(a.x - b.x), abs(a.y - b.y)
    if axis == 1:
        along, across = across, along
    return apart and along >= max(MARGIN, across)


def side_of(a: Thing, b: Thing) -> str:
    """Where a clearly is, seen from b; "" if that cannot be said."""
    return next((side for side in SIDES if lies(side, a, b)), "")


ROWS, COLUMNS = ("top", "center", "bottom"), ("left", "center", "right")


def place_of(thing: Thing) -> str:
    """In a grid of 3 x 3, by its center: top left, top center, .., center, .. bottom right."""
    row = ROWS[min(int(3 * thing.y), 2)]
    column = COLUMNS[min(int(3 * thing.x), 2)]
    return row if row == column else f"{row} {column}"


def border_distance(thing: Thing) -> float:
    """Of a center from the nearest line of the grid of 3 x 3."""
    return min(abs(value - line) for value in (thing.x, thing.y) for line in (1 / 3, 2 / 3))


@dataclass(frozen=True)
class Layout:
    """The objects of a picture, of all classes that its annotation has."""
    things: tuple[Thing, ...]
    unclear: frozenset[str] = frozenset()       # classes of which a box could not be read

    def groups(self) -> dict[str, list[Thing]]:
        """Class -> its objects, classes in the order of their first ones."""
        found: dict[str, list[Thing]] = {}
        for thing in self.things:
            found.setdefault(thing.name, []).append(thing)
        return found

    def names(self) -> set[str]:
        """The classes that are there, also the unclear ones."""
        return {thing.name for thing in self.things} | self.unclear

    def clear_groups(self) -> dict[str, list[Thing]]:
        """Those of the classes that are clear, see above."""
        names = self.names()
        return {name: group for name, group in self.groups().items()
                if name not in self.unclear and name not in VAGUE
                and not any(may_be_called(other, name) for other in names - {name})
                and not may_repeat(group)}


def may_repeat(group: Sequence[Thing]) -> bool:
    """Whether two boxes of a class overlap so far that they may be the same object."""
    ordered = sorted(group, key=lambda thing: thing.box[0])
    for i, one in enumerate(ordered):
        for other in ordered[i + 1:]:
            if other.box[0] >= one.box[2]:
                break
            if overlap(one.box, other.box) >= SAME_OBJECT:
                return True
    return False


# ---- expressions for one object ------------------------------------------------------------------

class Expression(NamedTuple):
    words: str                      # the largest ship
    thing: Thing
    others: tuple[str, ...] = ()    # further classes that it names
    told: tuple[tuple[str, str], ...] = ()      # (class, side of it) where it says what is there


ORDINALS = ("second", "third", "fourth")
MOST_IN_ORDER = 6               # objects of a class that are counted off from a side
MOST_COMPARED = 60              # objects of a class; of more, nothing is said about single ones


def find_expressions(layout: Layout) -> list[Expression]:
    """All that can be said of single objects, each true of exactly one object of its class."""
    groups = layout.clear_groups()
    found: list[Expression] = []
    sole = [group[0] for group in groups.values() if len(group) == 1]
    for name, group in groups.items():
        if len(group) == 1:
            found.append(Expression(f"the {name}", group[0]))
        elif len(group) <= MOST_COMPARED:
            found += extremes(name, group)
            found += in_order(name, group)
            found += in_places(name, group)
            for other in sole:
                found += by_neighbor(name, group, other)
    return [expression for expression in found if expression.thing.is_visible]


def extremes(name: str, group: Sequence[Thing]) -> Iterator[Expression]:
    """The outermost in each direction, the largest and the smallest."""
    for words, axis, sign in (("the leftmost {}", 0, 1), ("the rightmost {}", 0, -1),
                              ("the {} at the top", 1, 1), ("the {} at the bottom", 1, -1)):
        order = sorted(group, key=lambda thing: sign * (thing.x, thing.y)[axis])
        first, second = ((thing.x, thing.y)[axis] for thing in order[:2])
        edge = axis if sign > 0 else axis + 2
        outermost = all(sign * order[0].box[edge] <= sign * other.box[edge] for other in order)
        if abs(first - second) >= MARGIN and outermost:
            yield Expression(words.format(name), order[0], told=along(name, axis))
    order = sorted(group, key=lambda thing: thing.area)
    for word, one, two in (("largest", order[-1], order[-2]), ("smallest", order[0], order[1])):
        small, large = sorted((one.area, two.area))
        if large >= SIZE_RATIO * small:
            yield Expression(f"the {word} {name}", one)


def along(name: str, axis: int) -> tuple[tuple[str, str], ...]:
    """The class with the two sides of an axis."""
    return tuple((name, side) for side in SIDES if SIDES[side][0] == axis)


def in_order(name: str, group: Sequence[Thing]) -> Iterator[Expression]:
    """The second, third, .. from a side, where all of the class stand clearly one after another."""
    if not 3 <= len(group) <= MOST_IN_ORDER:
        return
    for axis, sides in ((0, ("left", "right")), (1, ("top", "bottom"))):
        order = sorted(group, key=lambda thing: (thing.x, thing.y)[axis])
        centers = [(thing.x, thing.y)[axis] for thing in order]
        if min(b - a for a, b in zip(centers, centers[1:], strict=False)) < MARGIN:
            continue
        for i in range(1, len(order) - 1):
            from_end = len(order) - 1 - i
            side, place = (sides[0], i) if i <= from_end else (sides[1], from_end)
            yield Expression(f"the {ORDINALS[place - 1]} {name} from the {side}", order[i],
                             told=along(name, axis))


def in_places(name: str, group: Sequence[Thing]) -> Iterator[Expression]:
    """The only one of its class in a cell of the grid, all of the class clearly in their cells."""
    places = [place_of(thing) for thing in group]
    if min(map(border_distance, group)) >= MARGIN / 2:
        for thing, place in zip(group, places, strict=True):
            if places.count(place) == 1:
                yield Expression(f"the {name} in the {place}", thing)


def by_neighbor(name: str, group: Sequence[Thing], other: Thing) -> Iterator[Expression]:
    """The only one on a side of, and the one nearest to, the only object of another class."""
    for side in SIDES:
        there = [thing for thing in group if center_is(side, thing, other)]
        if len(there) == 1 and lies(side, there[0], other):
            yield Expression(f"the {name} {side} the {other.name}", there[0], (other.name,),
                             ((other.name, side), (other.name, OPPOSITE[side])))
    if nearest := nearest_of(group, other):
        yield Expression(f"the {name} nearest to the {other.name}", nearest, (other.name,))


def nearest_of(group: Sequence[Thing], other: Thing) -> Thing | None:
    """The object of a group that is clearly the nearest to another one, or the only one."""
    order = sorted(group, key=lambda thing: distance(thing, other))
    if len(order) == 1:
        return order[0]
    clear = distance(order[0], other) <= NEAR_RATIO * distance(order[1], other)
    first = gap(order[0], other)
    return order[0] if clear and all(first <= gap(thing, other) for thing in order[1:]) else None


# ---- questions -----------------------------------------------------------------------------------

class Question(NamedTuple):
    kind: str                   # presence, count, comp, relation
    text: str
    answer: str
    names: tuple[str, ...]      # the classes that it is about


def absent_names(layout: Layout, labels: dict[str, int], words: Iterable[str] = ()) -> list[str]:
    """The classes of a data set, {class: pictures}, of which this picture surely has no object.

    words: of all texts that are known about the picture, see words_of.
    """
    present, words = layout.names(), frozenset(words)
    if present & VAGUE:                     # "other" may be anything
        return []
    return [name for name in labels if name not in present and name not in VAGUE
            and not any(may_be_called(own, name) or may_be_called(name, own) for own in present)
            and not is_mentioned(name, words)]


def draw_absent(absent: Sequence[str], labels: dict[str, int], count: int, rng: random.Random
                ) -> list[str]:
    """Different ones, common classes more often: what a question names shall not tell its answer.
    """
    chosen: list[str] = []
    remaining = list(absent)
    while remaining and len(chosen) < count:
        name = rng.choices(remaining, [labels[name] for name in remaining])[0]
        remaining.remove(name)
        chosen.append(name)
    return chosen


def ask_presence(name: str, answer: str, rng: random.Random) -> Question:
    text = rng.choice((f"is there {with_article(name)} ?", f"are there any {plural(name)} ?",
                       f"is {with_article(name)} present in the image ?"))
    return Question("presence", text, answer, (name,))


def ask_count(name: str, count: int, rng: random.Random) -> Question:
    text = rng.choice((f"how many {plural(name)} are there ?",
                       f"what is the number of {plural(name)} ?"))
    return Question("count", text, str(count), (name,))


def ask_comparison(groups: dict[str, list[Thing]], rng: random.Random) -> Question | None:
    """Of two classes with different numbers; yes and no are as likely."""
    pairs = [(a, b) for a in groups for b in groups if len(groups[a]) > len(groups[b])]
    if not pairs:
        return None
    more, less = rng.choice(pairs)
    answer, word = rng.choice(("yes", "no")), rng.choice(("more", "fewer"))
    first, second = (more, less) if (answer == "yes") == (word == "more") else (less, more)
    return Question("comp", f"are there {word} {plural(first)} than {plural(second)} ?", answer,
                    (first, second))


def ask_relation(expressions: Sequence[Expression], rng: random.Random) -> Question | None:
    """Whether an object is on a side of another one; yes and no are as likely."""
    short = [expression for expression in expressions if not expression.others]
    some = rng.sample(short, min(len(short), MOST_IN_ORDER))
    pairs = [(a, b) for a in some for b in some
             if a.thing != b.thing and side_of(a.thing, b.thing)]
    if not pairs:
        return None
    a, b = rng.choice(pairs)
    side, answer = side_of(a.thing, b.thing), rng.choice(("yes", "no"))
    side = side if answer == "yes" else OPPOSITE[side]
    return Question("relation", f"is {a.words} {side} {b.words} ?", answer,
                    (a.thing.name, b.thing.name))


# ---- samples -------------------------------------------------------------------------------------

REFER_EACH, IDENTIFY_EACH, ASK_EACH, MOST_BOXES = 4, 4, 2, 30    # of a picture; boxes of an answer
ZERO_COUNTS = 0.15              # of pictures that are asked for the number of what is not there


def object_questions(groups: dict[str, list[Thing]], expressions: Sequence[Expression],
                     absent: Sequence[str], labels: dict[str, int], rng: random.Random
                     ) -> list[Question]:
    """Presence, as many yes as no, counts, a comparison and a relation."""
    present = rng.sample(sorted(groups), min(len(groups), ASK_EACH))
    absent = draw_absent(absent, labels, ASK_EACH, rng)
    even = min(len(present), len(absent))
    found = [ask_presence(name, "yes", rng) for name in present[:even]]
    found += [ask_presence(name, "no", rng) for name in absent[:even]]
    found += [ask_count(name, len(groups[name]), rng)
              for name in rng.sample(sorted(groups), min(len(groups), ASK_EACH))]
    if absent and rng.random() < ZERO_COUNTS:
        found.append(ask_count(absent[-1], 0, rng))
    found += filter(None, (ask_comparison(groups, rng), ask_relation(expressions, rng)))
    return found


def object_rows(layout: Layout, labels: dict[str, int], words: Iterable[str], rng: random.Random
                ) -> list[dict]:
    """task, turns, boxes (in fractions), kind of each sample: the objects of a picture in all
    tasks, with a share of questions about what is not there."""
    rows = []
    groups = layout.clear_groups()
    for name, group in groups.items():
        if len(group) <= MOST_BOXES:
            boxes = sorted(thing.box for thing in group)
            places = "<delim>".join(["<bbox>"] * len(boxes))
            rows.append(row("detection", name, f"<p>{name}</p> {places}", boxes))
    expressions = find_expressions(layout)
    for chosen in rng.sample(expressions, min(len(expressions), REFER_EACH)):
        rows.append(row("refer", chosen.words, "<bbox>", [chosen.thing.box]))
    visible = [thing for group in groups.values() for thing in group if thing.is_visible]
    for thing in rng.sample(visible, min(len(visible), IDENTIFY_EACH)):
        rows.append(row("identify", "<bbox>", thing.name, [thing.box]))
    absent = absent_names(layout, labels, words)
    for task, name in zip(("refer", "detection"), draw_absent(absent, labels, 2, rng),
                          strict=False):
        if rng.random() < 0.5:
            rows.append(row(task, f"the {name}" if task == "refer" else name, ABSENT, []))
    rows += [row("vqa", question.text, question.answer, [], question.kind)
             for question in object_questions(groups, expressions, absent, labels, rng)]
    return rows


def row(task: str, question: str, answer: str, boxes: Sequence[Box], kind: str = "") -> dict:
    return {"task": task, "turns": ((question, answer),), "boxes": tuple(boxes), "kind": kind}
