"""Pictures that Pillow reads right: JPEG, PNG, GIF, WebP, BMP, and most TIFFs of 8 bits."""
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from formats.pictures.bands import choose, join, tell_bands
from formats.pictures.deep import deep_values
from formats.pictures.flat import flatten, reduce
from formats.pictures.limits import LONGEST, factor, reduced
from formats.pictures.stretch import stretch, without
from formats.pictures.tags import Tiff

TURN = 274                  # EXIF's tag
KINDS = {"F": "32-bit float"}


def read_with_pillow(path: str | Path, tiff: Tiff | None, bands: tuple[int, ...], near: int
                     ) -> tuple[Image.Image, tuple[int, int], int, str]:
    """-> RGB as stored, the whole width and height, EXIF's turn, and what was done."""
    with Image.open(path) as image:
        size, times = image.size, factor(image.size)
        if near or times > 1:
            image.draft(None, (near, near) if near else (size[0] // times, size[1] // times))
        again = -(-max(image.size) // LONGEST) if times > 1 else 1
        times = -(-size[0] // image.size[0]) * again if times > 1 else 1
        values = deep_values(image, path, again)
        if values is None:
            shown, note = flatten(reduce(image, again), bands, tiff is None or tiff.alpha)
            note = note or (hidden_bands(image, tiff) if tiff and not bands else "")
        else:
            kind = tiff.kind if tiff else KINDS.get(image.mode, "16-bit")
            shown, note = show_deep(values, bands, kind, tiff)
        turn = image.getexif().get(TURN, 1)
    return shown, size, turn, join(note, reduced(times))


def show_deep(values: np.ndarray, bands: tuple[int, ...], kind: str, tiff: Tiff | None
              ) -> tuple[Image.Image, str]:
    """float32[H, W, C] -> RGB and what was done."""
    chosen, total = choose(bands, values.shape[2], kind), values.shape[2]
    values = without(values[..., [band - 1 for band in chosen]], tiff.nodata if tiff else None)
    image, note = stretch(values, kind)
    image = ImageOps.invert(image) if tiff and tiff.colors == 0 else image
    return image, join(tell_bands(chosen, total), note)


def hidden_bands(image: Image.Image, tiff: Tiff) -> str:
    """Pillow leaves out a band that is not said to be alpha."""
    shown = {"L": (1,), "RGB": (1, 2, 3)}.get(image.mode, ())
    return tell_bands(shown, tiff.bands) if 0 < len(shown) < tiff.bands else ""
