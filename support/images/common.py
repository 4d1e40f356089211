"""What the modules about pictures share: formats, errors, size limits, bands, 8-bit stretch."""
import math
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from support.common import UserError, failed_download, printable, require_regular_file

# In the order in which a name without a suffix is completed.
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".jp2")
ANIMATION_SUFFIXES = (".gif", ".webp")
# What Pillow may open: of its other formats, one runs programs (EPS). A TIFF: after its tags.
PILLOW_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "JPEG2000")
ANIMATION_FORMATS = ("GIF", "WEBP")
VIDEO_SUFFIXES = (".mp4", ".avi", ".mov")

ORIENTATION_TAG = 274               # of EXIF and TIFF: how a stored picture is to be turned, 1 .. 8
SIDEWAYS = (5, 6, 7, 8)             # the orientations that swap width and height


def oriented_size(size: tuple[int, int], orientation: int | None) -> tuple[int, int]:
    """Width and height as stored -> as shown."""
    return size[::-1] if orientation in SIDEWAYS else size


def join_notes(*notes: str) -> str:
    return "; ".join(note for note in notes if note)


# ---- errors --------------------------------------------------------------------------------------

class PictureError(UserError):
    """A picture that cannot be shown: one line that names the file and says what to do."""


class MissingPackage(PictureError):
    """A picture that an optional package could read."""


@contextmanager
def one_line_errors(path: str | Path) -> Iterator[None]:
    """Whatever a decoder raises inside becomes a PictureError that begins with the path."""
    file, path = path, printable(path)
    try:
        require_regular_file(file)
    except FileNotFoundError:
        pass                                    # told below
    except IsADirectoryError:
        raise PictureError(f"{path}: not a picture (a folder)") from None
    except OSError as error:
        raise PictureError(f"{path}: no such picture ({error.strerror})") from None
    except UserError as error:
        raise PictureError(str(error)) from None
    try:
        yield
    except PictureError as error:
        raise type(error)(f"{path}: {error}") from None
    except (FileNotFoundError, NotADirectoryError):
        raise PictureError(f"{path}: no such picture") from None
    except UnidentifiedImageError:
        raise PictureError(f"{path}: not a picture ({describe_file(file)})") from None
    except Image.DecompressionBombError as error:
        pixels = int(re.findall(r"[0-9]+", str(error))[0])
        raise PictureError(f"{path}: {too_large(pixels)}") from None
    except MemoryError:
        raise PictureError(f"{path}: too large for this machine's memory; cut it up") from None
    except Exception as error:      # zlib, struct, libtiff, GDAL: each has its own kinds
        text = printable(" ".join(str(error).split())) or type(error).__name__
        raise PictureError(f"{path}: cannot be read ({text}); is the file complete?") from None


MAGIC_BYTES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*", b"RIFF", b"BM")


def describe_file(path: str | Path) -> str:
    """What a file that no decoder recognizes is, by its first bytes."""
    with open(path, "rb") as file:
        head = file.read(200)
    if reason := failed_download(head):
        return reason
    if head.startswith(MAGIC_BYTES):
        return "it begins like one but is damaged; is the file complete?"
    return "unknown format; PNG, JPEG, TIFF, GIF, WebP, BMP and JPEG 2000 are read"


# ---- size limits ---------------------------------------------------------------------------------

MAX_PIXELS = 500_000_000            # a picture of more pixels is refused
LARGE_PIXELS = 64_000_000           # one of more pixels is reduced while it is read ..
MAX_SIDE = 8192                     # .. until its longer side is at most this long
MAX_DECODED_BYTES = 2_000_000_000   # what a decoder may hold of one picture


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def reduction_factor(size: tuple[int, int], most: int = 0) -> int:
    """By which whole number a picture of this width and height is reduced while it is read.

    most: no more than so many pixels are wanted, where that is less than LARGE_PIXELS.
    """
    pixels = size[0] * size[1]
    factor = ceil_div(max(size), MAX_SIDE) if pixels > LARGE_PIXELS else 1
    return max(factor, math.ceil(math.sqrt(pixels / most)) if most else 1)


def describe_reduction(factor: int) -> str:
    return f"reduced {factor} times while reading" if factor > 1 else ""


def check_size(size: tuple[int, int]) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        raise PictureError(too_large(width * height))


