"""Frames of a video, through the ffmpeg program."""
import io
import shutil
import subprocess
from pathlib import Path

from PIL import Image

from formats.pictures.errors import PictureError


def count_frames(path: Path) -> int:
    """Packets of its first video stream: nothing is decoded."""
    out = ffmpeg(path, "-map", "0:v:0", "-c", "copy", "-f", "null", "-progress", "-", "-")
    counts = [line[6:] for line in out.decode().splitlines() if line.startswith("frame=")]
    return int(counts[-1]) if counts else 0


def read_frames(path: Path, numbers: list[int]) -> list[Image.Image]:
    """The frames of these rising numbers, from 0, as RGB. PictureError."""
    chosen = "+".join(f"eq(n,{number})" for number in numbers)
    out = io.BytesIO(ffmpeg(                    # new times: ffmpeg would fill the gaps
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


def ffmpeg(path: Path, *options: str) -> bytes:
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
