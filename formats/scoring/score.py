"""A figure is a function of sums over rows, so that one bootstrap serves them all."""
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


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


def share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, not a number where there is nothing."""
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0)


def ratio(name: str, part: Sequence[float], whole: Sequence[float], n: int = 0) -> Score:
    """The sum of `part` over the sum of `whole`."""
    return Score((name,), np.stack([part, whole], axis=1).astype(float),
                 lambda sums: share(sums[..., :1], sums[..., 1:]), n=(n,) if n else ())


def mean(name: str, values: Sequence[float]) -> Score:
    return ratio(name, values, np.ones(len(values)))


def count(name: str, marks: Sequence[bool]) -> Score:
    return Score((name,), np.array(marks, dtype=float)[:, None], lambda sums: sums, count=True)


def missing(name: str, rows: int, note: str) -> Score:
    return Score((name,), np.zeros((rows, 0)),
                 lambda sums: np.full((*sums.shape[:-1], 1), np.nan), note=note)


def plain(text: str) -> str:
    """What is compared of an answer: lower case, no spaces and full stops around it."""
    return text.lower().strip(" .\n\t")


def empty(rows: Sequence[dict]) -> Score:
    """How many answers say nothing; they are wrong."""
    return count("empty", [not plain(row["answer"]) for row in rows])
