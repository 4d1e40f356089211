"""Scores of boxes: one in an answer (refer), or several (detection, grounding).

A row is a line of predictions.jsonl. Its true boxes are in pixels; those of its answer are read
from the text, in the picture of `size` pixels. True boxes with their corners in another order, or
partly outside the picture, count sorted and cut off at its edge. `corner` reads a box number as
upstream does, `pad` means that the model got the picture padded to a square.
"""
import math
import re
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from data import encode_box, find_boxes, normalize_box, parse_boxes, phrases_before
from support.common import ABSENT, Box
from support.metrics.statistics import (
    Score,
    ScoringOptions,
    count_score,
    normalize,
    ratio_score,
    safe_divide,
)

LOCATED_TASKS = ("refer", "detection", "grounding")     # tasks that are scored by boxes


# ---- intersection over union ---------------------------------------------------------------------

class Convention(NamedTuple):
    """How IoU is computed and compared with a threshold."""
    suffix: str                 # what the names of its figures end in
    extra: int                  # pixels added to each side
    strict: bool                # IoU must be above a threshold, not equal to it
    as_upstream: bool = False   # the answer is read as upstream reads it, see upstream_box

    def meets(self, ious: np.ndarray, threshold: float) -> np.ndarray:
        return ious > threshold if self.strict else ious >= threshold


# Upstream counts a pixel more on each side: a box 4 pixels beside another of 10 has an IoU of 0.43,
# upstream of 0.47. https://github.com/Vision-CAIR/MiniGPT-4/blob/081fb02/minigpt4/common/eval_utils.py
STANDARD = Convention("", 0, strict=False)
CONVENTIONS = {
    "standard": STANDARD, "upstream": Convention(" upstream", 1, strict=True),
    "upstream_reading": Convention(" upstream, read as upstream", 1, strict=True, as_upstream=True)}


def chosen_conventions(options: ScoringOptions) -> list[Convention]:
    """"both" is the standard one and upstream's with our reading of answers. KeyError on an unknown
    name."""
    if options.convention == "all":
        return list(CONVENTIONS.values())
    names = ("standard", "upstream") if options.convention == "both" else (options.convention,)
    return [CONVENTIONS[name] for name in names]


def overlap(a: np.ndarray | Box, b: np.ndarray | Box, extra: int = 0
            ) -> tuple[np.ndarray, np.ndarray]:
    """Boxes float[.., 4] -> areas of intersection and union, float[..]."""
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]) + extra
    inter = np.maximum(sides, 0).prod(axis=-1)
    return inter, area(a, extra) + area(b, extra) - inter


def area(boxes: np.ndarray, extra: int = 0) -> np.ndarray:
    return (boxes[..., 2:] - boxes[..., :2] + extra).prod(axis=-1)


def iou(a: np.ndarray | Box, b: np.ndarray | Box, extra: int = 0) -> np.ndarray:
    """0 where both boxes are points or lines."""
    return np.nan_to_num(safe_divide(*overlap(a, b, extra)))


# ---- the boxes of a row --------------------------------------------------------------------------

PhraseBoxes = list[tuple[str, Box]]         # (phrase, box in pixels) each; "" where none is given


def predicted_boxes(row: dict) -> PhraseBoxes:
    return boxes_in(row["answer"], row)


def true_boxes(row: dict) -> PhraseBoxes:
    """Those of the data; where it holds boxes as text, they are read from the reference.

    A box's phrase is the last <p>..</p> before its <bbox>. ValueError: a box is not in the picture.
    """
    text = row["references"][0] if row["references"] else ""
    if not row["boxes"]:
        return boxes_in(text, row)
    texts = text.split("<bbox>")
    names = phrases_before("".join(texts), accumulate(map(len, texts[:-1])))
    names += [""] * len(row["boxes"])
    boxes = [normalize_box(box, *row["size"]) for box in row["boxes"]]
    return list(zip(names, boxes, strict=False))


def has_true_box(boxes: Sequence[Box], text: str = "") -> bool:
    """Whether there is something to score boxes against: boxes, or some written in the truth."""
    return bool(boxes or find_boxes(text))


def is_absent(row: dict) -> bool:
    """Whether the truth is that what was asked for is not in the picture."""
    return not row["boxes"] and row["references"] == [ABSENT]


UPSTREAM_ANSWER = re.compile(r"\{<(\d{1,3})><(\d{1,3})><(\d{1,3})><(\d{1,3})>\}", re.ASCII)


