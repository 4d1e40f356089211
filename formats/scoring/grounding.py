"""One box an answer: how often it is where the expression points, and how much it overlaps."""
from collections.abc import Sequence

import numpy as np

from formats.scoring.overlap import conventions, overlap, reaches
from formats.scoring.score import Options, Score, count, ratio, share
from formats.scoring.truth import boxes_in, grid_ceiling, true_boxes, unparseable

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
    ious = np.nan_to_num(share(inter, union))
    n = int(asked.sum())
    return [*(ratio(f"Pr@{at}{end}", reaches(ious, at, strict), asked, n) for at in THRESHOLDS),
            ratio(f"mean IoU{end}", ious, asked, n), ratio(f"cumulative IoU{end}", inter, union, n)]


def scores(rows: Sequence[dict], options: Options) -> list[Score]:
    """Pr@0.5 .. 0.9, mean IoU, and cumulative IoU: all intersections over all unions."""
    found = [score for convention in conventions(options)
             for score in convention_scores(rows, *convention)]
    return [*found, grid_ceiling(rows), count("unparseable", [unparseable(row) for row in rows])]
