"""Any picture file -> 8-bit RGB, or one line that says why not: never all white, black or noise.

8-bit values stay as they are; more bits are stretched between two percentiles (`common.stretch`).
Pillow reads what it reads right, rasterio the other TIFFs (`tiff`). A picture of over 64 million
pixels is reduced while it is read.

`read_headers` finds the sizes of a whole data set's pictures, and files that are cut off, without
decoding a pixel.
"""
import io
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

import support.images.common as limits
from support.common import printable
from support.images.common import (
    MAX_SIDE,
    ORIENTATION_TAG,
    PILLOW_FORMATS,
    VIDEO_SUFFIXES,
    MissingPackage,
    PictureError,
    ceil_div,
    check_memory,
    check_size,
    choose_bands,
    describe_bands,
    describe_reduction,
    join_notes,
    mask_nodata,
    one_line_errors,
    oriented_size,
    pixel_limit,
    reduction_factor,
    stretch,
)
from support.images.ends import (
    PNG_MAGIC,
    count_scans,
    file_size,
    is_complete,
    png_chunks,
    read_gif_frames,
    scans_are_separate,
    without_extras,
)
from support.images.tags import (
    DAMAGED_EXIF,
    NO_PIXELS,
    WHITE_IS_ZERO,
    TiffInfo,
    exif_is_damaged,
    read_missing,
    read_tiff_info,
)
from support.images.tiff import check_tags, gdal_is_right, pillow_is_right, read_tiff


@dataclass(frozen=True)
class Picture:
    image: Image.Image              # RGB, 8 bit, turned as its EXIF orientation says
    size: tuple[int, int]           # width and height of the whole picture; `image` may be reduced
    note: str                       # "" or what the user should know


def read_picture(path: str | Path, bands: tuple[int, ...] = (), min_side: int = 0,
                 most: int = 0) -> Picture:
    """The picture to show. PictureError: one line that begins with the path.

    bands: one to show in gray, or three as red, green and blue, counted from 1; (): the first ones.
    min_side: a JPEG may be decoded smaller, both sides at least so long; 0: every pixel.
    most: no more pixels than these are wanted of it; 0: as many as of any picture.
    """
    with one_line_errors(path), pixel_limit():
        stored, orientation = read_stored(path, tuple(bands), min_side, most)
        image = stored.image
        if orientation in TURNS:
            image = image.transpose(TURNS[orientation])
        for key in ORIENTATION_KEYS:            # or it would be turned again where it is saved
            image.info.pop(key, None)
        return Picture(image, oriented_size(stored.size, orientation), stored.note)


def read_stored(path: str | Path, bands: tuple[int, ...], min_side: int, most: int
                ) -> tuple[Picture, int]:
    """-> the picture as it is stored, not turned yet, and its EXIF orientation."""
    tiff = read_tiff_info(path)
    if tiff is None:
        try:
            return read_with_pillow(path, None, bands, min_side, most)
        except PictureError:
            raise
        except Exception:       # the fault may lie behind the pixels, in what they do not need
            if without_extras(path) is None:
                raise
            return read_with_pillow(path, None, bands, min_side, most, repair=True)
    check_size(tiff.size)
    if missing := read_missing(path):
        raise PictureError(f"{missing}; is the file complete?" * (missing != NO_PIXELS)
                           or NO_PIXELS)
    trusted, large = pillow_is_right(tiff, bands), reduction_factor(tiff.size, most) > 1
    if not trusted or (large and gdal_is_right(tiff)):          # Pillow would decode all of it
        try:
            return read_with_rasterio(path, tiff, bands, most)
        except MissingPackage:
            if not trusted:
                raise
    try:
        return read_with_pillow(path, tiff, bands, min_side, most)
    except UnidentifiedImageError:              # a kind of TIFF that Pillow refuses
        return read_with_rasterio(path, tiff, bands, most)


