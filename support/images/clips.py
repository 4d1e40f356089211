"""Clips as a few of their frames: a folder of pictures, an animation, or a video (through ffmpeg).

A folder's frames are its pictures in the order of the numbers in their names. Of a longer clip the
middle frames of equal parts are taken.
"""
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from PIL import Image

from support.common import printable
from support.images.common import (
    ANIMATION_FORMATS,
    ANIMATION_SUFFIXES,
    LARGE_PIXELS,
    PICTURE_SUFFIXES,
    VIDEO_SUFFIXES,
    PictureError,
    describe_reduction,
    join_notes,
    one_line_errors,
    pixel_limit,
    reduction_factor,
)
from support.images.read import (
    Picture,
    check_animation,
    flatten,
    map_pictures,
    open_picture,
    read_picture,
    reduce_image,
    select_bands,
)

CLIP_PIXELS = 4 * LARGE_PIXELS      # of all frames of a clip together; over that, they are reduced
VIDEO_SECONDS = 600                 # in which ffmpeg must be done


def is_clip(path: str | Path) -> bool:
    """A folder, an animation of more than one frame, or a file with a video's suffix."""
    path = Path(path)
    if path.suffix.lower() in ANIMATION_SUFFIXES and os.path.isfile(path):
        try:
            with one_line_errors(path), pixel_limit(), open_picture(
                    path, formats=ANIMATION_FORMATS) as image:
                return image.is_animated
        except PictureError:
            return False                        # read_picture says what is wrong with it
    return os.path.isdir(path) or path.suffix.lower() in VIDEO_SUFFIXES


