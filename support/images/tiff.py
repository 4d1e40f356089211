"""TIFFs that Pillow cannot read, or reads wrongly, through rasterio, an optional package.

Pillow keeps 8 bits of 16-bit colors, mixes up their planes, and swaps the bytes of compressed
big-endian numbers; none of that raises. So the tags are read first: they say whether Pillow can be
trusted (`pillow_is_right`), how large the picture is and how many bands it has.

rasterio delivers some rows at a time; they are reduced as they come, so that a scene of gigabytes
is read in the memory of the small picture.
"""
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from support.common import is_installed
from support.images.common import (
    MissingPackage,
    PictureError,
    ceil_div,
    check_memory,
    choose_bands,
    describe_bands,
    join_notes,
    mask_nodata,
    stretch,
)
from support.images.gdal import NEEDS_RASTERIO, open_raster, rasterio_settings
from support.images.tags import (
    BLACK_IS_ZERO,
    FLOAT,
    JPEG,
    RGB,
    SIGNED,
    UNSIGNED,
    WHITE_IS_ZERO,
    YCBCR,
    TiffInfo,
    find_left_out,
)

# ---- who reads it right --------------------------------------------------------------------------

def pillow_is_right(tiff: TiffInfo, bands: tuple[int, ...]) -> bool:
    """Whether Pillow, if it opens the file at all, gives the right values of these bands."""
    if tiff.bits <= 8 and tiff.sample_format not in (SIGNED, FLOAT):
        return tiff.bands in ((1, 3) if bands else (1, 2, 3, 4))
    known = [(16, UNSIGNED)]
    if tiff.little_endian:
        known += [(16, SIGNED), (32, SIGNED), (32, FLOAT)]
    gray = tiff.bands == 1 and tiff.photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO)
    return gray and (tiff.bits, tiff.sample_format) in known


def gdal_is_right(tiff: TiffInfo) -> bool:
    """Gray, RGB or bands; of YCbCr only what its JPEG decoder turns into RGB."""
    jpeg = (tiff.photometric, tiff.compression) == (YCBCR, JPEG)
    return tiff.bits >= 8 and (tiff.photometric <= RGB or jpeg)


# ---- reading with rasterio -----------------------------------------------------------------------

