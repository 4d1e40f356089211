"""Accuracy of short answers: to questions, of scenes, of what is in a box."""
import re
from collections.abc import Sequence

import numpy as np

from formats.scoring import captions
from formats.scoring.score import Options, Score, empty, mean, plain, share

# RSVQA's answers are classes, so numbers are put in ranges: Lobry et al. 2020, and
# https://github.com/syvlo/RSVQA/blob/34ae7c3/VQA_model/VocabEncoder.py
RANGES = ("0", "between 1 and 10", "between 11 and 100", "between 101 and 1000", "more than 1000")
NUMBER = re.compile(r"(?:between \d+ ?(?:m2)? and |(more than ))?(\d{1,18}) ?(m2)?")


def in_range(text: str) -> str:
    """A count, an area in m2, or a range of either -> its range; any other text as it is."""
    match = NUMBER.fullmatch(plain(text))
    if not match:
        return text
    number = int(match[2]) + bool(match[1])
    return RANGES[sum(number > top for top in (0, 10, 100, 1000))] + (match[3] or "")


def compared(row: dict, options: Options) -> tuple[str, str]:
    put = in_range if options.count_ranges else str
    return plain(put(row["answer"])), plain(put(row["references"][0]))


def right(rows: Sequence[dict], options: Options) -> np.ndarray:
    return np.array([answer == truth != "" for answer, truth in
                     (compared(row, options) for row in rows)], dtype=float)


def vqa(rows: Sequence[dict], options: Options) -> list[Score]:
    """Each type's accuracy, their plain mean (the papers' average), and that of all rows."""
    kinds = sorted({row["type"] or "untyped" for row in rows})
    column = np.array([kinds.index(row["type"] or "untyped") for row in rows])
    asked = np.eye(len(kinds))[column]                                      # [rows, K]
    n = asked.sum(axis=0).astype(int)
    chosen = np.array([not options.types or kind in options.types for kind in kinds])

    def value(sums: np.ndarray) -> np.ndarray:
        hits, n = np.split(sums, 2, axis=-1)                                # [.., K]
        parts, there = share(hits, n), chosen & (n > 0)
        average = share(np.where(there, parts, 0).sum(-1), there.sum(-1))
        return np.stack([*np.moveaxis(parts, -1, 0), average, share(hits.sum(-1), n.sum(-1))], -1)

    stats = np.concatenate([asked * right(rows, options)[:, None], asked], axis=1)
    return [Score((*kinds, "mean of types", "overall"), stats, value,
                  (*n.tolist(), int(n[chosen].sum()), len(rows))), empty(rows)]


def scene(rows: Sequence[dict], options: Options) -> list[Score]:
    return [mean("accuracy", right(rows, options)), empty(rows)]


def identify(rows: Sequence[dict], options: Options) -> list[Score]:
    """What is in the box: scored as a caption, and whether it is the very phrase."""
    return [mean("accuracy", right(rows, options)), *captions.scores(rows, options)]
