"""TIFFs that Pillow does not read, or reads wrongly: through tifffile, an optional package.

Pillow keeps 8 bits of 16-bit colors, mixes their planes up, and swaps the bytes of compressed
big-endian numbers; none of that raises. What is read is float32[H, W, C] with NaN where there is
no data, or uint8[H, W, C].
"""
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from formats.pictures.bands import choose, join, tell_bands
from formats.pictures.errors import PictureError
from formats.pictures.segments import read_reduced
from formats.pictures.stretch import stretch
from formats.pictures.tags import FLOAT, SIGNED, UNSIGNED, Tiff

JPEG, YCBCR = 7, 6


def pillow_is_right(tiff: Tiff, bands: tuple[int, ...]) -> bool:
    """Where the mode is one that Pillow knows; where it is not, Pillow says so."""
    if tiff.bits <= 8 and tiff.format not in (SIGNED, FLOAT):
        return tiff.bands in ((1, 3) if bands else (1, 2, 3, 4))
    known = [(16, UNSIGNED)] + tiff.little * [(16, SIGNED), (32, SIGNED), (32, FLOAT)]
    return tiff.bands == 1 and tiff.colors < 2 and (tiff.bits, tiff.format) in known


def tifffile_is_right(tiff: Tiff) -> bool:
    """Gray, RGB or bands; of YCbCr only what its JPEG decoder makes RGB of."""
    return tiff.bits >= 8 and (tiff.colors < 3 or (tiff.colors, tiff.compression) == (YCBCR, JPEG))


def read_tiff(path: str | Path, tiff: Tiff, bands: tuple[int, ...], factor: int
              ) -> tuple[Image.Image, str]:
    """-> RGB, `factor` times smaller, and what was done. PictureError, MissingPackage."""
    alpha = tiff.alpha and not bands
    chosen = choose(bands, tiff.bands - alpha, tiff.kind)
    if not tifffile_is_right(tiff):
        raise PictureError(f"{tiff.kind} values in color space {tiff.colors}; save it as RGB")
    values = read_reduced(path, chosen + alpha * (tiff.bands,), factor, tiff.nodata)
    notes = [tell_bands(chosen, tiff.bands - alpha)]
    if alpha:
        values, hidden = values[..., :-1], ~(values[..., -1:] > 0)
        notes += ["transparent parts are black"] * bool(hidden.any())
        values = np.where(hidden, 0 if values.dtype == np.uint8 else np.nan, values)
    image, note = to_image(values, tiff.kind)
    image = ImageOps.invert(image) if tiff.colors == 0 else image
    return image, join(*notes, note)


def to_image(values: np.ndarray, kind: str) -> tuple[Image.Image, str]:
    """uint8[H, W, C] as they are, float32[H, W, C] stretched -> RGB and what was done."""
    if values.dtype != np.uint8:
        return stretch(values, kind)
    return Image.fromarray(np.repeat(values, 3 // values.shape[2], axis=2)), ""
