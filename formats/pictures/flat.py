"""What Pillow decoded -> 8-bit RGB."""
from PIL import Image

from formats.pictures.bands import choose, tell_bands

MEANS = ("L", "RGB", "RGBA", "CMYK", "YCbCr")   # modes whose pixels may be averaged
SEE_THROUGH = ("LA", "La", "PA", "RGBA", "RGBa")


def flatten(image: Image.Image, bands: tuple[int, ...] = (), alpha: bool = True
            ) -> tuple[Image.Image, str]:
    """An 8-bit picture of any mode -> RGB on black, and what was done.

    alpha: whether a fourth band is one; where it is not, it is left out.
    """
    if bands:
        return pick(image, bands)
    if image.mode not in SEE_THROUGH and "transparency" not in image.info:
        return image.convert("RGB"), ""
    image = image.convert("LA" if image.mode == "La" else "RGBA").convert("RGBA")
    mask, colors = image.getchannel("A"), image.convert("RGB")
    if not alpha:
        return colors, tell_bands((1, 2, 3), 4)
    if mask.getextrema()[0] == 255:
        return colors, ""
    black = Image.new("RGB", image.size)
    black.paste(colors, mask=mask)
    return black, "transparent parts are black"


def pick(image: Image.Image, bands: tuple[int, ...]) -> tuple[Image.Image, str]:
    """The bands that are asked for, as they are stored."""
    if image.mode not in ("L", "LA", "RGB", "RGBA"):
        image = image.convert("RGB")
    total = len(image.getbands())
    chosen = choose(bands, total, "8-bit")
    shown = [image.getchannel(band - 1) for band in chosen]
    return Image.merge("RGB", (shown * 3)[:3]), tell_bands(chosen, total)


def reduce(image: Image.Image, factor: int) -> Image.Image:
    """`factor` times smaller: means, or every n-th pixel where a mean has no meaning."""
    image = image.convert("L") if image.mode == "1" else image
    if factor == 1 or image.mode in MEANS:
        return image.reduce(factor) if factor > 1 else image
    width, height = image.size
    return image.resize((-(-width // factor), -(-height // factor)), Image.Resampling.NEAREST)
