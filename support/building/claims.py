"""Whether a text about a picture agrees with the picture's annotations.

A text names things with their boxes, `<p>two ships</p> {<1><2><3><4>}<delim>{<5><6><7><8>}`. What
can be decided from the annotations is decided, and what is not known to be true is refused:

    boxes       whole numbers from 0 to 100, in order, each the box of an annotated object, with one
                class in its <p>, the object's own
    counts      every number, and words like `several`: of a class all of its objects, of what has
                boxes their number, in a place none left out; "how many"; `more ships than harbors`
    classes     none of those that were looked for and not found, except to say so; yes and no to
                "is there .."
    places      upper, lower, left, right, center, leftmost .., largest, smallest, left of, right
                of, above, below, near, in: of things with boxes alone; no points of the compass

Colors, shapes, surroundings and reasons are what a text adds to annotations. They are not checked.
The texts are English. Whoever reads carelessly here teaches a model what is false, so a sentence
that cannot be decided is refused, too.
"""
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

from support.building.passages import (
    Group,
    Mention,
    Passage,
    Thing,
    Truth,
    read_passage,
    words_after,
    wrong,
)
from support.common import Box

# ---- counts --------------------------------------------------------------------------------------

EXACT = {"single": 1, "sole": 1, "lone": 1, "the only": 1, "both": 2, "pair": 2, "couple": 2,
         "twin": 2, "trio": 3, "quartet": 4}
AT_LEAST = {"few": 2, "multiple": 2, "handful": 2, "several": 3, "many": 4, "numerous": 4,
            "lots of": 4, "lot of": 4, "plenty of": 4, "dozens of": 24, "countless": 24,
            "hundreds of": 200, "thousands of": 2000}
LIMIT = re.compile(r"\b(?:(?:more|fewer|less|greater) than|over|under|above|below|beyond|exceed\w*"
                   r"|almost|nearly|up to|between) $")
QUANTITY = re.compile(r"(?<!how )(?<!as )\b(" + "|".join(EXACT | AT_LEAST) + r")\b")
REST = re.compile(r"\b(more|other|another|additional|further|remaining|of)\b")


def check_phrase(truth: Truth, group: Group) -> None:
    """Wrong: what is within <p>..</p> is not true of the objects with its boxes."""
    phrase, found = group.phrase, len(group.things)
    [name] = {thing.name for thing in group.things}
    said = f"<p>{phrase}</p> with {found} boxes"
    for number in truth.numbers(phrase):
        if number.value != found or LIMIT.search(phrase[:number.start]):
            raise wrong("wrong count", said)
    for quantity in QUANTITY.findall(phrase):
        if found != EXACT.get(quantity, found) or found < AT_LEAST.get(quantity, 0):
            raise wrong("wrong count", said)
    if any(mention.plural == (found == 1) for mention in truth.mentions(phrase)):
        raise wrong("wrong count", said)
    complete = re.search(r"\b(all|every|each|only|single|sole|lone)\b", phrase)
    if complete and found != truth.count[name]:
        raise wrong("wrong count", f"{said}, there are {truth.count[name]}")
    if DENIAL.search(phrase):
        raise wrong("wrong class", f"{said} denies what it has boxes of")
    for claim in find_claims(truth, phrase):
        check_claim(truth, claim, [group])


def check_phrases(truth: Truth, passage: Passage) -> None:
    for group in passage.groups:
        if group.phrase:
            check_phrase(truth, group)


def is_counted(truth: Truth, phrase: str) -> bool:
    return bool(truth.numbers(phrase) or re.search(r"\b(all|both|pair|every)\b", phrase))