def check_memory(size: tuple[int, int], bytes_per_pixel: int) -> None:
    """For what has to be decoded as a whole. The bytes are about what its decoder takes at once."""
    needed = size[0] * size[1] * bytes_per_pixel
    if needed > MAX_DECODED_BYTES:
        raise PictureError(f"{size[0]} x {size[1]} pixels take {needed / 1e9:.1f} GB to decode, at "
                           f"most {MAX_DECODED_BYTES / 1e9:.1f} are used; cut it into smaller "
                           f"pictures, or save it as a TIFF in tiles")


def too_large(pixels: int) -> str:
    return (f"{pixels / 1e6:,.0f} million pixels, at most {MAX_PIXELS // 10**6} million are read; "
            f"cut it into smaller pictures")


@contextmanager
def pixel_limit() -> Iterator[None]:
    """Within, Pillow refuses what is over MAX_PIXELS. The limit is global: all threads have it."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2    # Pillow warns from this on and refuses twice that
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            warnings.simplefilter("ignore", UserWarning)        # of tags that Pillow cannot parse
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


# ---- bands ---------------------------------------------------------------------------------------

def parse_bands(text: str) -> tuple[int, ...]:
    """"4,3,2" -> (4, 3, 2), "" -> (). ValueError where it is no list of numbers from 1."""
    bands = tuple(int(number) for number in text.split(",")) if text else ()
    if bands and min(bands) < 1:
        raise ValueError("bands are counted from 1")
    return bands


def choose_bands(bands: tuple[int, ...], total: int, kind: str) -> tuple[int, ...]:
    """Which of `total` bands are shown: one or three, counted from 1.

    bands: those the user asked for, or (). kind: of the values, for the message. PictureError
    where only the user can know, or where a band does not exist.
    """
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


# ---- more than 8 bits -> 8 bits ------------------------------------------------------------------

PERCENTILE_SAMPLE = 1_000_000       # percentiles are computed from about so many values


def mask_nodata(values: np.ndarray, nodata: float | None) -> np.ndarray:
    """float32[H, W, C], changed in place: no-data, infinite and absurd values become NaN."""
    if nodata is not None:
        values[values == np.float32(nodata)] = np.nan       # rounded to float32 as the values are
    values[~(np.abs(values) < 1e30)] = np.nan
    return values


def stretch(values: np.ndarray, kind: str) -> tuple[Image.Image, str]:
    """float32[H, W, 1 or 3] -> RGB and a note; each channel is scaled by its own percentiles."""
    channels, ranges = [], []
    for c in range(values.shape[2]):
        channel, low, high = stretch_channel(values[..., c])
        channels.append(Image.fromarray(channel))
        ranges.append(f"{low:.6g}..{high:.6g}")
    if len(channels) == 1:
        channels, what = channels * 3, "gray, stretched"
    else:
        what = "colors, each band stretched on its own,"
    note = f"{kind} {what} from {', '.join(ranges)} (2nd to 98th percentile)"
    return Image.merge("RGB", channels), note


def stretch_channel(values: np.ndarray) -> tuple[np.ndarray, float, float]:
    """float32[H, W] -> uint8[H, W], low, high. NaN is black, a constant channel middle gray."""
    valid = values[np.isfinite(values)]
    if not valid.size:
        raise PictureError("no pixel has a value: all are NaN or no-data; take another file")
    low, high = percentile_range(valid)
    return scale_to_bytes(values, low, high), low, high


def percentile_range(valid: np.ndarray) -> tuple[float, float]:
    """Of values that are data: the two that are shown as black and as white."""
    sample = valid[::max(1, valid.size // PERCENTILE_SAMPLE)]
    low, high = map(float, np.percentile(sample, (2, 98)))
    if not low < high:                          # mostly one value: show the few others
        low, high = float(valid.min()), float(valid.max())
    return low, high


def scale_to_bytes(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """float32[..] -> uint8[..]: from low, black, to high, white. NaN is black; where low is high,
    all values are middle gray."""
    scaled = (values - low) * (255 / (high - low)) if low < high else values * 0 + 128
    np.nan_to_num(scaled, copy=False)
    return scaled.clip(0, 255, out=scaled).round(out=scaled).astype(np.uint8)
