"""support/images/clips.py"""
import io
import re
import shutil
import subprocess
from pathlib import Path

from PIL import Image

from support.images.common import (
    ANIMATION_SUFFIXES,
    VIDEO_SUFFIXES,
    PictureError,
    one_line_errors,
    pixel_limit,
)
from support.images.read import flatten, read_picture

# ---- clip ----------------------------------------------------------------------------------------
# Clips, as a few of their frames: a folder of pictures, an animation, a video (by ffmpeg).

FRAME_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".jp2")


def is_clip(path: str | Path) -> bool:
    """A folder, an animation of more than one frame, or a file with a video's suffix."""
    path = Path(path)
    if path.suffix.lower() in ANIMATION_SUFFIXES and path.is_file():
        try:
            with one_line_errors(path), pixel_limit(), Image.open(path) as image:
                return getattr(image, "n_frames", 1) > 1
        except PictureError:
            return False                        # read_picture says what is wrong
    return path.is_dir() or path.suffix.lower() in VIDEO_SUFFIXES


def read_clip(path: str | Path, frames: int = 8) -> list[Image.Image]:
    """-> at most `frames` RGB pictures, evenly spaced. PictureError: one line with the path."""
    path = Path(path)
    if path.is_dir():
        files = sorted((file for file in path.iterdir() if file.suffix.lower() in FRAME_SUFFIXES
                        and not file.name.startswith(".")), key=natural_key)
        if not files:
            raise PictureError(f"{path}: no pictures in this folder")
        return [read_picture(files[i]).image for i in frame_indices(len(files), frames)]
    with one_line_errors(path), pixel_limit():
        if path.suffix.lower() in VIDEO_SUFFIXES:
            return read_video_frames(path, frame_indices(count_frames(path), frames))
        with Image.open(path) as image:
            return [read_frame(image, i) for i in frame_indices(getattr(image, "n_frames", 1), frames)]


def natural_key(file: Path) -> list:
    """frame2 before frame10."""
    return [int(part) if part.isdigit() else part for part in re.split("([0-9]+)", file.name)]


def frame_indices(total: int, frames: int) -> list[int]:
    """The middle one of each of `frames` equal parts; all where there are no more."""
    if total <= frames:
        return list(range(total))
    return [(2 * i + 1) * total // (2 * frames) for i in range(frames)]


def read_frame(image: Image.Image, number: int) -> Image.Image:
    image.seek(number)
    return flatten(image.copy())[0]


# ---- video ---------------------------------------------------------------------------------------
# Frames of a video, through the ffmpeg program.

def count_frames(path: Path) -> int:
    """Packets of its first video stream: nothing is decoded."""
    out = run_ffmpeg(path, "-map", "0:v:0", "-c", "copy", "-f", "null", "-progress", "-", "-")
    counts = [line[6:] for line in out.decode().splitlines() if line.startswith("frame=")]
    return int(counts[-1]) if counts else 0


def read_video_frames(path: Path, numbers: list[int]) -> list[Image.Image]:
    """The frames of these rising numbers, from 0, as RGB. PictureError."""
    chosen = "+".join(f"eq(n,{number})" for number in numbers)
    out = io.BytesIO(run_ffmpeg(                    # new times: ffmpeg would fill the gaps
        path, "-map", "0:v:0", "-vf", f"select='{chosen}',setpts=N/FRAME_RATE/TB", "-frames:v",
        str(len(numbers)), "-pix_fmt", "rgb24", "-c:v", "ppm", "-f", "image2pipe", "-"))
    images = []
    while line := out.readline():               # P6, then width and height, then 255, then bytes
        if line.strip() != b"P6":
            raise PictureError("ffmpeg gave no pictures; is it a video?")
        width, height = (int(word) for word in out.readline().split())
        out.readline()
        images.append(Image.frombytes("RGB", (width, height), out.read(width * height * 3)))
    return images


def run_ffmpeg(path: Path, *options: str) -> bytes:
    """What ffmpeg writes to its output. PictureError where it is missing or refuses."""
    program = shutil.which("ffmpeg")
    if program is None:
        raise PictureError("a video is read by ffmpeg, which is not installed; install it, or "
                           "give a folder of frames")
    if not path.is_file():
        raise FileNotFoundError(path)
    done = subprocess.run([program, "-nostdin", "-v", "error", "-i", f"file:{path}", *options],
                          capture_output=True, check=False)
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
        raise PictureError(f"ffmpeg cannot read it ({lines[-1].strip()}); is the file complete?")
    return done.stdout
