"""Conversations about one picture, from all that is known of it in all data sets.

A turn has facts that its question or answer gives away, and sets of facts any of which would give
its own answer away. A turn is asked only as long as none of these sets is known: no answer stands
in an earlier turn. Facts are tuples:

    ("there", "ship")       whether there is a ship
    ("count", "ship")       how many, or something from which it may follow
    ("scene",)              the class of the scene
    ("caption",)            what a caption says

Boxes are facts as well: a box is known if one that was named overlaps it by half. Nothing is asked
about the words of which an earlier turn said no (a truck, then a pushback truck). For what data
sets bring along, where it is not known what an answer tells, words stand for facts: what stands in
an earlier turn is not asked for, and no yes or no about words that all stand there.

Some turns come in chains that build on each other: is there a ship, how many, where is the largest
one, how many are left of it.
"""
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from data import CLEANED_TASKS, TEMPLATES, clean_text
from support.building.expressions import (
    SIDES,
    Expression,
    Layout,
    Thing,
    ask_comparison,
    ask_count,
    ask_presence,
    center_is,
    draw_absent,
    find_expressions,
    is_mentioned,
    lies,
    nearest_of,
    overlap,
    plural,
    single_article,
    with_article,
    words_of,
)
from support.common import ABSENT, Box

KNOWN_OVERLAP = 0.5             # IoU from which two boxes are of the same object
MOST_CHARACTERS, MOST_BOXES = 1500, 20          # of a conversation

Fact = tuple[str, ...]


@dataclass(frozen=True)
class Turn:
    """boxes: in fractions, those of the question, then those of the answer."""
    task: str
    question: str
    answer: str
    boxes: tuple[Box, ...] = ()
    tells: frozenset[Fact] = frozenset()
    told_by: tuple[frozenset[Fact], ...] = ()       # any of these gives the answer away
    told_by_boxes: tuple[Box, ...] = ()             # all of these together do
    by_words: bool = False                          # that words stand for facts
    follows: bool = False                           # "it" is what the turn before was about
    kind: str = ""


def facts(name: str, *kinds: str) -> set[Fact]:
    return {(kind, name) for kind in kinds}


@dataclass
class Known:
    """What the turns so far have given away."""
    names: Sequence[str]                            # classes that may be asked about
    facts: set[Fact] = field(default_factory=set)
    boxes: list[Box] = field(default_factory=list)
    words: set[str] = field(default_factory=set)
    denied: list[frozenset[str]] = field(default_factory=list)      # words of what is not there

    def has_box(self, box: Box) -> bool:
        return any(overlap(box, known) >= KNOWN_OVERLAP for known in self.boxes)

    def gives_away(self, turn: Turn) -> bool:
        if any(needed <= self.facts for needed in turn.told_by):
            return True
        if any(boxes and all(map(self.has_box, boxes))
               for boxes in (turn.boxes, turn.told_by_boxes)):
            return True
        if any(no <= content_words(turn.question) for no in self.denied):
            return True
        return turn.by_words and self.has_words(turn)

    def has_words(self, turn: Turn) -> bool:
        answer = content_words(turn.answer)
        return (answer or content_words(turn.question)) <= self.words

    def add(self, turn: Turn) -> None:
        self.facts |= turn.tells
        self.boxes += turn.boxes
        words = words_of(strip_boxes(turn.answer))
        if turn.task != "scene":                        # its question lists all classes
            words |= words_of(strip_boxes(turn.question))
        self.words |= words
        if turn.answer.lower() in ("no", "0", ABSENT) and (no := content_words(turn.question)):
            self.denied.append(no)
        if turn.by_words:
            for name in self.names:
                if is_mentioned(name, words):
                    self.facts |= facts(name, "there", "count")


EMPTY_WORDS = words_of("a an the of in on at to is are there any this that it image picture yes no "
                       "none what where which how many number do does and or with can be see you "
                       "one two three four five six seven eight nine ten present theme class "
                       "more fewer less than")


def strip_boxes(text: str) -> str:
    return re.sub("<bbox>|</?p>|<delim>", " ", text)


def content_words(text: str) -> frozenset[str]:
    return words_of(strip_boxes(text)) - EMPTY_WORDS


# ---- turns ---------------------------------------------------------------------------------------

def turn_of_row(row: dict) -> Turn | None:
    """A sample that a data set brought along, boxes in fractions; None where it is no turn."""
    [(question, answer), *more] = row["turns"]
    if more or row["task"] in ("conversation", "video", "grounding"):
        return None
    if len(row["boxes"]) > MOST_BOXES:
        return None
    special = {"caption": ("caption",), "scene": ("scene",)}.get(row["task"])
    if row["kind"] == "theme":
        special = ("scene",)
    own = frozenset({special} if special else {("asked", question.lower())})
    return Turn(row["task"], question, answer, row["boxes"], own, (own,), by_words=True,
                kind=row["kind"])


def refer_turn(expression: Expression, group: Sequence[Thing]) -> Turn:
    thing = expression.thing
    tells = facts(thing.name, "there", *(["count"] if len(group) == 1 else []))
    for other in expression.others:
        tells |= facts(other, "there", "count")
    return Turn("refer", expression.words, "<bbox>", (thing.box,), frozenset(tells))


def presence_turn(name: str, answer: str, rng: random.Random) -> Turn:
    question = ask_presence(name, answer, rng)
    tells = facts(name, "there", *(["count"] if answer == "no" else []))
    return Turn("vqa", question.text, answer, (), frozenset(tells),
                (frozenset(facts(name, "there")),), kind="presence")


def count_turn(name: str, count: int, rng: random.Random) -> Turn:
    return Turn("vqa", ask_count(name, count, rng).text, str(count), (),
                frozenset(facts(name, "there", "count")), (frozenset(facts(name, "count")),),
                kind="count")


