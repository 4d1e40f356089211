"""The figures of a task, each with its 95 % interval: what eval.py prints and writes.

    task_figures("vqa", rows) -> {"presence": Figure(value=0.91, low=0.90, high=0.92, n=2955), ..}

A row is a line of predictions.jsonl. Of it are used image, answer and references, for boxes also
boxes, size, pad and corner, for questions also type.
"""
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from support.metrics.answers import answer_and_truth, score_identify, score_scene, score_vqa
from support.metrics.boxes import (
    LOCATED_TASKS,
    first_boxes,
    is_absent,
    match_boxes,
    predicted_boxes,
    recall_by_size,
    score_all_boxes,
    score_first_boxes,
    true_boxes,
)
from support.metrics.captions import ptb_tokenize, rouge_l_items, score_captions
from support.metrics.conversations import answer_form, matches_exactly, score_conversation
from support.metrics.statistics import (
    Score,
    ScoringOptions,
    intervals,
    ratio_score,
    safe_divide,
)

CAPTION_TASKS = ("caption", "video")
ANSWER_TASKS = ("vqa", "scene", "identify")             # scored by accuracy
DEFAULT_OPTIONS = ScoringOptions()

TASK_SCORES: dict[str, Callable[[Sequence[dict], ScoringOptions], list[Score]]] = {
    "caption": score_captions, "video": score_captions, "vqa": score_vqa,
    "scene": score_scene, "identify": score_identify, "refer": score_first_boxes,
    "detection": score_all_boxes, "grounding": score_all_boxes,
    "conversation": score_conversation}


@dataclass(frozen=True)
class Figure:
    """A number with its 95 % interval. value None: it could not be computed, `note` has the reason;
    low and high None: there is no interval, as for one picture."""
    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0                          # rows
    count: bool = False                 # a number of rows, not a fraction
    note: str = ""


def task_figures(task: str, rows: Sequence[dict], options: ScoringOptions = DEFAULT_OPTIONS
                 ) -> dict[str, Figure]:
    """The task's figures in the order to print; none of no rows. KeyError: an unknown task."""
    return with_intervals(TASK_SCORES[task](rows, options), rows, options) if rows else {}


def with_intervals(scores: Sequence[Score], rows: Sequence[dict], options: ScoringOptions
                   ) -> dict[str, Figure]:
    pictures = [tuple(row["image"]) for row in rows]
    figures: dict[str, Figure] = {}
    if not scores:
        return figures
    all_bounds = intervals(scores, pictures, options.samples, options.seed)
    for score, bounds in zip(scores, all_bounds, strict=True):
        counts = score.n or [len(rows)] * len(score.names)
        for name, value, (low, high), n in zip(score.names, score.values(), bounds, counts,
                                               strict=True):
            figures[name] = Figure(none_if_nan(value), none_if_nan(low), none_if_nan(high), n,
                                   score.count, score.note)
    return figures


def none_if_nan(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


# ---- one answer ----------------------------------------------------------------------------------

FORM_TASKS = {"sentence": "caption", "box": "refer", "boxes": "detection"}


def error_score(row: dict, options: ScoringOptions) -> float:
    """How wrong an answer is, from 0 (right) to 1, to find those that are worth looking at.

    1 - ROUGE-L of a caption, 1 - IoU of a box, 1 - F1 of several boxes; of any other answer 0 or 1.
    """
    if row["task"] == "conversation":
        form = answer_form(row)
        if form == "words":
            return float(not matches_exactly(row, options))
        return error_score(row | {"task": FORM_TASKS[form]}, options)
    if row["task"] in CAPTION_TASKS:
        refs = [ptb_tokenize(text) for text in row["references"]]
        return max(0.0, 1 - rouge_l_items([ptb_tokenize(row["answer"])], [refs])[0])
    if row["task"] in LOCATED_TASKS and is_absent(row):
        return float(bool(predicted_boxes(row)))
    if row["task"] == "refer":
        inter, union, _ = first_boxes([row])
        return 1 - float(np.nan_to_num(safe_divide(inter, union))[0])
    if row["task"] in LOCATED_TASKS:
        predicted, true = predicted_boxes(row), true_boxes(row)
        return 1 - 2 * len(match_boxes(predicted, true)) / max(1, len(predicted) + len(true))
    answer, truth = answer_and_truth(row, options)
    return float(answer != truth)


# ---- details -------------------------------------------------------------------------------------

MAX_CLASSES = 100                       # the most frequent ones
MAX_CONFUSIONS = 20
MAX_ANSWER_LENGTH = 80                  # characters of an answer that is listed


def task_details(task: str, rows: Sequence[dict], options: ScoringOptions = DEFAULT_OPTIONS
                 ) -> dict:
    """What is printed below a task's table, and stored in metrics.json.

    Of short answers {"classes": {name: a Figure's fields}, "confusions": [{truth, answer, count}]},
    of boxes {"sizes": {name: a Figure's fields}}, of conversations the confusions of short answers,
    of captions {}.
    """
    def figures(scores: list[Score]) -> dict[str, dict]:
        return {name: asdict(figure)
                for name, figure in with_intervals(scores, rows, options).items()}

    if rows and task in ANSWER_TASKS:
        return {"classes": figures(accuracy_by_class(rows, options)),
                "confusions": most_confused(rows, options)}
    if rows and task in LOCATED_TASKS:
        return {"sizes": figures(recall_by_size(rows))}
    if rows and task == "conversation":
        short = [row for row in rows if answer_form(row) == "words"]
        return {"confusions": most_confused(short, options)}
    return {}


def accuracy_by_class(rows: Sequence[dict], options: ScoringOptions) -> list[Score]:
    """Accuracy of the rows whose truth is the class; the class of a question is "type: truth"."""
    pairs = [answer_and_truth(row, options) for row in rows]
    names = np.array([f"{row['type']}: {truth}" if row["type"] else truth
                      for row, (_, truth) in zip(rows, pairs, strict=True)])
    correct = np.array([answer == truth != "" for answer, truth in pairs])
    return [ratio_score(name, correct & (names == name), names == name, n)
            for name, n in Counter(names.tolist()).most_common(MAX_CLASSES)]


def most_confused(rows: Sequence[dict], options: ScoringOptions) -> list[dict]:
    """Wrong answers, each with the truth that it replaces, the most frequent first."""
    pairs = [answer_and_truth(row, options) for row in rows]
    wrong = Counter((truth, answer[:MAX_ANSWER_LENGTH]) for answer, truth in pairs
                    if answer != truth)
    return [{"truth": truth, "answer": answer, "count": n}
            for (truth, answer), n in wrong.most_common(MAX_CONFUSIONS)]