def read_clip(path: str | Path, frames: int = 8, bands: tuple[int, ...] = ()) -> list[Picture]:
    """-> at most `frames` pictures, evenly spaced. PictureError: one line with the path.

    Together they have at most CLIP_PIXELS: larger ones are reduced, as large pictures are.
    """
    path = Path(path)
    if os.path.isdir(path):
        files = frame_files(path)
        indices = frame_indices(len(files), frames)
        return [read_picture(files[i], bands, most=CLIP_PIXELS // len(indices)) for i in indices]
    with one_line_errors(path), pixel_limit():
        if path.suffix.lower() in VIDEO_SUFFIXES:
            shown = read_video_frames(path, frame_indices(count_video_frames(path), frames))
            return [show_bands(picture, bands) for picture in shown]
        with open_picture(path) as image:
            indices = frame_indices(check_animation(image, path), frames)
            return [read_animation_frame(image, i, CLIP_PIXELS // len(indices), bands)
                    for i in indices]


def check_pixels(paths: Iterable[str], bands: tuple[int, ...] = (), frames: int = 8
                 ) -> dict[str, str]:
    """Every picture and clip decoded as a training would -> path: "" or what is wrong, one line.

    By several processes where there are many. What no header shows is found: damaged pixels, a
    picture of NaN alone, a video that ffmpeg cannot read.
    """
    paths = list(dict.fromkeys(paths))
    check = partial(fault_of_pixels, bands=bands, frames=frames)
    return dict(zip(paths, map_pictures(check, paths, chunk=20), strict=True))


def fault_of_pixels(path: str, bands: tuple[int, ...], frames: int) -> str:
    try:
        if is_clip(path):
            read_clip(path, frames, bands)
        else:
            read_picture(path, bands)
        return ""
    except PictureError as error:
        return str(error)


def frame_indices(total: int, frames: int) -> list[int]:
    """The middle of each of `frames` equal parts; all where there are no more frames."""
    if total <= frames:
        return list(range(total))
    return [(2 * i + 1) * total // (2 * frames) for i in range(frames)]


# ---- folders and animations ----------------------------------------------------------------------

def frame_files(folder: Path) -> list[Path]:
    try:
        files = [file for file in folder.iterdir()
                 if file.suffix.lower() in PICTURE_SUFFIXES and not file.name.startswith(".")]
    except OSError as error:
        raise PictureError(f"{printable(folder)}: cannot be listed ({error.strerror})") from None
    if not files:
        raise PictureError(f"{printable(folder)}: no pictures in this folder")
    return sorted(files, key=natural_key)


def natural_key(file: Path) -> list[int | str]:
    """Sorts frame2 before frame10."""
    return [int(part) if part.isdigit() else part for part in re.split("([0-9]+)", file.name)]


def read_animation_frame(image: Image.Image, index: int, most: int, bands: tuple[int, ...]
                         ) -> Picture:
    image.seek(index)
    image.load()                                # the first frame has another mode before it
    factor = reduction_factor(image.size, most)
    shown = flatten(image.copy() if factor == 1 else reduce_image(image, factor))[0]
    return show_bands(Picture(shown, image.size, describe_reduction(factor)), bands)


def show_bands(frame: Picture, bands: tuple[int, ...]) -> Picture:
    """Those of its colors that are asked for, as of a folder's frames."""
    if not bands:
        return frame
    image, note = select_bands(frame.image, bands)
    return Picture(image, frame.size, join_notes(frame.note, note))


# ---- videos --------------------------------------------------------------------------------------

# Only files, and only what holds a video itself: a playlist named .mp4 would open other files, or
# the network.
ONLY_VIDEOS = ("-protocol_whitelist", "file", "-format_whitelist",
               "mov,avi,matroska,mpegts,mpeg,asf,flv,h264,hevc", "-max_pixels", str(LARGE_PIXELS))


def count_video_frames(path: Path) -> int:
    """The packets of its first video stream: nothing is decoded."""
    out = run_ffmpeg(path, "-map", "0:v:0", "-c", "copy", "-f", "null", "-progress", "-", "-")
    counts = [line.removeprefix(b"frame=") for line in out.splitlines()
              if line.startswith(b"frame=")]
    return int(counts[-1]) if counts else 0


def read_video_frames(path: Path, indices: list[int]) -> list[Picture]:
    """The frames of these rising indices, counted from 0, as RGB. PictureError."""
    if not indices:
        raise PictureError("ffmpeg found no frames; is the file complete?")
    most = CLIP_PIXELS // len(indices)
    size = next(iter(split_ppm(read_frames(path, indices[:1], "")))).size
    factor = reduction_factor(size, most)
    scale = f",scale={-(-size[0] // factor)}:{-(-size[1] // factor)}:flags=area"
    images = split_ppm(read_frames(path, indices, scale if factor > 1 else ""))
    if factor > 1:
        return [Picture(image, size, describe_reduction(factor)) for image in images]
    return [Picture(image, image.size, "") for image in images]


def read_frames(path: Path, indices: list[int], scale: str) -> bytes:
    """-> PPM files, one after the other."""
    chosen = "+".join(f"eq(n,{index})" for index in indices)
    return run_ffmpeg(                          # with their old times ffmpeg would fill the gaps
        path, "-map", "0:v:0", "-vf", f"select='{chosen}',setpts=N/FRAME_RATE/TB{scale}",
        "-frames:v", str(len(indices)), "-pix_fmt", "rgb24", "-c:v", "ppm",
        "-f", "image2pipe", "-")


def split_ppm(data: bytes) -> Iterator[Image.Image]:
    """A PPM: P6, width and height, 255, then the bytes."""
    place = 0
    while place < len(data):
        head = re.compile(rb"P6\s+([0-9]+)\s+([0-9]+)\s+255\s").match(data, place)
        if head is None:
            raise PictureError("ffmpeg gave no pictures; is it a video?")
        width, height = int(head[1]), int(head[2])
        place = head.end() + width * height * 3
        yield Image.frombytes("RGB", (width, height), data[head.end():place])


def run_ffmpeg(path: Path, *options: str) -> bytes:
    """-> its standard output. PictureError where the program is missing or refuses the file."""
    program = shutil.which("ffmpeg")
    if program is None:
        raise PictureError("a video is read by ffmpeg, which is not installed; install it, or "
                           "give a folder of frames")
    if not path.is_file():
        raise FileNotFoundError(path)
    command = [program, "-nostdin", "-v", "error", *ONLY_VIDEOS, "-i", f"file:{path}", *options]
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=VIDEO_SECONDS)
    except subprocess.TimeoutExpired:
        raise PictureError(f"ffmpeg is not done with it in {VIDEO_SECONDS} seconds; give a folder "
                           f"with some of its frames") from None
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
        raise PictureError(f"ffmpeg cannot read it ({printable(lines[-1].strip())}); is the file "
                           f"complete?")
    return done.stdout
