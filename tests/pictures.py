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

HAS_RASTERIO = importlib.util.find_spec("rasterio") is not None
needs_rasterio = pytest.mark.skipif(not HAS_RASTERIO, reason="rasterio is optional")


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


def save_tiff(path, array, byteorder="<", bigtiff=False, **options):
    """One page; the options are add_page's."""
    path.write_bytes(tiff_bytes((array, options), order=byteorder, big=bigtiff))
    return path


def tiff_bytes(*pages, order="<", big=False):
    """A TIFF by hand. pages: array and options of each, which are add_page's."""
    body, code = bytearray(16 if big else 8), order + ("Q" if big else "I")
    letter = b"I" if order == "<" else b"M"
    body[:8] = 2 * letter + (struct.pack(f"{order}HHH", 43, 8, 0) if big else
                             struct.pack(f"{order}HI", 42, 0))
    link = 8 if big else 4                      # where it stands at which place a page's tags begin
    for array, options in pages:
        place, following = add_page(body, code, array, **options)
        struct.pack_into(code, body, link, place)
        link = following
    return bytes(body)


def add_page(body, code, array, photometric="minisblack", planarconfig="contig", tile=(),
             rowsperstrip=0, compression="", predictor=False, extrasamples=(), left_out=0,
             surplus=0, tags=(), below=()):
    """-> where its tags begin, and where the place of the next page's is to be written.

    array: [H, W], [H, W, C] or, with the planes apart, [C, H, W]. tile: height, width. left_out: so
    many strips or tiles are not written. surplus: so many zeros are packed behind each one. tags:
    more of them, numbers or texts. below: array and options of pages below it.
    """
    order, size = code[0], struct.calcsize(code)
    apart = planarconfig == "separate"
    planes = array[..., None] if apart else np.atleast_3d(array)[None]
    count, height, width, channels = planes.shape
    down, across = tile or (rowsperstrip or height, width)
    blocks = [plane[y:y + down, x:x + across] for plane in planes
              for y in range(0, height, down) for x in range(0, width, across)]
    places, lengths = [], []
    for number, block in enumerate(blocks):
        if tile:
            block = np.pad(block, ((0, down - len(block)), (0, across - block.shape[1]), (0, 0)))
        if predictor:
            block = predict(block)
        content = block.astype(block.dtype.newbyteorder(order)).tobytes()
        content = zlib.compress(content + bytes(surplus)) if compression else content
        places.append(0 if number < left_out else len(body))
        lengths.append(0 if number < left_out else len(content))
        body += content + bytes(len(content) % 2)
    bands, kind = count * channels, array.dtype.kind
    found = {256: [width], 257: [height], 258: [8 * array.dtype.itemsize] * bands,
             259: [8 if compression else 1],
             262: [("miniswhite", "minisblack", "rgb").index(photometric)], 277: [bands],
             284: [2 if apart else 1], 339: [{"u": 1, "i": 2, "f": 3, "c": 6}[kind]] * bands}
    found |= {322: [across], 323: [down]} if tile else {278: [down]}
    found |= {324 if tile else 273: (places,), 325 if tile else 279: (lengths,)}
    found |= {317: [3 if kind == "f" else 2]} if predictor else {}
    found |= {338: extrasamples} if len(extrasamples) else {}
    found |= {330: ([add_page(body, code, lower, **more)[0] for lower, more in below],)} if below \
        else {}
    found |= dict(tags)
    entries = b""
    for tag, values in sorted(found.items()):
        if isinstance(values, str):
            kind, number, content = 2, len(values) + 1, values.encode() + b"\0"
        elif isinstance(values, tuple):         # places and lengths
            kind, number = (16 if size == 8 else 4), len(values[0])
            content = struct.pack(f"{order}{number}{code[1]}", *values[0])
        else:
            kind, number = 3, len(values)
            content = struct.pack(f"{order}{number}H", *values)
        if len(content) > size:
            place = len(body)
            body += content + bytes(len(content) % 2)
            content = struct.pack(code, place)
        entries += struct.pack(f"{order}HH{code[1]}", tag, kind, number)
        entries += content.ljust(size, b"\0")
    head = struct.pack(order + ("Q" if size == 8 else "H"), len(found))
    start = len(body)
    body += head + entries + bytes(size)
    return start, start + len(head) + len(entries)


def predict(block):
    """Differences to the pixel before; of floats, of their bytes, the highest ones first."""
    if block.dtype.kind == "f":
        height, width, channels = block.shape
        pieces = block.astype(block.dtype.newbyteorder(">")).view(np.uint8)
        pieces = pieces.reshape(height, width * channels, -1).swapaxes(1, 2)
        block = pieces.reshape(height, -1, channels)
    return np.concatenate([block[:, :1], block[:, 1:] - block[:, :-1]], 1)


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