def read_tiff(path: str | Path, tiff: TiffInfo, bands: tuple[int, ...], factor: int
              ) -> tuple[Image.Image, str]:
    """-> RGB as stored, `factor` times smaller, and a note. PictureError, MissingPackage."""
    alpha = tiff.alpha and not bands
    chosen, total = check_kind(tiff, bands)
    wanted = (*chosen, tiff.bands) if alpha else chosen
    values = read_reduced(path, tiff, wanted, factor)           # uint8 or float32, [H, W, C]
    notes = [describe_bands(chosen, total)]
    if alpha:
        values, transparent = values[..., :-1], ~(values[..., -1] > 0)
        if transparent.any():
            notes.append("transparent parts are black")
        values[transparent] = 0 if values.dtype == np.uint8 else np.nan
    if values.dtype == np.uint8:
        image = Image.fromarray(np.repeat(values, 3 // values.shape[2], axis=2))
    else:
        image, note = stretch(values, tiff.kind)
        notes.append(note)
    if tiff.photometric == WHITE_IS_ZERO:
        image = ImageOps.invert(image)
    return image, join_notes(*notes)


def check_kind(tiff: TiffInfo, bands: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
    """-> the bands that are shown, of how many. PictureError where its tags say that it cannot be
    read, or not without --bands."""
    total = tiff.bands - 1 if tiff.alpha and not bands else tiff.bands
    chosen = choose_bands(bands, total, tiff.kind)
    if not gdal_is_right(tiff):
        raise PictureError(f"{tiff.kind} values in color space {tiff.photometric}; save it as RGB")
    return chosen, total


def check_tags(tiff: TiffInfo, bands: tuple[int, ...]) -> None:
    """PictureError, MissingPackage: what reading would raise that the tags alone tell."""
    if not pillow_is_right(tiff, bands):
        check_kind(tiff, bands)
        if not is_installed("rasterio"):
            raise MissingPackage(NEEDS_GDAL)


NEEDS_GDAL = f"Pillow does not read such a TIFF; {NEEDS_RASTERIO}"
CACHE_BYTES = 2**26                 # of decoded blocks, which GDAL keeps
BUFFER_BYTES = 2**24                # of rows that are read and reduced at once


def read_reduced(path: str | Path, tiff: TiffInfo, bands: tuple[int, ...], factor: int
                 ) -> np.ndarray:
    """-> [H / factor, W / factor, len(bands)]: uint8, or float32 with NaN for no data."""
    if not is_installed("rasterio"):
        raise MissingPackage(NEEDS_GDAL)
    with (rasterio_settings(CACHE_BYTES),
          open_raster(path, "GTiff", tiff.page) as dataset):
        width, height = dataset.width, dataset.height
        if (width, height, dataset.count) != (*tiff.size, tiff.bands):
            raise ValueError("its tags contradict each other")
        check_left_out(dataset, find_left_out(path), tiff.nodata)
        shape = ceil_div(height, factor), ceil_div(width, factor), len(bands)
        result = np.zeros(shape, np.uint8 if dataset.dtypes[0] == "uint8" else np.float32)
        top = 0
        for rows in regroup(read_rows(dataset, tiff, bands), factor):
            small = block_means(rows, factor, tiff.nodata)
            result[top:top + len(small)] = small
            top += len(small)
        return result


def check_left_out(dataset, place: tuple[int, int, int] | None, nodata: float | None) -> None:
    """PictureError where GDAL fills what a sparse file leaves out with what is neither 0 nor the
    no-data value: the nearest number of its kind where that is none, as of -9999 in 64 bits."""
    from rasterio.windows import Window
    if place:
        x, y, band = place
        fill = dataset.read([band], window=Window(x, y, 1, 1))
        if fill != 0 and fill != nodata and np.isfinite(block_means(fill, 1, nodata)):
            raise PictureError("parts of it are left out, and its no-data value is none of its "
                               "kind of numbers; save it with another one, or whole")


def read_rows(dataset, tiff: TiffInfo, bands: tuple[int, ...]) -> Iterator[np.ndarray]:
    """-> [h, W, len(bands)] from top to bottom: whole rows of strips or tiles are read at once, so
    that each is decoded once, and given on in pieces of BUFFER_BYTES."""
    from rasterio.enums import Interleaving
    from rasterio.windows import Window
    width, height = dataset.width, dataset.height
    down, across = dataset.block_shapes[0]
    value_bytes = ceil_div(tiff.bits, 8)
    decoded = tiff.bands if dataset.interleaving == Interleaving.pixel else 1
    check_memory((max(width, across), down), value_bytes * (decoded + 1 + len(bands)))
    row_bytes = width * value_bytes * len(bands)
    step = down * max(1, BUFFER_BYTES // (down * row_bytes))
    most = max(1, BUFFER_BYTES // row_bytes)
    for top in range(0, height, step):
        window = Window(0, top, width, min(step, height - top))
        rows = np.moveaxis(dataset.read(list(bands), window=window), 0, -1)
        for start in range(0, len(rows), most):
            yield rows[start:start + most]


# ---- block means of rows that come in pieces -----------------------------------------------------

def regroup(pieces: Iterable[np.ndarray], factor: int) -> Iterator[np.ndarray]:
    """The same rows [h, W, C] in pieces of a multiple of `factor` rows, but for the last piece."""
    pending: list[np.ndarray] = []              # the last one may be empty
    for piece in pieces:
        pending.append(piece)
        count = sum(map(len, pending))
        if count >= factor:
            rows = np.concatenate(pending) if len(pending) > 1 else piece
            end = count // factor * factor
            yield rows[:end]
            pending = [rows[end:]]
    if sum(map(len, pending)):
        yield np.concatenate(pending)


def block_means(rows: np.ndarray, factor: int, nodata: float | None) -> np.ndarray:
    """[h, W, C] -> [h / factor, W / factor, C], rounded up: means of the values that are data.

    uint8 stays uint8; all else becomes float32 with NaN, complex numbers by their magnitude.
    """
    is_byte = rows.dtype == np.uint8
    if not is_byte:
        real = np.abs(rows) if rows.dtype.kind == "c" else rows
        rows = mask_nodata(real.astype(np.float32), nodata)
    if factor == 1:
        return rows
    valid = np.ones((*rows.shape[:2], 1)) if is_byte else np.isfinite(rows)
    total = block_sums(rows if is_byte else np.where(valid, rows, 0), factor)
    with np.errstate(invalid="ignore"):         # 0 / 0: a block without a value is NaN
        mean = total / block_sums(valid, factor)
    return mean.round().astype(np.uint8) if is_byte else mean


def block_sums(rows: np.ndarray, factor: int) -> np.ndarray:
    """[h, W, C] -> float32[h / factor, W / factor, C], rounded up: sums over square blocks."""
    for _ in ("rows", "columns"):               # each round sums along axis 0 and swaps the axes
        total = rows[::factor].astype(np.float32)
        for i in range(1, min(factor, len(rows))):
            addend = rows[i::factor]
            total[:len(addend)] += addend
        rows = total.swapaxes(0, 1)
    return rows
