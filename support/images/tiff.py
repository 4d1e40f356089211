"""support/images/tiff.py"""
import itertools
import re
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin

from support.images.common import (
    MissingPackage,
    PictureError,
    choose_bands,
    describe_bands,
    join_notes,
    mask_nodata,
    stretch,
)

# ---- tags ----------------------------------------------------------------------------------------
# What a TIFF holds, from its tags alone: read before a pixel is.

UNSIGNED, SIGNED, FLOAT = 1, 2, 3               # SampleFormat; 5 and 6 are complex


FORMAT_NAMES = {SIGNED: " signed", FLOAT: " float", 5: " complex", 6: " complex"}


@dataclass(frozen=True)
class TiffInfo:
    size: tuple[int, int]           # width, height as stored
    bands: int
    bits: int                       # of a value
    format: int
    colors: int                     # 0 gray, white is zero; 1 gray; 2 RGB; 6 YCbCr; ..
    compression: int
    alpha: bool                     # the last band is declared to be one
    nodata: float | None            # GDAL's
    turn: int                       # EXIF orientation, 1 .. 8
    little: bool                    # the byte order

    @property
    def kind(self) -> str:
        return f"{self.bits}-bit{FORMAT_NAMES.get(self.format, '')}"


def read_tiff_info(path: str | Path) -> TiffInfo | None:
    """None for a file that is no TIFF; PictureError for one that is cut off before its tags."""
    with open(path, "rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")         # what is wrong is found out below
        head = file.read(8)
        if head[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            return None
        head += file.read(8) if b"+" in head[2:4] else b""
        tags = TiffImagePlugin.ImageFileDirectory_v2(head)
        file.seek(tags.next)
        tags.load(file)
        if not tags.get(256) or not tags.get(257):
            raise PictureError("cannot be read (no size in its tags); is the file complete?")
        return info_from_tags(tags, head[:1] == b"I")


def info_from_tags(tags, little: bool) -> TiffInfo:
    """tags: Pillow's, a number or a tuple of numbers by the tag's number."""
    def most(tag: int, default: int) -> int:
        value = tags.get(tag, default)
        return max(value, default=default) if isinstance(value, tuple) else value

    nodata = re.match(r"[-+.\w]+", str(tags.get(42113, "")).strip())
    return TiffInfo((tags[256], tags[257]), most(277, 1), most(258, 1), most(339, UNSIGNED),
                most(262, 1), most(259, 1), bool({1, 2} & {*tags.get(338, ())}),
                float(nodata[0]) if nodata else None, most(274, 1), little)


# ---- tiff ----------------------------------------------------------------------------------------
# TIFFs that Pillow does not read, or reads wrongly: through tifffile, an optional package.
#
# Pillow keeps 8 bits of 16-bit colors, mixes their planes up, and swaps the bytes of compressed
# big-endian numbers; none of that raises. What is read is float32[H, W, C] with NaN where there is
# no data, or uint8[H, W, C].

JPEG, YCBCR = 7, 6


def pillow_is_right(tiff: TiffInfo, bands: tuple[int, ...]) -> bool:
    """Where the mode is one that Pillow knows; where it is not, Pillow says so."""
    if tiff.bits <= 8 and tiff.format not in (SIGNED, FLOAT):
        return tiff.bands in ((1, 3) if bands else (1, 2, 3, 4))
    known = [(16, UNSIGNED)] + tiff.little * [(16, SIGNED), (32, SIGNED), (32, FLOAT)]
    return tiff.bands == 1 and tiff.colors < 2 and (tiff.bits, tiff.format) in known


def tifffile_is_right(tiff: TiffInfo) -> bool:
    """Gray, RGB or bands; of YCbCr only what its JPEG decoder makes RGB of."""
    return tiff.bits >= 8 and (tiff.colors < 3 or (tiff.colors, tiff.compression) == (YCBCR, JPEG))


def read_tiff(path: str | Path, tiff: TiffInfo, bands: tuple[int, ...], factor: int
              ) -> tuple[Image.Image, str]:
    """-> RGB, `factor` times smaller, and what was done. PictureError, MissingPackage."""
    alpha = tiff.alpha and not bands
    chosen = choose_bands(bands, tiff.bands - alpha, tiff.kind)
    if not tifffile_is_right(tiff):
        raise PictureError(f"{tiff.kind} values in color space {tiff.colors}; save it as RGB")
    values = read_reduced(path, chosen + alpha * (tiff.bands,), factor, tiff.nodata)
    notes = [describe_bands(chosen, tiff.bands - alpha)]
    if alpha:
        values, hidden = values[..., :-1], ~(values[..., -1:] > 0)
        notes += ["transparent parts are black"] * bool(hidden.any())
        values = np.where(hidden, 0 if values.dtype == np.uint8 else np.nan, values)
    image, note = to_image(values, tiff.kind)
    image = ImageOps.invert(image) if tiff.colors == 0 else image
    return image, join_notes(*notes, note)


def to_image(values: np.ndarray, kind: str) -> tuple[Image.Image, str]:
    """uint8[H, W, C] as they are, float32[H, W, C] stretched -> RGB and what was done."""
    if values.dtype != np.uint8:
        return stretch(values, kind)
    return Image.fromarray(np.repeat(values, 3 // values.shape[2], axis=2)), ""


# ---- segments ------------------------------------------------------------------------------------
# A TIFF's strips or tiles through tifffile, made smaller as they come: memory stays small.

SEGMENT_BUFFER = 2**24              # bytes read ahead


def read_reduced(path: str | Path, chosen: tuple[int, ...], factor: int, nodata: float | None
                 ) -> np.ndarray:
    """-> [H / factor, W / factor, len(chosen)]: uint8, or float32 with NaN for no data."""
    try:
        import tifffile
    except ImportError:
        raise MissingPackage("Pillow does not read such a TIFF; pip install tifffile") from None
    try:
        with tifffile.TiffFile(path) as file:
            return gather_segments(file.pages[0], chosen, factor, nodata)
    except ValueError as error:                 # as tifffile says that a decoder is not there
        if "imagecodecs" not in str(error):
            raise
        raise MissingPackage(f"{error}; pip install imagecodecs") from None


def gather_segments(page, chosen: tuple[int, ...], factor: int, nodata: float | None) -> np.ndarray:
    _, _, height, width, deep = page.shaped
    shape = (-(-height // factor), -(-width // factor), len(chosen))
    whole = np.zeros(shape, np.uint8 if page.dtype == np.uint8 else np.float32)
    for plane, rows in itertools.groupby(read_segment_rows(page, height, width), lambda row: row[0]):
        here = [c for c, band in enumerate(chosen) if deep > 1 or band == plane + 1]
        take = [chosen[c] - 1 if deep > 1 else 0 for c in here]
        top = 0
        for piece in regroup((row[..., take] for _, row in rows), factor) if here else ():
            small = block_means(piece, factor, nodata)
            whole[top:top + len(small), :, here] = small
            top += len(small)
        if here and top != len(whole):
            raise ValueError(f"{top} of {len(whole)} rows")
    return whole


def read_segment_rows(page, height: int, width: int) -> Iterator[tuple[int, np.ndarray]]:
    """tifffile's page -> plane, [h, width, C] downwards: a strip, or a row of tiles, at a time."""
    parts = page.segments(maxworkers=1, buffersize=SEGMENT_BUFFER)      # more would decode it all ahead
    for (plane, y), row in itertools.groupby(parts, lambda part: (part[1][0], part[1][2])):
        rows = np.empty(0)
        for data, (_, _, _, x, _), (_, high, wide, deep) in row:
            if not len(rows):
                shape = min(high, height - y), width, deep
                rows = np.full(shape, page.nodata, page.dtype)  # sparse files leave parts out
            if data is not None:
                rows[:, x:x + wide] = data[0, :len(rows), :width - x]
        yield plane, rows


# ---- blocks --------------------------------------------------------------------------------------
# Rows of pixels that come piece by piece, [h, W, C], and their means over square blocks.

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


def block_means(rows: np.ndarray, factor: int, nodata: float | None) -> np.ndarray:
    """[h, W, C] -> [h / factor, W / factor, C], rounded up: means of what has a value.

    uint8 stays uint8, the rest becomes float32 with NaN; of complex numbers the magnitude.
    """
    byte = rows.dtype == np.uint8
    if not byte:
        real = np.abs(rows) if rows.dtype.kind == "c" else rows
        rows = mask_nodata(real.astype(np.float32), nodata)
    if factor == 1:
        return rows
    known = np.ones((*rows.shape[:2], 1)) if byte else np.isfinite(rows)
    total = block_sums(rows if byte else np.where(known, rows, 0), factor)
    with np.errstate(invalid="ignore"):         # 0 / 0: a block without a value is NaN
        mean = total / block_sums(known, factor)
    return mean.round().astype(np.uint8) if byte else mean


def block_sums(rows: np.ndarray, factor: int) -> np.ndarray:
    for _ in "yx":
        total = rows[::factor].astype(np.float32)
        for i in range(1, min(factor, len(rows))):
            part = rows[i::factor]
            total[:len(part)] += part
        rows = total.swapaxes(0, 1)
    return rows
