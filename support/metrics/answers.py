"""support/metrics/answers.py"""
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from support.metrics.captions import score_captions
from support.metrics.statistics import (
    Options,
    Score,
    empty_answers,
    mean_score,
    normalize,
    safe_divide,
)
from support.readers.questions import CLASS_QUESTION

# ---- answers -------------------------------------------------------------------------------------
# Accuracy of short answers: to questions, of scenes, of what is in a box.

# RSVQA's answers are classes, so numbers are put in ranges: Lobry et al. 2020, and
# https://github.com/syvlo/RSVQA/blob/34ae7c3/VQA_model/VocabEncoder.py
COUNT_RANGES = ("0", "between 1 and 10", "between 11 and 100", "between 101 and 1000", "more than 1000")


COUNT_OR_RANGE = re.compile(r"(?:between \d+ ?(?:m2)? and |(more than ))?(\d{1,18}) ?(m2)?")


def to_count_range(text: str) -> str:
    """A count, an area in m2, or a range of either -> its range; any other text as it is."""
    match = COUNT_OR_RANGE.fullmatch(normalize(text))
    if not match:
        return text
    number = int(match[2]) + bool(match[1])
    return COUNT_RANGES[sum(number > top for top in (0, 10, 100, 1000))] + (match[3] or "")


def answer_and_truth(row: dict, options: Options) -> tuple[str, str]:
    put = to_count_range if options.count_ranges else str
    return normalize(put(row["answer"])), normalize(put(row["references"][0]))


def is_right(rows: Sequence[dict], options: Options) -> np.ndarray:
    return np.array([answer == truth != "" for answer, truth in
                     (answer_and_truth(row, options) for row in rows)], dtype=float)


def score_vqa(rows: Sequence[dict], options: Options) -> list[Score]:
    """Each type's accuracy, their plain mean (the papers' average), and that of all rows."""
    kinds = sorted({row["type"] or "untyped" for row in rows})
    column = np.array([kinds.index(row["type"] or "untyped") for row in rows])
    asked = np.eye(len(kinds))[column]                                      # [rows, K]
    n = asked.sum(axis=0).astype(int)
    chosen = np.array([not options.types or kind in options.types for kind in kinds])

    def value(sums: np.ndarray) -> np.ndarray:
        hits, n = np.split(sums, 2, axis=-1)                                # [.., K]
        parts, there = safe_divide(hits, n), chosen & (n > 0)
        average = safe_divide(np.where(there, parts, 0).sum(-1), there.sum(-1))
        return np.stack([*np.moveaxis(parts, -1, 0), average, safe_divide(hits.sum(-1), n.sum(-1))], -1)

    stats = np.concatenate([asked * is_right(rows, options)[:, None], asked], axis=1)
    return [Score((*kinds, "mean of types", "overall"), stats, value,
                  (*n.tolist(), int(n[chosen].sum()), len(rows))), empty_answers(rows)]


def score_scene(rows: Sequence[dict], options: Options) -> list[Score]:
    return [mean_score("accuracy", is_right(rows, options)), empty_answers(rows)]


def score_identify(rows: Sequence[dict], options: Options) -> list[Score]:
    """What is in the box: scored as a caption, and whether it is the very phrase."""
    return [mean_score("accuracy", is_right(rows, options)), *score_captions(rows, options)]


# ---- choices -------------------------------------------------------------------------------------
# What `--rank` chooses from: classes, and the two answers of a type of questions.

BEFORE, AFTER = CLASS_QUESTION.split("{}")


def answer_candidates(samples: Iterable) -> dict[tuple[str, str], tuple[str, ...]]:
    """{(task, type): the texts}, from all of a split: the classes that a question lists, else those
    that there are; and what questions of a type are answered with, where that is one of two words
    (yes and no; rural and urban). Other questions are not in it: they are answered in words."""
    said = defaultdict(set)
    for sample in samples:
        [(question, answer), *_] = sample.turns
        if sample.task == "scene":
            said[sample.task, sample.kind] |= {answer, *listed_classes(question)}
        elif sample.task == "vqa":
            said[sample.task, sample.kind].add(answer.lower().strip(" ."))
    return {key: tuple(sorted(texts)) for key, texts in said.items()
            if len(texts) == 2 or key[0] == "scene"}


def listed_classes(question: str) -> list[str]:
    """The classes in the paper's question."""
    if not (question.startswith(BEFORE) and question.endswith(AFTER)):
        return []
    return question.removeprefix(BEFORE).removesuffix(AFTER).split(", ")
