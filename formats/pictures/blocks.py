"""Rows of pixels that come piece by piece, [h, W, C], and their means over square blocks."""
from collections.abc import Iterable, Iterator

import numpy as np

from formats.pictures.stretch import without


def regroup(pieces: Iterable[np.ndarray], factor: int) -> Iterator[np.ndarray]:
    """The same rows in pieces of a multiple of `factor`, but for the last."""
    rest: list[np.ndarray] = []
    for piece in pieces:
        rest.append(piece)
        count = sum(map(len, rest))
        if count >= factor:
            rows = np.concatenate(rest) if len(rest) > 1 else piece
            yield rows[:count // factor * factor]
            rest = [rows[count // factor * factor:]]
    if rest and len(rows := np.concatenate(rest)):
        yield rows


def shrink(rows: np.ndarray, factor: int, nodata: float | None) -> np.ndarray:
    """[h, W, C] -> [h / factor, W / factor, C], rounded up: means of what has a value.

    uint8 stays uint8, the rest becomes float32 with NaN; of complex numbers the magnitude.
    """
    byte = rows.dtype == np.uint8
    if not byte:
        real = np.abs(rows) if rows.dtype.kind == "c" else rows
        rows = without(real.astype(np.float32), nodata)
    if factor == 1:
        return rows
    known = np.ones((*rows.shape[:2], 1)) if byte else np.isfinite(rows)
    total = sums(rows if byte else np.where(known, rows, 0), factor)
    with np.errstate(invalid="ignore"):         # 0 / 0: a block without a value is NaN
        mean = total / sums(known, factor)
    return mean.round().astype(np.uint8) if byte else mean


def sums(rows: np.ndarray, factor: int) -> np.ndarray:
    for _ in "yx":
        total = rows[::factor].astype(np.float32)
        for i in range(1, min(factor, len(rows))):
            part = rows[i::factor]
            total[:len(part)] += part
        rows = total.swapaxes(0, 1)
    return rows
