"""Scores as functions of sums over rows, and their 95 % bootstrap intervals.

Every figure of an evaluation, an accuracy as well as BLEU or cumulative IoU, is computed from sums
of numbers that each row contributes. So one bootstrap serves them all: it resamples the sums.

Pictures are drawn with replacement, each with all of its rows: the questions about one picture are
not independent, so drawing single rows would make the interval too narrow (Efron and Tibshirani
1993, chapters 8 and 13).
"""
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np

# ---- scores --------------------------------------------------------------------------------------

@dataclass(frozen=True)
class ScoringOptions:
    convention: str = "both"            # of IoU: a key of boxes.CONVENTIONS, "both" or "all"
    normalize: bool = False             # compare answers to questions as the VQA v2 evaluation does
    count_ranges: bool = False          # compare counts and areas in RSVQA's ranges
    types: tuple[str, ...] = ()         # question types in their mean; empty: all of them
    java: bool = True                   # METEOR and SPICE, where they are installed
    samples: int = 1000                 # bootstrap draws; 0: no intervals
    seed: int = 0


@dataclass(frozen=True)
class Score:
    """One or more figures that are computed from the same statistics of each row."""
    names: tuple[str, ...]
    stats: np.ndarray                                   # float[rows, K]
    compute: Callable[[np.ndarray], np.ndarray]         # sums float[.., K] -> float[.., names]
    n: tuple[int, ...] = ()                             # rows behind each figure; empty: all rows
    count: bool = False                                 # a number of rows, not a fraction
    note: str = ""                                      # why there is no figure

    def values(self) -> np.ndarray:
        """The figures of all rows, float[names]."""
        return self.compute(self.stats.sum(axis=0))


def ratio_score(name: str, numerator: Sequence[float], denominator: Sequence[float], n: int = 0
                ) -> Score:
    """The sum of one over the sum of the other; n: rows behind it, where these are not all."""
    return Score((name,), np.stack([numerator, denominator], axis=1).astype(float),
                 lambda sums: safe_divide(sums[..., :1], sums[..., 1:]), n=(n,) if n else ())


def mean_score(name: str, values: Sequence[float]) -> Score:
    return ratio_score(name, values, np.ones(len(values)))


def count_score(name: str, flags: Sequence[bool]) -> Score:
    """How many rows have the flag."""
    return Score((name,), np.array(flags, dtype=float)[:, None], lambda sums: sums, count=True)


def missing_score(name: str, rows: int, note: str) -> Score:
    """A figure that cannot be computed here; note: why."""
    return Score((name,), np.zeros((rows, 0)),
                 lambda sums: np.full((*sums.shape[:-1], 1), np.nan), note=note)


def empty_answers(rows: Sequence[dict]) -> Score:
    """How many answers are empty; they count as wrong."""
    return count_score("empty", [not normalize(row["answer"]) for row in rows])


def normalize(text: str) -> str:
    """An answer as it is compared: lower case, without spaces and periods around it."""
    return text.lower().strip(" .\n\t")


def safe_divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """NaN where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.full(np.shape(denominator), np.nan),
                     where=denominator > 0)


# ---- intervals -----------------------------------------------------------------------------------

BOOTSTRAP_CHUNK = 2 ** 21             # weights in memory at a time: 16 MB
INTERVAL = (2.5, 97.5)                # percentiles
MIN_DEFINED = 0.8                     # fraction of the draws in which the figure must be defined


def intervals(scores: Sequence[Score], clusters: Sequence[Hashable], samples: int = 1000,
              seed: int = 0) -> list[np.ndarray]:
    """The low and high bound of each score's figures, float[figures, 2], all from the same draws.

    clusters: the picture of each row. NaN where all rows are about one picture.
    """
    if len(set(clusters)) < 2:
        samples = 0
    stats = np.concatenate([score.stats for score in scores], axis=1)
    sums = resample_sums(stats, clusters, samples, seed)                    # [samples, all K]
    starts = np.cumsum([score.stats.shape[1] for score in scores])[:-1]
    return [np.array([percentile_interval(values) for values in score.compute(own).T])
            for score, own in zip(scores, np.split(sums, starts, axis=1), strict=True)]


def interval(score: Score, clusters: Sequence[Hashable], samples: int = 1000, seed: int = 0
             ) -> tuple[float, float]:
    """The low and high bound of a score that has one figure."""
    low, high = intervals([score], clusters, samples, seed)[0][0]
    return float(low), float(high)


def resample_sums(stats: np.ndarray, clusters: Sequence[Hashable], samples: int, seed: int
                  ) -> np.ndarray:
    """Sums of the rows' stats float[rows, K] over bootstrap draws -> float[samples, K].

    A draw has as many clusters as there are, with replacement, each with all of its rows.
    """
    index = {cluster: i for i, cluster in enumerate(dict.fromkeys(clusters))}
    size, rng = len(index), np.random.default_rng(seed)
    sums = np.zeros((size, stats.shape[1]))
    np.add.at(sums, [index[cluster] for cluster in clusters], stats)        # [size, K]
    totals, chunk = [np.zeros((0, stats.shape[1]))], max(1, BOOTSTRAP_CHUNK // size)
    for start in range(0, samples, chunk):
        draws = min(chunk, samples - start)
        drawn = rng.integers(size, size=(draws, size))
        drawn += size * np.arange(draws)[:, None]       # bins of its own for each draw
        weights = np.bincount(drawn.ravel(), minlength=draws * size).reshape(draws, size)
        totals.append(weights.astype(float) @ sums)                         # [draws, K]
    return np.concatenate(totals)


def percentile_interval(values: np.ndarray) -> np.ndarray:
    """The 2.5th and 97.5th percentile of the draws in which the figure is defined.

    NaN where it is undefined in a fifth of them: a figure that rests on one picture alone is
    undefined in 25 to 37 % of the draws, on two in 14 % or less.
    """
    defined = values[~np.isnan(values)]
    if len(defined) <= MIN_DEFINED * len(values):
        return np.full(2, np.nan)
    return np.percentile(defined, INTERVAL)
