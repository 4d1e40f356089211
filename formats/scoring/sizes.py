"""How many boxes are found, by the size of the object."""
import math
from collections.abc import Sequence

import numpy as np

from formats.boxes import Box
from formats.scoring.phrases import match
from formats.scoring.score import Score, ratio
from formats.scoring.truth import boxes_in, true_boxes

# Sides of a square of the object's area, as parts of the picture's: COCO's 32 and 96 pixels in a
# picture of 640 x 640. Not pixels themselves, as the model sees every picture at one size.
SIZES = {"small (side < 5 %)": 0.05, "medium (< 15 %)": 0.15, "large": math.inf}


def size_of(box: Box, width: int, height: int) -> str:
    """A key of SIZES."""
    x1, y1, x2, y2 = box
    side = math.sqrt(abs((x2 - x1) * (y2 - y1)) / (width * height))
    return next(name for name, top in SIZES.items() if side < top)


def by_size(rows: Sequence[dict]) -> list[Score]:
    """Of the true boxes of a size, the part that is found at IoU 0.5: Pr@0.5 where an expression
    has one box, recall where there are several."""
    stats = {name: np.zeros((len(rows), 2)) for name in SIZES}             # found, all
    for i, row in enumerate(rows):
        boxes = boxes_in(row["answer"], row), true_boxes(row)
        found, true = (side[:1] for side in boxes) if row["task"] == "refer" else boxes
        met = {j for _, j in match(found, true)}
        for j, (_, box) in enumerate(true):
            stats[size_of(box, *row["size"])][i] += (j in met, 1)
    return [ratio(name, *own.T, int(own[:, 1].sum())) for name, own in stats.items() if own.any()]
