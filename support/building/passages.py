"""What is known of a picture, and texts about it in which things have their boxes.

`<p>two ships</p> {<1><2><3><4>}<delim>{<5><6><7><8>}` is read as a group: a phrase, and the objects
of the annotations whose boxes these are.
"""
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from data import encode_box, normalize_box
from support.common import Box, printable
from support.readers.common import class_name


@dataclass(frozen=True)
class Facts:
    """What the annotations of all data sets say about one picture."""
    image: str                                      # path
    size: tuple[int, int]                           # width and height in pixels
    objects: tuple[tuple[str, Box], ...] = ()       # (class, box in pixels) of each
    scene: str = ""                                 # "" where it is not known
    captions: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()       # looked for: those without an object are not in the picture


class Wrong(ValueError):
    """A text that is not taken: `kind: why` in one line, such as `wrong count: says ..`."""


def wrong(kind: str, why: str) -> Wrong:
    return Wrong(f"{kind}: {printable(why, 200)}")


# ---- the annotations -----------------------------------------------------------------------------

# Objects of DIOR's and DOTA's classes that nobody mentions in passing.
KNOWN_CLASSES = (
    "airplane", "ship", "helicopter", "bridge", "storage tank", "windmill", "tennis court",
    "basketball court", "baseball field", "soccer field", "swimming pool", "stadium", "chimney",
    "dam", "overpass", "roundabout", "golf course", "container crane", "helipad")
SYNONYMS = {"airplane": ("plane", "aeroplane", "aircraft"), "ship": ("boat", "vessel"),
            "harbor": ("harbour",)}


class Thing(NamedTuple):
    number: int                 # among the objects of the picture
    name: str                   # its class
    box: Box                    # pixels, inside the picture
    text: str                   # the box as a text
    x: float                    # the middle, in hundredths of the picture's sides
    y: float


class Mention(NamedTuple):
    start: int
    end: int
    name: str                   # the class
    plural: bool | None         # None: the word has one form for both


def word_forms(name: str) -> dict[str, bool | None]:
    """Singular and plural of a class -> whether it is the plural."""
    if name.endswith("craft"):
        return {name: None}
    if re.search("[^sui]s$", name):                 # a class named in the plural
        return {name: True, name[:-1]: False}
    if re.search("(s|x|z|ch|sh)$", name):
        return {name: False, f"{name}es": True}
    if re.search("[^aeiou]y$", name):
        return {name: False, f"{name[:-1]}ies": True}
    return {name: False, f"{name}s": True}


class Truth:
    """Facts, prepared to be compared with texts. ValueError: a box outside the picture."""

    def __init__(self, facts: Facts):
        self.things = [make_thing(number, class_name(name), box, facts.size)
                       for number, (name, box) in enumerate(facts.objects)]
        self.count = Counter(thing.name for thing in self.things)
        self.absent = {class_name(name) for name in facts.classes} - set(self.count)
        self.told = " ".join([facts.scene.replace("_", " "), *facts.captions]).lower()
        self.forms: dict[str, tuple[str, bool | None]] = {}
        own = [*self.count, *sorted(self.absent)]
        known = [name for name in KNOWN_CLASSES if not any(name in other for other in own)]
        for name in [*own, *known]:
            for word in (name, *SYNONYMS.get(name, ())):
                for form, plural in word_forms(word).items():
                    self.forms.setdefault(form, (name, plural))
        longest = sorted(self.forms, key=len, reverse=True)
        words = "|".join(re.escape(form).replace(r"\ ", "[ -]") for form in longest)
        self.pattern = re.compile(rf"\b(?:{words})\b")
        self.told_names = {mention.name for mention in self.mentions(self.told)}
        self.unknown = {name for name, _ in self.forms.values()
                        if name not in self.count and name not in self.absent | self.told_names}
        self.told_counts = {(number.value, word) for number in find_numbers(self.told)
                            for word in words_after(self.told, number.end)}

    def mentions(self, text: str) -> list[Mention]:
        """Of classes, in a text in lower case."""
        return [Mention(*match.span(), *self.forms[match[0].replace("-", " ")])
                for match in self.pattern.finditer(text)]

    def numbers(self, text: str) -> list["Number"]:
        """Those of a text, without those in the name of a class (boeing 737)."""
        inside = [range(mention.start, mention.end) for mention in self.mentions(text)]
        return [number for number in find_numbers(text)
                if not any(number.start in place for place in inside)]

    def mention_after(self, text: str, place: int, words: int = 3) -> Mention | None:
        """The first within so many words, with no group between."""
        for mention in self.mentions(text[place:]):
            between = text[place:place + mention.start]
            if len(between.split()) < words and not re.search("[@,.;:]", between):
                return mention._replace(start=place + mention.start, end=place + mention.end)
        return None


def make_thing(number: int, name: str, box: Box, size: tuple[int, int]) -> Thing:
    box = normalize_box(box, *size)
    x, y = ((box[i] + box[i + 2]) / 2 / size[i] * 100 for i in (0, 1))
    return Thing(number, name, box, encode_box(box, *size), x, y)


