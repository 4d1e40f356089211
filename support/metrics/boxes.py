"""support/metrics/boxes.py"""
import math
from collections.abc import Sequence

import numpy as np

from data import PHRASE, encode_box, parse_boxes
from support.common import Box
from support.metrics.statistics import (
    Options,
    Score,
    count_score,
    normalize,
    ratio_score,
    safe_divide,
)

# ---- overlap -------------------------------------------------------------------------------------
# Intersection over union, as it is usual and as MiniGPT-v2's evaluation has it.

# (pixels added to each side; whether IoU must be above a threshold, or may be equal to it). A box
# 4 pixels beside another of 10 has an IoU of 0.43 or, with the pixel, 0.47. Upstream's is
# https://github.com/Vision-CAIR/MiniGPT-4/blob/081fb02/minigpt4/common/eval_utils.py
CONVENTIONS = {"standard": (0, False), "upstream": (1, True)}


def chosen_conventions(options: Options) -> list[tuple[str, int, bool]]:
    """-> [(what the names of its figures end in, extra pixels, strict)]; KeyError: unknown."""
    names = tuple(CONVENTIONS) if options.convention == "both" else (options.convention,)
    return [(" upstream" if name == "upstream" else "", *CONVENTIONS[name]) for name in names]


def overlap(a: np.ndarray | Box, b: np.ndarray | Box, extra: int = 0
            ) -> tuple[np.ndarray, np.ndarray]:
    """Boxes float[.., 4] -> intersection and union, float[..]."""
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]) + extra
    inter = np.maximum(sides, 0).prod(axis=-1)
    areas = [(box[..., 2:] - box[..., :2] + extra).prod(axis=-1) for box in (a, b)]
    return inter, areas[0] + areas[1] - inter


def iou(a: np.ndarray | Box, b: np.ndarray | Box, extra: int = 0) -> np.ndarray:
    """0 where both boxes are points or lines."""
    return np.nan_to_num(safe_divide(*overlap(a, b, extra)))


def meets_threshold(values: np.ndarray, at: float, strict: bool) -> np.ndarray:
    return values > at if strict else values >= at


# ---- truth ---------------------------------------------------------------------------------------
# The boxes of a row: those that its answer names, and the true ones.

def boxes_in(text: str, row: dict) -> list[tuple[str, Box]]:
    """-> (phrase, box in pixels) each, "" where there is no phrase."""
    return parse_boxes(text, *row["size"], row.get("corner", False), row.get("pad", False))


def true_boxes(row: dict) -> list[tuple[str, Box]]:
    """The same of the truth; read from the reference where the data have boxes as text."""
    text = row["references"][0] if row["references"] else ""
    if not row["boxes"]:
        return boxes_in(text, row)
    texts = text.split("<bbox>")
    phrases = [PHRASE.findall("".join(texts[:i + 1])) or [""] for i in range(len(texts) - 1)]
    names = [found[-1].strip() for found in phrases] + [""] * len(row["boxes"])
    return list(zip(names, row["boxes"], strict=False))


def unparseable(row: dict) -> bool:
    return not boxes_in(row["answer"], row)


def grid_ceiling(rows: Sequence[dict]) -> Score:
    """The part of the true boxes that a perfect model can hit: hundredths are coarse for small
    things, so a box written as text and read again may miss itself."""
    hits = [[survives_grid(box, row) for _, box in true_boxes(row)] for row in rows]
    return ratio_score("grid ceiling", [sum(marks) for marks in hits], [len(marks) for marks in hits])


def survives_grid(box: Box, row: dict) -> bool:
    """Whether a true box, written and read, is still itself."""
    text = encode_box(box, *row["size"], row.get("pad", False))
    return bool(iou(boxes_in(text, row)[0][1], box) >= 0.5)


# ---- grounding -----------------------------------------------------------------------------------
# One box an answer: how often it is where the expression points, and how much it overlaps.

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)


