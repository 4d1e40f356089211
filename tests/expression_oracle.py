"""What expressions and questions about boxes mean, written down once more and independently of
support/building: the plain meaning of the words, by centers and areas, without any margin.
"""
import re

from support.common import ABSENT
from talk_oracle import forms

ORDINALS = {"second": 1, "third": 2, "fourth": 3}
NEAR_TEXT = 0.0052              # how far a box may be that was read from hundredths


def center(box):
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def area(box):
    return (box[2] - box[0]) * (box[3] - box[1])


def distance(a, b):
    (x1, y1), (x2, y2) = center(a), center(b)
    return ((x1 - x2) ** 2 + (y1 - y2) ** 2) ** 0.5


def cell(box, size):
    """top left, .. of the box's center."""
    x, y = center(box)
    row = ("top", "center", "bottom")[min(int(3 * y / size[1]), 2)]
    column = ("left", "center", "right")[min(int(3 * x / size[0]), 2)]
    return row if row == column else f"{row} {column}"


SIDES = {"left of": lambda a, b: center(a)[0] < center(b)[0],
         "right of": lambda a, b: center(a)[0] > center(b)[0],
         "above": lambda a, b: center(a)[1] < center(b)[1],
         "below": lambda a, b: center(a)[1] > center(b)[1]}


def first(boxes, key):
    """The boxes with the smallest key."""
    return [box for box in boxes if key(box) == min(map(key, boxes))]


KEYS = {"leftmost": lambda box: center(box)[0], "rightmost": lambda box: -center(box)[0],
        "largest": lambda box: -area(box), "smallest": area}
ENDS = {"left": lambda box: center(box)[0], "right": lambda box: -center(box)[0],
        "top": lambda box: center(box)[1], "bottom": lambda box: -center(box)[1]}


def boxes_of(name, things):
    """Of the class that has this name, in singular or plural."""
    return next((boxes for own, boxes in things.items() if name in forms(own)), [])


def denoted(expression, things, size):
    """things: {class: boxes} -> the boxes that the expression may stand for."""
    def of(name):
        return boxes_of(name, things)

    if match := re.fullmatch("the (leftmost|rightmost|largest|smallest) (.+)", expression):
        return first(of(match[2]), KEYS[match[1]])
    if match := re.fullmatch("the (.+) at the (top|bottom)", expression):
        return first(of(match[1]), ENDS[match[2]])
    if match := re.fullmatch("the (second|third|fourth) (.+) from the (left|right|top|bottom)",
                             expression):
        return [sorted(of(match[2]), key=ENDS[match[3]])[ORDINALS[match[1]]]]
    if match := re.fullmatch("the (.+) in the ((top|center|bottom)( left| center| right)?)",
                             expression):
        return [box for box in of(match[1]) if cell(box, size) == match[2]]
    if match := re.fullmatch("the (.+) (left of|right of|above|below) the (.+)", expression):
        [other] = of(match[3])
        return [box for box in of(match[1]) if SIDES[match[2]](box, other)]
    if match := re.fullmatch("the (.+) nearest to the (.+)", expression):
        [other] = of(match[2])
        return first(of(match[1]), lambda box: distance(box, other))
    return of(expression.removeprefix("the "))


def true_answer(question, things, size):
    """Of a question of support/building; None where it is of another kind."""
    number = {form: len(boxes) for name, boxes in things.items() for form in forms(name)}
    patterns = {
        r"is there an? (.+) \?|are there any (.+) \?|is an? (.+) present in the image \?": "there",
        r"how many (.+) are there \?|what is the number of (.+) \?": "count",
        r"are there (more|fewer) (.+) than (.+) \?": "comp",
        r"is (the .+) (left of|right of|above|below) (the .+) \?": "relation"}
    for pattern, kind in patterns.items():
        match = re.fullmatch(pattern, question)
        if not match:
            continue
        words = [group for group in match.groups() if group]
        if kind == "there":
            return "yes" if number.get(words[0], 0) else "no"
        if kind == "count":
            return str(number.get(words[0], 0))
        if kind == "comp":
            more, less = number.get(words[1], 0), number.get(words[2], 0)
            return "yes" if (more > less if words[0] == "more" else more < less) else "no"
        [one], [other] = (denoted(words[i], things, size) for i in (0, 2))
        return "yes" if SIDES[words[1]](one, other) else "no"
    return None


def fault_of(task, question, answer, boxes, things, size, near=1e-6):
    """What is wrong with a single sample; "" if it is true. boxes: of its answer or question."""
    if task == "vqa":
        true = true_answer(question, things, size)
        return "" if true == answer else f"the answer is {true}"
    if answer == ABSENT:
        there = boxes_of(question.removeprefix("the "), things)
        return f"{len(there)} are there" if there else ""
    if task == "refer":
        found = denoted(question, things, size)
        return "" if len(found) == 1 and same(found, boxes, near) else f"it may be one of {found}"
    if task == "detection":
        right = same(boxes_of(question, things), boxes, near)
        return "" if right else "not all boxes of the class"
    found = denoted(answer, things, size)           # of identify: a class, or an expression
    alone = not answer.startswith("the ") or len(found) == 1
    right = alone and any(same([box], boxes, near) for box in found)
    return "" if right else f"it names {found}"


def same(some, others, near=1e-6):
    """Whether these are the same boxes, up to so much a side."""
    left = list(others)
    for one in some:
        far = [max(abs(a - b) for a, b in zip(one, other, strict=True)) for other in left]
        if not far or min(far) > near:
            return False
        left.pop(far.index(min(far)))
    return not left
