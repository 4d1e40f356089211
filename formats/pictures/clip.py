"""Clips, as a few of their frames: a folder of pictures, an animation, a video (by ffmpeg)."""
import re
from pathlib import Path

from PIL import Image

from formats.pictures.errors import PictureError, one_line
from formats.pictures.flat import flatten
from formats.pictures.limits import limit
from formats.pictures.reading import read_picture
from formats.pictures.video import count_frames, read_frames

PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".jp2")
ANIMATIONS, VIDEOS = (".gif", ".webp"), (".mp4", ".avi", ".mov")


def is_clip(path: str | Path) -> bool:
    """A folder, an animation of more than one frame, or a file with a video's suffix."""
    path = Path(path)
    if path.suffix.lower() in ANIMATIONS and path.is_file():
        try:
            with one_line(path), limit(), Image.open(path) as image:
                return getattr(image, "n_frames", 1) > 1
        except PictureError:
            return False                        # read_picture says what is wrong
    return path.is_dir() or path.suffix.lower() in VIDEOS


def read_clip(path: str | Path, frames: int = 8) -> list[Image.Image]:
    """-> at most `frames` RGB pictures, evenly spaced. PictureError: one line with the path."""
    path = Path(path)
    if path.is_dir():
        files = sorted((file for file in path.iterdir() if file.suffix.lower() in PICTURES
                        and not file.name.startswith(".")), key=natural)
        if not files:
            raise PictureError(f"{path}: no pictures in this folder")
        return [read_picture(files[i]).image for i in middles(len(files), frames)]
    with one_line(path), limit():
        if path.suffix.lower() in VIDEOS:
            return read_frames(path, middles(count_frames(path), frames))
        with Image.open(path) as image:
            return [read_frame(image, i) for i in middles(getattr(image, "n_frames", 1), frames)]


def natural(file: Path) -> list:
    """frame2 before frame10."""
    return [int(part) if part.isdigit() else part for part in re.split("([0-9]+)", file.name)]


def middles(total: int, frames: int) -> list[int]:
    """The middle one of each of `frames` equal parts; all where there are no more."""
    if total <= frames:
        return list(range(total))
    return [(2 * i + 1) * total // (2 * frames) for i in range(frames)]


def read_frame(image: Image.Image, number: int) -> Image.Image:
    image.seek(number)
    return flatten(image.copy())[0]