def check_counts(truth: Truth, sentence: str, groups: Sequence[Group], subject: str = "",
                 question: bool = False) -> None:
    """Wrong: a number, or a word for one, that the annotations do not give.

    subject: the class that was asked "how many" of, or "".
    """
    mentions = truth.mentions(sentence)
    names = {mention.name for mention in mentions} or {subject} - {""}
    for number in truth.numbers(sentence):
        said = sentence[number.start:number.end + 30].strip()
        if LIMIT.search(sentence[:number.start]):
            raise wrong("wrong count", f"{said!r} is a limit, not a count")
        if group := re.match(r" ?@(\d+)@", sentence[number.end:]):
            if number.value != len(groups[int(group[1])].things):
                raise wrong("wrong count", f"{said!r} with other boxes")
            continue
        mention = truth.mention_after(sentence, number.end)
        between = sentence[number.end:mention.start] if mention else ""
        if mention and not REST.search(between):
            require_count(truth, mention.name, number.value, said)
        elif re.match(r" (objects?|things?)\b", sentence[number.end:]):
            if number.value != len(truth.things):
                raise wrong("wrong count", f"{said!r}, there are {len(truth.things)} objects")
        elif sentence[number.start:number.end] == "one" and not subject:
            continue                                        # a pronoun: the larger one
        elif {(number.value, word) for word in words_after(sentence, number.end)
              } & truth.told_counts:
            continue
        elif len(names) == 1 and not mention:
            require_count(truth, *names, number.value, said)
        else:
            raise wrong("wrong count", f"{said!r} counts what the annotations do not")
    for match in QUANTITY.finditer(sentence):
        group = re.match(r" ?@(\d+)@", sentence[match.end():])
        mention = truth.mention_after(sentence, match.end())
        name = mention.name if mention else subject
        if group or truth.count[name]:
            total = len(groups[int(group[1])].things) if group else truth.count[name]
            if total != EXACT.get(match[1], total) or total < AT_LEAST.get(match[1], 0):
                said = sentence[match.start():match.end() + 30].strip()
                raise wrong("wrong count", f"{said!r}, there are {total}")
    for mention in mentions:
        compared = re.search(r"\b(?:more|fewer|less|than|as|many) $", sentence[:mention.start])
        if mention.plural and truth.count[mention.name] == 1 and not (question or compared):
            raise wrong("wrong count", f"{sentence[mention.start:mention.end]!r}, there is one")
    for match in re.finditer(r"\bthere (?:is|are)(?: only| exactly| a total of)? @(\d+)@",
                             sentence):
        group = groups[int(match[1])]
        if is_counted(truth, group.phrase) and not find_claims(truth, f"{sentence} {group.phrase}"):
            require_count(truth, group.things[0].name, len(group.things), group.phrase)


def require_count(truth: Truth, name: str, value: float, said: str) -> None:
    if value != truth.count[name]:
        raise wrong("wrong count", f"{said!r}, the annotations have {truth.count[name]} of {name}")


def comparisons(truth: Truth, sentence: str) -> Iterator[bool]:
    """Whether it is true that there are more, fewer or as many of a class than of another."""
    for match in re.finditer(r"\b(more|fewer|less|as many)\b|\boutnumbers?\b", sentence):
        others = [m for m in truth.mentions(sentence) if m.start > match.end()]
        before = [m for m in truth.mentions(sentence) if m.end <= match.start()]
        if match[1] and len(others) > 1 and re.search(
                r"\b(than|as)\b", sentence[others[0].end:others[1].start]):
            a, b = (truth.count[m.name] for m in others[:2])
            yield {"more": a > b, "as many": a == b}.get(match[1], a < b)
        elif not match[1] and before and others:
            yield truth.count[before[-1].name] > truth.count[others[0].name]


# ---- classes -------------------------------------------------------------------------------------

DENIAL = re.compile(r"\b(?:no(?!,| other| more| further| additional)|not(?! only)|none|zero"
                    r"|without|neither|nor|lacks?|lacking|absence of|free of|devoid of|void of"
                    r"|empty of|hardly|barely|scarcely)\b|n't\b")
DENIAL_AFTER = re.compile(r" (?:(?:is|are|do|does|can|could)(?: not|n't)|cannot"
                          r"|(?:is|are) (?:absent|missing))\b")
