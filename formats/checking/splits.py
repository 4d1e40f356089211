"""The splits that a data set has, and a sheet of samples from one."""
import argparse
import random
from collections.abc import Callable, Sequence

from formats.checking.sheet import sheet


def read_splits(args: argparse.Namespace, collect: Callable, error: type[Exception]) -> dict:
    """Those that are there; data without splits are one."""
    splits = {}
    for split in args.splits:
        try:
            single, talks, bad = collect(args.check or args.show, split, args.format)
        except error as problem:
            if not isinstance(problem.__cause__, FileNotFoundError):
                raise
            continue
        single.join(talks)
        if (single or bad) and all(single.block != old.block for old, _ in splits.values()):
            splits[split] = single, bad
    if not splits:
        raise error(f"{args.check or args.show}: no samples in {', '.join(args.splits)}")
    return splits


def draw(args: argparse.Namespace, samples: Sequence, show: Callable) -> int:
    rng = random.Random(args.seed)
    chosen = sorted(rng.sample(range(len(samples)), min(args.n, len(samples))))
    sheet([show(samples[i], rng) for i in chosen]).save(args.out)
    print(f"{args.out}: {len(chosen)} of {len(samples):,} samples")
    return 0
