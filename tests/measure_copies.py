"""How far the perceptual hash of support/building/clean.py tells copies from other pictures.

    python tests/measure_copies.py FOLDER [--pictures 300] [--seed 0]

Copies are made of some pictures of the folder, in five sizes, three JPEG qualities and two filters;
the bits that differ from the original are compared with those between all pairs of pictures of the
folder.
"""
import argparse
import io
import random
import sys
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from support.building.clean import (  # noqa: E402
    HELD_OUT_BITS,
    MERGED_BITS,
    as_numbers,
    examine,
    picture_print,
)
from support.readers.common import list_pictures  # noqa: E402

SIZES, QUALITIES = (0.5, 0.75, 1.5, 2, 3.5), (50, 75, 95)
FILTERS = Image.Resampling.BICUBIC, Image.Resampling.NEAREST


def copies(image):
    """-> (size, JPEG quality, filter), the picture resized and encoded so."""
    for size in SIZES:
        for quality in QUALITIES:
            for method in FILTERS:
                small = image.resize([round(size * side) for side in image.size], method)
                file = io.BytesIO()
                small.save(file, "JPEG", quality=quality)
                yield (size, quality, method.name), Image.open(file).convert("RGB")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pictures", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    paths = [str(args.folder / name) for name in list_pictures(args.folder)]
    prints = {path: print_ for path in paths if (print_ := examine([path]).print)}
    bits = []
    for path in random.Random(args.seed).sample(sorted(prints), min(args.pictures, len(prints))):
        for _, copy in copies(Image.open(path).convert("RGB")):
            bits.append(differing(picture_print(copy) or bytes(32), prints[path]))
    bits = np.array(bits)
    for most in (MERGED_BITS, HELD_OUT_BITS):
        print(f"{(bits <= most).mean():.2%} of {len(bits):,} copies differ in {most} bits or fewer")
    print(f"copies: half differ in {np.median(bits):g} bits or fewer, the furthest in {bits.max()}")
    numbers, near = as_numbers(list(prints.values())), {}
    histogram = np.zeros(257, int)
    for i in range(len(numbers) - 1):
        found = np.bitwise_count(numbers[i + 1:] ^ numbers[i]).sum(1)
        histogram += np.bincount(found, minlength=257)
        for j in np.flatnonzero(found <= HELD_OUT_BITS + 16):
            near[paths[i], paths[i + 1 + j]] = int(found[j])
    print(f"{histogram.sum():,} pairs of {len(prints):,} pictures: "
          + ", ".join(f"{histogram[:most + 1].sum():,} within {most}" for most in
                      (MERGED_BITS, 32, HELD_OUT_BITS, 64, 80)) + " bits")
    for (one, other), count in sorted(near.items(), key=lambda item: item[1])[:12]:
        print(f"    {count:3d}  {Path(one).name}  {Path(other).name}")


def differing(one, other):
    return int(np.bitwise_count(as_numbers([one]) ^ as_numbers([other])).sum())


if __name__ == "__main__":
    main()
