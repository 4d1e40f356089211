"""support/metrics/statistics.py"""
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np

# ---- score ---------------------------------------------------------------------------------------
# A figure is a function of sums over rows, so that one bootstrap serves them all.

@dataclass(frozen=True)
class Options:
    convention: str = "both"            # of IoU: "standard", "upstream" or "both"
    count_ranges: bool = False          # counts and areas in RSVQA's ranges
    types: tuple[str, ...] = ()         # in the mean of types; none: all there are
    java: bool = True                   # METEOR and SPICE where they are installed
    samples: int = 1000                 # draws of the bootstrap; 0: no intervals
    seed: int = 0


@dataclass(frozen=True)
class Score:
    """Figures that share their statistics: value(sums float[.., k]) -> float[.., len(names)]."""
    names: tuple[str, ...]
    stats: np.ndarray                                   # float[rows, k]
    value: Callable[[np.ndarray], np.ndarray]
    n: tuple[int, ...] = ()                             # rows behind each figure; none: all
    count: bool = False                                 # a number of rows, not a fraction
    note: str = ""                                      # why there is no figure


def safe_divide(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, not a number where there is nothing."""
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0)


def ratio_score(name: str, part: Sequence[float], whole: Sequence[float], n: int = 0) -> Score:
    """The sum of `part` over the sum of `whole`."""
    return Score((name,), np.stack([part, whole], axis=1).astype(float),
                 lambda sums: safe_divide(sums[..., :1], sums[..., 1:]), n=(n,) if n else ())


def mean_score(name: str, values: Sequence[float]) -> Score:
    return ratio_score(name, values, np.ones(len(values)))


def count_score(name: str, marks: Sequence[bool]) -> Score:
    return Score((name,), np.array(marks, dtype=float)[:, None], lambda sums: sums, count=True)


def missing_score(name: str, rows: int, note: str) -> Score:
    return Score((name,), np.zeros((rows, 0)),
                 lambda sums: np.full((*sums.shape[:-1], 1), np.nan), note=note)


def normalize(text: str) -> str:
    """What is compared of an answer: lower case, no spaces and full stops around it."""
    return text.lower().strip(" .\n\t")


def empty_answers(rows: Sequence[dict]) -> Score:
    """How many answers say nothing; they are wrong."""
    return count_score("empty", [not normalize(row["answer"]) for row in rows])


# ---- bootstrap -----------------------------------------------------------------------------------
# 95 % bootstrap intervals.
#
# Pictures are drawn with replacement, each with all of its rows: the questions about one picture are
# not independent, so drawing rows would make the interval too narrow (Efron and Tibshirani 1993,
# chapters 8 and 13).

BOOTSTRAP_CHUNK = 2 ** 21             # weights held at a time: 16 MB


def resample_sums(stats: np.ndarray, groups: Sequence[Hashable], samples: int, seed: int) -> np.ndarray:
    """The sums over `samples` draws of as many groups as there are -> float[samples, k]."""
    number = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    sums, rng = np.zeros((len(number), stats.shape[1])), np.random.default_rng(seed)
    np.add.at(sums, [number[group] for group in groups], stats)             # [G, k]
    totals, step = [np.zeros((0, stats.shape[1]))], max(1, BOOTSTRAP_CHUNK // len(number))
    for start in range(0, samples, step):
        size = (min(step, samples - start), len(number))
        drawn = rng.integers(size[1], size=size) + size[1] * np.arange(size[0])[:, None]
        weights = np.bincount(drawn.ravel(), minlength=size[0] * size[1])
        totals.append(weights.reshape(size).astype(float) @ sums)           # [draws, k]
    return np.concatenate(totals)


def percentile_interval(values: np.ndarray) -> np.ndarray:
    """2.5 and 97.5 % of the draws in which there was something to count. Not a number where a
    fifth had nothing: one picture alone is missing in 25 to 37 % of the draws, two in 14 % or less.
    """
    there = values[~np.isnan(values)]
    enough = len(there) > 0.8 * len(values)
    return np.percentile(there, (2.5, 97.5)) if enough else np.full(2, np.nan)


def intervals(scores: Sequence[Score], groups: Sequence[Hashable], samples: int = 1000,
              seed: int = 0) -> list[np.ndarray]:
    """Of each score float[figures, 2], low and high, all on the same draws; not a number where
    there is one group alone."""
    samples = samples if len(set(groups)) > 1 else 0
    sums = resample_sums(np.concatenate([score.stats for score in scores], axis=1), groups, samples,
                     seed)
    ends = np.cumsum([score.stats.shape[1] for score in scores])[:-1]
    return [np.array([percentile_interval(values) for values in score.value(part).T])
            for score, part in zip(scores, np.split(sums, ends, axis=1), strict=True)]


def interval(score: Score, groups: Sequence[Hashable], samples: int = 1000, seed: int = 0
             ) -> tuple[float, float]:
    """Of a score with one figure."""
    low, high = intervals([score], groups, samples, seed)[0][0]
    return float(low), float(high)
