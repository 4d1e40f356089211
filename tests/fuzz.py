"""Damaged files for every reader: none may end in anything but the one line of a UserError.

    python tests/fuzz.py --count 100000                 for a night
    python tests/fuzz.py --reader tiles.tif             one reader alone
    python tests/fuzz.py --only 4711                    one mutation again, with its traceback

Mutation N of a seed is always the same. Each is read in a process that is watched: a fault is an
uncaught error, an error of more than one line, more than SECONDS of computing (a large picture has
more), more than MEMORY on top of what the process has, an end of the process, and a read that never
ends. The files of each fault are kept in --out, under the reader's name, the seed and the number.
"""
import argparse
import json
import os
import random
import re
import resource
import select
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from fuzz_inputs import Target, all_targets, check_message  # noqa: E402
from fuzz_mutations import mutate  # noqa: E402
from support.common import UserError  # noqa: E402

SECONDS = 2.0                   # of computing, so that other processes do not count
PIXELS_A_SECOND = 50_000_000    # a picture of 500 million pixels may be read, and takes longer
MEMORY = 2_500_000_000          # bytes; a picture may take 2 GB to decode
HANG = 60.0                     # seconds after which a process that says nothing is ended


# ---- one mutation --------------------------------------------------------------------------------

def write_files(folder: Path, files: dict[str, bytes]) -> None:
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)


def damaged_files(target: Target, seed: int, number: int) -> tuple[dict[str, bytes], str]:
    """The target's files, one of them damaged, and which."""
    rng = random.Random(f"{seed}/{number}")
    name = rng.choice(sorted(target.kinds))
    content = mutate(rng, target.files[name], target.kinds[name])
    return target.files | {name: content}, name


def fault_of(target: Target, folder: Path) -> str:
    """What is wrong with how these files are read; "" if nothing is."""
    def seconds() -> float:
        return SECONDS + target.pixels(folder) / PIXELS_A_SECOND

    faults = (fault_of_step(step, folder, seconds) for step in target.steps)
    return next(filter(None, faults), "")


def fault_of_step(step: Callable[[Path], object], folder: Path, most: Callable[[], float]) -> str:
    """most: how many seconds it may take."""
    before, start = peak_memory(), time.process_time()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            step(folder)
    except UserError as error:
        try:
            check_message(error)
        except (AssertionError, UnicodeEncodeError) as wrong:
            return f"{type(error).__name__}: {wrong}"
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [f"{Path(f.filename).name}:{f.lineno}" for f in frames if str(ROOT) in f.filename]
        return (f"{type(error).__name__}: {str(error)[:300]!r} at {' '.join(own[-3:])} "
                f"in {Path(frames[-1].filename).name}:{frames[-1].lineno}")
    seconds, memory = time.process_time() - start, peak_memory() - before
    if seconds > SECONDS and seconds > most():
        return f"{seconds:.1f} seconds"
    if memory > MEMORY:
        return f"{memory / 1e9:.1f} GB"
    return ""


def peak_memory() -> int:
    """Bytes, of the process so far: a rise over MEMORY is of the last mutation."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# ---- the process that reads ----------------------------------------------------------------------

def work(seed: int, first: int, last: int, reader: str) -> None:
    """Mutations first .. last - 1; a line of JSON before and after each."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)                               # what readers print is no answer of this process
    targets = all_targets()
    with tempfile.TemporaryDirectory() as place:
        for number in range(first, last):
            target = targets[number % len(targets)]
            if reader not in ("", target.name):
                continue
            folder = Path(place, "f")
            print(json.dumps([number, target.name, None]), file=out)
            write_files(folder, damaged_files(target, seed, number)[0])
            fault = fault_of(target, folder)
            print(json.dumps([number, target.name, fault]), file=out)
            shutil.rmtree(folder)
            if fault.endswith("GB"):            # its peak would hide the next one's
                os._exit(3)


