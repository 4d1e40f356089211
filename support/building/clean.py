"""Which pictures are the same, whatever their names, and which ones a data set keeps for val or
test.

Two hashes are made of a picture. The *content* is the SHA-256 of its file: equal for copies under
another name. The *print* is a perceptual hash of 255 bits: the picture in gray at 64 x 64, its
discrete cosine transform, and of the 16 x 16 lowest frequencies without the first one whether each
is above their median. Resizing and re-encoding change few of these bits, another picture differs
in about half of them. Pictures that are mirrored, turned or cropped are not found.
"""
import hashlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from data import load_images
from support.common import require_regular_file
from support.readers.common import DataError

HELD_OUT_BITS = 48      # a picture that differs from one of val or test in so many bits is its copy
MERGED_BITS = 7         # .. from one of train in another data set: what is known is put together
SIDE, FREQUENCIES = 64, 16
MIN_CONTRAST = 1.0      # standard deviation of the gray levels, 0 to 255; of less no print is made
BANDS = MERGED_BITS + 1         # of 32 bits: prints that differ in MERGED_BITS share one


class PictureFacts(NamedTuple):
    content: bytes          # 16 bytes; b"" where the file cannot be read
    print: bytes            # 32 bytes; b"" of a picture without contrast
    width: int              # pixels, as shown; of a clip, of its first frame
    height: int
    fault: str              # "", or one line that begins with the path


def examine(paths: Sequence[str], bands: Sequence[int] = ()) -> PictureFacts:
    """The pictures of one sample, as one: several are the frames of a clip."""
    try:
        content = hash_files(paths)
    except OSError as error:
        return PictureFacts(b"", b"", 0, 0, f"{paths[0]}: {error.strerror}")
    try:
        pictures = load_images(paths[:1], bands, frames=1, min_side=2 * SIDE)
    except DataError as error:
        return PictureFacts(content, b"", 0, 0, str(error))
    return PictureFacts(content, picture_print(pictures[0].image), *pictures[0].size, "")


def hash_files(paths: Sequence[str]) -> bytes:
    """Of the files, or of those in the folders, in order. OSError, UserError."""
    digest = hashlib.sha256()
    for path in map(Path, paths):
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            require_regular_file(file)
            with file.open("rb") as opened:
                while block := opened.read(1 << 20):
                    digest.update(block)
    return digest.digest()[:16]


@lru_cache(maxsize=1)
def cosines() -> np.ndarray:
    """float[FREQUENCIES, SIDE]: the lowest frequencies of a discrete cosine transform."""
    place, frequency = np.arange(SIDE)[None], np.arange(FREQUENCIES)[:, None]
    return np.cos(np.pi * (2 * place + 1) * frequency / (2 * SIDE)).astype(np.float32)


def picture_print(image: Image.Image) -> bytes:
    """32 bytes, see above; b"" where there is no contrast to speak of."""
    gray = image.convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    levels = np.asarray(gray, dtype=np.float32)
    if levels.std() < MIN_CONTRAST:
        return b""
    waves = (cosines() @ levels @ cosines().T).ravel()
    waves[0] = 0                                        # the brightness; a bit that is never set
    return np.packbits((waves > np.median(waves[1:])) & (np.arange(len(waves)) > 0)).tobytes()


def as_numbers(prints: Sequence[bytes]) -> np.ndarray:
    """32 bytes each -> uint64[n, 4]."""
    return np.frombuffer(b"".join(prints), np.uint64).reshape(-1, 4)


class PrintIndex:
    """Prints among which copies are looked for."""

    def __init__(self, prints: Sequence[bytes], owners: Sequence[int]):
        """owners: a number of each print, which `nearest` gives back."""
        self.prints, self.owners = as_numbers(prints), owners

    def nearest(self, print_: bytes) -> tuple[int, int]:
        """-> (the owner of the nearest print, how many bits differ); (-1, 256) where there is none.
        """
        if not len(self.prints) or not print_:
            return -1, 256
        bits = np.bitwise_count(self.prints ^ as_numbers([print_])).sum(1)
        found = int(bits.argmin())
        return self.owners[found], int(bits[found])


def find_copies(prints: Sequence[bytes], most: int = MERGED_BITS) -> Iterator[tuple[int, int]]:
    """(i, j), i < j, of each pair of prints that differ in at most `most` bits, and some pairs more
    than once. `most` is below BANDS: then at least one band of the two has no differing bit."""
    if most >= BANDS:
        raise ValueError(f"copies are found up to {BANDS - 1} bits")
    numbers = as_numbers(prints)
    bands = numbers.view(np.uint32).reshape(-1, BANDS)
    for band in range(BANDS):
        order = np.argsort(bands[:, band], kind="stable")
        values = bands[order, band]
        for members in np.split(order, np.flatnonzero(values[1:] != values[:-1]) + 1):
            if len(members) > 1:
                yield from copies_among(numbers, members, most)


def copies_among(numbers: np.ndarray, members: np.ndarray, most: int) -> Iterator[tuple[int, int]]:
    for place, i in enumerate(members[:-1]):
        others = members[place + 1:]
        bits = np.bitwise_count(numbers[others] ^ numbers[i]).sum(1)
        for j in others[bits <= most]:
            yield int(i), int(j)
