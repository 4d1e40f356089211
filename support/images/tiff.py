"""TIFFs that Pillow cannot read, or reads wrongly, through tifffile, an optional package.

Pillow keeps 8 bits of 16-bit colors, mixes up their planes, and swaps the bytes of compressed
big-endian numbers; none of that raises. So the tags are read first: they say whether Pillow can be
trusted (`pillow_is_right`), how large the picture is and how many bands it has.

tifffile delivers strips and tiles one by one (some codecs need the package imagecodecs); each is
reduced as it comes, so that a scene of gigabytes is read in the memory of the small picture.
"""
import itertools
import zlib
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


def tifffile_is_right(tiff: TiffInfo) -> bool:
    """Gray, RGB or bands; of YCbCr only what its JPEG decoder turns into RGB."""
    jpeg = (tiff.photometric, tiff.compression) == (YCBCR, JPEG)
    return tiff.bits >= 8 and (tiff.photometric <= RGB or jpeg)


# ---- reading with tifffile -----------------------------------------------------------------------

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
    if not tifffile_is_right(tiff):
        raise PictureError(f"{tiff.kind} values in color space {tiff.photometric}; save it as RGB")
    return chosen, total


def check_tags(tiff: TiffInfo, bands: tuple[int, ...]) -> None:
    """PictureError, MissingPackage: what reading would raise that the tags alone tell."""
    if not pillow_is_right(tiff, bands):
        check_kind(tiff, bands)
        if not is_installed("tifffile"):
            raise MissingPackage(NEEDS_TIFFFILE)


INSTALL_BOTH = "pip install tifffile imagecodecs"        # the second decodes what the first reads
NEEDS_TIFFFILE = f"Pillow does not read such a TIFF; {INSTALL_BOTH}"


def read_reduced(path: str | Path, tiff: TiffInfo, bands: tuple[int, ...], factor: int
                 ) -> np.ndarray:
    """-> [H / factor, W / factor, len(bands)]: uint8, or float32 with NaN for no data."""
    try:
        import tifffile
    except ImportError:
        raise MissingPackage(NEEDS_TIFFFILE) from None
    try:
        with tifffile.TiffFile(path) as file:
            return gather_segments(file.pages[tiff.page], bands, factor, tiff.nodata)
    except ValueError as error:                 # how tifffile reports that a decoder is missing
        if "imagecodecs" not in str(error):
            raise
        raise MissingPackage(f"{error}; {INSTALL_BOTH}") from None


SEGMENT_BUFFER = 2**24              # bytes that are read ahead


def gather_segments(page, bands: tuple[int, ...], factor: int, nodata: float | None) -> np.ndarray:
    """page: a tifffile.TiffPage whose bands lie beside each other, or in planes of their own."""
    _, _, height, width, bands_of_plane = page.shaped
    interleaved = bands_of_plane > 1
    shape = (ceil_div(height, factor), ceil_div(width, factor), len(bands))
    result = np.zeros(shape, np.uint8 if page.dtype == np.uint8 else np.float32)
    segments = read_segment_rows(page, height, width, nodata)
    planes = itertools.groupby(segments, lambda item: item[0])
    for plane, items in planes:
        # Which channels of the result this plane fills, and from which of its own.
        filled = [c for c, band in enumerate(bands) if interleaved or band == plane + 1]
        source = [bands[c] - 1 if interleaved else 0 for c in filled]
        if not filled:
            continue
        top = 0
        for rows in regroup((rows[..., source] for _, rows in items), factor):
            small = block_means(rows, factor, nodata)
            result[top:top + len(small), :, filled] = small
            top += len(small)
        if top != len(result):
            raise ValueError(f"{top} of {len(result)} rows")
    return result


