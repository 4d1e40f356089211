"""Pictures looked at without decoding them, several at a time."""
import os
from collections.abc import Iterable
from multiprocessing import Pool
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from formats.pictures.errors import PictureError, one_line

SWAPPED = (5, 6, 7, 8)                  # EXIF orientations that swap width and height
LAST = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82", "GIF": b";"}


def look(path: str) -> tuple[int, int, str]:
    """-> width and height as it is shown, and what is wrong; 0, 0 where they cannot be told."""
    if Path(path).is_dir():             # a clip's frames
        return 0, 0, ""
    try:
        with one_line(path), Image.open(path) as image:
            width, height = image.size
            if image.getexif().get(0x0112) in SWAPPED:
                width, height = height, width
            return width, height, "" if ends_well(path, image) else f"{path}: cut off"
    except PictureError as error:
        return 0, 0, str(error)


def ends_well(path: str, image: Image.Image) -> bool:
    """A file that was cut off lacks its end mark, or TIFF's last strips."""
    size = os.path.getsize(path)
    if image.format == "TIFF":
        starts, lengths = (image.tag_v2.get(tag, (0,)) for tag in (273, 279))
        return all(a + b <= size for a, b in zip(starts, lengths, strict=False))
    with open(path, "rb") as file:
        file.seek(max(0, size - 64))
        return LAST.get(image.format, b"") in file.read()


def look_at_all(paths: Iterable[str]) -> dict[str, tuple[int, int, str]]:
    """-> path: what `look` says."""
    paths = list(paths)
    if len(paths) < 500:
        return {path: look(path) for path in paths}
    with Pool(os.cpu_count()) as pool:
        found = pool.imap(look, paths, chunksize=200)
        return dict(zip(paths, tqdm(found, total=len(paths), unit="picture", disable=None),
                        strict=True))
