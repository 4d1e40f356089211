"""Clips: the middle frames of a folder, an animation or a video, or one clear line."""
import struct
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from pictures import BYTES, save
from support.images import clips
from support.images.clips import is_clip, read_clip
from support.images.common import PictureError
from support.images.read import read_header


def colors(images):
    return [getattr(image, "image", image).getpixel((5, 5)) for image in images]


FRAMES = [Image.new("RGB", (16, 12), (10 * i, 250 - 10 * i, 5)) for i in range(12)]


def test_a_folder_of_frames_is_in_the_order_of_its_numbers(tmp_path):
    for i, frame in enumerate(FRAMES):
        frame.save(tmp_path / f"frame{i}.png")
    (tmp_path / "notes.txt").write_text("not a frame")
    assert is_clip(tmp_path)
    assert colors(read_clip(tmp_path, 12)) == colors(read_clip(tmp_path, 99)) \
        == colors(FRAMES)
    assert colors(read_clip(tmp_path, 1)) == colors(FRAMES[6:7])
    assert colors(read_clip(tmp_path, 4)) == colors([FRAMES[i] for i in (1, 4, 7, 10)])


def test_an_empty_folder_and_a_broken_frame_are_named(tmp_path):
    with pytest.raises(PictureError, match="no pictures in this folder"):
        read_clip(tmp_path)
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(PictureError, match="a.png: not a picture"):
        read_clip(tmp_path)


