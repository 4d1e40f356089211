"""What `python chat.py` is told."""
import argparse
from pathlib import Path

from formats.pictures.bands import parse_bands

DTYPES = ("fp32", "bf16", "fp16")


def parse_args(argv: list[str] | None, description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add, switch = parser.add_argument, argparse.BooleanOptionalAction
    add("images", nargs="*", help="one picture or several, two dates of a place, clips; "
        "FOLDER is a clip, 'FOLDER/*.png' are its pictures")
    add("--model", default="weights/nano", help="folder (default %(default)s)")
    add("--prompt", action="append", help="ask this, print the answer and leave; may be given "
        "several times for several turns")
    add("--save", type=Path, help="at the end write the last answer's boxes on the picture, or "
        "as .json the conversation")
    add("--free", action="store_true", help="do not keep boxes well-formed")
    add("--json", action="store_true", help="an object a line: question, answer, boxes in pixels")
    add("--auto_task", "--auto-task", action=switch, help="a plain request takes its task: "
        "'where is ..' [refer], 'find all ..' [detection] (default: on in a terminal)")
    add("--preview", action=switch, help="pictures as half blocks in the terminal (default: on "
        "where it has 24-bit color)")
    add("--bands", type=parse_bands, default=(), metavar="R,G,B",
        help="which are shown of a picture with more than three, from 1")
    add("--frames", type=whole(1), default=8, help="of a clip (default %(default)s)")
    add("--max_new_tokens", "--max-new-tokens", type=whole(1), default=300)
    add("--temperature", type=part(1e9), help="0: always the likeliest, as by default where a "
        "[task] is named; else 0.6")
    add("--top_p", "--top-p", type=part(1), default=0.9)
    add("--top_k", "--top-k", type=whole(0), default=50, help="0: all")
    add("--repetition_penalty", "--repetition-penalty", type=part(1e9),
        help="default 1 where a [task] is named, else 1.05")
    add("--seed", type=int, default=42)
    add("--device", default="auto", help="cpu, cuda, cuda:1, .. (default: cuda where there is one)")
    add("--dtype", choices=DTYPES, default="fp32")
    add("--bits", type=int, choices=(16, 8, 4), default=16, help="of the language model's weights "
        "(default %(default)s: --dtype)")
    add("--compile", action="store_true", help="torch.compile the step from word to word, for a "
        "GPU: a minute's wait; a CPU is faster without")
    return parser.parse_args(argv)


def whole(least: int):
    def number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"{text}: at least {least}")
        return int(text)
    return number


def part(most: float):
    def number(text: str) -> float:
        if not 0 <= float(text) <= most:
            raise argparse.ArgumentTypeError(f"{text}: from 0 to {most:g}")
        return float(text)
    return number
