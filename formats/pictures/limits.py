"""How large a picture may be, and how much smaller it is read."""
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image

LIMIT = 500_000_000         # pixels: more are not read at all
LARGE = 64_000_000          # pixels: a larger picture is made smaller while it is read ..
LONGEST = 8192              # .. until its longer side is no longer than this


def factor(size: tuple[int, int]) -> int:
    """How many times smaller a picture of this width and height is shown."""
    return -(-max(size) // LONGEST) if size[0] * size[1] > LARGE else 1


def reduced(times: int) -> str:
    return f"reduced {times} times while reading" if times > 1 else ""


def too_large(pixels: int) -> str:
    return (f"{pixels / 1e6:,.0f} million pixels, at most {LIMIT // 10**6} million are read; "
            f"cut it into smaller pictures")


@contextmanager
def limit() -> Iterator[None]:
    """Pillow's own limit set to ours, for a while; other threads see it, too."""
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, LIMIT // 2     # it refuses twice that
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = before
