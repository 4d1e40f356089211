"""Pictures of more than 8 bits that Pillow reads: whole, or not at all."""
from pathlib import Path

import numpy as np
from PIL import Image

from formats.pictures.errors import PictureError

LOW_BYTES = {"RGB;16B": "RGB;16L", "RGBA;16B": "RGBA;16L"}


def deep_values(image: Image.Image, path: str | Path, step: int) -> np.ndarray | None:
    """An open picture -> every step-th pixel, float32[H, W, C], if it has over 8 bits, else None.

    Not means: what is no data is not known here. PictureError where Pillow drops bits."""
    if image.mode[0] in "IF":
        values = np.asarray(image)[::step, ::step, None].astype(np.float32)
        if isinstance(clear := image.info.get("transparency"), int):
            values[values == clear] = np.nan
        return values
    if image.format == "PNG":
        return deep_png(image, path, step)
    if image.format == "JPEG2000" and bits_of_jpeg2000(path) > 8:
        raise PictureError("a JPEG 2000 of over 8 bits in color; save it as TIFF")
    return None


def deep_png(image: Image.Image, path: str | Path, step: int) -> np.ndarray | None:
    """Of 16-bit colors Pillow keeps the high bytes; with the order swapped, the low bytes."""
    name, box, offset, raw = image.tile[0]
    if raw == "LA;16B":
        raise PictureError("16-bit gray with transparency; save it without")
    if raw not in LOW_BYTES:
        return None
    values = np.asarray(image)[::step, ::step].astype(np.float32) * 256
    with Image.open(path) as again:
        again.tile = [(name, box, offset, LOW_BYTES[raw])]
        values += np.asarray(again)[::step, ::step]
    if values.shape[2] == 4:
        values[values[..., 3] == 0] = np.nan
    return values[..., :3]


def bits_of_jpeg2000(path: str | Path) -> int:
    """From its SIZ marker; 8 where that is not near the beginning."""
    with open(path, "rb") as file:
        _, found, head = file.read(10**6).partition(b"\xff\x4f\xff\x51")
    return (head[38] & 127) + 1 if found and len(head) > 38 else 8
