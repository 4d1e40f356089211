"""Pictures looked at without decoding them, several at a time."""
import os
from collections.abc import Iterable
from multiprocessing import Pool
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from formats.pictures.clip import VIDEOS
from formats.pictures.errors import PictureError, one_line
from formats.pictures.limits import limit
from formats.pictures.tags import read_tags

SWAPPED = (5, 6, 7, 8)                  # EXIF orientations that swap width and height
LAST = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82", "GIF": b";"}


def look(path: str) -> tuple[int, int, str]:
    """-> width and height as it is shown, and what is wrong; 0, 0 where they cannot be told."""
    if Path(path).is_dir() or Path(path).suffix.lower() in VIDEOS:
        return 0, 0, "" if Path(path).exists() else f"{path}: no such video"
    try:
        with one_line(path), limit():
            tags = read_tags(path)
            if tags:
                return *turned(tags.size, tags.turn), ""
            with Image.open(path) as image:
                told = "" if ends_well(path, image.format) else f"{path}: cut off at its end"
                # Asked for what a PNG does not begin with, Pillow would decode it to the end.
                asked = image.format != "PNG" or "exif" in image.info
                return *turned(image.size, asked and image.getexif().get(0x0112)), told
    except PictureError as error:
        return 0, 0, str(error)


def turned(size: tuple[int, int], orientation: int | bool | None) -> tuple[int, int]:
    return size[::-1] if orientation in SWAPPED else size


def ends_well(path: str, kind: str) -> bool:
    """A file that was cut off lacks its end mark."""
    with open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - 64))
        return LAST.get(kind, b"") in file.read()


def look_at_all(paths: Iterable[str]) -> dict[str, tuple[int, int, str]]:
    """-> path: what `look` says."""
    paths = list(dict.fromkeys(paths))
    if len(paths) < 500:
        return {path: look(path) for path in paths}
    with Pool(os.cpu_count()) as pool:
        found = pool.imap(look, paths, chunksize=200)
        return dict(zip(paths, tqdm(found, total=len(paths), unit="picture", disable=None),
                        strict=True))