@pytest.mark.parametrize("suffix", ["gif", "webp"])
def test_an_animation_is_a_clip_and_a_still_is_not(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    extra = {"lossless": True} if suffix == "webp" else {}
    FRAMES[0].save(path, save_all=True, append_images=FRAMES[1:], **extra)
    assert is_clip(path)
    assert colors(read_clip(path, 3)) == colors([FRAMES[i] for i in (2, 6, 10)])
    FRAMES[0].save(path)
    assert not is_clip(path) and not is_clip(tmp_path / f"gone.{suffix}")
    assert not is_clip(save(tmp_path / "a.png", BYTES))


def gif_bomb(path, side, frames):
    """Frames of one pixel each on a large canvas."""
    one = (b"\x21\xf9\x04\0\x01\0\0\0\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0)
           + b"\x02\x02\x44\x01\0")
    path.write_bytes(b"GIF89a" + struct.pack("<HHBBB", side, side, 0x80, 0, 0)
                     + b"\0\0\0\xff\xff\xff" + one * frames + b";")
    return path


@pytest.mark.parametrize("side, frames", [(22_300, 3), (5_000, 30), (1, 30_000)])
def test_an_animation_of_too_much_is_refused_before_it_is_decoded(tmp_path, side, frames):
    path = gif_bomb(tmp_path / "a.gif", side, frames)
    assert is_clip(path)
    with pytest.raises(PictureError, match="a.gif: .* frames of .*give a folder"):
        read_clip(path)
    assert "give a folder" in read_header(str(path)).fault


def test_the_frames_of_a_clip_are_reduced_together(tmp_path, monkeypatch):
    monkeypatch.setattr(clips, "CLIP_PIXELS", 3 * 40 * 30)
    for i, side in enumerate((40, 80, 120)):    # of different sizes
        Image.new("RGB", (side, side * 3 // 4), (9, 90 * i, 5)).save(tmp_path / f"{i}.png")
    frames = read_clip(tmp_path)
    assert [frame.size for frame in frames] == [(40, 30), (80, 60), (120, 90)]
    assert [frame.image.size for frame in frames] == [(40, 30)] * 3
    assert [frame.note for frame in frames] == ["", "reduced 2 times while reading",
                                                "reduced 3 times while reading"]
    large = [Image.new("RGB", (80, 60), (5 * i, 9, 9)) for i in range(3)]
    for name, more in (("a.gif", {}), ("a.webp", {"lossless": True})):
        large[0].save(tmp_path / name, save_all=True, append_images=large[1:], **more)
        found = read_clip(tmp_path / name)
        assert [(f.size, f.image.size) for f in found] == [((80, 60), (40, 30))] * 3
        assert colors(found) == colors(large)


def test_only_animations_are_opened_as_clips(tmp_path):
    page = Image.fromarray(BYTES)
    page.save(tmp_path / "a.tif", save_all=True, append_images=[page.copy(), page.copy()])
    (tmp_path / "a.tif").rename(tmp_path / "a.gif")
    assert not is_clip(tmp_path / "a.gif")
    assert not is_clip(f"{tmp_path}/{'x' * 300}.gif") and not is_clip("a\0.gif")


def test_a_video_without_ffmpeg_names_it(tmp_path, monkeypatch):
    (tmp_path / "a.mp4").write_bytes(b"x")
    monkeypatch.setattr(clips.shutil, "which", lambda _: None)
    assert is_clip(tmp_path / "a.mp4")
    with pytest.raises(PictureError, match="a.mp4: a video is read by ffmpeg"):
        read_clip(tmp_path / "a.mp4")


FAKE = """#!{python}
import sys
if "-progress" in sys.argv:
    print("frame=3"), print("frame=12")
elif "-pix_fmt" in sys.argv:
    for i in (2, 6, 10):
        sys.stdout.buffer.write(b"P6\\n2 1\\n255\\n" + bytes([i] * 6))
"""


def test_ffmpeg_is_requested_to_give_the_middle_frames(tmp_path, monkeypatch):
    program = tmp_path / "ffmpeg"
    program.write_text(FAKE.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setattr(clips.shutil, "which", lambda _: str(program))
    (tmp_path / "a.mp4").write_bytes(b"x")
    images = read_clip(tmp_path / "a.mp4", 3)
    assert [np.array(image.image).mean() for image in images] == [2, 6, 10]
    gray = read_clip(tmp_path / "a.mp4", 3, (2,))
    assert [image.note for image in gray] == ["band 2 of 3 shown"] * 3


@pytest.mark.parametrize("name", ["", "a.gif", "a.webp"])
def test_the_bands_that_are_asked_for_are_shown_of_each_frame(tmp_path, name):
    frames = [Image.new("RGB", (16, 12), color) for color in ((10, 200, 90), (30, 150, 60))]
    for i, frame in enumerate(frames):
        frame.save(tmp_path / f"{i}.png")
    if name:
        extra = {"lossless": True} if name == "a.webp" else {}
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **extra)
    swapped = read_clip(tmp_path / name, 2, (3, 2, 1))
    assert colors(swapped) == [(90, 200, 10), (60, 150, 30)]
    assert [frame.note for frame in swapped] == ["bands 3, 2, 1 of 3 shown"] * 2
    assert colors(read_clip(tmp_path / name, 2, (2,))) == [(200,) * 3, (150,) * 3]
    with pytest.raises(PictureError, match="--bands asks for band 5; it has 3"):
        read_clip(tmp_path / name, 2, (5, 2, 1))


def test_a_real_video_gives_its_frames(tmp_path, monkeypatch):
    ffmpeg = pytest.importorskip("imageio_ffmpeg").get_ffmpeg_exe()
    for i, frame in enumerate(FRAMES):
        frame.resize((64, 48)).save(tmp_path / f"{i}.png")
    subprocess.run([ffmpeg, "-v", "error", "-i", f"{tmp_path}/%d.png", f"{tmp_path}/-a b.mp4"],
                   check=True)
    monkeypatch.setattr(clips.shutil, "which", lambda _: ffmpeg)
    images = read_clip(tmp_path / "-a b.mp4", 3)
    truth = [np.array(FRAMES[i]).mean((0, 1)) for i in (2, 6, 10)]
    assert np.abs(np.array([np.array(i.image).mean((0, 1)) for i in images]) - truth).max() < 8
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    with pytest.raises(PictureError, match="is the file complete"):
        read_clip(tmp_path / "bad.mp4")
