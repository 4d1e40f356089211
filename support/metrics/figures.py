"""support/metrics/figures.py"""
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from support.metrics.answers import answer_and_truth, score_identify, score_scene, score_vqa
from support.metrics.boxes import (
    boxes_in,
    first_boxes,
    match_boxes,
    recall_by_size,
    score_all_boxes,
    score_first_boxes,
    true_boxes,
)
from support.metrics.captions import ptb_tokenize, rouge_l_items, score_captions
from support.metrics.statistics import Options, Score, intervals, ratio_score, safe_divide

# ---- figures -------------------------------------------------------------------------------------
# The figures of a task, each with its 95 % interval: what eval.py prints and writes.
#
#     figures("vqa", rows) -> {"presence": Figure(value=0.91, low=0.90, high=0.92, n=2955), ..}
#
# A row is a line of predictions.jsonl. Of it are used: image, answer, references, and for boxes
# also boxes, size, pad, corner; for questions also type.

@dataclass(frozen=True)
class Figure:
    """value None: it could not be had, and `note` says why. low and high None: no interval, as
    one picture has none."""
    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0                          # rows
    count: bool = False                 # a number of rows, not a fraction
    note: str = ""


DEFAULT_OPTIONS = Options()


TASK_SCORES: dict[str, Callable[[Sequence[dict], Options], list[Score]]] = {
    "caption": score_captions, "video": score_captions, "vqa": score_vqa,
    "scene": score_scene, "identify": score_identify, "refer": score_first_boxes,
    "detection": score_all_boxes, "grounding": score_all_boxes}


def none_if_nan(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def task_figures(task: str, rows: Sequence[dict], options: Options = DEFAULT_OPTIONS) -> dict[str, Figure]:
    """The task's figures in the order to print; none of no rows. KeyError: an unknown task."""
    return with_intervals(TASK_SCORES[task](rows, options), rows, options) if rows else {}


def with_intervals(scores: Sequence[Score], rows: Sequence[dict], options: Options) -> dict[str, Figure]:
    ends = intervals(scores, [tuple(row["image"]) for row in rows], options.samples, options.seed)
    return {name: Figure(none_if_nan(value), none_if_nan(low), none_if_nan(high), n, score.count, score.note)
            for score, pairs in zip(scores, ends, strict=True)
            for name, value, (low, high), n in zip(
                score.names, score.value(score.stats.sum(axis=0)), pairs,
                score.n or [len(rows)] * len(score.names), strict=True)}


# ---- badness -------------------------------------------------------------------------------------
# How wrong each answer is, 0 (right) to 1, to find those that are worth looking at.

def error_score(row: dict, options: Options) -> float:
    """Of a caption what lacks to a ROUGE-L of 1, of a box to an IoU of 1, of boxes to an F1 of 1;
    of another answer whether it is wrong."""
    if row["task"] in ("caption", "video"):
        refs = [ptb_tokenize(text) for text in row["references"]]
        return max(0.0, 1 - rouge_l_items([ptb_tokenize(row["answer"])], [refs])[0])
    if row["task"] == "refer":
        inter, union, _ = first_boxes([row], 0)
        return 1 - float(np.nan_to_num(safe_divide(inter, union))[0])
    if row["task"] in ("detection", "grounding"):
        found, true = boxes_in(row["answer"], row), true_boxes(row)
        return 1 - 2 * len(match_boxes(found, true)) / max(1, len(found) + len(true))
    answer, truth = answer_and_truth(row, options)
    return float(answer != truth)


# ---- classes -------------------------------------------------------------------------------------
# Beside the table: accuracy by class, the commonest confusions, grounding by the object's size.

MAX_CLASSES, MAX_CONFUSIONS = 100, 20           # the most frequent ones


def accuracy_by_class(rows: Sequence[dict], options: Options) -> list[Score]:
    """Accuracy of the rows whose truth is the class; a question's is "type: truth"."""
    pairs = [answer_and_truth(row, options) for row in rows]
    names = np.array([f"{row['type']}: {truth}" if row["type"] else truth
                      for row, (_, truth) in zip(rows, pairs, strict=True)])
    right = np.array([answer == truth != "" for answer, truth in pairs])
    return [ratio_score(name, right & (names == name), names == name, number)
            for name, number in Counter(names.tolist()).most_common(MAX_CLASSES)]


def most_confused(rows: Sequence[dict], options: Options) -> list[dict]:
    """Wrong answers, each with the truth in whose place it stands."""
    pairs = [answer_and_truth(row, options) for row in rows]
    wrong = Counter((truth, answer[:80]) for answer, truth in pairs if answer != truth)
    return [{"truth": pair[0], "answer": pair[1], "count": number}
            for pair, number in wrong.most_common(MAX_CONFUSIONS)]


def task_details(task: str, rows: Sequence[dict], options: Options = DEFAULT_OPTIONS) -> dict:
    """{"classes": {name: a Figure's fields}, "confusions": [{truth, answer, count}]}, of boxes
    {"sizes": {name: a Figure's fields}}, of captions {}."""
    named, boxes = ("vqa", "scene", "identify"), ("refer", "detection", "grounding")
    if not rows or task not in named + boxes:
        return {}
    scores = accuracy_by_class(rows, options) if task in named else recall_by_size(rows)
    found = {name: asdict(figure) for name, figure in with_intervals(scores, rows, options).items()}
    return {"sizes": found} if task in boxes else {"classes": found,
                                                   "confusions": most_confused(rows, options)}
