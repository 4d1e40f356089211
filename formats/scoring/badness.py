"""How wrong each answer is, 0 (right) to 1, to find those that are worth looking at."""
import numpy as np

from formats.scoring.answers import compared
from formats.scoring.grounding import first_boxes
from formats.scoring.phrases import match
from formats.scoring.ptb import ptb_tokenize
from formats.scoring.rouge import rouge_l_items
from formats.scoring.score import Options, share
from formats.scoring.truth import boxes_in, true_boxes


def badness(row: dict, options: Options) -> float:
    """Of a caption what lacks to a ROUGE-L of 1, of a box to an IoU of 1, of boxes to an F1 of 1;
    of another answer whether it is wrong."""
    if row["task"] in ("caption", "video"):
        refs = [ptb_tokenize(text) for text in row["references"]]
        return max(0.0, 1 - rouge_l_items([ptb_tokenize(row["answer"])], [refs])[0])
    if row["task"] == "refer":
        inter, union, _ = first_boxes([row], 0)
        return 1 - float(np.nan_to_num(share(inter, union))[0])
    if row["task"] in ("detection", "grounding"):
        found, true = boxes_in(row["answer"], row), true_boxes(row)
        return 1 - 2 * len(match(found, true)) / max(1, len(found) + len(true))
    answer, truth = compared(row, options)
    return float(answer != truth)