def read_with_rasterio(path: str | Path, tiff: TiffInfo, bands: tuple[int, ...], most: int
                       ) -> tuple[Picture, int]:
    factor = reduction_factor(tiff.size, most)
    image, note = read_tiff(path, tiff, bands, factor)
    note = join_notes(tiff.note, note, describe_reduction(factor))
    return Picture(image, tiff.size, note), tiff.orientation


def read_with_pillow(path: str | Path, tiff: TiffInfo | None, bands: tuple[int, ...],
                     min_side: int, most: int, repair: bool = False) -> tuple[Picture, int]:
    """tiff: its tags, where the file is one. repair: as of open_picture."""
    with open_picture(path, tiff, repair=repair) as image:
        if image.format in ("JPEG", "MPO") and not is_complete(path, image):
            raise PictureError(CUT_OFF)         # Pillow fills up what is followed by other bytes
        orientation, exif_note = read_orientation(image, path, tiff)
        note_of_file = join_notes(image.info.get(NOTE_KEY, ""), exif_note)
        size, factor = image.size, reduction_factor(image.size, most)
        large, step = factor > 1, 1
        if min_side:
            image.draft(None, (min_side, min_side))             # a JPEG at 1/2, 1/4 or 1/8
        elif large:
            image.draft(None, (size[0] // factor, size[1] // factor))
        check_decoder(image, path, size)
        if large:                               # what is left to reduce after the JPEG decoder
            step = max(ceil_div(max(image.size), MAX_SIDE), reduction_factor(image.size, most))
            factor = ceil_div(size[0], image.size[0]) * step
        values = deep_values(image, path, step)
        if values is not None:
            shown, note = show_deep(values, bands, tiff, kind_of(image, tiff))
        else:
            shown, note = flatten(reduce_image(image, step), bands, tiff is None or tiff.alpha)
            if tiff and not bands:
                note = note or describe_hidden_bands(image, tiff)
    note = join_notes(tiff.note if tiff else note_of_file, note, describe_reduction(factor))
    return Picture(shown, size, note), orientation


# ---- opening -------------------------------------------------------------------------------------

NOTE_KEY = "note of open_picture"               # in `info` of an open picture
CUT_OFF = "cut off at its end; is the file complete?"


def open_picture(path: str | Path, tiff: TiffInfo | None = None,
                 formats: Iterable[str] = PILLOW_FORMATS, repair: bool = False) -> Image.Image:
    """Nothing but these formats, or a TIFF whose tags are known, is tried. Decodes no pixel.

    Of a JPEG or PNG that cannot be opened, or with `repair`, what its pixels do not need (texts,
    EXIF, color profile) is left out, with a note in `info`.
    """
    if not tiff and "PNG" in formats:
        check_chunks(path)
    try:
        if not repair:
            image = Image.open(path, formats=("TIFF",) if tiff else tuple(formats))
    except Exception:                           # each chunk or segment has errors of its own kind
        repair = tiff is None and "PNG" in formats
        if not repair or without_extras(path) is None:
            raise
    if repair:
        image = Image.open(without_extras(path), formats=("JPEG", "PNG"))
        image.info[NOTE_KEY] = f"{DAMAGED_EXIF} or its texts are: not used, not turned"
    if tiff and tiff.page:
        image.seek(tiff.page)
    return image


def check_chunks(path: str | Path) -> None:
    """Of a PNG, up to its pixels. PictureError: too many, Pillow would read each of them."""
    with open(path, "rb") as file:
        if file.read(8) == PNG_MAGIC:
            next((chunk for chunk in png_chunks(file) if chunk.name == b"IDAT"), None)


TURNS = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
         4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
         6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90}
ORIENTATION_KEYS = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")
MAX_EXIF = 2**20                                # bytes of a PNG's EXIF that comes behind its pixels


def read_orientation(image: Image.Image, path: str | Path, tiff: TiffInfo | None
                     ) -> tuple[int, str]:
    """Of an open picture that is not decoded yet -> 1 .. 8, and a note where it is damaged."""
    if tiff:
        return 1, ""                            # Pillow turns it while it decodes
    if image.format == "PNG" and not any(key in image.info for key in ORIENTATION_KEYS):
        if not isinstance(image.fp, io.BytesIO):            # not one that was repaired
            read_late_exif(image, path)
    try:
        # Of a PNG without EXIF before its pixels, Pillow's own method would decode all of them.
        orientation = Image.Image.getexif(image).get(ORIENTATION_TAG)
    except Exception:               # of a damaged block: SyntaxError, struct.error, ValueError ..
        orientation = 0
    if orientation is None:                     # Pillow reads a damaged block as an empty one
        damaged = exif_is_damaged(image.info.get("exif", b""))
        return 1, f"{DAMAGED_EXIF}: not turned" if damaged else ""
    if type(orientation) is not int or not 1 <= orientation <= 8:
        return 1, f"{DAMAGED_EXIF}: not turned"
    return orientation, ""


def read_late_exif(image: Image.Image, path: str | Path) -> None:
    """Of a PNG: an EXIF chunk may come behind the pixels."""
    with open(path, "rb") as file:
        for chunk in png_chunks(file):
            if chunk.name == b"eXIf" and chunk.length <= MAX_EXIF:
                file.seek(chunk.start)
                image.info["exif"] = b"Exif\0\0" + file.read(chunk.length)


MAX_FRAMES = 20_000                 # of an animation; each one before the last is decoded


def check_animation(image: Image.Image, path: str | Path) -> int:
    """-> the number of frames of an open picture, 1 for a format that has none. Nothing is decoded.
    PictureError where all of them together are too much."""
    size, count = image.size, 1
    if image.format == "GIF":
        with open(path, "rb") as file:
            found = read_gif_frames(file, MAX_FRAMES + 1)
        count, size = max(1, found.count), found.size
    elif image.format == "WEBP":
        count = image.n_frames
    if count > 1:
        if size[0] * size[1] * count > limits.MAX_PIXELS or count > MAX_FRAMES:
            raise PictureError(f"{count:,} frames of {size[0]} x {size[1]} pixels; at most "
                               f"{MAX_FRAMES:,} frames and {limits.MAX_PIXELS // 10**6} million "
                               f"pixels are read of an animation; give a folder with some of its "
                               f"frames")
        check_memory(size, 12)                  # the frame, the one before, the next
    return count


USUAL_SCANS = 20                    # of a JPEG; encoders make about ten
MAX_SCANNED_PIXELS = 1_000_000_000  # scans times pixels, of one that has more


def check_decoder(image: Image.Image, path: str | Path, whole: tuple[int, int]) -> None:
    """PictureError where decoding takes too much memory, or a time out of all proportion."""
    check_memory(*decoder_needs(image, path, whole))
    if image.format not in ("JPEG", "MPO"):
        return
    most = max(USUAL_SCANS, MAX_SCANNED_PIXELS // (whole[0] * whole[1]))
    with open(path, "rb") as file:
        if file_size(file) > 10 * most and scans_are_separate(file) and (
                count_scans(file, most + 1) > most):        # a scan takes ten bytes at least
            raise PictureError(f"a JPEG of over {most:,} scans; save it anew")


def decoder_needs(image: Image.Image, path: str | Path, whole: tuple[int, int]
                  ) -> tuple[tuple[int, int], int]:
    """-> of how many pixels its decoder holds how many bytes each, about.

    image: open, not decoded; `draft` may have made it smaller than its `whole` size.
    """
    if image.format in ("JPEG", "MPO"):
        with open(path, "rb") as file:
            if scans_are_separate(file):        # all coefficients, of 2 bytes
                return whole, 2 * len(image.getbands())
    if image.format in ("WEBP", "JPEG2000"):    # two canvases and a copy; numbers of 4 bytes
        return image.size, 16 if image.mode not in ("L", "I;16") else 8
    if image.format == "PNG" and image.tile and image.tile[0][3] in LOW_BYTES:
        return image.size, 8                    # decoded twice
    return image.size, {"1": 1, "L": 1, "P": 1, "I;16": 2}.get(image.mode, 4)


def describe_hidden_bands(image: Image.Image, tiff: TiffInfo) -> str:
    """Pillow leaves out a band that is not declared to be alpha."""
    shown = {"L": (1,), "RGB": (1, 2, 3)}.get(image.mode, ())
    return describe_bands(shown, tiff.bands) if 0 < len(shown) < tiff.bands else ""


# ---- 8 bits --------------------------------------------------------------------------------------

AVERAGEABLE_MODES = ("L", "RGB", "RGBA", "CMYK", "YCbCr")   # modes whose pixels may be averaged
ALPHA_MODES = ("LA", "La", "PA", "RGBA", "RGBa")


def flatten(image: Image.Image, bands: tuple[int, ...] = (), alpha: bool = True
            ) -> tuple[Image.Image, str]:
    """An 8-bit picture of any mode -> RGB on black, and a note.

    alpha: whether a fourth band is transparency; if not, it is left out.
    """
    if bands:
        return select_bands(image, bands)
    if image.mode not in ALPHA_MODES and "transparency" not in image.info:
        return image.convert("RGB"), ""
    image = image.convert("LA" if image.mode == "La" else "RGBA").convert("RGBA")
    mask, colors = image.getchannel("A"), image.convert("RGB")
    if not alpha:
        return colors, describe_bands((1, 2, 3), 4)
    if mask.getextrema()[0] == 255:
        return colors, ""
    black = Image.new("RGB", image.size)
    black.paste(colors, mask=mask)
    return black, "transparent parts are black"


def select_bands(image: Image.Image, bands: tuple[int, ...]) -> tuple[Image.Image, str]:
    """The bands that are asked for, as they are stored -> RGB and a note."""
    if image.mode not in ("L", "LA", "RGB", "RGBA"):
        image = image.convert("RGB")
    total = len(image.getbands())
    chosen = choose_bands(bands, total, "8-bit")
    channels = [image.getchannel(band - 1) for band in chosen]
    if len(channels) == 1:
        channels = channels * 3
    return Image.merge("RGB", channels), describe_bands(chosen, total)


def reduce_image(image: Image.Image, factor: int) -> Image.Image:
    """`factor` times smaller: means, or every n-th pixel where a mean has no meaning."""
    if image.mode == "1":
        image = image.convert("L")
    if factor == 1:
        return image
    if image.mode in AVERAGEABLE_MODES:
        return image.reduce(factor)
    width, height = image.size
    size = ceil_div(width, factor), ceil_div(height, factor)
    return image.resize(size, Image.Resampling.NEAREST)


# ---- more than 8 bits, which Pillow reads as a whole or not at all -------------------------------

LOW_BYTES = {"RGB;16B": "RGB;16L", "RGBA;16B": "RGBA;16L"}      # Pillow's raw modes


def deep_values(image: Image.Image, path: str | Path, step: int) -> np.ndarray | None:
    """An open picture of over 8 bits -> every step-th pixel, float32[H, W, C]; others -> None.

    Not means: which value stands for no data is not known here. PictureError where Pillow drops
    bits.
    """
    check_bits(image, path)
    if image.mode[0] in "IF":
        values = every_nth(image, step)[..., None].astype(np.float32)
        transparent = image.info.get("transparency")
        if isinstance(transparent, int):
            values[values == transparent] = np.nan
        return values
    if image.format == "PNG":
        return deep_png(image, path, step)
    return None


def deep_png(image: Image.Image, path: str | Path, step: int) -> np.ndarray | None:
    """16-bit colors: Pillow keeps the high bytes; with the byte order swapped, the low bytes."""
    name, box, offset, raw_mode = image.tile[0]
    if raw_mode not in LOW_BYTES:
        return None
    values = every_nth(image, step).astype(np.float32) * 256
    with open_picture(path, formats=("PNG",), repair=NOTE_KEY in image.info) as again:
        again.tile = [(name, box, offset, LOW_BYTES[raw_mode])]
        values += every_nth(again, step)
    if values.shape[2] == 4:
        values[values[..., 3] == 0] = np.nan
    return values[..., :3]


def every_nth(image: Image.Image, step: int) -> np.ndarray:
    """[H / step, W / step, ..]: every step-th pixel, without a second copy of all of them."""
    if step == 1:
        return np.asarray(image)
    width, height = image.size
    return np.stack([np.asarray(image.crop((0, y, width, y + 1)))[0, ::step]
                     for y in range(0, height, step)])


def bits_of_jpeg2000(path: str | Path) -> int:
    """Bits of a value, from the SIZ marker; 8 where that is not near the beginning."""
    with open(path, "rb") as file:
        _, found, segment = file.read(10**6).partition(b"\xff\x4f\xff\x51")
    return (segment[38] & 127) + 1 if found and len(segment) > 38 else 8


def kind_of(image: Image.Image, tiff: TiffInfo | None) -> str:
    """"16-bit", "32-bit float": the values of a picture of over 8 bits."""
    if tiff:
        return tiff.kind
    return "32-bit float" if image.mode == "F" else "16-bit"


def show_deep(values: np.ndarray, bands: tuple[int, ...], tiff: TiffInfo | None, kind: str
              ) -> tuple[Image.Image, str]:
    """float32[H, W, C] -> RGB and a note."""
    total = values.shape[2]
    chosen = choose_bands(bands, total, kind)
    values = values[..., [band - 1 for band in chosen]]
    image, note = stretch(mask_nodata(values, tiff.nodata if tiff else None), kind)
    if tiff and tiff.photometric == WHITE_IS_ZERO:
        image = ImageOps.invert(image)
    return image, join_notes(describe_bands(chosen, total), note)


# ---- headers -------------------------------------------------------------------------------------

PARALLEL_FROM = 500                 # files; fewer are read before a process pool has started


class PictureHeader(NamedTuple):
    width: int                      # as shown; 0 where the size is not known
    height: int
    fault: str                      # "" or one line that begins with the path


def read_headers(paths: Iterable[str], bands: tuple[int, ...] | None = None
                 ) -> dict[str, PictureHeader]:
    """Each path once, in the order given, read by several processes where there are many.

    bands: as read_picture takes them; None where they are not known yet: then a picture of many
    bands has a note, not a fault.
    """
    paths = list(dict.fromkeys(paths))
    return dict(zip(paths, map_pictures(partial(read_header, bands=bands), paths), strict=True))


def read_notes(paths: Iterable[str], bands: tuple[int, ...] | None = None) -> dict[str, str]:
    """As read_headers: what the user should know of each picture's tags, or "". For those that can
    be read: damaged EXIF data, which page is shown, bands that have to be chosen."""
    paths = list(dict.fromkeys(paths))
    return dict(zip(paths, map_pictures(partial(read_note, bands=bands), paths), strict=True))


Result = TypeVar("Result")


def map_pictures(function: Callable[[str], Result], paths: list[str], chunk: int = 200
                 ) -> list[Result]:
    """function(path) of each, by several processes where there are many, `chunk` paths at a time.

    PictureError where one of the processes is killed: the others would wait for it.
    """
    if len(paths) < PARALLEL_FROM:
        return [function(path) for path in paths]
    results: list[Result] = []
    pool = ProcessPoolExecutor(os.cpu_count())
    try:
        found = tqdm(pool.map(function, paths, chunksize=chunk), total=len(paths), unit="picture",
                     disable=None)
        results.extend(found)
    except BrokenProcessPool:
        raise PictureError(f"{printable(paths[len(results)])}: a process that reads this picture, "
                           f"or one of those after it, was killed; was the memory used up?"
                           ) from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return results


def read_header(path: str, bands: tuple[int, ...] | None = None) -> PictureHeader:
    """Size and faults of a picture; of a clip only whether it exists. Decodes no pixel.

    bands: as of `read_headers`.
    """
    return read_header_and_note(path, bands)[0]


def read_note(path: str, bands: tuple[int, ...] | None = None) -> str:
    return read_header_and_note(path, bands)[1]


def read_header_and_note(path: str, bands: tuple[int, ...] | None) -> tuple[PictureHeader, str]:
    name = printable(path)
    if os.path.isdir(path):
        return PictureHeader(0, 0, ""), ""
    if Path(path).suffix.lower() in VIDEO_SUFFIXES and not os.path.lexists(path):
        return PictureHeader(0, 0, f"{name}: no such video"), ""
    try:
        with one_line_errors(path), pixel_limit():
            if Path(path).suffix.lower() in VIDEO_SUFFIXES:
                return PictureHeader(0, 0, ""), ""
            tiff = read_tiff_info(path)
            if tiff:
                return read_tiff_header(path, tiff, bands)
            with open_picture(path) as image:
                check_decoder(image, path, image.size)
                check_bits(image, path)
                still = check_animation(image, path) == 1
                if still:
                    check_bands(image, bands or ())
                orientation, note = read_orientation(image, path, None)
                note = join_notes(image.info.get(NOTE_KEY, ""), note)
                fault, size = "", oriented_size(image.size, orientation)
                if not is_complete(path, image):
                    if still and (whole := read_without_end(path, bands or ())):
                        return PictureHeader(*whole.size, ""), whole.note
                    fault = f"{name}: cut off at its end"
                return PictureHeader(*size, fault), note
    except PictureError as error:
        return PictureHeader(0, 0, str(error)), ""


def read_without_end(path: str, bands: tuple[int, ...]) -> Picture | None:
    """A picture that lacks its end mark, if all of its pixels are there."""
    try:
        return read_picture(path, bands)
    except PictureError:
        return None


def read_tiff_header(path: str, tiff: TiffInfo, bands: tuple[int, ...] | None
                     ) -> tuple[PictureHeader, str]:
    check_size(tiff.size)
    note, fault = tiff.note, read_missing(path)
    try:
        check_tags(tiff, bands or ())
        if bands and pillow_is_right(tiff, bands):
            with suppress(UnidentifiedImageError), open_picture(path, tiff) as image:
                check_bands(image, bands)
    except PictureError as error:
        if bands is not None or tiff.bands <= 4:
            raise
        note = join_notes(note, str(error))
    size = oriented_size(tiff.size, tiff.orientation)
    return PictureHeader(*size, fault and f"{printable(path)}: {fault}"), note


def check_bands(image: Image.Image, bands: tuple[int, ...]) -> None:
    """PictureError for an open picture that Pillow reads and that lacks one of these bands."""
    if bands:
        deep = image.mode[0] in "IF"
        several = image.mode in ("1", "L", "LA", "RGBA") and not (image.tile and image.tile[0][3]
                                                             in LOW_BYTES)
        choose_bands(bands, 1 if deep else len(image.getbands()) if several else 3, "8-bit")


def check_bits(image: Image.Image, path: str | Path) -> None:
    """PictureError for an open picture that Pillow would show with fewer bits than it has."""
    if image.format == "JPEG2000" and image.mode[0] not in "IF" and bits_of_jpeg2000(path) > 8:
        raise PictureError("a JPEG 2000 of over 8 bits in color; save it as TIFF")
    if image.format == "PNG" and image.tile and image.tile[0][3] == "LA;16B":
        raise PictureError("16-bit gray with transparency; save it without")