ENDS_DENIAL = re.compile(r"\b(?:near|on|in|at|by|beside|along|over|under|around|with|across|but|is"
                         r"|are|has|have|can|@\d+@)\b|[;:]")
DENIED_WORDS = 7        # no ships, large bridges, roundabouts or AIRPLANES


def is_denied(sentence: str, mention: Mention) -> bool:
    """Whether a negation is said of it: `no ships or BRIDGES`, not `no cars on the BRIDGE`."""
    for match in DENIAL.finditer(sentence, 0, mention.start):
        between = sentence[match.end():mention.start]
        if len(between.split()) < DENIED_WORDS and not ENDS_DENIAL.search(between):
            return True
    return False


def check_classes(truth: Truth, sentence: str, denied: bool = False) -> None:
    """Wrong: it speaks of what is not in the picture, or denies what is.

    denied: the answer to this question says that there is none.
    """
    for mention in truth.mentions(sentence):
        said = sentence[mention.start:mention.end]
        denied_here = is_denied(sentence, mention)
        after = sentence[mention.end:]
        if truth.count[mention.name]:
            if denied_here or re.match(r" (is|are) (not (visible|present|seen|there)|absent"
                                       r"|missing)", after):
                raise wrong("wrong class", f"denies {said!r}, the annotations have "
                                           f"{truth.count[mention.name]}")
        elif denied or denied_here or DENIAL_AFTER.match(after):
            if mention.name not in truth.absent - truth.told_names:
                raise wrong("wrong class", f"denies {said!r}, which was not looked for")
        elif mention.name not in truth.told_names:
            raise wrong("wrong class", f"speaks of {said!r}, the annotations have none")


# ---- places --------------------------------------------------------------------------------------

UP, DOWN, LEFT, RIGHT = "upper|top", "lower|bottom", "left(?:-hand)?", "right(?:-hand)?"
MIDDLE = "center|centre|central|middle"
ONE_PLACE = f"{UP}|{DOWN}|{LEFT}|{RIGHT}|{MIDDLE}"
PLACE = re.compile(rf"\b({ONE_PLACE})(?:[- ]({ONE_PLACE}))?\b")
NOT_A_PLACE = re.compile(
    r"\b(?:right angles?|right next|right of way|on top of|top[- ]down|left over|(?:city|town|urban"
    r"|shopping|sports?|commercial|civic|service) cent(?:er|re)s?|cent(?:er|re)[- ](?:pivot|lines?)"
    r")\b")
NOT_TOLD = re.compile(           # places that the annotations do not tell
    r"\b(?:(?:north|south|east|west|northeast|northwest|southeast|southwest)(?:ern|erly|wards?"
    r"|ernmost)?|foreground|background|nearest|closest|farthest|furthest|(?<!left )(?<!right )"
    r"(?<!upper )(?<!lower )(?<!top )(?<!bottom )(?:edges?|corners?|borders?) of the (?:picture"
    r"|image|scene|photo|frame))\b")
SUPERLATIVES: dict[str, Callable[[Thing], float]] = {       # the thing whose value is the least
    "leftmost": lambda thing: thing.x, "rightmost": lambda thing: -thing.x,
    "topmost": lambda thing: thing.y, "uppermost": lambda thing: thing.y,
    "bottommost": lambda thing: -thing.y, "lowermost": lambda thing: -thing.y,
    "largest": lambda thing: -area(thing.box), "biggest": lambda thing: -area(thing.box),
    "smallest": lambda thing: area(thing.box)}
SUPERLATIVE = re.compile(r"\b(" + "|".join(SUPERLATIVES) + r")\b")
UNIT = re.compile(r"@\d+@(?:(?:, and |, | and | or )@\d+@)*")       # groups that share a place
RELATION = re.compile(
    r"\b(?:(?P<side>(?:to the )?(?:left|right) of)|(?P<row>above|below)"
    r"|(?P<near>near|next to|beside|close to|adjacent to|alongside|along|at|by)"
    r"|(?P<inside>in|inside|within|on)"
    r"|(?P<other>between|behind|in front of|opposite|far from|away from|around|beyond|surrounded by"
    r"|surrounding|surrounds?|under|beneath|across from)) (?:the |a |an |both )?")
