"""The flags of `python data.py`, and what they do."""
import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from formats import skyeye
from formats.checking.check import check
from formats.checking.splits import draw, read_splits


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False, description="Look at a data set before a "
                                     "training does: --check tells what is wrong, --show draws.")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--check", type=Path, metavar="DATA", help="exit code 1: something is wrong")
    which.add_argument("--show", type=Path, metavar="DATA", help="samples, with boxes, on a sheet")
    parser.add_argument("--format", default="", help="layout of DATA (default: seen)")
    parser.add_argument("--splits", nargs="+", default=["train", "val", "test"])
    parser.add_argument("--tokenizer", type=Path, default=Path("weights/nano/tokenizer.model"))
    parser.add_argument("--prompt", default="skyeye", help="style (default %(default)s)")
    parser.add_argument("--visual_tokens", "--visual-tokens", type=int, default=16,
                        help="of a picture; 256 at full size (default %(default)s)")
    parser.add_argument("--max_tokens", "--max-tokens", type=int, default=1024)
    parser.add_argument("--json", type=Path, help="with --check: the report as JSON")
    parser.add_argument("-n", type=int, default=12, help="with --show: samples")
    parser.add_argument("--seed", type=int, default=42, help="with --show: which samples")
    parser.add_argument("--out", type=Path, default=Path("sheet.png"), help="with --show: sheet")
    return parser.parse_args(argv)


def main(collect: Callable, tokenizer: Callable, counter: Callable, show: Callable,
         error: type[Exception]) -> int:
    """-> the exit code: 0 fine, 1 something is wrong with the data, 2 with the command."""
    args = parse_args()
    try:
        splits = read_splits(args, collect, error)
        if args.show:
            return draw(args, next(iter(splits.values()))[0], show)
        count = partial(counter, tokenizer(args.tokenizer), args.visual_tokens, args.prompt)
        report = check(splits, count, args.max_tokens, args.visual_tokens)
    except (error, OSError) as problem:
        print(f"data.py: {problem}", file=sys.stderr)
        return 2
    for line in skyeye.matched(args.check) if skyeye.matches(args.check) else ():
        print(line)
    print(report.text())
    if args.json:
        args.json.write_text(report.json() + "\n", encoding="utf-8")
    return int(report.faults() > 0)