def watch(seed: int, first: int, last: int, reader: str) -> Iterator[tuple[int, str, str]]:
    """-> number, reader and fault of each mutation; a process that ends or hangs is replaced."""
    while first < last:
        command = [sys.executable, __file__, "--worker", *map(str, (seed, first, last)), reader]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                                   env=os.environ | {"OMP_NUM_THREADS": "1"})
        running = None
        for row in answers(process):
            number, name, fault = row
            running = None if fault is not None else (number, name)
            first = number + (fault is not None)
            if fault is not None:
                yield number, name, fault
        code = process.wait()
        if running:
            yield *running, f"the process ended ({code}), or nothing for {HANG:.0f} s"
            first = running[0] + 1
        elif code == 0:
            return
        elif code != 3:
            raise SystemExit(f"the process that reads ended with {code} between two mutations")


def answers(process: subprocess.Popen) -> Iterator[list]:
    """Until its output ends, or nothing has come for HANG seconds: then it is ended."""
    rest = b""
    while select.select([process.stdout], [], [], HANG)[0]:
        block = os.read(process.stdout.fileno(), 1 << 16)
        if not block:
            return
        *lines, rest = (rest + block).split(b"\n")
        yield from map(json.loads, lines)
    process.kill()


# ---- the command ---------------------------------------------------------------------------------

def run(count: int, seed: int = 42, reader: str = "", out: Path | None = None, first: int = 0
        ) -> tuple[int, list[str]]:
    """-> how many mutations were read, and a line for each fault. out: where its files are kept."""
    targets = all_targets()
    step = len(targets) if reader else 1        # so that `count` of one reader are read
    read, faults = 0, []
    for number, name, fault in watch(seed, first, first + count * step, reader):
        read += 1
        if fault:
            line = f"{name}-{seed}-{number}: {fault}"
            if out:
                files, damaged = damaged_files(targets[number % len(targets)], seed, number)
                write_files(out / f"{name}-{seed}-{number}", files)
                line = f"{name}-{seed}-{number} ({damaged}): {fault}"
            faults.append(line)
            print(line, flush=True)
        if read % 10_000 == 0:
            print(f"{read:,} read, {len(faults)} faults", file=sys.stderr, flush=True)
    return read, faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=5000, help="how many mutations")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--first", type=int, default=0, help="number of the first mutation")
    parser.add_argument("--reader", default="", help="only this reader")
    parser.add_argument("--only", type=int, help="only the mutation of this number")
    parser.add_argument("--out", type=Path, default=Path("out/fuzz"), help="for faulty files")
    args = parser.parse_args()
    if args.reader:
        names = [target.name for target in all_targets()]
        if args.reader not in names:
            parser.error(f"--reader {args.reader}: there are {', '.join(names)}")
    if args.only is not None:
        return read_one(args.seed, args.only, args.out)
    read, faults = run(args.count, args.seed, args.reader, args.out, args.first)
    kinds = Counter(re.sub(r"\d+", "0", line.partition(": ")[2])[:100] for line in faults)
    print(f"{read:,} mutations, {len(faults)} faults"
          + "".join(f"\n{number:6} {kind}" for kind, number in kinds.most_common()))
    return 1 if faults else 0


def read_one(seed: int, number: int, out: Path) -> int:
    """One mutation in this process, its files kept."""
    targets = all_targets()
    target = targets[number % len(targets)]
    files, damaged = damaged_files(target, seed, number)
    folder = out / f"{target.name}-{seed}-{number}"
    write_files(folder, files)
    print(f"{folder}: {damaged}, {len(files[damaged]):,} bytes")
    for step in target.steps:
        start = time.process_time()
        try:
            step(folder)
            print("read", end="")
        except UserError as error:
            print(error, end="")
        print(f"; {time.process_time() - start:.2f} s, {peak_memory() / 1e9:.2f} GB in all")
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(*map(int, sys.argv[2:5]), sys.argv[5])
    else:
        sys.exit(main())
