"""Pictures as satellites deliver them -> 8-bit RGB, or one clear line: never white, black or noise.

8-bit data stay as they are; more bits are stretched (stretch.py). Pillow reads what it reads
right, tifffile the other TIFFs (tiff.py).
"""
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from formats.pictures.bands import join
from formats.pictures.errors import MissingPackage, PictureError, one_line
from formats.pictures.limits import LIMIT, factor, limit, reduced, too_large
from formats.pictures.pillow import TURN, read_with_pillow
from formats.pictures.tags import Tiff, read_tags
from formats.pictures.tiff import pillow_is_right, read_tiff, tifffile_is_right


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
    with one_line(path), limit():
        image, size, turn, note = read_stored(path, read_tags(path), tuple(bands), near)
        image.getexif()[TURN] = turn
        ImageOps.exif_transpose(image, in_place=True)
        return Picture(image, size[::-1] if turn in (5, 6, 7, 8) else size, note)


def read_stored(path: str | Path, tiff: Tiff | None, bands: tuple[int, ...], near: int
                ) -> tuple[Image.Image, tuple[int, int], int, str]:
    """-> RGB as stored, the whole width and height, EXIF's turn, and what was done."""
    if tiff is None:
        return read_with_pillow(path, None, bands, near)
    if tiff.size[0] * tiff.size[1] > LIMIT:
        raise PictureError(too_large(tiff.size[0] * tiff.size[1]))
    right, times = pillow_is_right(tiff, bands), factor(tiff.size)
    if not right or times > 1 and tifffile_is_right(tiff):
        try:
            image, note = read_tiff(path, tiff, bands, times)
            return image, tiff.size, tiff.turn, join(note, reduced(times))
        except MissingPackage:
            if not right:
                raise
    try:
        return read_with_pillow(path, tiff, bands, near)
    except UnidentifiedImageError:              # a kind of TIFF that Pillow knows to refuse
        image, note = read_tiff(path, tiff, bands, times)
        return image, tiff.size, tiff.turn, join(note, reduced(times))
