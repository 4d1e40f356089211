"""Whether an answer of a conversation can be read off its earlier turns, from their texts alone.

What is known of each class is kept as the least and the most of it that there can be, from all that
was said: questions, answers, expressions, captions. A question is given away if its answer follows
from that, or from boxes that were named. Nothing of support/building is used.
"""
import math
import re
from typing import NamedTuple

from support.common import ABSENT

COUNT_WORDS = {word: number for number, word in enumerate(
    "no one two three four five six seven eight nine ten".split())} | {
    "a": 1, "an": 1, "several": None, "many": None, "some": None, "few": None}
SIDES = ("left of", "right of", "above", "below")
# What an expression says about the others of its class: none is on this side, all on that one.
OUTERMOST = {"leftmost": ("left of", "right of"), "rightmost": ("right of", "left of"),
             "top": ("above", "below"), "bottom": ("below", "above")}
ENDS = {"left": "leftmost", "right": "rightmost", "top": "top", "bottom": "bottom"}
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
ORDINALS = {"second": 2, "third": 3, "fourth": 4}


class Turn(NamedTuple):
    task: str                   # caption, vqa, refer, detection, identify, ..
    question: str               # without template, in small letters
    answer: str
    boxes: tuple = ()           # those of the question, then those of the answer; fractions


def key_of(turn):
    """What is the same if a question is asked again."""
    return turn.task, turn.question, turn.boxes if "<bbox>" in turn.question else ()


def forms(name):
    """A class's name in singular and in plural, as somebody may write them."""
    ends = {name, name + "s", name + "es"}
    if name.endswith("y"):
        ends.add(name[:-1] + "ies")
    for end, other in (("ies", "y"), ("es", ""), ("s", "")):
        if name.endswith(end):
            ends.add(name.removesuffix(end) + other)
    return ends


def overlap(a, b):
    """Intersection over union."""
    sides = [min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1)]
    if min(sides) <= 0:
        return 0.0
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return math.prod(sides) / (areas - math.prod(sides))


