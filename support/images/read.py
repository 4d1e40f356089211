"""support/images/read.py"""
import os
from collections.abc import Iterable
from dataclasses import dataclass
from multiprocessing import Pool
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from support.images.common import (
    MAX_PIXELS,
    MAX_SIDE,
    VIDEO_SUFFIXES,
    MissingPackage,
    PictureError,
    choose_bands,
    describe_bands,
    describe_downscale,
    downscale,
    join_notes,
    mask_nodata,
    one_line_errors,
    pixel_limit,
    stretch,
    too_large,
)
from support.images.tiff import (
    TiffInfo,
    pillow_is_right,
    read_tiff,
    read_tiff_info,
    tifffile_is_right,
)

# ---- reading -------------------------------------------------------------------------------------
# Pictures as satellites deliver them -> 8-bit RGB, or one clear line: never white, black or noise.
#
# 8-bit data stay as they are; more bits are stretched (stretch.py). Pillow reads what it reads
# right, tifffile the other TIFFs (tiff.py).

@dataclass(frozen=True)
class Picture:
    image: Image.Image              # RGB, 8 bit, turned as EXIF says
    size: tuple[int, int]           # width and height of the whole picture, turned
    note: str                       # "" or what the user should know


def read_picture(path: str | Path, bands: tuple[int, ...] = (), near: int = 0) -> Picture:
    """bands: the one to three to show as red, green and blue, from 1; () the first ones.

    near: a JPEG may be decoded smaller, both sides at least so long; 0 for exact pixels.
    Raises PictureError, one line that begins with the path.
    """
    with one_line_errors(path), pixel_limit():
        image, size, turn, note = read_stored(path, read_tiff_info(path), tuple(bands), near)
        image.getexif()[ORIENTATION_TAG] = turn
        ImageOps.exif_transpose(image, in_place=True)
        return Picture(image, size[::-1] if turn in (5, 6, 7, 8) else size, note)


def read_stored(path: str | Path, tiff: TiffInfo | None, bands: tuple[int, ...], near: int
                ) -> tuple[Image.Image, tuple[int, int], int, str]:
    """-> RGB as stored, the whole width and height, EXIF's turn, and what was done."""
    if tiff is None:
        return read_with_pillow(path, None, bands, near)
    if tiff.size[0] * tiff.size[1] > MAX_PIXELS:
        raise PictureError(too_large(tiff.size[0] * tiff.size[1]))
    right, times = pillow_is_right(tiff, bands), downscale(tiff.size)
    if not right or times > 1 and tifffile_is_right(tiff):
        try:
            image, note = read_tiff(path, tiff, bands, times)
            return image, tiff.size, tiff.turn, join_notes(note, describe_downscale(times))
        except MissingPackage:
            if not right:
                raise
    try:
        return read_with_pillow(path, tiff, bands, near)
    except UnidentifiedImageError:              # a kind of TIFF that Pillow knows to refuse
        image, note = read_tiff(path, tiff, bands, times)
        return image, tiff.size, tiff.turn, join_notes(note, describe_downscale(times))


# ---- pillow --------------------------------------------------------------------------------------
# Pictures that Pillow reads right: JPEG, PNG, GIF, WebP, BMP, and most TIFFs of 8 bits.

ORIENTATION_TAG = 274                  # EXIF's tag


PIXEL_KINDS = {"F": "32-bit float"}