def upstream_box(row: dict) -> Box | None:
    """The box of a refer answer as upstream's evaluation reads it, in pixels; None: it has none.

    Without `<unk>` and blanks the answer must begin with a box. Its numbers are corners in
    hundredths of the sides, of three digits too; they are neither sorted nor cut off at the edge.
    """
    match = UPSTREAM_ANSWER.match(row["answer"].replace("<unk>", "").replace(" ", "").strip())
    if match is None:
        return None
    x1, y1, x2, y2 = map(int, match.groups())
    width, height = row["size"]
    return x1 / 100 * width, y1 / 100 * height, x2 / 100 * width, y2 / 100 * height


def boxes_in(text: str, row: dict) -> PhraseBoxes:
    return parse_boxes(text, *row["size"], row.get("corner", False), row.get("pad", False))


def unparseable(rows: Sequence[dict]) -> Score:
    """How many answers name no box where there is one."""
    return count_score("unparseable", [not is_absent(row) and not predicted_boxes(row)
                                       for row in rows])


def false_boxes(rows: Sequence[dict]) -> list[Score]:
    """The fraction of the rows about what is not in the picture that are answered with a box;
    [] where there are no such rows."""
    absent = [is_absent(row) for row in rows]
    boxed = [is_absent(row) and bool(predicted_boxes(row)) for row in rows]
    return [ratio_score("false boxes", boxed, absent, sum(absent))] if any(absent) else []


def grid_ceiling(rows: Sequence[dict]) -> Score:
    """The fraction of the true boxes that a perfect model can find.

    A hundredth of a picture is coarse for small objects, so a box that is written as text and read
    again may miss itself.
    """
    survivors = [[survives_grid(box, row) for _, box in true_boxes(row)] for row in rows]
    return ratio_score("grid ceiling", [sum(flags) for flags in survivors],
                       [len(flags) for flags in survivors])


def survives_grid(box: Box, row: dict) -> bool:
    """Whether a true box, written as text and read again, still has an IoU of 0.5 with itself."""
    text = encode_box(box, *row["size"], row.get("pad", False))
    return bool(iou(boxes_in(text, row)[0][1], box) >= 0.5)


# ---- one box an answer: refer --------------------------------------------------------------------

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
NO_BOX = (0.0, 0.0, 0.0, 0.0)


def score_first_boxes(rows: Sequence[dict], options: ScoringOptions) -> list[Score]:
    """Pr@0.5 .. 0.9, mean IoU, and cumulative IoU: all intersections over all unions."""
    scores = [score for convention in chosen_conventions(options)
              for score in grounding_scores(rows, convention)]
    return [*scores, *false_boxes(rows), grid_ceiling(rows), unparseable(rows)]


def grounding_scores(rows: Sequence[dict], convention: Convention) -> list[Score]:
    inter, union, has_truth = first_boxes(rows, convention)
    ious, n = np.nan_to_num(safe_divide(inter, union)), int(has_truth.sum())
    suffix = convention.suffix
    scores = []
    for threshold in THRESHOLDS:
        hits = convention.meets(ious, threshold)
        scores.append(ratio_score(f"Pr@{threshold}{suffix}", hits, has_truth, n))
    scores.append(ratio_score(f"mean IoU{suffix}", ious, has_truth, n))
    scores.append(ratio_score(f"cumulative IoU{suffix}", inter, union, n))
    return scores


def first_box(row: dict, convention: Convention) -> Box | None:
    """The box that a refer answer is scored by."""
    if convention.as_upstream:
        return upstream_box(row)
    return next((box for _, box in predicted_boxes(row)), None)