class Talk:
    """What the turns so far have told. names: of all classes, in singular or plural."""

    def __init__(self, names):
        self.name_of = {}
        for name in sorted(names, key=len):                 # the singular first
            if name not in self.name_of:
                self.name_of |= {form: name for form in forms(name)}
        longest = sorted(self.name_of, key=len, reverse=True)
        self.pattern = re.compile(r"\b(?:" + "|".join(map(re.escape, longest)) + r")\b"
                                  if longest else "(?!)")
        self.least, self.most = {}, {}
        self.more = []              # (a, b, number): there are at least so many more a than b
        self.boxes, self.texts, self.asked = [], " ", set()
        self.boxes_of: dict[str, list] = {}
        self.it = None                                      # (class, box, expression)

    # ---- numbers ---------------------------------------------------------------------------------

    def name(self, words):
        """white ships -> white ship, if ship is a class; other words stay."""
        form = max((form for form in self.name_of if f" {words}".endswith(f" {form}")), key=len,
                   default="")
        return words.removesuffix(form) + self.name_of[form] if form else words

    def head(self, words):
        """white ships -> ship."""
        found = [form for form in self.name_of if words.endswith(" " + form)]
        return self.name_of[max(found, key=len)] if found else None

    def at_least(self, words, number):
        name = self.name(words)
        self.least[name] = max(self.least.get(name, 0), number)
        if (head := self.head(words)) and head != name:
            self.at_least(head, number)

    def at_most(self, words, number):
        name = self.name(words)
        self.most[name] = min(self.most.get(name, math.inf), number)

    def bounds(self, words):
        """-> the least and the most of a class that there can be."""
        name, head = self.name(words), self.head(words)
        least, most = self.least.get(name, 0), self.most.get(name, math.inf)
        if head and head != name:
            most = min(most, self.bounds(head)[1])
        for more, fewer, number in self.more:
            if name == more:
                least = max(least, self.least.get(fewer, 0) + number)
            if name == fewer:
                most = min(most, self.most.get(more, math.inf) - number)
        return least, most

    # ---- what a turn tells -----------------------------------------------------------------------

    def add(self, turn):
        question, answer = turn.question, turn.answer
        self.asked.add(key_of(turn))
        before = self.it
        self.it = None
        if turn.task == "vqa":
            self.add_answer(question, answer, before)
        elif turn.task in ("refer", "detection") and answer == ABSENT:
            self.at_most(question.removeprefix("the "), 0)
        elif turn.task == "refer":
            self.add_expression(question, before, turn.boxes)
        elif turn.task == "detection":
            self.at_least(question, len(turn.boxes))
            self.at_most(question, len(turn.boxes))
            self.tell_boxes(question, turn.boxes)
        elif turn.task == "identify":
            self.add_text(answer)
            self.tell_boxes(answer, turn.boxes)
        else:
            self.add_text(answer)
        said = answer if turn.task in ("scene", "identify") else f"{question} {answer}"
        self.texts += f"{said} ".lower()
        self.boxes += turn.boxes

    def tell_boxes(self, words, boxes):
        for name in {self.name(words), self.head(words)} - {None}:
            told = self.boxes_of.setdefault(name, [])
            told += [box for box in boxes if all(overlap(box, other) < .5 for other in told)]

    def add_answer(self, question, answer, it):
        match = side_question(question)
        if match:
            name, _ = match
            same = self.name(name) == (it and it[0])
            number = int(answer) if answer.isdecimal() else int(answer == "yes")
            self.at_least(name, number + same)
        elif name := presence_question(question):
            (self.at_least if answer == "yes" else self.at_most)(name, int(answer == "yes"))
        elif name := count_question(question):
            self.at_least(name, int(answer))
            self.at_most(name, int(answer))
        elif pair := comparison(question):
            one, other = map(self.name, pair)
            self.more.append((one, other, 1) if answer == "yes" else (other, one, 0))
        else:
            self.add_text(answer)

    def add_text(self, text):
        """A caption or another text: what it mentions is there, and so many as it counts."""
        words = re.sub(r"[^a-z0-9 ]", " ", text.lower())
        for match in self.pattern.finditer(words):
            before = words[:match.start()].split()
            number = COUNT_WORDS.get(before[-1], None) if before else None
            if number is None and before and before[-1].isdecimal():
                number = int(before[-1])
            name = self.name_of[match[0]]
            if number == 0:
                self.at_most(name, 0)
            elif number and not (before and before[-1] in ("a", "an")):
                self.at_least(name, number)
                self.at_most(name, number)
            else:
                self.at_least(name, 1)

    def add_expression(self, words, before, boxes):
        words = words.removeprefix("the ")
        if match := re.fullmatch(r"(.+) nearest to it", words):
            name = self.name(match[1])
            self.at_least(name, 1 + (name == (before and before[0])))
        elif match := re.fullmatch(r"(.+) (?:left of|right of|above|below|nearest to) the (.+)",
                                   words):
            name, other = self.name(match[1]), self.name(match[2])
            self.at_least(name, 1)
            self.at_least(other, 1)
            self.at_most(other, 1)
            self.it = name, boxes[0], words
        else:
            name = self.described(words)
            self.at_least(name, ORDINALS.get(words.split()[0], 1 if words == name else 2))
            if words == name:
                self.at_most(name, 1)
            self.it = self.name(name), boxes[0], words
        self.tell_boxes(name, boxes)

    def described(self, words):
        """the second ship from the left -> ship; a name alone stays."""
        for pattern in (r"(?:leftmost|rightmost|largest|smallest) (.+)", r"(.+) at the \w+",
                        r"(?:second|third|fourth) (.+) from the \w+", r"(.+) in the [a-z ]+"):
            if match := re.fullmatch(pattern, words):
                return match[1]
        return words

    # ---- what gives a turn away ------------------------------------------------------------------

    def gives_away(self, turn):
        """Why the answer is known already; "" if it is not."""
        question, answer = turn.question, turn.answer
        if key_of(turn) in self.asked and not re.search(r"\bit( \?)?$", question):
            return "asked twice"
        known = [box for box in turn.boxes if any(overlap(box, told) >= .5 for told in self.boxes)]
        if turn.boxes and len(known) == len(turn.boxes):
            return "its boxes were named"
        if turn.task in ("refer", "detection") and answer == ABSENT:
            _, most = self.bounds(question.removeprefix("the "))
            return "it was said to be missing" if most == 0 else ""
        if turn.task in ("refer", "detection", "identify"):
            return ""
        if turn.task == "vqa":
            if match := side_question(question):
                return self.side_given(*match, "how many" in question)
            if name := presence_question(question):
                least, most = self.bounds(name)
                return f"{least} to {most} {name}" if least > 0 or most == 0 else ""
            if name := count_question(question):
                least, most = self.bounds(name)
                return f"there are {least} {name}" if least == most else ""
            if pair := comparison(question):
                (low, high), (other_low, other_high) = map(self.bounds, pair)
                return f"{pair} were counted" * (low > other_high or high <= other_low)
        said = f" {answer.lower()} " in re.sub("[^a-z0-9 ]", " ", self.texts)
        unclear = answer in ("yes", "no") or answer.isdecimal()
        return f"{answer!r} was said" if said and not unclear else ""

    def side_given(self, name, side, wants_count):
        """Of a question about "it", the object of the turn before."""
        if self.it is None:
            return "nothing is it"
        own, _, words = self.it
        name = self.name(name)
        least, most = self.bounds(name)
        if most == 0:
            return f"there is no {name}"
        if name == own:
            rank = rank_of(words)
            if rank:
                place, end = rank
                before, behind = OUTERMOST[end]
                if side == before:
                    return f"it is {words}"
                if side == behind and (least > place and not wants_count
                                       or least == most or most <= place):
                    return f"it is {words}, of {least} to {most}"
        related = re.fullmatch(rf"{re.escape(own)} ({'|'.join(SIDES)}) the (.+)", words)
        if related and self.name(related[2]) == name and side in (related[1],
                                                                  OPPOSITE[related[1]]):
            return f"it is {words}"
        told = self.boxes_of.get(name, [])
        if least == most and len(told) >= most:
            return f"all boxes of {name} were named"
        return ""