# ---- texts with boxes ----------------------------------------------------------------------------

ONE_BOX = r"\{<\d{1,3}><\d{1,3}><\d{1,3}><\d{1,3}>\}"
GROUP = re.compile(rf"(?:<p>([^<>{{}}\[\]@]{{1,200}})</p> ?)?"
                   rf"({ONE_BOX}(?: ?<delim> ?{ONE_BOX})*)", re.ASCII)


class Group(NamedTuple):
    phrase: str                     # in lower case; "" for a box alone
    things: tuple[Thing, ...]       # those that have its boxes


class Passage(NamedTuple):
    """A text in lower case, with @0@, @1@ .. in place of its groups."""
    text: str
    groups: list[Group]

    def sentences(self) -> list[str]:
        return [part for part in re.split(r"(?<=[.!?])\s+|\n+", self.text) if part.strip()]


def read_passage(truth: Truth, text: str, bare_boxes: bool = False) -> Passage:
    """Wrong: letters that no text has, or boxes that are not those of the phrases' objects."""
    strange = [letter for letter in text if letter == "@" or not (letter.isprintable()
               or letter == "\n") or (ord(letter) > 0x24f and letter.isalnum())
               or (letter.isnumeric() and letter not in "0123456789")]
    if strange or not text.strip():
        raise wrong("wrong form", f"{strange[0]!r} in a text" if strange else "an empty text")
    groups: list[Group] = []

    def take(match: re.Match) -> str:
        if match[1] is None and not bare_boxes:
            raise wrong("wrong box", f"{match[0]} without a <p>phrase</p>")
        groups.append(read_group(truth, (match[1] or "").lower(), match[2]))
        return f"@{len(groups) - 1}@"

    masked = GROUP.sub(take, text)
    if left := re.search(r"[<>{}\[\]]", masked):
        raise wrong("wrong box", f"{masked[left.start():left.start() + 40]!r} is not well formed")
    return Passage(masked.replace("\u2019", "'").lower(), groups)


def read_group(truth: Truth, phrase: str, boxes: str) -> Group:
    names = {mention.name for mention in truth.mentions(phrase)}
    if phrase and len(names) != 1:
        raise wrong("wrong class", f"<p>{phrase}</p> names {len(names) or 'no'} classes that were "
                                   "looked for, not one")
    things: list[Thing] = []
    for box in re.findall(ONE_BOX, boxes):
        corners = list(map(int, re.findall("[0-9]+", box)))
        if max(corners) > 100:
            raise wrong("wrong box", f"{box} is outside the picture")
        if corners[0] > corners[2] or corners[1] > corners[3]:
            raise wrong("wrong box", f"{box} has its corners in the wrong order")
        found = [thing for thing in truth.things if thing.text == box and thing not in things]
        if not found:
            twice = any(thing.text == box for thing in things)
            raise wrong("wrong box", f"{box} {'twice' if twice else 'is the box of no object'}")
        right = [thing for thing in found if not phrase or thing.name in names]
        if not right:
            raise wrong("wrong class", f"<p>{phrase}</p> {box}, which is a {found[0].name}")
        things.append(right[0])
    return Group(phrase, tuple(things))


# ---- numbers in a text ---------------------------------------------------------------------------

NUMBER_WORDS = {word: value for value, word in enumerate(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen".split())}
TENS = {word: 10 * value for value, word in enumerate(
    "twenty thirty forty fifty sixty seventy eighty ninety".split(), start=2)}
NUMBER = re.compile(
    r"(?<![\w@])(?:(?P<digits>\d[\d,]*(?:\.\d+)?)(?![\d@])|(?P<ten>" + "|".join(TENS)
    + r")(?:[- ](?P<unit>" + "|".join(list(NUMBER_WORDS)[1:10]) + r"))?\b|(?P<word>"
    + "|".join(NUMBER_WORDS) + r")\b|(?P<dozen>a dozen)\b|(?P<other>dozen|hundred|thousand)\b)")
SMALL_WORDS = {"are", "is", "in", "on", "of", "with", "and", "at", "the", "a", "by", "near"}


class Number(NamedTuple):
    start: int
    end: int
    value: float


def find_numbers(text: str) -> Iterator[Number]:
    for match in NUMBER.finditer(text):
        if match["digits"]:
            value = float(match["digits"].replace(",", ""))
        elif match["ten"]:
            value = TENS[match["ten"]] + NUMBER_WORDS.get(match["unit"] or "zero", 0)
        else:
            value = NUMBER_WORDS.get(match["word"] or "", 12 if match["dozen"] else -1)
        yield Number(*match.span(), value)


def words_after(text: str, place: int) -> list[str]:
    """The next two that mean something."""
    words = re.findall("[a-z]+", text[place:place + 60])[:2]
    return [word for word in words if word not in SMALL_WORDS]