THE_PICTURE = re.compile(r"(?:picture|image|scene|photo|photograph|frame|view)\b")
SEPARATOR = re.compile(r"[,;:]|\b(?:and|while|but|whereas|with)\b")

SIDE_ENDS = 45          # hundredths of a side: left of it is the left, as far from the right ..
MIDDLE_FROM = 30        # .. and from here, to as far from the other side, is the middle
THIRD = 100 / 3         # what lies in the outer third is on that side, and nobody doubts it
NEAR, INSIDE = 25, 5    # hundredths that may be between the boxes of such things


class Claim(NamedTuple):
    """Words that say where or of what rank the things of some groups are."""
    start: int
    end: int
    words: str
    superlative: bool


def area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def place_of(x: float, y: float) -> str:
    """The middle of a box, in hundredths, -> upper left .. center .. lower right."""
    row = "upper" if y < THIRD else "lower" if y > 100 - THIRD else ""
    column = "left" if x < THIRD else "right" if x > 100 - THIRD else ""
    return f"{row or 'center'} {column or 'center'}" if row or column else "center"


def is_in_place(thing: Thing, words: str, surely: bool = False) -> bool:
    """surely: only where the place by its thirds says so."""
    side = THIRD if surely else SIDE_ENDS
    middle = THIRD if surely else MIDDLE_FROM
    def has(part: str) -> bool:
        return bool(re.search(rf"\b(?:{part})\b", words))

    up, down, left, right = map(has, (UP, DOWN, LEFT, RIGHT))
    tests = [(up, thing.y < side), (down, thing.y > 100 - side), (left, thing.x < side),
             (right, thing.x > 100 - side)]
    if has(MIDDLE):
        tests += [(not (up or down), middle <= thing.y <= 100 - middle),
                  (not (left or right), middle <= thing.x <= 100 - middle)]
    return all(holds for said, holds in tests if said)


def find_claims(truth: Truth, text: str) -> list[Claim]:
    """The places and superlatives in a text. Wrong: it names a point of the compass."""
    names = [*truth.mentions(text), *NOT_A_PLACE.finditer(text)]
    for match in names:
        start, end = match[:2] if isinstance(match, Mention) else match.span()
        text = text[:start] + " " * (end - start) + text[end:]
    if (match := NOT_TOLD.search(text)) and match[0] not in truth.told:
        raise wrong("wrong place", f"{match[0]!r}, which the annotations do not tell")
    found = [(match, False) for match in PLACE.finditer(text)]
    found += [(match, True) for match in SUPERLATIVE.finditer(text)]
    return [Claim(*match.span(), match[0], superlative) for match, superlative in found]


def check_claim(truth: Truth, claim: Claim, groups: Sequence[Group]) -> None:
    """Wrong: the words are not true of each thing of the groups."""
    for group in groups:
        alike = [t for t in truth.things if t.name == group.things[0].name]
        said = f"{claim.words!r} of {group.phrase or group.things[0].name!r} {group.things[0].text}"
        if claim.superlative:
            key = SUPERLATIVES[claim.words]
            if len(group.things) > 1 or key(group.things[0]) > min(map(key, alike)):
                raise wrong("wrong place", said)
            continue
        if not all(is_in_place(thing, claim.words) for thing in group.things):
            raise wrong("wrong place", said)
        if is_counted(truth, group.phrase):
            require_complete(alike, claim, group.things)


def require_complete(alike: Sequence[Thing], claim: Claim, things: Collection[Thing]) -> None:
    for thing in alike:
        if is_in_place(thing, claim.words, surely=True) and thing not in things:
            raise wrong("wrong count", f"{claim.words!r}: {thing.name} {thing.text} is left out")


