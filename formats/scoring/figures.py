"""The figures of a task, each with its 95 % interval: what eval.py prints and writes.

    figures("vqa", rows) -> {"presence": Figure(value=0.91, low=0.90, high=0.92, n=2955), ..}

A row is a line of predictions.jsonl. Of it are used: image, answer, references, and for boxes
also boxes, size, pad, corner; for questions also type.
"""
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from formats.scoring import answers, captions, grounding, phrases
from formats.scoring.bootstrap import intervals
from formats.scoring.score import Options, Score


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


DEFAULT = Options()
SCORES: dict[str, Callable[[Sequence[dict], Options], list[Score]]] = {
    "caption": captions.scores, "video": captions.scores, "vqa": answers.vqa,
    "scene": answers.scene, "identify": answers.identify, "refer": grounding.scores,
    "detection": phrases.scores, "grounding": phrases.scores}


def known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def figures(task: str, rows: Sequence[dict], options: Options = DEFAULT) -> dict[str, Figure]:
    """The task's figures in the order to print; none of no rows. KeyError: an unknown task."""
    return measured(SCORES[task](rows, options), rows, options) if rows else {}


def measured(scores: Sequence[Score], rows: Sequence[dict], options: Options) -> dict[str, Figure]:
    ends = intervals(scores, [tuple(row["image"]) for row in rows], options.samples, options.seed)
    return {name: Figure(known(value), known(low), known(high), n, score.count, score.note)
            for score, pairs in zip(scores, ends, strict=True)
            for name, value, (low, high), n in zip(
                score.names, score.value(score.stats.sum(axis=0)), pairs,
                score.n or [len(rows)] * len(score.names), strict=True)}