def read_segment_rows(page, height: int, width: int, nodata: float | None
                      ) -> Iterator[tuple[int, np.ndarray]]:
    """-> plane, [h, width, C] from top to bottom: one strip, or one row of tiles, at a time; of
    large strips without compression, and of those that a sparse file leaves out, some rows."""
    if page.is_contiguous and page.compression == 1 and page.dataoffsets[0]:
        yield from read_stored_rows(page, height, width)
        return
    tile_height, tile_width = page.rowsperstrip, width
    if page.is_tiled:
        tile_height, tile_width = page.tilelength, page.tilewidth
    across, down = min(tile_width, width + 4096), min(tile_height, height + 4096)
    check_memory((across, down), 2 * page.dtype.itemsize * page.shaped[-1])
    if page.compression in DEFLATE:
        check_inflation(page, across * down * page.dtype.itemsize * page.shaped[-1])
    fill = sparse_value(page.dtype, nodata)
    segments = page.segments(maxworkers=1, buffersize=SEGMENT_BUFFER)   # more: all decoded ahead
    # A segment: its values or None, its place (plane, depth, y, x, band), its shape (d, h, w, C).
    for (plane, y), row in itertools.groupby(segments, lambda item: (item[1][0], item[1][2])):
        rows, length = None, 0
        for data, (_, _, _, x, _), (_, tile_height, _, channels) in row:
            length = min(tile_height, height - y)
            if data is None:
                continue
            data = data[0, :length, :width - x]
            if data.shape[:2] == (length, width):
                rows = data
                continue
            if rows is None:
                rows = np.full((length, width, channels), fill, page.dtype)
            rows[:len(data), x:x + data.shape[1]] = data
        if rows is not None:
            yield plane, rows
            continue
        for count in pieces_of(length, width * channels * page.dtype.itemsize):
            yield plane, np.full((count, width, channels), fill, page.dtype)


DEFLATE = (8, 32946)                # the two numbers of the compression
MAX_INFLATION = 1032                # how much longer than its code what deflate writes can be


def check_inflation(page, size: int) -> None:
    """ValueError where a segment unpacks to far more than the `size` bytes of its pixels: tifffile
    without imagecodecs would hold all of it. Only those that could are unpacked, piece by piece.
    """
    limit = 2 * size + SEGMENT_BUFFER
    file = page.parent.filehandle
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
        if count * MAX_INFLATION <= limit:
            continue
        file.seek(offset)
        decoder, pending, unpacked = zlib.decompressobj(), file.read(count), 0
        while pending and not decoder.eof:
            unpacked += len(decoder.decompress(pending, SEGMENT_BUFFER))
            pending = decoder.unconsumed_tail
            if unpacked > limit:
                raise ValueError(f"a part of {size:,} bytes unpacks to more than {limit:,}")


def read_stored_rows(page, height: int, width: int) -> Iterator[tuple[int, np.ndarray]]:
    """Of a page whose values lie in the file as they are, one plane after the other."""
    planes, channels = page.shaped[0], page.shaped[-1]
    dtype = page.dtype.newbyteorder(page.parent.byteorder)
    row_bytes = width * channels * dtype.itemsize
    file = page.parent.filehandle
    file.seek(page.dataoffsets[0])
    for plane in range(planes):
        for count in pieces_of(height, row_bytes):
            data = file.read(count * row_bytes)
            if len(data) < count * row_bytes:
                raise ValueError("its pixels are cut off")
            yield plane, np.frombuffer(data, dtype).reshape(count, width, channels)


def pieces_of(rows: int, row_bytes: int) -> Iterator[int]:
    """Numbers of rows that add up to `rows`, each of about SEGMENT_BUFFER bytes."""
    most = max(1, SEGMENT_BUFFER // max(1, row_bytes))
    for top in range(0, rows, most):
        yield min(most, rows - top)


def sparse_value(dtype: np.dtype, nodata: float | None) -> float:
    """What is in a part that a sparse file leaves out: no data, or 0 where that is no such value.
    """
    if nodata is None:
        return 0
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        return int(nodata) if limits.min <= nodata <= limits.max else 0
    return nodata


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