def groups_of(unit: re.Match, groups: Sequence[Group]) -> list[Group]:
    return [groups[int(number)] for number in re.findall(r"@(\d+)@", unit[0])]


def attached(sentence: str, claim: Claim, groups: Sequence[Group]) -> list[Group]:
    """The groups that words of place are about: in their clause the nearest before, else the
    nearest after; of a clause without a group both neighbors."""
    units = list(UNIT.finditer(sentence))
    separators = [match.span() for match in SEPARATOR.finditer(sentence)
                  if not any(unit.start() < match.start() < unit.end() for unit in units)]
    start = max((end for _, end in separators if end <= claim.start), default=0)
    stop = min((begin for begin, _ in separators if begin >= claim.end), default=len(sentence))
    before = [unit for unit in units if unit.end() <= claim.start]
    after = [unit for unit in units if unit.start() >= claim.end]
    if before and before[-1].end() > start:
        return groups_of(before[-1], groups)
    if after and after[0].start() < stop:
        return groups_of(after[0], groups)
    return [group for unit in [*before[-1:], *after[:1]] for group in groups_of(unit, groups)]


def check_places(truth: Truth, sentence: str, groups: Sequence[Group],
                 context: Sequence[Group]) -> None:
    """Wrong: a place, rank or relation that is not that of the things, or of things without boxes.

    context: the groups that a sentence without one is about, of the sentence before or of the
    question's answer.
    """
    sentence = check_relations(sentence, groups, context)
    for claim in find_claims(truth, sentence):
        about = attached(sentence, claim, groups) or context
        if not about and claim.superlative and not truth.mentions(sentence):
            continue                                        # the largest part of the land
        if not about:
            raise wrong("wrong place", f"{claim.words!r} of what has no box")
        ranked = truth.mention_after(sentence, claim.end) if claim.superlative else None
        if ranked and any(ranked.name != group.things[0].name for group in about):
            raise wrong("wrong class", f"the {claim.words} {ranked.name} is a "
                                       f"{about[0].things[0].name}")
        check_claim(truth, claim, about)


def check_relations(sentence: str, groups: Sequence[Group], context: Sequence[Group]) -> str:
    """-> the sentence without the relations that have been checked."""
    checked = sentence
    for match in RELATION.finditer(sentence):
        target = UNIT.match(sentence, match.end())
        if not target:
            if match["side"] and not THE_PICTURE.match(sentence, match.end()):
                raise wrong("wrong place", f"{match[0]!r} of what has no box")
            continue
        if match["other"]:
            raise wrong("wrong place", f"{match[0]!r}, which is not decided from boxes")
        units = list(UNIT.finditer(sentence))
        before = [unit for unit in units if unit.end() <= match.start()]
        after = [unit for unit in units if unit.start() > target.start()]
        subject = before[-1] if before else after[0] if after else None
        subjects = groups_of(subject, groups) if subject else context
        if not subjects and (match["side"] or match["row"]):
            raise wrong("wrong place", f"{match[0]!r} is said of what has no box")
        others = [thing for group in groups_of(target, groups) for thing in group.things]
        for thing in [thing for group in subjects for thing in group.things]:
            if not all(is_related(thing, other, match) for other in others):
                raise wrong("wrong place", f"{thing.name} {thing.text} {match[0].strip()} "
                                           f"{others[0].name} {others[0].text}")
        checked = checked[:match.start()] + " " * len(match[0]) + checked[match.end():]
    return checked


def is_related(a: Thing, b: Thing, match: re.Match) -> bool:
    """match: of RELATION, of which groups `side` to `inside` are decided."""
    if match["side"]:
        return a.x < b.x if "left" in match["side"] else a.x > b.x
    if match["row"]:
        return a.y < b.y if match["row"] == "above" else a.y > b.y
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = (
        map(int, re.findall("[0-9]+", thing.text)) for thing in (a, b))
    apart = max(ax1 - bx2, bx1 - ax2, ay1 - by2, by1 - ay2)
    return apart <= (INSIDE if match["inside"] else NEAR)


