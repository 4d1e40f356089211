"""Any picture file -> 8-bit RGB, or one line that says why not: never all white, black or noise.

8-bit values stay as they are; more bits are stretched between two percentiles (`common.stretch`).
Pillow reads what it reads right, tifffile the other TIFFs (`tiff`). A picture of over 64 million
pixels is reduced while it is read.

`read_headers` finds the sizes of a whole data set's pictures, and files that are cut off, without
decoding a pixel.
"""
import os
from collections.abc import Iterable
from dataclasses import dataclass
from multiprocessing import Pool
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from support.images.common import (
    MAX_SIDE,
    ORIENTATION_TAG,
    VIDEO_SUFFIXES,
    MissingPackage,
    PictureError,
    ceil_div,
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
from support.images.tiff import (
    WHITE_IS_ZERO,
    TiffInfo,
    pillow_is_right,
    read_tiff,
    read_tiff_info,
    tifffile_is_right,
)


@dataclass(frozen=True)
class Picture:
    image: Image.Image              # RGB, 8 bit, turned as its EXIF orientation says
    size: tuple[int, int]           # width and height of the whole picture; `image` may be reduced
    note: str                       # "" or what the user should know


def read_picture(path: str | Path, bands: tuple[int, ...] = (), min_side: int = 0) -> Picture:
    """The picture to show. PictureError: one line that begins with the path.

    bands: one to show in gray, or three as red, green and blue, counted from 1; (): the first ones.
    min_side: a JPEG may be decoded smaller, both sides at least so long; 0: every pixel.
    """
    with one_line_errors(path), pixel_limit():
        stored, orientation = read_stored(path, tuple(bands), min_side)
        stored.image.getexif()[ORIENTATION_TAG] = orientation
        ImageOps.exif_transpose(stored.image, in_place=True)
        return Picture(stored.image, oriented_size(stored.size, orientation), stored.note)


def read_stored(path: str | Path, bands: tuple[int, ...], min_side: int) -> tuple[Picture, int]:
    """-> the picture as it is stored, not turned yet, and its EXIF orientation."""
    tiff = read_tiff_info(path)
    if tiff is None:
        return read_with_pillow(path, None, bands, min_side)
    check_size(tiff.size)
    trusted, large = pillow_is_right(tiff, bands), reduction_factor(tiff.size) > 1
    if not trusted or (large and tifffile_is_right(tiff)):      # Pillow would decode all of it
        try:
            return read_with_tifffile(path, tiff, bands)
        except MissingPackage:
            if not trusted:
                raise
    try:
        return read_with_pillow(path, tiff, bands, min_side)
    except UnidentifiedImageError:              # a kind of TIFF that Pillow refuses
        return read_with_tifffile(path, tiff, bands)


def read_with_tifffile(path: str | Path, tiff: TiffInfo, bands: tuple[int, ...]
                       ) -> tuple[Picture, int]:
    factor = reduction_factor(tiff.size)
    image, note = read_tiff(path, tiff, bands, factor)
    note = join_notes(note, describe_reduction(factor))
    return Picture(image, tiff.size, note), tiff.orientation


def read_with_pillow(path: str | Path, tiff: TiffInfo | None, bands: tuple[int, ...],
                     min_side: int) -> tuple[Picture, int]:
    """tiff: its tags, where the file is one."""
    with Image.open(path) as image:
        size, factor = image.size, reduction_factor(image.size)
        large, step = factor > 1, 1
        if min_side:
            image.draft(None, (min_side, min_side))             # a JPEG at 1/2, 1/4 or 1/8
        elif large:
            image.draft(None, (size[0] // factor, size[1] // factor))
        if large:                               # what is left to reduce after the JPEG decoder
            step = ceil_div(max(image.size), MAX_SIDE)
            factor = ceil_div(size[0], image.size[0]) * step
        values = deep_values(image, path, step)
        if values is not None:
            shown, note = show_deep(values, bands, tiff, kind_of(image, tiff))
        else:
            shown, note = flatten(reduce_image(image, step), bands, tiff is None or tiff.alpha)
            if tiff and not bands:
                note = note or describe_hidden_bands(image, tiff)
        orientation = image.getexif().get(ORIENTATION_TAG, 1)
    return Picture(shown, size, join_notes(note, describe_reduction(factor))), orientation


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
    if image.mode[0] in "IF":
        values = np.asarray(image)[::step, ::step, None].astype(np.float32)
        transparent = image.info.get("transparency")
        if isinstance(transparent, int):
            values[values == transparent] = np.nan
        return values
    if image.format == "PNG":
        return deep_png(image, path, step)
    if image.format == "JPEG2000" and bits_of_jpeg2000(path) > 8:
        raise PictureError("a JPEG 2000 of over 8 bits in color; save it as TIFF")
    return None


def deep_png(image: Image.Image, path: str | Path, step: int) -> np.ndarray | None:
    """16-bit colors: Pillow keeps the high bytes; with the byte order swapped, the low bytes."""
    name, box, offset, raw_mode = image.tile[0]
    if raw_mode == "LA;16B":
        raise PictureError("16-bit gray with transparency; save it without")
    if raw_mode not in LOW_BYTES:
        return None
    values = np.asarray(image)[::step, ::step].astype(np.float32) * 256
    with Image.open(path) as again:
        again.tile = [(name, box, offset, LOW_BYTES[raw_mode])]
        values += np.asarray(again)[::step, ::step]
    if values.shape[2] == 4:
        values[values[..., 3] == 0] = np.nan
    return values[..., :3]


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

END_MARKERS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82", "GIF": b";"}
PARALLEL_FROM = 500                 # files; fewer are read before a process pool has started


class PictureHeader(NamedTuple):
    width: int                      # as shown; 0 where the size is not known
    height: int
    fault: str                      # "" or one line that begins with the path


def read_headers(paths: Iterable[str]) -> dict[str, PictureHeader]:
    """Each path once, in the order given, read by several processes where there are many."""
    paths = list(dict.fromkeys(paths))
    if len(paths) < PARALLEL_FROM:
        return {path: read_header(path) for path in paths}
    with Pool(os.cpu_count()) as pool:
        headers = tqdm(pool.imap(read_header, paths, chunksize=200), total=len(paths),
                       unit="picture", disable=None)
        return dict(zip(paths, headers, strict=True))


def read_header(path: str) -> PictureHeader:
    """Size and faults of a picture; of a clip only whether it exists. Decodes no pixel."""
    if Path(path).is_dir() or Path(path).suffix.lower() in VIDEO_SUFFIXES:
        return PictureHeader(0, 0, "" if Path(path).exists() else f"{path}: no such video")
    try:
        with one_line_errors(path), pixel_limit():
            tiff = read_tiff_info(path)
            if tiff:
                return PictureHeader(*oriented_size(tiff.size, tiff.orientation), fault="")
            with Image.open(path) as image:
                complete = has_end_marker(path, image.format)
                size = oriented_size(image.size, orientation_in_header(image))
                return PictureHeader(*size, fault="" if complete else f"{path}: cut off at its end")
    except PictureError as error:
        return PictureHeader(0, 0, str(error))


def orientation_in_header(image: Image.Image) -> int | None:
    """Of an open picture. Asked for EXIF that does not come first, Pillow decodes a whole PNG."""
    if image.format == "PNG" and "exif" not in image.info:
        return None
    return image.getexif().get(ORIENTATION_TAG)


def has_end_marker(path: str, format: str | None) -> bool:
    """False for a file that was cut off, where its format has an end marker."""
    with open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - 64))
        return END_MARKERS.get(format, b"") in file.read()
