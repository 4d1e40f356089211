"""Clips as a few of their frames: a folder of pictures, an animation, or a video (through ffmpeg).

A folder's frames are its pictures in the order of the numbers in their names. Of a longer clip the
middle frames of equal parts are taken.
"""
import io
import re
import shutil
import subprocess
from pathlib import Path

from PIL import Image

from support.images.common import (
    ANIMATION_SUFFIXES,
    PICTURE_SUFFIXES,
    VIDEO_SUFFIXES,
    PictureError,
    one_line_errors,
    pixel_limit,
)
from support.images.read import flatten, read_picture


def is_clip(path: str | Path) -> bool:
    """A folder, an animation of more than one frame, or a file with a video's suffix."""
    path = Path(path)
    if path.suffix.lower() in ANIMATION_SUFFIXES and path.is_file():
        try:
            with one_line_errors(path), pixel_limit(), Image.open(path) as image:
                return count_animation_frames(image) > 1
        except PictureError:
            return False                        # read_picture says what is wrong with it
    return path.is_dir() or path.suffix.lower() in VIDEO_SUFFIXES


def read_clip(path: str | Path, frames: int = 8) -> list[Image.Image]:
    """-> at most `frames` RGB pictures, evenly spaced. PictureError: one line with the path."""
    path = Path(path)
    if path.is_dir():
        files = frame_files(path)
        return [read_picture(files[i]).image for i in frame_indices(len(files), frames)]
    with one_line_errors(path), pixel_limit():
        if path.suffix.lower() in VIDEO_SUFFIXES:
            return read_video_frames(path, frame_indices(count_video_frames(path), frames))
        with Image.open(path) as image:
            indices = frame_indices(count_animation_frames(image), frames)
            return [read_animation_frame(image, i) for i in indices]


def frame_indices(total: int, frames: int) -> list[int]:
    """The middle of each of `frames` equal parts; all where there are no more frames."""
    if total <= frames:
        return list(range(total))
    return [(2 * i + 1) * total // (2 * frames) for i in range(frames)]


# ---- folders and animations ----------------------------------------------------------------------

def frame_files(folder: Path) -> list[Path]:
    files = [file for file in folder.iterdir()
             if file.suffix.lower() in PICTURE_SUFFIXES and not file.name.startswith(".")]
    if not files:
        raise PictureError(f"{folder}: no pictures in this folder")
    return sorted(files, key=natural_key)


def natural_key(file: Path) -> list[int | str]:
    """Sorts frame2 before frame10."""
    return [int(part) if part.isdigit() else part for part in re.split("([0-9]+)", file.name)]


def count_animation_frames(image: Image.Image) -> int:
    """1 for a format that has no animations."""
    return getattr(image, "n_frames", 1)


def read_animation_frame(image: Image.Image, index: int) -> Image.Image:
    image.seek(index)
    return flatten(image.copy())[0]


# ---- videos --------------------------------------------------------------------------------------

def count_video_frames(path: Path) -> int:
    """The packets of its first video stream: nothing is decoded."""
    out = run_ffmpeg(path, "-map", "0:v:0", "-c", "copy", "-f", "null", "-progress", "-", "-")
    counts = [line.removeprefix("frame=") for line in out.decode().splitlines()
              if line.startswith("frame=")]
    return int(counts[-1]) if counts else 0


def read_video_frames(path: Path, indices: list[int]) -> list[Image.Image]:
    """The frames of these rising indices, counted from 0, as RGB. PictureError."""
    chosen = "+".join(f"eq(n,{index})" for index in indices)
    out = io.BytesIO(run_ffmpeg(                # with their old times ffmpeg would fill the gaps
        path, "-map", "0:v:0", "-vf", f"select='{chosen}',setpts=N/FRAME_RATE/TB",
        "-frames:v", str(len(indices)), "-pix_fmt", "rgb24", "-c:v", "ppm",
        "-f", "image2pipe", "-"))
    images = []
    while line := out.readline():               # a PPM: P6, width and height, 255, then the bytes
        if line.strip() != b"P6":
            raise PictureError("ffmpeg gave no pictures; is it a video?")
        width, height = (int(number) for number in out.readline().split())
        out.readline()
        images.append(Image.frombytes("RGB", (width, height), out.read(width * height * 3)))
    return images


def run_ffmpeg(path: Path, *options: str) -> bytes:
    """-> its standard output. PictureError where the program is missing or refuses the file."""
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