# ---- descriptions and dialogues ------------------------------------------------------------------

def check_description(truth: Truth, text: str) -> None:
    """Wrong: it does not agree with the annotations."""
    check_statements(truth, read_passage(truth, text))


def check_statements(truth: Truth, passage: Passage, context: Sequence[Group] = (),
                     subject: str = "") -> None:
    check_phrases(truth, passage)
    for sentence in passage.sentences():
        check_classes(truth, sentence)
        check_counts(truth, sentence, passage.groups, subject)
        if not all(comparisons(truth, sentence)):
            raise wrong("wrong count", f"{sentence!r} compares wrongly")
        check_places(truth, sentence, passage.groups, context)
        units = UNIT.finditer(sentence)
        context = [group for unit in units for group in groups_of(unit, passage.groups)] or context


def check_turn(truth: Truth, question: str, answer: str) -> None:
    """Wrong: question or answer do not agree with the annotations."""
    asked = read_passage(truth, question, bare_boxes=True)
    answered = read_passage(truth, answer)
    says_yes = bool(re.match(r"yes\b", answered.text))
    says_no = bool(re.match(r"no\b", answered.text))
    denied = says_no or bool(re.match(r"(none|zero|0|there (is|are) (no|none))\b", answered.text))
    compared = list(comparisons(truth, asked.text))
    if compared and (says_yes or says_no) and says_yes != all(compared):
        raise wrong("wrong count", f"{question!r} is answered {answer!r}")
    absent = [m for m in truth.mentions(asked.text) if not truth.count[m.name]]
    if denied and not compared and not absent and not placed_count(truth, asked):
        raise wrong("wrong class", f"{answer!r} denies what the annotations do not")
    check_phrases(truth, asked)
    for sentence in asked.sentences():
        check_classes(truth, sentence, denied)
        check_counts(truth, sentence, asked.groups, question=True)
        if not (denied and placed_count(truth, asked)):
            check_places(truth, sentence, asked.groups, answered.groups)
    subject = asked_count(truth, asked.text)
    narrowed = placed_count(truth, asked)
    check_statements(truth, answered, asked.groups, "" if narrowed else subject)
    if subject:
        check_how_many(truth, asked, answered, subject, denied)


def asked_count(truth: Truth, question: str) -> str:
    """The class of "how many CLASS .."; "" where that is not the question."""
    asked = re.search(r"\bhow many\b|\b(?:number|count) of\b", question)
    mention = truth.mention_after(question, asked.end(), words=4) if asked else None
    return mention.name if mention else ""


def placed_count(truth: Truth, asked: Passage) -> list[Claim]:
    """The places that a question "how many CLASS are in the PLACE" narrows its answer to."""
    if not asked_count(truth, asked.text):
        return []
    return [claim for claim in find_claims(truth, asked.text) if not claim.superlative]


def check_how_many(truth: Truth, asked: Passage, answered: Passage, subject: str, denied: bool
                   ) -> None:
    """Wrong: no number, or another one than the annotations give."""
    boxes = {thing for group in answered.groups for thing in group.things if thing.name == subject}
    places = placed_count(truth, asked)
    alike = [thing for thing in truth.things if thing.name == subject]
    for claim in places:
        require_complete(alike, claim, boxes)
    numbers = truth.numbers(answered.text)
    if places and not denied and (not boxes or any(n.value != len(boxes) for n in numbers)):
        raise wrong("wrong count", f"{answered.text!r} with {len(boxes)} boxes")
    if not places and boxes and len(boxes) != len(alike):
        raise wrong("wrong count", f"{len(boxes)} boxes of {subject}, there are {len(alike)}")
    if not (boxes or numbers or denied or QUANTITY.search(answered.text)):
        raise wrong("wrong count", f"{answered.text!r} tells no number")