def detection_turn(name: str, group: Sequence[Thing]) -> Turn:
    boxes = tuple(sorted(thing.box for thing in group))
    return Turn("detection", name, f"<p>{name}</p> {'<delim>'.join(['<bbox>'] * len(boxes))}",
                boxes, frozenset(facts(name, "there", "count")))


def absent_turn(name: str, rng: random.Random) -> Turn:
    task = rng.choice(("refer", "detection"))
    return Turn(task, f"the {name}" if task == "refer" else name, ABSENT, (),
                frozenset(facts(name, "there", "count")), (frozenset(facts(name, "there")),))


def comparison_turn(groups: dict[str, list[Thing]], rng: random.Random) -> Turn | None:
    question = ask_comparison(groups, rng)
    if question is None:
        return None
    first, second = question.names
    counts = tuple(frozenset(facts(name, "count")) for name in question.names)
    tells = facts(first, "there", "count") | facts(second, "there", "count")
    return Turn("vqa", question.text, question.answer, (), frozenset(tells), counts, kind="comp")


def follow_up(it: Expression, groups: dict[str, list[Thing]], rng: random.Random) -> Turn | None:
    """A question about "it", the object that the turn before asked for: what of a class is on a
    side of it, unless the expression says so, or nearest to it."""
    thing, found = it.thing, []
    for name, group in groups.items():
        others = [other for other in group if other != thing]
        if not others:
            continue
        nearest = nearest_of(others, thing)
        if nearest and nearest.is_visible:
            found.append(Turn("refer", f"the {name} nearest to it", "<bbox>", (nearest.box,),
                              frozenset(facts(name, "there")), follows=True))
        for side in SIDES:
            there = [other for other in others if center_is(side, other, thing)]
            if (name, side) not in it.told and all(lies(side, other, thing) for other in there):
                found.append(side_turn(name, side, len(there), others, rng))
    return rng.choice(found) if found else None


def side_turn(name: str, side: str, count: int, others: Sequence[Thing], rng: random.Random
              ) -> Turn:
    """others: all objects of the class that the answer is about."""
    if rng.random() < 0.5:
        text = f"how many {plural(name)} are {side} it ?"
        answer = str(count)
    else:
        text = f"is there {with_article(name)} {side} it ?"
        answer = "yes" if count else "no"
    return Turn("vqa", text, answer, (), frozenset(facts(name, "there")), follows=True,
                told_by_boxes=tuple(other.box for other in others), kind="relation")


def object_chains(layout: Layout, absent: Sequence[str], labels: dict[str, int],
                  rng: random.Random) -> list[list[Turn]]:
    """Chains of turns from the objects; a chain of one is a turn that stands alone."""
    groups = layout.clear_groups()
    expressions = find_expressions(layout)
    chains = []
    for name, group in groups.items():
        chain = [presence_turn(name, "yes", rng), count_turn(name, len(group), rng)]
        of_class = [e for e in expressions if e.thing.name == name]
        if of_class:
            chosen = rng.choice(of_class)
            chain.append(refer_turn(chosen, group))
            if follow := follow_up(chosen, groups, rng):
                chain.append(follow)
        chains.append(chain)
        if len(group) <= MOST_BOXES:
            chains.append([detection_turn(name, group)])
        visible = [thing for thing in group if thing.is_visible]
        if visible:
            thing = rng.choice(visible)
            chains.append([Turn("identify", "<bbox>", name, (thing.box,),
                                frozenset(facts(name, "there")))])
    chains += [[turn] for turn in [comparison_turn(groups, rng)] if turn]
    for number, name in enumerate(draw_absent(absent, labels, 2, rng)):
        chains.append([presence_turn(name, "no", rng) if number else absent_turn(name, rng)])
    return chains


# ---- conversations -------------------------------------------------------------------------------

def compose(chains: Sequence[Sequence[Turn]], names: Sequence[str], turns: tuple[int, int],
            rng: random.Random) -> list[Turn]:
    """A conversation of turns[0] to turns[1] turns; empty where too little is known.

    names: of the classes that turns may be about.
    """
    wanted = rng.randint(*turns)
    chains = rng.sample(chains, len(chains))
    chains.sort(key=lambda chain: -len(chain) * (rng.random() < 0.5))     # chains are worth more
    known, chosen, characters, boxes = Known(names), [], 0, 0
    for chain in chains:
        previous: Turn | None = None                # in the chain, and the latest one at all
        for turn in chain:
            if len(chosen) == wanted:
                return chosen
            fits = (characters + len(turn.question) + len(turn.answer) <= MOST_CHARACTERS
                    and boxes + len(turn.boxes) <= MOST_BOXES)
            if fits and (previous or not turn.follows) and not known.gives_away(turn):
                known.add(turn)
                chosen.append(turn)
                previous = turn
                characters += len(turn.question) + len(turn.answer)
                boxes += len(turn.boxes)
            elif turn.task == "refer":
                previous = None                     # "it" would be something else
    return chosen if len(chosen) >= turns[0] else []


def conversation_row(chosen: Iterable[Turn], rng: random.Random) -> dict:
    """The sample, each turn in a template of its task; boxes in fractions."""
    turns, boxes = [], []
    for turn in chosen:
        question, answer = turn.question, turn.answer
        if turn.task in CLEANED_TASKS:
            question, answer = clean_text(question), clean_text(answer)
        if turn.task == "identify":
            answer = clean_text(answer)
        question = rng.choice(TEMPLATES[turn.task]).replace("{}", question)
        turns.append((single_article(question) if turn.task == "refer" else question, answer))
        boxes += turn.boxes
    return {"task": "conversation", "turns": tuple(turns), "boxes": tuple(boxes), "kind": ""}
