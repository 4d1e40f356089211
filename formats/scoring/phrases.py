"""Several boxes an answer, matched one to one with the true ones: detection and grounding."""
from collections.abc import Sequence

import numpy as np

from formats.scoring.answers import plain
from formats.scoring.overlap import conventions, iou, reaches
from formats.scoring.score import Options, Score, count
from formats.scoring.truth import boxes_in, grid_ceiling, true_boxes, unparseable

Boxes = list[tuple[str, tuple[float, float, float, float]]]        # (phrase, box) each


def match(found: Boxes, true: Boxes, at: float = 0.5, extra: int = 0, strict: bool = False,
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
        if not reaches(ious[i, j], at, strict):
            break
        if i in left or j in right or named and plain(found[i][0]) != plain(true[j][0]):
            continue
        left.add(i)
        right.add(j)
        pairs.append((i, j))
    return pairs


def value(sums: np.ndarray) -> np.ndarray:
    """Hits, found, true float[.., 3] -> precision, recall and F1, 0 where there is nothing."""
    hits, found, true = np.moveaxis(sums, -1, 0)
    return np.stack([hits / np.maximum(found, 1), hits / np.maximum(true, 1),
                     2 * hits / np.maximum(found + true, 1)], axis=-1)


def matched(rows: Sequence[dict], start: str, end: str, extra: int, strict: bool) -> Score:
    pairs = [(boxes_in(row["answer"], row), true_boxes(row)) for row in rows]
    stats = [(len(match(found, true, 0.5, extra, strict, bool(start))), len(found), len(true))
             for found, true in pairs]
    names = tuple(f"{start}{name}@0.5{end}" for name in ("precision", "recall", "F1"))
    return Score(names, np.array(stats, dtype=float), value)


def scores(rows: Sequence[dict], options: Options) -> list[Score]:
    """Boxes wherever they are named; where an answer names what is in each, also by phrase."""
    starts = ("", "phrase ") if any(row["task"] == "grounding" for row in rows) else ("",)
    return [*(matched(rows, start, *convention) for start in starts
              for convention in conventions(options)),
            grid_ceiling(rows), count("unparseable", [unparseable(row) for row in rows])]