def first_boxes(rows: Sequence[dict], extra: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Intersection and union of each answer's first box with the first true one, and whether there
    is a true one: float[rows] each. An answer without a box overlaps nothing."""
    nothing = (0.0, 0.0, 0.0, 0.0)
    found = [boxes_in(row["answer"], row) for row in rows]
    true = [true_boxes(row) for row in rows]
    said = np.array([boxes[0][1] if boxes else nothing for boxes in found])
    meant = np.array([boxes[0][1] if boxes else nothing for boxes in true], dtype=float)
    inter, union = overlap(said, meant, extra)
    blank = np.array([not boxes for boxes in found])
    asked = np.array([bool(boxes) for boxes in true], dtype=float)
    alone = (meant[:, 2:] - meant[:, :2] + extra).prod(axis=-1)             # the true box's area
    return np.where(blank, 0, inter) * asked, np.where(blank, alone, union) * asked, asked


def convention_scores(rows: Sequence[dict], end: str, extra: int, strict: bool) -> list[Score]:
    inter, union, asked = first_boxes(rows, extra)
    ious = np.nan_to_num(safe_divide(inter, union))
    n = int(asked.sum())
    return [*(ratio_score(f"Pr@{at}{end}", meets_threshold(ious, at, strict), asked, n) for at in THRESHOLDS),
            ratio_score(f"mean IoU{end}", ious, asked, n), ratio_score(f"cumulative IoU{end}", inter, union, n)]


def score_first_boxes(rows: Sequence[dict], options: Options) -> list[Score]:
    """Pr@0.5 .. 0.9, mean IoU, and cumulative IoU: all intersections over all unions."""
    found = [score for convention in chosen_conventions(options)
             for score in convention_scores(rows, *convention)]
    return [*found, grid_ceiling(rows), count_score("unparseable", [unparseable(row) for row in rows])]


# ---- phrases -------------------------------------------------------------------------------------
# Several boxes an answer, matched one to one with the true ones: detection and grounding.

PhraseBoxes = list[tuple[str, tuple[float, float, float, float]]]        # (phrase, box) each


def match_boxes(found: PhraseBoxes, true: PhraseBoxes, at: float = 0.5, extra: int = 0, strict: bool = False,
          named: bool = False) -> list[tuple[int, int]]:
    """Which found box is which true one, each used once, best pairs first; with `named` only
    where the phrases are the same."""
    if not found or not true:
        return []
    ious = iou(*np.broadcast_arrays(np.array([box for _, box in found])[:, None],
                                    np.array([box for _, box in true])[None]), extra)   # [F, T]
    left, right, pairs = set(), set(), []
    for flat in np.argsort(-ious, axis=None, kind="stable"):
        i, j = divmod(int(flat), len(true))
        if not meets_threshold(ious[i, j], at, strict):
            break
        if i in left or j in right or named and normalize(found[i][0]) != normalize(true[j][0]):
            continue
        left.add(i)
        right.add(j)
        pairs.append((i, j))
    return pairs


def precision_recall_f1(sums: np.ndarray) -> np.ndarray:
    """Hits, found, true float[.., 3] -> precision, recall and F1, 0 where there is nothing."""
    hits, found, true = np.moveaxis(sums, -1, 0)
    return np.stack([hits / np.maximum(found, 1), hits / np.maximum(true, 1),
                     2 * hits / np.maximum(found + true, 1)], axis=-1)


def matching_score(rows: Sequence[dict], start: str, end: str, extra: int, strict: bool) -> Score:
    pairs = [(boxes_in(row["answer"], row), true_boxes(row)) for row in rows]
    stats = [(len(match_boxes(found, true, 0.5, extra, strict, bool(start))), len(found), len(true))
             for found, true in pairs]
    names = tuple(f"{start}{name}@0.5{end}" for name in ("precision", "recall", "F1"))
    return Score(names, np.array(stats, dtype=float), precision_recall_f1)


def score_all_boxes(rows: Sequence[dict], options: Options) -> list[Score]:
    """Boxes wherever they are named; where an answer names what is in each, also by phrase."""
    starts = ("", "phrase ") if any(row["task"] == "grounding" for row in rows) else ("",)
    return [*(matching_score(rows, start, *convention) for start in starts
              for convention in chosen_conventions(options)),
            grid_ceiling(rows), count_score("unparseable", [unparseable(row) for row in rows])]


# ---- sizes ---------------------------------------------------------------------------------------
# How many boxes are found, by the size of the object.

# Sides of a square of the object's area, as parts of the picture's: COCO's 32 and 96 pixels in a
# picture of 640 x 640. Not pixels themselves, as the model sees every picture at one size.
SIZES = {"small (side < 5 %)": 0.05, "medium (< 15 %)": 0.15, "large": math.inf}


def size_class(box: Box, width: int, height: int) -> str:
    """A key of SIZES."""
    x1, y1, x2, y2 = box
    side = math.sqrt(abs((x2 - x1) * (y2 - y1)) / (width * height))
    return next(name for name, top in SIZES.items() if side < top)


def recall_by_size(rows: Sequence[dict]) -> list[Score]:
    """Of the true boxes of a size, the part that is found at IoU 0.5: Pr@0.5 where an expression
    has one box, recall where there are several."""
    stats = {name: np.zeros((len(rows), 2)) for name in SIZES}             # found, all
    for i, row in enumerate(rows):
        boxes = boxes_in(row["answer"], row), true_boxes(row)
        found, true = (side[:1] for side in boxes) if row["task"] == "refer" else boxes
        met = {j for _, j in match_boxes(found, true)}
        for j, (_, box) in enumerate(true):
            stats[size_class(box, *row["size"])][i] += (j in met, 1)
    return [ratio_score(name, *own.T, int(own[:, 1].sum())) for name, own in stats.items() if own.any()]
