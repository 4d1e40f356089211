"""Accuracy of short answers: to questions, of scene classes, of what is in a box.

Also the candidate answers from which `eval.py --rank` chooses the most likely one.
"""
import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from support.metrics.captions import score_captions
from support.metrics.statistics import (
    Score,
    ScoringOptions,
    empty_answers,
    mean_score,
    normalize,
    safe_divide,
)
from support.readers.common import Sample
from support.readers.questions import listed_classes

# ---- accuracy ------------------------------------------------------------------------------------

UNTYPED = "untyped"                     # questions that have no type


def score_vqa(rows: Sequence[dict], options: ScoringOptions) -> list[Score]:
    """Accuracy of each type, the plain mean over types (the papers' average), and of all rows."""
    types = sorted({row["type"] or UNTYPED for row in rows})
    column = np.array([types.index(row["type"] or UNTYPED) for row in rows])
    one_hot = np.eye(len(types))[column]                                    # [rows, K]
    n = one_hot.sum(axis=0).astype(int)
    averaged = np.array([not options.types or name in options.types for name in types])

    def compute(sums: np.ndarray) -> np.ndarray:
        correct, total = np.split(sums, 2, axis=-1)                         # [.., K]
        accuracy, counted = safe_divide(correct, total), averaged & (total > 0)
        mean = safe_divide(np.where(counted, accuracy, 0).sum(-1), counted.sum(-1))
        overall = safe_divide(correct.sum(-1), total.sum(-1))
        return np.concatenate([accuracy, mean[..., None], overall[..., None]], axis=-1)

    stats = np.concatenate([one_hot * is_correct(rows, options)[:, None], one_hot], axis=1)
    return [Score((*types, "mean of types", "overall"), stats, compute,
                  n=(*n.tolist(), int(n[averaged].sum()), len(rows))), empty_answers(rows)]


def score_scene(rows: Sequence[dict], options: ScoringOptions) -> list[Score]:
    return [mean_score("accuracy", is_correct(rows, options)), empty_answers(rows)]


def score_identify(rows: Sequence[dict], options: ScoringOptions) -> list[Score]:
    """What is in the box: whether it is exactly the phrase, and its scores as a caption."""
    return [mean_score("accuracy", is_correct(rows, options)), *score_captions(rows, options)]


def is_correct(rows: Sequence[dict], options: ScoringOptions) -> np.ndarray:
    """float[rows], 1 where the answer is the true one; an empty answer never is."""
    pairs = [answer_and_truth(row, options) for row in rows]
    return np.array([answer == truth != "" for answer, truth in pairs], dtype=float)


def answer_and_truth(row: dict, options: ScoringOptions) -> tuple[str, str]:
    """Both as they are compared."""
    answer, truth = row["answer"], row["references"][0]
    if options.normalize and row["task"] in ("vqa", "conversation"):
        answer, truth = vqa_normalize(answer), vqa_normalize(truth)
    if options.count_ranges:
        answer, truth = to_count_range(answer), to_count_range(truth)
    return normalize(answer), normalize(truth)


# ---- answers as the VQA v2 evaluation compares them ----------------------------------------------

# Its rules (https://visualqa.org/evaluation.html): lower case; no full stop but a decimal point; of
# these characters those beside a blank are removed, others become a blank; number words to ten are
# digits; no articles; contractions have their apostrophe.
VQA_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
THOUSANDS = re.compile(r"\d,\d")
FULL_STOP = re.compile(r"\.(?!\d)")
NUMBER_WORDS = {"none": "0"} | {word: str(number) for number, word in enumerate(
    "zero one two three four five six seven eight nine ten".split())}
ARTICLES = ("a", "an", "the")
CONTRACTIONS = {word.replace("'", ""): word for word in """
ain't aren't can't couldn't didn't doesn't don't hadn't hasn't haven't isn't mightn't mustn't
needn't oughtn't shan't shouldn't wasn't weren't won't wouldn't could've might've must've should've
they've we've what've who've would've you've i've i'm they're what're you're who're he's she's
that's there's what's where's who's how's when's why's somebody's someone's something's how'd that'd
there'd they'd what'd who'd why'd you'd it'd somebody'd someone'd something'd how'll it'll that'll
there'll they'll what'll who'll why'll you'll let's ma'am o'clock y'all""".split()}


def vqa_normalize(text: str) -> str:
    """Compare "Two cars." and "2 cars", "the road" and "road", "dont know" and "don't know"."""
    text = " ".join(text.lower().split())
    joined = THOUSANDS.search(text) is not None
    cleaned = text
    for mark in VQA_PUNCTUATION:
        beside_blank = mark + " " in text or " " + mark in text
        cleaned = cleaned.replace(mark, "" if joined or beside_blank else " ")
    words = [NUMBER_WORDS.get(word, word) for word in FULL_STOP.sub("", cleaned).split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


# ---- ranges of counts ----------------------------------------------------------------------------

# RSVQA's answers are classes, so it puts numbers into ranges: Lobry et al. 2020, and
# https://github.com/syvlo/RSVQA/blob/34ae7c3/VQA_model/VocabEncoder.py
COUNT_RANGES = ("0", "between 1 and 10", "between 11 and 100", "between 101 and 1000",
                "more than 1000")
RANGE_MAXIMA = (0, 10, 100, 1000)       # of all ranges but the last
COUNT_OR_RANGE = re.compile(
    r"(?:between \d+ ?(?:m2)? and |(?P<more>more than ))?(?P<number>\d{1,18}) ?(?P<unit>m2)?")


def to_count_range(text: str) -> str:
    """A count, an area in m2, or a range of either -> its range; any other text unchanged."""
    match = COUNT_OR_RANGE.fullmatch(normalize(text))
    if not match:
        return text
    number = int(match["number"])
    if match["more"]:
        number += 1                     # the smallest number in "more than 1000"
    return COUNT_RANGES[bisect_left(RANGE_MAXIMA, number)] + (match["unit"] or "")


# ---- candidates ----------------------------------------------------------------------------------

def answer_candidates(samples: Iterable[Sample]) -> dict[tuple[str, str], tuple[str, ...]]:
    """{(task, type): the texts that may be the answer}, from all samples of a split.

    For scenes these are the classes that a question lists, or else all classes of the split; for a
    type of question its answers, where there are just two of them (yes and no; rural and urban).
    Questions of other types have no candidates and are answered in free text.
    """
    answers = defaultdict(set)
    for sample in samples:
        [(question, answer), *_] = sample.turns
        if sample.task == "scene":
            answers[sample.task, sample.kind] |= {answer, *listed_classes(question)}
        elif sample.task == "vqa":
            answers[sample.task, sample.kind].add(normalize(answer))
    return {key: tuple(sorted(texts)) for key, texts in answers.items()
            if len(texts) == 2 or key[0] == "scene"}
