"""What the tests of support/images share: scenes, writers of rare formats, and what is shown."""
import importlib.util
import struct
import sys
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

import support.images.common as limits
import support.images.read as reading
from support.images.common import PictureError
from support.images.read import read_picture

HAS_TIFFFILE = importlib.util.find_spec("tifffile") is not None
needs_tifffile = pytest.mark.skipif(not HAS_TIFFFILE, reason="tifffile is optional")


# ---- scenes --------------------------------------------------------------------------------------

def scene(width=53, height=37, bands=3):
    """float[H, W, bands] in 0 .. 1: every band another field of waves."""
    y, x = np.mgrid[:height, :width]
    fields = [np.sin(x / (7 + b) + b) + np.cos(y / (5 + 2 * b)) for b in range(bands)]
    return np.stack([(f - f.min()) / (f.max() - f.min()) for f in fields], -1)


BYTES = (scene() * 255).astype(np.uint8)
GRAY16 = (scene()[..., 0] * 3800 + 200).astype(np.uint16)


def block_means(pixels, factor):
    """Means over squares of [H, W, C]; those at the right and lower edge are smaller."""
    if factor == 1:
        return pixels
    height, width = (-(-side // factor) for side in pixels.shape[:2])
    rows = [[pixels[y * factor:(y + 1) * factor, x * factor:(x + 1) * factor].mean((0, 1))
             for x in range(width)] for y in range(height)]
    return np.array(rows)


# ---- writers -------------------------------------------------------------------------------------

def save(path, array):
    Image.fromarray(array).save(path)
    return path


def save_tiff(path, array, **options):
    """By tifffile; the test is skipped where that is not installed."""
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(path, array, **options)
    return path


def save_tiff_with_nodata(path, array, nodata):
    """A gray TIFF by Pillow with GDAL's no-data value."""
    Image.fromarray(array).save(path, tiffinfo={42113: nodata})
    return path


def save_tiff16_by_hand(path, array):
    """A chunky little-endian TIFF of uint16[H, W, C] without a package: header, pixels, tags."""
    height, width, bands = array.shape
    pixels = array.astype("<u2").tobytes()
    bits = 8 + len(pixels)
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, bands, bits), (259, 3, 1, 1),
            (262, 3, 1, 2), (273, 4, 1, 8), (277, 3, 1, bands), (279, 4, 1, len(pixels))]
    path.write_bytes(struct.pack("<2sHI", b"II", 42, bits + 2 * bands) + pixels
                     + struct.pack(f"<{bands}H", *[16] * bands) + struct.pack("<H", len(tags))
                     + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4))
    return path


def save_png16(path, array):
    """A 16-bit PNG, by hand, since Pillow writes gray ones only. Every row has another filter."""
    height, width, bands = array.shape
    rows = array.astype(">u2").view(np.uint8).reshape(height, -1).astype(int)
    step, lines = 2 * bands, b""
    for y, row in enumerate(rows):
        left = np.concatenate([np.zeros(step, int), row[:-step]])
        up = rows[y - 1] if y else np.zeros_like(row)
        base = [np.zeros_like(row), left, up, (left + up) // 2][y % 4]
        lines += bytes([y % 4]) + ((row - base) % 256).astype(np.uint8).tobytes()
    head = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[bands], 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks))
    return path


# ---- what is shown -------------------------------------------------------------------------------

def shown(path, **options):
    """uint8[H, W, 3] of a picture that is read without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = read_picture(path, **options)
    assert picture.image.mode == "RGB" and "\n" not in picture.note
    return np.array(picture.image)


def correlation(pixels, truth):
    """The least of the channels' correlations with the truth, of [H, W] or [H, W, 3]."""
    truth = np.broadcast_to(truth[..., None] if truth.ndim == 2 else truth, pixels.shape)
    return min(np.corrcoef(pixels[..., c].ravel(), truth[..., c].ravel())[0, 1] for c in range(3))


def refusal(path, **options):
    """The one line of the PictureError that reading raises."""
    with pytest.raises(PictureError) as caught:
        read_picture(path, **options)
    message = str(caught.value)
    assert "\n" not in message and message.startswith(f"{path}: ")
    return message


def hide_package(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)        # import raises ImportError


def reduce_from_1000_pixels(monkeypatch):
    """Pictures of over 1000 pixels are reduced to at most 20 on a side."""
    monkeypatch.setattr(limits, "LARGE_PIXELS", 1000)
    for module in (limits, reading):
        monkeypatch.setattr(module, "MAX_SIDE", 20)
