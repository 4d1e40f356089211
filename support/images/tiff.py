"""TIFFs that Pillow cannot read, or reads wrongly, through tifffile, an optional package.

Pillow keeps 8 bits of 16-bit colors, mixes up their planes, and swaps the bytes of compressed
big-endian numbers; none of that raises. So the tags are read first: they say whether Pillow can be
trusted (`pillow_is_right`), how large the picture is and how many bands it has.

tifffile delivers strips and tiles one by one (some codecs need the package imagecodecs); each is
reduced as it comes, so that a scene of gigabytes is read in the memory of the small picture.
"""
import itertools
import re
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin

from support.images.common import (
    ORIENTATION_TAG,
    MissingPackage,
    PictureError,
    ceil_div,
    choose_bands,
    describe_bands,
    join_notes,
    mask_nodata,
    stretch,
)

# ---- tags ----------------------------------------------------------------------------------------

WIDTH_TAG, HEIGHT_TAG, BITS_TAG, COMPRESSION_TAG, PHOTOMETRIC_TAG = 256, 257, 258, 259, 262
BANDS_TAG, EXTRA_BANDS_TAG, SAMPLE_FORMAT_TAG, GDAL_NODATA_TAG = 277, 338, 339, 42113

UNSIGNED, SIGNED, FLOAT = 1, 2, 3               # sample formats; 5 and 6 are complex
FORMAT_NAMES = {SIGNED: " signed", FLOAT: " float", 5: " complex", 6: " complex"}
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, YCBCR = 0, 1, 2, 6       # photometric interpretations
JPEG = 7                                        # a compression
ALPHA = (1, 2)                                  # kinds of extra bands: premultiplied or not


@dataclass(frozen=True)
class TiffInfo:
    """What a TIFF's tags say about its first page."""
    size: tuple[int, int]           # width, height as stored
    bands: int
    bits: int                       # of a value
    sample_format: int
    photometric: int
    compression: int
    alpha: bool                     # whether the last band is declared to be alpha
    nodata: float | None            # the value that GDAL declares to mean "no data"
    orientation: int                # as in EXIF, 1 .. 8
    little_endian: bool

    @property
    def kind(self) -> str:
        """"16-bit", "32-bit float"."""
        return f"{self.bits}-bit{FORMAT_NAMES.get(self.sample_format, '')}"


def read_tiff_info(path: str | Path) -> TiffInfo | None:
    """None for a file that is no TIFF; PictureError for one that is cut off before its tags."""
    with open(path, "rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")         # Pillow warns of tags that it cannot parse
        head = file.read(8)
        if head[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            return None
        if b"+" in head[2:4]:                   # BigTIFF, whose header has 16 bytes
            head += file.read(8)
        tags = TiffImagePlugin.ImageFileDirectory_v2(head)
        file.seek(tags.next)
        tags.load(file)
        if not tags.get(WIDTH_TAG) or not tags.get(HEIGHT_TAG):
            raise PictureError("cannot be read (no size in its tags); is the file complete?")
        return info_from_tags(tags, little_endian=head[:1] == b"I")


def info_from_tags(tags: TiffImagePlugin.ImageFileDirectory_v2, little_endian: bool) -> TiffInfo:
    def largest(tag: int, default: int) -> int:
        """A tag's value; the largest where each band has one of its own."""
        value = tags.get(tag, default)
        return max(value, default=default) if isinstance(value, tuple) else value

    nodata = re.match(r"[-+.\w]+", str(tags.get(GDAL_NODATA_TAG, "")).strip())
    return TiffInfo(
        size=(tags[WIDTH_TAG], tags[HEIGHT_TAG]),
        bands=largest(BANDS_TAG, 1),
        bits=largest(BITS_TAG, 1),
        sample_format=largest(SAMPLE_FORMAT_TAG, UNSIGNED),
        photometric=largest(PHOTOMETRIC_TAG, BLACK_IS_ZERO),
        compression=largest(COMPRESSION_TAG, 1),
        alpha=any(kind in ALPHA for kind in tags.get(EXTRA_BANDS_TAG, ())),
        nodata=float(nodata[0]) if nodata else None,
        orientation=largest(ORIENTATION_TAG, 1),
        little_endian=little_endian,
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
    total = tiff.bands - 1 if alpha else tiff.bands
    chosen = choose_bands(bands, total, tiff.kind)
    if not tifffile_is_right(tiff):
        raise PictureError(f"{tiff.kind} values in color space {tiff.photometric}; save it as RGB")
    wanted = (*chosen, tiff.bands) if alpha else chosen
    values = read_reduced(path, wanted, factor, tiff.nodata)    # uint8 or float32, [H, W, C]
    notes = [describe_bands(chosen, total)]
    if alpha:
        values, transparent = values[..., :-1], ~(values[..., -1:] > 0)
        if transparent.any():
            notes.append("transparent parts are black")
        values = np.where(transparent, 0 if values.dtype == np.uint8 else np.nan, values)
    if values.dtype == np.uint8:
        image = Image.fromarray(np.repeat(values, 3 // values.shape[2], axis=2))
    else:
        image, note = stretch(values, tiff.kind)
        notes.append(note)
    if tiff.photometric == WHITE_IS_ZERO:
        image = ImageOps.invert(image)
    return image, join_notes(*notes)


def read_reduced(path: str | Path, bands: tuple[int, ...], factor: int, nodata: float | None
                 ) -> np.ndarray:
    """-> [H / factor, W / factor, len(bands)]: uint8, or float32 with NaN for no data."""
    try:
        import tifffile
    except ImportError:
        raise MissingPackage("Pillow does not read such a TIFF; pip install tifffile") from None
    try:
        with tifffile.TiffFile(path) as file:
            return gather_segments(file.pages[0], bands, factor, nodata)
    except ValueError as error:                 # how tifffile reports that a decoder is missing
        if "imagecodecs" not in str(error):
            raise
        raise MissingPackage(f"{error}; pip install imagecodecs") from None


SEGMENT_BUFFER = 2**24              # bytes that are read ahead


def gather_segments(page, bands: tuple[int, ...], factor: int, nodata: float | None) -> np.ndarray:
    """page: a tifffile.TiffPage whose bands lie beside each other, or in planes of their own."""
    _, _, height, width, bands_of_plane = page.shaped
    interleaved = bands_of_plane > 1
    shape = (ceil_div(height, factor), ceil_div(width, factor), len(bands))
    result = np.zeros(shape, np.uint8 if page.dtype == np.uint8 else np.float32)
    planes = itertools.groupby(read_segment_rows(page, height, width), lambda item: item[0])
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


def read_segment_rows(page, height: int, width: int) -> Iterator[tuple[int, np.ndarray]]:
    """-> plane, [h, width, C] from top to bottom: one strip, or one row of tiles, at a time."""
    segments = page.segments(maxworkers=1, buffersize=SEGMENT_BUFFER)   # more: all decoded ahead
    # A segment: its values or None, its place (plane, depth, y, x, band), its shape (d, h, w, C).
    for (plane, y), row in itertools.groupby(segments, lambda item: (item[1][0], item[1][2])):
        rows = np.empty(0)
        for data, (_, _, _, x, _), (_, tile_height, tile_width, channels) in row:
            if not len(rows):
                shape = min(tile_height, height - y), width, channels
                rows = np.full(shape, page.nodata, page.dtype)  # sparse files leave tiles out
            if data is not None:
                rows[:, x:x + tile_width] = data[0, :len(rows), :width - x]
        yield plane, rows


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
