"""Scores of the turns of conversations, whose answers may be anything: sentences, words, boxes.

What is measured depends on the truth of a turn:

    no box              exact match
    .. a sentence       BLEU, ROUGE-L and CIDEr too
    .. "there is none"  how often the answer has a box all the same, too
    one box             Pr@0.5 and mean IoU of the answer's first box
    any boxes           F1@0.5, each box matched once

Every figure is there for each kind of turn, `[vqa]: exact match`, and for all of them,
`total: exact match`. A row is a line of predictions.jsonl; its type is the kind: an identifier, or
what the data call it.
"""
from collections.abc import Sequence

import numpy as np

from support.metrics.answers import vqa_normalize
from support.metrics.boxes import (
    chosen_conventions,
    false_boxes,
    grounding_scores,
    has_true_box,
    matching_score,
    true_boxes,
    unparseable,
)
from support.metrics.captions import caption_metrics
from support.metrics.statistics import (
    Score,
    ScoringOptions,
    empty_answers,
    mean_score,
    normalize,
)

TOTAL, UNNAMED = "total", "no identifier"       # the kind of all rows, and of those without a type
MIN_SENTENCE = 4                                # words; what has fewer has no 4-gram


def answer_form(row: dict) -> str:
    """What the truth of a row is: "words", "sentence", "box" or "boxes"."""
    truth = row["references"][0] if row["references"] else ""
    if has_true_box(row["boxes"], truth):
        return "box" if len(true_boxes(row)) == 1 else "boxes"
    return "sentence" if len(truth.split()) >= MIN_SENTENCE else "words"


def matches_exactly(row: dict, options: ScoringOptions) -> bool:
    """Whether the answer is one of the true ones, without case and outer periods, or as
    options.normalize compares; an empty one never is."""
    compared = vqa_normalize if options.normalize else normalize
    answer = normalize(compared(row["answer"]))
    return answer != "" and answer in [normalize(compared(text)) for text in row["references"]]


def score_conversation(rows: Sequence[dict], options: ScoringOptions) -> list[Score]:
    """The figures of each kind, in the order in which the kinds come, then of all rows."""
    forms = np.array([answer_form(row) for row in rows])
    kinds = np.array([row["type"] or UNNAMED for row in rows])
    scores = []
    for kind in (*dict.fromkeys(kinds.tolist()), TOTAL):
        own = (kinds == kind) | (kind == TOTAL)
        free = np.flatnonzero(own & np.isin(forms, ("words", "sentence")))
        boxed = np.flatnonzero(own & np.isin(forms, ("box", "boxes")))
        for numbers, measure in ((free, free_scores), (boxed, box_scores),
                                 (np.flatnonzero(own & (forms == "sentence")), sentence_scores),
                                 (np.flatnonzero(own & (forms == "box")), one_box_scores)):
            if len(numbers):
                scores += [of_a_part(score, kind, numbers, len(rows))
                           for score in measure([rows[i] for i in numbers], options)]
    return [*scores, empty_answers(rows)]


def free_scores(rows: Sequence[dict], options: ScoringOptions) -> list[Score]:
    return [mean_score("exact match", [matches_exactly(row, options) for row in rows]),
            *false_boxes(rows)]


def sentence_scores(rows: Sequence[dict], options: ScoringOptions) -> list[Score]:
    return caption_metrics([row["answer"] for row in rows], [row["references"] for row in rows])


def one_box_scores(rows: Sequence[dict], options: ScoringOptions) -> list[Score]:
    return grounding_scores(rows, chosen_conventions(options)[0])


def box_scores(rows: Sequence[dict], options: ScoringOptions) -> list[Score]:
    convention = chosen_conventions(options)[0]
    return [matching_score(rows, convention, by_phrase=False), unparseable(rows)]


def of_a_part(score: Score, kind: str, numbers: np.ndarray, rows: int) -> Score:
    """A score of the rows with these numbers, as one of all rows; NaN where none of them is drawn.
    """
    stats = np.zeros((rows, 1 + score.stats.shape[1]))
    stats[numbers, 0], stats[numbers, 1:] = 1, score.stats

    def compute(sums: np.ndarray) -> np.ndarray:
        return np.where(sums[..., :1] > 0, score.compute(sums[..., 1:]), np.nan)

    return Score(tuple(f"{kind}: {name}" for name in score.names), stats, compute,
                 score.n or (len(numbers),) * len(score.names), score.count, score.note)