def first_boxes(rows: Sequence[dict], convention: Convention = STANDARD
                ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Intersection and union of each answer's first box with the first true one, and whether there
    is a true one: float[rows] each. An answer without a box overlaps nothing."""
    predicted = [first_box(row, convention) for row in rows]
    true = [true_boxes(row) for row in rows]
    first_predicted = np.array([box or NO_BOX for box in predicted])
    first_true = np.array([boxes[0][1] if boxes else NO_BOX for boxes in true], dtype=float)
    inter, union = overlap(first_predicted, first_true, convention.extra)
    missing = np.array([box is None for box in predicted])
    has_truth = np.array([bool(boxes) for boxes in true], dtype=float)
    inter = np.where(missing, 0, inter)
    union = np.where(missing, area(first_true, convention.extra), union)
    return inter * has_truth, union * has_truth, has_truth


# ---- several boxes an answer: detection, grounding -----------------------------------------------

def score_all_boxes(rows: Sequence[dict], options: ScoringOptions) -> list[Score]:
    """Precision, recall and F1 of all boxes; for grounding also of boxes with the same phrase.
    Rows about what is not in the picture have a figure of their own."""
    by_phrase = [False]
    if any(row["task"] == "grounding" for row in rows):
        by_phrase.append(True)
    # Upstream evaluates one box an answer only: its reading of an answer is none for several.
    conventions = list(dict.fromkeys(convention._replace(as_upstream=False, suffix=(
        convention.suffix.partition(",")[0])) for convention in chosen_conventions(options)))
    scores = [matching_score(rows, convention, phrase) for phrase in by_phrase
              for convention in conventions]
    return [*scores, *false_boxes(rows), grid_ceiling(rows), unparseable(rows)]


def matching_score(rows: Sequence[dict], convention: Convention, by_phrase: bool) -> Score:
    stats = []
    for row in rows:
        predicted, true = predicted_boxes(row), true_boxes(row)
        if is_absent(row):
            predicted = []
        matches = match_boxes(predicted, true, 0.5, convention, by_phrase)
        stats.append((len(matches), len(predicted), len(true)))
    prefix = "phrase " if by_phrase else ""
    names = (f"{prefix}{name}@0.5{convention.suffix}" for name in ("precision", "recall", "F1"))
    return Score(tuple(names), np.array(stats, dtype=float), precision_recall_f1)


def match_boxes(predicted: PhraseBoxes, true: PhraseBoxes, threshold: float = 0.5,
                convention: Convention = STANDARD, by_phrase: bool = False
                ) -> list[tuple[int, int]]:
    """Pairs (predicted, true), each box in one pair at most, highest IoU first.

    by_phrase: only boxes of the same phrase make a pair.
    """
    if not predicted or not true:
        return []
    a, b = (np.array([box for _, box in boxes]) for boxes in (predicted, true))
    ious = iou(*np.broadcast_arrays(a[:, None], b[None]), convention.extra)     # [predicted, true]
    used_predicted, used_true, pairs = set(), set(), []
    for flat in np.argsort(-ious, axis=None, kind="stable"):
        i, j = divmod(int(flat), len(true))
        if not convention.meets(ious[i, j], threshold):
            break
        if i in used_predicted or j in used_true:
            continue
        if by_phrase and normalize(predicted[i][0]) != normalize(true[j][0]):
            continue
        used_predicted.add(i)
        used_true.add(j)
        pairs.append((i, j))
    return pairs


def precision_recall_f1(sums: np.ndarray) -> np.ndarray:
    """Matches, predicted, true float[.., 3] -> precision, recall, F1; 0 where there is nothing."""
    matches, predicted, true = np.moveaxis(sums, -1, 0)
    return np.stack([matches / np.maximum(predicted, 1), matches / np.maximum(true, 1),
                     2 * matches / np.maximum(predicted + true, 1)], axis=-1)


# ---- by the size of the object -------------------------------------------------------------------

# Side of a square of the object's area, as a fraction of the picture's: COCO's 32 and 96 pixels in
# a picture of 640 x 640. Not in pixels, as the model gets every picture at one size.
SIZES = {"small (side < 5 %)": 0.05, "medium (< 15 %)": 0.15, "large": math.inf}


def recall_by_size(rows: Sequence[dict]) -> list[Score]:
    """The fraction of the true boxes of each size that is found at IoU 0.5.

    This is Pr@0.5 where an expression has one box, recall where it has several.
    """
    stats = {name: np.zeros((len(rows), 2)) for name in SIZES}             # found, all
    for i, row in enumerate(rows):
        predicted, true = predicted_boxes(row), true_boxes(row)
        if row["task"] == "refer":
            predicted, true = predicted[:1], true[:1]
        found = {j for _, j in match_boxes(predicted, true)}
        for j, (_, box) in enumerate(true):
            stats[size_class(box, *row["size"])][i] += (j in found, 1)
    return [ratio_score(name, *counts.T, n=int(counts[:, 1].sum()))
            for name, counts in stats.items() if counts.any()]


def size_class(box: Box, width: int, height: int) -> str:
    """A key of SIZES."""
    x1, y1, x2, y2 = box
    side = math.sqrt(abs((x2 - x1) * (y2 - y1)) / (width * height))
    return next(name for name, limit in SIZES.items() if side < limit)
