"""What `--rank` chooses from: classes, and the two answers of a type of questions."""
from collections import defaultdict
from collections.abc import Iterable

from formats.class_folder import QUESTION

BEFORE, AFTER = QUESTION.split("{}")


def choices(samples: Iterable) -> dict[tuple[str, str], tuple[str, ...]]:
    """{(task, type): the texts}, from all of a split: the classes that a question lists, else those
    that there are; and what questions of a type are answered with, where that is one of two words
    (yes and no; rural and urban). Other questions are not in it: they are answered in words."""
    said = defaultdict(set)
    for sample in samples:
        [(question, answer), *_] = sample.turns
        if sample.task == "scene":
            said[sample.task, sample.kind] |= {answer, *listed(question)}
        elif sample.task == "vqa":
            said[sample.task, sample.kind].add(answer.lower().strip(" ."))
    return {key: tuple(sorted(texts)) for key, texts in said.items()
            if len(texts) == 2 or key[0] == "scene"}


def listed(question: str) -> list[str]:
    """The classes in the paper's question."""
    if not (question.startswith(BEFORE) and question.endswith(AFTER)):
        return []
    return question.removeprefix(BEFORE).removesuffix(AFTER).split(", ")