def read_with_pillow(path: str | Path, tiff: TiffInfo | None, bands: tuple[int, ...], near: int
                     ) -> tuple[Image.Image, tuple[int, int], int, str]:
    """-> RGB as stored, the whole width and height, EXIF's turn, and what was done."""
    with Image.open(path) as image:
        size, times = image.size, downscale(image.size)
        if near or times > 1:
            image.draft(None, (near, near) if near else (size[0] // times, size[1] // times))
        again = -(-max(image.size) // MAX_SIDE) if times > 1 else 1
        times = -(-size[0] // image.size[0]) * again if times > 1 else 1
        values = deep_values(image, path, again)
        if values is None:
            shown, note = flatten(shrink_image(image, again), bands, tiff is None or tiff.alpha)
            note = note or (hidden_bands(image, tiff) if tiff and not bands else "")
        else:
            kind = tiff.kind if tiff else PIXEL_KINDS.get(image.mode, "16-bit")
            shown, note = show_deep(values, bands, kind, tiff)
        turn = image.getexif().get(ORIENTATION_TAG, 1)
    return shown, size, turn, join_notes(note, describe_downscale(times))


def show_deep(values: np.ndarray, bands: tuple[int, ...], kind: str, tiff: TiffInfo | None
              ) -> tuple[Image.Image, str]:
    """float32[H, W, C] -> RGB and what was done."""
    chosen, total = choose_bands(bands, values.shape[2], kind), values.shape[2]
    values = mask_nodata(values[..., [band - 1 for band in chosen]], tiff.nodata if tiff else None)
    image, note = stretch(values, kind)
    image = ImageOps.invert(image) if tiff and tiff.colors == 0 else image
    return image, join_notes(describe_bands(chosen, total), note)


def hidden_bands(image: Image.Image, tiff: TiffInfo) -> str:
    """Pillow leaves out a band that is not said to be alpha."""
    shown = {"L": (1,), "RGB": (1, 2, 3)}.get(image.mode, ())
    return describe_bands(shown, tiff.bands) if 0 < len(shown) < tiff.bands else ""


# ---- deep ----------------------------------------------------------------------------------------
# Pictures of more than 8 bits that Pillow reads: whole, or not at all.

LOW_BYTES = {"RGB;16B": "RGB;16L", "RGBA;16B": "RGBA;16L"}


def deep_values(image: Image.Image, path: str | Path, step: int) -> np.ndarray | None:
    """An open picture -> every step-th pixel, float32[H, W, C], if it has over 8 bits, else None.

    Not means: what is no data is not known here. PictureError where Pillow drops bits."""
    if image.mode[0] in "IF":
        values = np.asarray(image)[::step, ::step, None].astype(np.float32)
        if isinstance(clear := image.info.get("transparency"), int):
            values[values == clear] = np.nan
        return values
    if image.format == "PNG":
        return deep_png(image, path, step)
    if image.format == "JPEG2000" and bits_of_jpeg2000(path) > 8:
        raise PictureError("a JPEG 2000 of over 8 bits in color; save it as TIFF")
    return None


def deep_png(image: Image.Image, path: str | Path, step: int) -> np.ndarray | None:
    """Of 16-bit colors Pillow keeps the high bytes; with the order swapped, the low bytes."""
    name, box, offset, raw = image.tile[0]
    if raw == "LA;16B":
        raise PictureError("16-bit gray with transparency; save it without")
    if raw not in LOW_BYTES:
        return None
    values = np.asarray(image)[::step, ::step].astype(np.float32) * 256
    with Image.open(path) as again:
        again.tile = [(name, box, offset, LOW_BYTES[raw])]
        values += np.asarray(again)[::step, ::step]
    if values.shape[2] == 4:
        values[values[..., 3] == 0] = np.nan
    return values[..., :3]


def bits_of_jpeg2000(path: str | Path) -> int:
    """From its SIZ marker; 8 where that is not near the beginning."""
    with open(path, "rb") as file:
        _, found, head = file.read(10**6).partition(b"\xff\x4f\xff\x51")
    return (head[38] & 127) + 1 if found and len(head) > 38 else 8


# ---- flat ----------------------------------------------------------------------------------------
# What Pillow decoded -> 8-bit RGB.

AVERAGEABLE_MODES = ("L", "RGB", "RGBA", "CMYK", "YCbCr")   # modes whose pixels may be averaged


ALPHA_MODES = ("LA", "La", "PA", "RGBA", "RGBa")


def flatten(image: Image.Image, bands: tuple[int, ...] = (), alpha: bool = True
            ) -> tuple[Image.Image, str]:
    """An 8-bit picture of any mode -> RGB on black, and what was done.

    alpha: whether a fourth band is one; where it is not, it is left out.
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
    """The bands that are asked for, as they are stored."""
    if image.mode not in ("L", "LA", "RGB", "RGBA"):
        image = image.convert("RGB")
    total = len(image.getbands())
    chosen = choose_bands(bands, total, "8-bit")
    shown = [image.getchannel(band - 1) for band in chosen]
    return Image.merge("RGB", (shown * 3)[:3]), describe_bands(chosen, total)


def shrink_image(image: Image.Image, factor: int) -> Image.Image:
    """`factor` times smaller: means, or every n-th pixel where a mean has no meaning."""
    image = image.convert("L") if image.mode == "1" else image
    if factor == 1 or image.mode in AVERAGEABLE_MODES:
        return image.reduce(factor) if factor > 1 else image
    width, height = image.size
    return image.resize((-(-width // factor), -(-height // factor)), Image.Resampling.NEAREST)


# ---- headers -------------------------------------------------------------------------------------
# Pictures looked at without decoding them, several at a time.

SWAPPED = (5, 6, 7, 8)                  # EXIF orientations that swap width and height


END_MARKS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82", "GIF": b";"}


def read_header(path: str) -> tuple[int, int, str]:
    """-> width and height as it is shown, and what is wrong; 0, 0 where they cannot be told."""
    if Path(path).is_dir() or Path(path).suffix.lower() in VIDEO_SUFFIXES:
        return 0, 0, "" if Path(path).exists() else f"{path}: no such video"
    try:
        with one_line_errors(path), pixel_limit():
            tags = read_tiff_info(path)
            if tags:
                return *oriented(tags.size, tags.turn), ""
            with Image.open(path) as image:
                told = "" if ends_well(path, image.format) else f"{path}: cut off at its end"
                # Asked for what a PNG does not begin with, Pillow would decode it to the end.
                asked = image.format != "PNG" or "exif" in image.info
                return *oriented(image.size, asked and image.getexif().get(0x0112)), told
    except PictureError as error:
        return 0, 0, str(error)


def oriented(size: tuple[int, int], orientation: int | bool | None) -> tuple[int, int]:
    return size[::-1] if orientation in SWAPPED else size


def ends_well(path: str, kind: str) -> bool:
    """A file that was cut off lacks its end mark."""
    with open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - 64))
        return END_MARKS.get(kind, b"") in file.read()


def read_headers(paths: Iterable[str]) -> dict[str, tuple[int, int, str]]:
    """-> path: what `look` says."""
    paths = list(dict.fromkeys(paths))
    if len(paths) < 500:
        return {path: read_header(path) for path in paths}
    with Pool(os.cpu_count()) as pool:
        found = pool.imap(read_header, paths, chunksize=200)
        return dict(zip(paths, tqdm(found, total=len(paths), unit="picture", disable=None),
                        strict=True))
