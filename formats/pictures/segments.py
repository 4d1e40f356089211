"""A TIFF's strips or tiles through tifffile, made smaller as they come: memory stays small."""
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from formats.pictures.blocks import regroup, shrink
from formats.pictures.errors import MissingPackage

BUFFER = 2**24              # bytes read ahead


def read_reduced(path: str | Path, chosen: tuple[int, ...], factor: int, nodata: float | None
                 ) -> np.ndarray:
    """-> [H / factor, W / factor, len(chosen)]: uint8, or float32 with NaN for no data."""
    try:
        import tifffile
    except ImportError:
        raise MissingPackage("Pillow does not read such a TIFF; pip install tifffile") from None
    try:
        with tifffile.TiffFile(path) as file:
            return gather(file.pages[0], chosen, factor, nodata)
    except ValueError as error:                 # as tifffile says that a decoder is not there
        if "imagecodecs" not in str(error):
            raise
        raise MissingPackage(f"{error}; pip install imagecodecs") from None


def gather(page, chosen: tuple[int, ...], factor: int, nodata: float | None) -> np.ndarray:
    _, _, height, width, deep = page.shaped
    shape = (-(-height // factor), -(-width // factor), len(chosen))
    whole = np.zeros(shape, np.uint8 if page.dtype == np.uint8 else np.float32)
    for plane, rows in itertools.groupby(read_rows(page, height, width), lambda row: row[0]):
        here = [c for c, band in enumerate(chosen) if deep > 1 or band == plane + 1]
        take = [chosen[c] - 1 if deep > 1 else 0 for c in here]
        top = 0
        for piece in regroup((row[..., take] for _, row in rows), factor) if here else ():
            small = shrink(piece, factor, nodata)
            whole[top:top + len(small), :, here] = small
            top += len(small)
        if here and top != len(whole):
            raise ValueError(f"{top} of {len(whole)} rows")
    return whole


def read_rows(page, height: int, width: int) -> Iterator[tuple[int, np.ndarray]]:
    """tifffile's page -> plane, [h, width, C] downwards: a strip, or a row of tiles, at a time."""
    parts = page.segments(maxworkers=1, buffersize=BUFFER)      # more would decode it all ahead
    for (plane, y), row in itertools.groupby(parts, lambda part: (part[1][0], part[1][2])):
        rows = np.empty(0)
        for data, (_, _, _, x, _), (_, high, wide, deep) in row:
            if not len(rows):
                shape = min(high, height - y), width, deep
                rows = np.full(shape, page.nodata, page.dtype)  # sparse files leave parts out
            if data is not None:
                rows[:, x:x + wide] = data[0, :len(rows), :width - x]
        yield plane, rows
