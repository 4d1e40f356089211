"""How long `data.py --build` takes, and how much memory.

    python tests/bench_build.py [--pictures 2000 10000] [--side 256] [--objects 8] [--workers 2]

For each number of pictures a data set in YOLO's layout is made, random smooth JPEGs with random
boxes of twelve classes, and built from with all that there is: descriptions, a conversation for
each fourth picture. The time of the processors is what it would take on one core that does nothing
else; the memory is the largest of this process and of each of its workers.
"""
import argparse
import contextlib
import io
import json
import os
import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from support.building.build import main as build  # noqa: E402

CLASSES = ("ship", "harbor", "bridge", "airplane", "storage tank", "car", "truck", "tennis court",
           "baseball field", "swimming pool", "roundabout", "helicopter")


def make_data(folder: Path, pictures: int, side: int, objects: int) -> None:
    for name in ("images/train", "labels/train"):
        (folder / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(pictures):
        small = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
        small.resize((side, side), Image.Resampling.BICUBIC).save(
            folder / f"images/train/{i}.jpg", quality=80)
        kinds = rng.choice(len(CLASSES), 3, replace=False)
        lines = [f"{rng.choice(kinds)} {x:.4f} {y:.4f} {w:.4f} {h:.4f}"
                 for x, y, w, h in zip(*rng.uniform(.1, .9, (2, objects)),
                                       *rng.uniform(.02, .15, (2, objects)), strict=True)]
        (folder / f"labels/train/{i}.txt").write_text("\n".join(lines) + "\n")
    (folder / "data.yaml").write_text(f"names: {list(CLASSES)}\n")


def processor_seconds() -> float:
    """Of this process and of those that it has started and that have ended."""
    return sum(usage.ru_utime + usage.ru_stime for usage in map(
        resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))


def measure(pictures: int, args: argparse.Namespace) -> str:
    """In a process of its own, so that its memory is its own: a line of the table."""
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        data, out = Path(folder) / "data", Path(folder) / "out"
        make_data(data, pictures, args.side, args.objects)
        started, used = time.perf_counter(), processor_seconds()
        with contextlib.redirect_stdout(io.StringIO()):
            code = build(["--build", str(out), "--data", str(data), "--describe",
                          "--workers", str(args.workers)])
        seconds, used = time.perf_counter() - started, processor_seconds() - used
        assert code == 0
        samples = sum(map(Counter.total, map(Counter, json.loads(
            (out / "manifest.json").read_text())["samples"].values())))
    own, of_children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF,
                                                            resource.RUSAGE_CHILDREN))
    return (f"| {pictures:,} | {samples:,} | {seconds:.0f} s | {used:.0f} s | "
            f"{100_000 * used / samples:.0f} s | {own.ru_maxrss / 1024:.0f} MB | "
            f"{of_children.ru_maxrss / 1024:.0f} MB |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, nargs="+", default=[2000, 10_000])
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--objects", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", help="where the data are made; default: the system's")
    args = parser.parse_args()
    print("| pictures | samples | time | of the processors | of 100,000 | memory | of a worker |\n"
          "|---|---|---|---|---|---|---|", flush=True)
    for pictures in args.pictures:
        child = os.fork()
        if not child:
            print(measure(pictures, args), flush=True)
            os._exit(0)
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