def rank_of(words):
    """-> (1, "leftmost") of the leftmost ship, (2, "top") of the second ship from the top."""
    if match := re.fullmatch(r"(leftmost|rightmost) .+", words):
        return 1, match[1]
    if match := re.fullmatch(r".+ at the (top|bottom)", words):
        return 1, match[1]
    match = re.fullmatch(r"(second|third|fourth) .+ from the (left|right|top|bottom)", words)
    return (ORDINALS[match[1]], ENDS[match[2]]) if match else None


# ---- questions -----------------------------------------------------------------------------------

def side_question(question):
    """-> class and side."""
    match = re.fullmatch(rf"(?:how many (.+) are|is there an? (.+)) ({'|'.join(SIDES)}) it \?",
                         question)
    return (match[1] or match[2], match[3]) if match else None


def presence_question(question):
    match = re.fullmatch(r"is there an? (.+) \?|are there any (.+) \?|"
                         r"is an? (.+) present in the image \?", question)
    return next(filter(None, match.groups())) if match else None


def count_question(question):
    match = re.fullmatch(r"how many (.+) are there \?|what is the number of (.+) \?", question)
    return match[1] or match[2] if match else None


def comparison(question):
    """-> (a, b) of a question whether there are more a than b."""
    match = re.fullmatch(r"are there (more|fewer) (.+) than (.+) \?", question)
    if not match:
        return None
    return (match[2], match[3]) if match[1] == "more" else (match[3], match[2])
