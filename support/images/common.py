"""support/images/common.py"""
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from support.common import UserError

# ---- common --------------------------------------------------------------------------------------

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff")


# ---- errors --------------------------------------------------------------------------------------
# What is wrong with a picture: always one line, with the file and what to do.

MAGIC_BYTES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*", b"RIFF", b"BM")


class PictureError(UserError):
    """A picture that cannot be shown: one line that names the file and what to do."""


class MissingPackage(PictureError):
    """A picture that an optional package would read."""


@contextmanager
def one_line_errors(path: str | Path) -> Iterator[None]:
    """Whatever a decoder raises inside becomes a PictureError that begins with the path."""
    try:
        yield
    except PictureError as error:
        raise type(error)(f"{path}: {error}") from None
    except (FileNotFoundError, NotADirectoryError):
        raise PictureError(f"{path}: no such picture") from None
    except IsADirectoryError:
        raise PictureError(f"{path}: not a picture (a folder)") from None
    except UnidentifiedImageError:
        raise PictureError(f"{path}: not a picture ({describe_file(path)})") from None
    except Image.DecompressionBombError as error:
        raise PictureError(f"{path}: {too_large(int(re.findall(r'[0-9]+', str(error))[0]))}"
                           ) from None
    except MemoryError:
        raise PictureError(f"{path}: too large for this machine's memory; cut it up") from None
    except Exception as error:      # zlib, struct, libtiff, tifffile: each has its own kinds
        text = " ".join(str(error).split()) or type(error).__name__
        raise PictureError(f"{path}: cannot be read ({text}); is the file complete?") from None


def describe_file(path: str | Path) -> str:
    with open(path, "rb") as file:
        head = file.read(200)
    if not head:
        return "the file is empty"
    if head.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer: run git lfs pull"
    if head.lstrip()[:1] == b"<":
        return "a web page: the download failed"
    if head.startswith(MAGIC_BYTES):
        return "its beginning is one's, the rest is damaged; is the file complete?"
    return "unknown format; PNG, JPEG, TIFF, GIF, WebP and BMP are read"


# ---- limits --------------------------------------------------------------------------------------
# How large a picture may be, and how much smaller it is read.

MAX_PIXELS = 500_000_000         # pixels: more are not read at all


LARGE_PIXELS = 64_000_000          # pixels: a larger picture is made smaller while it is read ..


MAX_SIDE = 8192              # .. until its longer side is no longer than this


def downscale(size: tuple[int, int]) -> int:
    """How many times smaller a picture of this width and height is shown."""
    return -(-max(size) // MAX_SIDE) if size[0] * size[1] > LARGE_PIXELS else 1


def describe_downscale(times: int) -> str:
    return f"reduced {times} times while reading" if times > 1 else ""


def too_large(pixels: int) -> str:
    return (f"{pixels / 1e6:,.0f} million pixels, at most {MAX_PIXELS // 10**6} million are read; "
            f"cut it into smaller pictures")


@contextmanager
def pixel_limit() -> Iterator[None]:
    """Pillow's own limit set to ours, for a while; other threads see it, too."""
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, MAX_PIXELS // 2     # it refuses twice that
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


# ---- bands ---------------------------------------------------------------------------------------
# Which bands are shown.

def choose_bands(bands: tuple[int, ...], total: int, kind: str) -> tuple[int, ...]:
    """-> one band or three, counted from 1. PictureError where only the user can know."""
    if not bands and total > 4:
        raise PictureError(f"{total} bands of {kind} data; say which three are red, green and "
                           f"blue, e.g. --bands 4,3,2")
    if not bands:
        return (1, 2, 3) if total > 2 else (1,)
    if len(bands) not in (1, 3):
        raise PictureError(f"--bands takes one number or three, not {len(bands)}")
    for band in bands:
        if not 1 <= band <= total:
            raise PictureError(f"--bands asks for band {band}; it has {total}")
    return tuple(bands)


def describe_bands(chosen: tuple[int, ...], total: int) -> str:
    """"bands 1, 2, 3 of 4 shown", or nothing where all are shown in their order."""
    if chosen == tuple(range(1, total + 1)):
        return ""
    numbers = ", ".join(str(band) for band in chosen)
    return f"{'bands' if len(chosen) > 1 else 'band'} {numbers} of {total} shown"


def join_notes(*notes: str) -> str:
    return "; ".join(note for note in notes if note)


def parse_bands(text: str) -> tuple[int, ...]:
    """4,3,2 -> (4, 3, 2). ValueError where it is no list of numbers from 1."""
    bands = tuple(int(number) for number in text.split(",")) if text else ()
    if bands and min(bands) < 1:
        raise ValueError("bands are counted from 1")
    return bands


# ---- stretch -------------------------------------------------------------------------------------
# How values of more than 8 bits become 8.

PERCENTILE_SAMPLE = 1_000_000          # values that percentiles are taken from


def mask_nodata(values: np.ndarray, nodata: float | None) -> np.ndarray:
    """float32[H, W, C], changed in place: no-data, infinite and absurd values become NaN."""
    if nodata is not None:
        values[values == np.float32(nodata)] = np.nan       # as a float it is rounded alike
    values[~(np.abs(values) < 1e30)] = np.nan
    return values


def stretch(values: np.ndarray, kind: str) -> tuple[Image.Image, str]:
    """float32[H, W, 1 or 3] -> RGB and what was done; each channel by its own percentiles."""
    done = [stretch_channel(values[..., c]) for c in range(values.shape[2])]
    ranges = ", ".join(f"{low:.6g}..{high:.6g}" for _, low, high in done)
    image = Image.merge("RGB", [Image.fromarray(done[c % len(done)][0]) for c in range(3)])
    what = "gray, stretched" if len(done) == 1 else "colors, each band stretched on its own,"
    return image, f"{kind} {what} from {ranges} (2nd to 98th percentile)"


def stretch_channel(values: np.ndarray) -> tuple[np.ndarray, float, float]:
    """float32[H, W] -> uint8[H, W], low, high. Without data: black; all alike: middle gray."""
    valid = values[np.isfinite(values)]
    if not valid.size:
        raise PictureError("no pixel has a value: all are NaN or no-data; take another file")
    low, high = map(float, np.percentile(valid[::max(1, valid.size // PERCENTILE_SAMPLE)], (2, 98)))
    if not low < high:                          # mostly one value: the rest is what is to be seen
        low, high = float(valid.min()), float(valid.max())
    scaled = (values - low) * (255 / (high - low)) if low < high else values * 0 + 128
    np.nan_to_num(scaled, copy=False)
    return scaled.clip(0, 255, out=scaled).round(out=scaled).astype(np.uint8), low, high


# ---- clip ----------------------------------------------------------------------------------------

ANIMATION_SUFFIXES, VIDEO_SUFFIXES = (".gif", ".webp"), (".mp4", ".avi", ".mov")
